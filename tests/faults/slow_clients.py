"""Clients that stop half-way, in every way there is, and good ones beside them.

``python -m tests.faults.slow_clients [--clients N] [--json FILE]`` starts the service as people start it and lets 2000
of them hang on it at once. It prints how long each way lasted at most and the p99 of the good clients before and during
that, and fails if one lasted over 30 s or a good client was refused.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aiohttp import ClientSession, TCPConnector, encode_basic_auth

from reportsvc.server import raise_file_limit
from tests.cli.program import serving

#: What every one of them has to be gone within.
LIMIT_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Way:
    """One way of not finishing: what is sent at once, and what then comes byte by byte, if anything."""

    name: str
    start: bytes
    trickle: bytes = b""
    #: Seconds between two bytes.
    pace: float = 1.0


def ways(auth: str, instance_id: str, pace: float = 1.0) -> list[Way]:
    """Every way, by a caller who may send events and report to an instance."""
    head = f"Host: x\r\nAuthorization: {auth}\r\nContent-Type: application/json\r\n".encode()
    native = b"POST /v1/events HTTP/1.1\r\n" + head + b"Content-Length: 1000\r\n\r\n"
    status = b"POST /v3/status/message HTTP/1.1\r\n" + head + b"Content-Length: 1000\r\n\r\n"
    beams = f"POST /reporting_api/v2/instances/{instance_id}/events HTTP/1.1\r\n".encode() + head
    return [
        Way("nothing", b""),
        Way("half a line", b"GET /v3/rec"),
        Way("half a head", b"GET /v3/received?msg_ids=1 HTTP/1.1\r\nHost: x\r\nAuthor"),
        Way("a head byte by byte", b"GET /v3/received?msg_ids=1 HTTP/1.1\r\nX-", b"slow" * 1000, pace),
        Way("half a body", native + b'[{"msg_id":'),
        Way("no body", status),
        Way("a body byte by byte", native, b" " * 1000, pace),
        Way("half a chunk", beams + b"Transfer-Encoding: chunked\r\n\r\n80\r\n{"),
        Way("a body that nobody reads",
            b"GET /v3/received?msg_ids=1 HTTP/1.1\r\n" + head + b"Content-Length: 9\r\n\r\n"),
        Way("a body without a key", b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n["),
        Way("a body on request", beams + b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n"),
        Way("nothing more", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"),
        Way("half of the next", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /v3/rec"),
    ]


@dataclass(frozen=True)
class Ended:
    """How a connection ended: after how long, and what was answered until then."""

    way: str
    seconds: float
    answer: bytes


async def hang(url: str, way: Way) -> Ended:
    """Connect, send what the way is, and wait until the service ends it."""
    host, _, port = url.removeprefix("http://").partition(":")
    began = time.monotonic()
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = b""
    trickling = asyncio.create_task(_trickle(writer, way))
    with contextlib.suppress(ConnectionError):
        answer = await _read_all(reader)
    trickling.cancel()
    await asyncio.gather(trickling, return_exceptions=True)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return Ended(way.name, time.monotonic() - began, answer)


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionError):
        while more := await reader.read(4096):
            answer += more
    return answer


async def _trickle(writer: asyncio.StreamWriter, way: Way) -> None:
    with contextlib.suppress(ConnectionError):
        writer.write(way.start)
        for byte in way.trickle:
            await asyncio.sleep(way.pace)
            writer.write(bytes([byte]))


@dataclass
class Good:
    """Clients that do as they should: how long each request took, and how often each status was answered."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def p50(self) -> float:
        """Seconds within which half were answered."""
        return statistics.median(self.seconds)

    @property
    def p99(self) -> float:
        """Seconds within which 99 of 100 were answered."""
        return statistics.quantiles(self.seconds, n=100)[98]


async def behave(url: str, auth: str, instance_id: str, stop: asyncio.Event, clients: int = 8,
                 pause: float = 0.02) -> Good:
    """Send events and ask for reports, *clients* at a time, until *stop*."""
    good = Good()
    numbers = itertools.count()

    async def client(session: ClientSession) -> None:
        while not stop.is_set():
            for method, path, body in _good_requests(next(numbers), instance_id):
                began = time.perf_counter()
                async with session.request(method, url + path, json=body, headers={"Authorization": auth}) as answer:
                    await answer.read()
                good.seconds.append(time.perf_counter() - began)
                good.statuses[answer.status] += 1
                await asyncio.sleep(pause)

    async with ClientSession(connector=TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return good


def _good_requests(number: int, instance_id: str) -> Iterator[tuple[str, str, Any]]:
    event = {"publishId": "m", "event": "delivery", "deviceId": f"fcm-{number}", "timestampSecs": int(time.time())}
    yield "POST", "/v1/events", {"msg_id": "m", "stage": "received", "device_id": f"a{number}", "platform": "android"}
    yield "POST", f"/reporting_api/v2/instances/{instance_id}/events", event
    yield "GET", "/v3/received?msg_ids=m", None


# ------------------------------------------------------------------------------------------------------------ the drill
async def drill(count: int, seconds: float) -> tuple[Good, Good, list[Ended]]:
    """Good clients alone for *seconds*, then beside *count* that hang; those, and how each of the latter ended."""
    with tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp") as directory:
        async with serving(Path(directory), rate_limit=0) as service:
            words = dict(line.split()[:2] for line in service.greeting.splitlines() if line.startswith("  "))
            auth, instance_id = encode_basic_auth(words["app_key"], words["master_secret"]), words["beams_instance_id"]
            await _alone(service.url, auth, instance_id, 2.0)  # the first requests load what later ones use
            before = await _alone(service.url, auth, instance_id, seconds)
            stop = asyncio.Event()
            during = asyncio.create_task(behave(service.url, auth, instance_id, stop))
            every = itertools.islice(itertools.cycle(ways(auth, instance_id)), count)
            ended = await asyncio.gather(*(hang(service.url, way) for way in every))
            stop.set()
            return before, await during, ended


async def _alone(url: str, auth: str, instance_id: str, seconds: float) -> Good:
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, stop.set)
    return await behave(url, auth, instance_id, stop)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the drill; 1 if it failed."""
    parser = argparse.ArgumentParser(description="Slow and stuck clients.")
    parser.add_argument("--clients", type=int, default=2000, help="how many hang at once (2000)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long good clients are measured before (10)")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args(arguments)
    raise_file_limit()
    before, during, ended = asyncio.run(drill(options.clients, options.seconds))
    longest = {name: max(one.seconds for one in ended if one.way == name) for name in {one.way for one in ended}}
    for name, seconds in sorted(longest.items(), key=lambda item: item[1]):
        print(f"{sum(one.way == name for one in ended):5} × {name:25} gone after {seconds:5.1f} s at most")
    for name, good in (("before", before), ("meanwhile", during)):
        print(f"good clients {name:10} {len(good.seconds):6} requests  p50 {good.p50 * 1000:.1f} ms  "
              f"p99 {good.p99 * 1000:.1f} ms  {dict(good.statuses)}")
    failed = max(longest.values()) > LIMIT_SECONDS or set(during.statuses) != {200}
    if options.json:
        options.json.write_text(json.dumps({
            "clients": options.clients, "seconds": longest, "p99_before": before.p99, "p99_during": during.p99,
            "statuses": dict(during.statuses), "cpus": os.cpu_count(), "failed": failed}, indent=2))
    print("FAILED" if failed else "passed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
