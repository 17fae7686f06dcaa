"""Runs ``reportsvc`` as people run it: as a program of its own, with settings from its environment."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from tests.support.service import eventually

ROOT: Final = Path(__file__).parent.parent.parent
#: Importing the engine takes some seconds on a busy machine.
START_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    output: str
    errors: str

    @property
    def json(self) -> Any:
        """The output as JSON."""
        return orjson.loads(self.output)


def environment(**settings: object) -> dict[str, str]:
    """An environment with nothing but these settings: ``data_dir=…`` is ``REPORTSVC_DATA_DIR``."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    given = {f"REPORTSVC_{name.upper()}": str(value) for name, value in settings.items()}
    return kept | {"PYTHONPATH": str(ROOT)} | given


async def reportsvc(*arguments: str, **settings: object) -> Done:
    """Run one command to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "reportsvc", *arguments, env=environment(**settings),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    output, errors = await process.communicate()
    return Done(process.returncode or 0, output.decode(), errors.decode())


@dataclass
class Serving:
    """A running ``reportsvc serve``."""

    process: asyncio.subprocess.Process
    directory: Path
    url: str = ""
    status: int | None = None

    @property
    def greeting(self) -> str:
        """What it has printed."""
        return (self.directory / "output").read_text()

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.directory / "log").read_text()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal; its exit status."""
        self.process.send_signal(number)
        return await self.process.wait()


@asynccontextmanager
async def serving(directory: Path, *arguments: str, **settings: object) -> AsyncIterator[Serving]:
    """Run ``serve`` on a free port, with its stores in *directory*, until the block ends."""
    directory.mkdir(exist_ok=True)
    settings = {"data_dir": directory / "data", "port": 0, "linger_ms": 10} | settings
    with (directory / "output").open("wb") as output, (directory / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "reportsvc", "serve", *arguments, env=environment(**settings),
            stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=log)
    service = Serving(process, directory)

    async def is_ready() -> bool:
        assert process.returncode is None, service.log
        found = re.match(r"reportsvc is ready on (http://\S+)\n", service.greeting)
        service.url = found[1] if found else ""
        return bool(found)

    try:
        await eventually(is_ready, START_SECONDS)
        yield service
    finally:
        if process.returncode is None:
            await service.stop()
