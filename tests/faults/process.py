"""The real service in a process of its own, as ``reportsvc serve`` starts it, to be killed and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from aiohttp import ClientSession, ClientTimeout, encode_basic_auth

from reportsvc.pipeline.ledger import read
from reportsvc.storage.embedded import EmbeddedRedis, redis_directory
from reportsvc.storage.redis import Redis
from tests.support.service import Answer

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class ServiceProcess:
    """A service on *data_dir*; the port changes with every start, the data and the apps do not."""

    data_dir: Path
    session: ClientSession
    redis: Redis
    settings: dict[str, str] = field(default_factory=dict)
    url: str = ""
    process: Process | None = None
    auth: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """Nothing but what the service is to know."""
        return {"PATH": os.environ["PATH"], "REPORTSVC_DATA_DIR": str(self.data_dir), "REPORTSVC_PORT": "0",
                "REPORTSVC_LINGER_MS": "10", **self.settings}

    async def start(self) -> None:
        """Start it, and return when it takes requests; on its first start it makes an app, which is ours."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "reportsvc", "serve", cwd=REPOSITORY, env=self.environment, stdout=PIPE)
        assert self.process.stdout is not None
        line = (await asyncio.wait_for(self.process.stdout.readline(), 60)).decode()
        assert line.startswith("reportsvc is ready on "), f"the service ended with status {await self.process.wait()}"
        self.url = line.split()[-1]
        if not self.auth:
            secrets: dict[str, str] = {}
            while "beams_secret_key" not in secrets:
                name, _, value = (await self.process.stdout.readline()).decode().strip().partition(" ")
                secrets[name] = value.strip()
            self.auth = encode_basic_auth(secrets["app_key"], secrets["master_secret"])

    async def end(self, number: signal.Signals) -> int:
        """Send a signal, and wait; the exit status."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        return (await self.process.communicate(), self.process.returncode or 0)[1]

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        """One request with our credentials."""
        options["headers"] = {"Authorization": self.auth} | options.get("headers", {})
        async with self.session.request(method, self.url + path, **options) as response:
            return Answer(response.status, dict(response.headers), await response.read())

    async def command(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command of the service beside it: status, output, errors."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "reportsvc", *arguments, cwd=REPOSITORY, env=self.environment, stdout=PIPE,
            stderr=PIPE)
        output, errors = await process.communicate()
        return process.returncode or 0, output.decode(), errors.decode()

    async def ledger(self) -> dict[str, int]:
        """What ``reportsvc ledger`` says; it needs no service."""
        status, output, _ = await self.command("ledger", "--json")
        assert status == 0
        counts: dict[str, int] = orjson.loads(output)
        return counts

    async def is_settled(self) -> bool:
        """Whether the running service has applied or buried everything accepted; cheaper to ask than the command."""
        counts = await read(self.redis, 1)
        return counts["accepted"] == counts["applied"] + counts["dead"]

    def redis_pid(self) -> int:
        """The process of the embedded Redis; 0 when there is none, as the kernel's lock on its directory tells."""
        directory = redis_directory(self.data_dir)
        if not directory.exists() or EmbeddedRedis(directory, "everysec")._is_gone():
            return 0
        return int((directory / "server.lock").read_text())


@asynccontextmanager
async def service_process(data_dir: Path, **settings: str) -> AsyncIterator[ServiceProcess]:
    """A service that was never started; at the end neither it nor a Redis of its own is left."""
    # Each request has a connection of its own, as those of the killed service are no good.
    async with ClientSession(timeout=ClientTimeout(total=30), headers={"Connection": "close"}) as session:
        redis = Redis(EmbeddedRedis(redis_directory(data_dir), "everysec").url)
        service = ServiceProcess(
            data_dir, session, redis, {f"REPORTSVC_{name}": value for name, value in settings.items()})
        try:
            yield service
        finally:
            await redis.close()
            if service.process is not None:
                await service.end(signal.SIGKILL)
            if pid := service.redis_pid():
                os.kill(pid, signal.SIGKILL)
