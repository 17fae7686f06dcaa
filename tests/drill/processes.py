"""The processes of a drill, each of which can be killed, stopped, starved of disk, and started again."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from reportsvc.storage.embedded import SETTINGS, EmbeddedRedis, redis_directory, redis_program

REPOSITORY: Final = Path(__file__).resolve().parents[2]
START_SECONDS: Final = 90.0


def limit_files(pid: int, *, full: bool) -> None:
    """Make every write of a running process to a file fail, as on a full disk; or let it write again.

    A limit on the size of files needs neither root nor a file system of one's own. The kernel answers EFBIG in place of
    ENOSPC; what the program sees is the same: a write that it needs fails until somebody makes room.
    """
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0 if full else hard, hard))


class RedisServer:
    """A redis-server of our own, as one would run it in production: ``appendfsync always``."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self.socket = directory / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.client = Redis(unix_socket_path=str(self.socket))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start it, and return when it has loaded its data."""
        settings = {**SETTINGS, "appendfsync": "always", "dir": str(self.directory), "unixsocket": str(self.socket),
                    "logfile": str(self.directory / "redis.log")}
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        # restore_signals=False leaves SIGXFSZ ignored, as Python has it: see limit_files.
        self._process = subprocess.Popen([redis_program(), *options], restore_signals=False, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while not await self._answers():
            assert self.is_running and time.monotonic() < deadline, f"no Redis; see {self.directory}/redis.log"
            await asyncio.sleep(0.05)

    async def _answers(self) -> bool:
        try:
            return bool(await self.client.ping())
        except RedisError:
            return False

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; after SIGKILL it is gone."""
        if self.is_running:
            os.kill(self.pid, number)
            if number == signal.SIGKILL:
                assert self._process is not None
                self._process.wait()

    async def stop(self) -> None:
        """End it."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        await self.client.aclose()


class Service:
    """``reportsvc serve`` in a process of its own, on a clock that jumps."""

    def __init__(self, name: str, directory: Path, settings: Mapping[str, str]) -> None:
        directory.mkdir(parents=True)
        self.name = name
        self.directory = directory
        self.data_dir = directory / "data"
        self.url = ""
        self._clock = directory / "clock"
        self._log = directory / "log"
        self.environment = {"PATH": os.environ["PATH"], "REPORTSVC_DATA_DIR": str(self.data_dir), "REPORTSVC_PORT": "0",
                            "REPORTSVC_RATE_LIMIT": "0",
                            **{f"REPORTSVC_{name}": value for name, value in settings.items()}}
        self._process: asyncio.subprocess.Process | None = None
        self.jump(0)

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def jump(self, seconds: int) -> None:
        """Set its clock so many seconds ahead of ours."""
        self._clock.write_text(str(seconds))

    async def start(self) -> None:
        """Start it, and return when it takes requests."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.drill.clock", str(self._clock), cwd=REPOSITORY, env=self.environment,
                stdout=asyncio.subprocess.PIPE, stderr=log)
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), START_SECONDS)
        assert line.startswith(b"reportsvc is ready on "), f"the service did not start; see {self._log}"
        self.url = line.decode().split()[-1]

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait, and tell the exit status."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            os.kill(self._process.pid, number)
        self.url = ""
        return await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Stop it (SIGSTOP) or let it go on (SIGCONT)."""
        os.kill(self.pid, number)

    async def command(self, *arguments: str) -> tuple[int, str, str]:
        """Run another command of the service with its settings: status, output, errors."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "reportsvc", *arguments, cwd=REPOSITORY, env=self.environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        output, errors = await process.communicate()
        return process.returncode or 0, output.decode(), errors.decode()

    async def create_app(self, name: str, timezone: str) -> dict[str, Any]:
        """A new app's credentials."""
        status, output, errors = await self.command("apps", "create", name, "--timezone", timezone, "--json")
        assert status == 0, errors
        document: dict[str, Any] = orjson.loads(output)
        return document

    def redis_pid(self) -> int:
        """The process of the embedded Redis; 0 if there is none, as the kernel's lock on its directory tells."""
        directory = redis_directory(self.data_dir)
        if not directory.exists() or EmbeddedRedis(directory, "everysec")._is_gone():
            return 0
        return int((directory / "server.lock").read_text())
