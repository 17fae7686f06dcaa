"""``reportsvc demo``: an app with weeks behind it, for whoever wants to see what the service shows.

Everything goes in over HTTP, as from outside: into the service that answers on the configured port, or into one
that is started here and goes on serving.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout

from reportsvc.commands.client import Access, Client
from reportsvc.commands.demo_data import Demo, Size
from reportsvc.commands.progress import Meter, progress
from reportsvc.commands.stores import create_app, redis_of
from reportsvc.config import Config
from reportsvc.errors import BadConfig
from reportsvc.pipeline import ledger
from reportsvc.registry.apps import AppStore, Credentials
from reportsvc.storage.embedded import DataDirLock
from reportsvc.storage.redis import Redis

DEFAULT_NAME: Final = "demo"
_BATCH: Final = 5000
#: Requests on their way at one time: while one is parsed, the next arrives.
_SENDERS: Final = 4
_LOOK_SECONDS: Final = 2.0
#: Until everything that was sent is in every report.
_SETTLE_SECONDS: Final = 300.0


async def run(options: argparse.Namespace, config: Config) -> None:
    """Fill a running service, or start one, fill it and let it serve."""
    url = f"http://{_reachable(config.host)}:{config.port}"
    if config.port and await _answers(url):
        await _fill(options, config, url)
        return
    await _serve(options, config)


async def _serve(options: argparse.Namespace, config: Config) -> None:
    from reportsvc import logs
    from reportsvc.app import make_app
    from reportsvc.server import serve

    logs.configure("warning" if config.log_level == "info" else config.log_level)
    failures: list[BaseException] = []
    tasks: list[asyncio.Task[None]] = []

    async def fill(url: str) -> None:
        try:
            await _fill(options, config, url)
        except BaseException as error:
            failures.append(error)
        if failures or options.once:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            print(f"\nServing on {url} until Ctrl-C.", flush=True)

    async def start(url: str) -> None:
        tasks.append(asyncio.create_task(fill(url), name="demo"))

    with DataDirLock(config.data_dir):
        await serve(make_app(config), config, start)
    for task in tasks:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if failures and not isinstance(failures[0], asyncio.CancelledError):
        raise failures[0]


async def _fill(options: argparse.Namespace, config: Config, url: str) -> None:
    async with redis_of(config) as redis:
        credentials = await _make_app(redis, options.app, options.timezone)
        access = Access(url, credentials.app.app_key, credentials.master_secret)
        demo = Demo(Size(options.days, options.devices, options.pushes), options.seed, int(time.time()))
        await asyncio.sleep(1)  # every process has looked for new apps by then
        counts = await _send(access, demo)
        await _settled(redis, config.partitions)
    print(_farewell(url, credentials, counts), flush=True)


async def _make_app(redis: Redis, name: str | None, timezone: str) -> Credentials:
    """The app to fill: of that name, or of the first one that is free."""
    taken = {app.name for app in await AppStore(redis).all()}
    names = (f"{DEFAULT_NAME}-{number}" for number in itertools.count(2))
    chosen = name or next(one for one in itertools.chain([DEFAULT_NAME], names) if one not in taken)
    return await create_app(redis, chosen, timezone)


async def _send(access: Access, demo: Demo) -> dict[str, int]:
    pushes, devices = demo.pushes(), list(demo.devices())
    with progress("making a demo", "events", None) as meter:
        async with Client(access, lambda reason: meter.update(0, 0, reason)) as client:
            await _post(client, "/v1/devices", _batches(devices))
            for push in pushes:
                reply = await client.call("POST", "/v1/pushes", body=orjson.dumps(push))
                if reply.status not in (200, 201):
                    raise BadConfig(f"the service did not take a push: {reply.json}")
            events = await _post(client, "/v1/events", _batches(demo.events()), meter)
    return {"devices": len(devices), "pushes": len(pushes), "events": events}


async def _post(client: Client, path: str, batches: Iterator[bytes], meter: Meter | None = None) -> int:
    """Send *batches*, a few at a time; how many items were accepted."""
    accepted = 0

    async def send() -> None:
        nonlocal accepted
        for body in batches:
            reply = await client.call("POST", path, body=body, content_type="application/x-ndjson")
            if reply.status != 200 or reply.json["rejected"]:
                raise BadConfig(f"the service did not take everything: {reply.json}")
            accepted += reply.json["accepted"]
            if meter is not None:
                meter.update(0, accepted)
    async with asyncio.TaskGroup() as group:
        for _ in range(_SENDERS):
            group.create_task(send())
    return accepted


def _batches(items: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """Bodies of lines."""
    iterator = iter(items)
    while lines := list(map(orjson.dumps, itertools.islice(iterator, _BATCH))):
        yield b"\n".join(lines)


async def _settled(redis: Redis, partitions: int) -> None:
    """Wait until every report has everything."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < deadline:
        counts = await ledger.read(redis, partitions)
        if counts["accepted"] <= counts["applied"] + counts["dead"]:
            return
        await asyncio.sleep(0.1)


async def _answers(url: str) -> bool:
    """Whether a service is there; something else on its port is told by the start that follows."""
    try:
        async with ClientSession(timeout=ClientTimeout(total=_LOOK_SECONDS)) as session:
            async with session.get(f"{url}/healthz") as response:
                return response.status == 200 and (await response.json(content_type=None)).get("status") == "ok"
    except (ClientError, OSError, TimeoutError, ValueError, AttributeError):
        return False


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host


def _farewell(url: str, credentials: Credentials, counts: dict[str, int]) -> str:
    key, secret = credentials.app.app_key, credentials.master_secret
    made = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    return f"""
The app {credentials.app.name!r} has {made}.

Open {url}/ and sign in. These are not shown again:
  app_key        {key}
  master_secret  {secret}

Or ask:
curl -u {key}:{secret} '{url}/v1/messages?limit=3'"""
