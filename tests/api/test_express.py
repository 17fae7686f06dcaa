"""The short way of single Beams events: nobody can tell it from the ordinary route but by the time it takes."""

from __future__ import annotations

import asyncio
import gc
import gzip
import itertools
import logging
import os
import random
import re
import signal
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from reportsvc import server
from reportsvc.api.express import Express, Taken
from reportsvc.config import Config
from reportsvc.model import EventBatch
from reportsvc.pipeline import ledger
from reportsvc.pipeline.journal import Journal
from reportsvc.server import SHUTDOWN_SECONDS, _Connection
from reportsvc.storage.embedded import EmbeddedRedis
from reportsvc.storage.queries import Selection
from tests.support.service import Account, Clock, Running, eventually, running

# A pause of Redis, and a journal that is full, are those of one server here.
pytestmark = pytest.mark.one_redis

ROUTE = "/reporting_api/v2/instances/{instance_id}/events"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
DEVICES = itertools.count()
UNAVAILABLE = {"error": "Service unavailable", "description": "redis is unavailable"}


@dataclass
class Wire:
    """A connection, byte for byte."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, request: bytes) -> None:
        """Put bytes on their way."""
        self.writer.write(request)

    async def answer(self) -> tuple[str, dict[str, str], bytes]:
        """The next answer: status line, headers without the date, and body."""
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode("latin-1").split("\r\n")[:-2]
            headers = dict(line.split(": ", 1) for line in lines)
            assert len(headers) == len(lines)
            headers.pop("Date", None)
            return status, headers, await self.reader.readexactly(int(headers.get("Content-Length", 0)))

    async def status(self) -> int:
        """The status of the next answer."""
        return int((await self.answer())[0].split()[1])

    async def rest(self) -> bytes:
        """Everything until the service closes the connection."""
        with suppress(ConnectionError):
            async with asyncio.timeout(10):
                return await self.reader.read()
        return b""

    def reset(self) -> None:
        """Go away without a word."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.close()


@asynccontextmanager
async def connected(service: Running) -> AsyncIterator[Wire]:
    """A new connection."""
    host, _, port = service.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@dataclass
class Seen:
    """What the short way took, and how often the journal was asked."""

    taken: list[Taken] = field(default_factory=list)
    appends: int = 0


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Tells whether a test is about the short way at all."""
    noted, take, append = Seen(), Express.take, Journal.append

    def noting(self: Express, *args: Any) -> Taken | None:
        taken = take(self, *args)
        if taken is not None:
            noted.taken.append(taken)
        return taken

    def counting(self: Journal, batch: EventBatch) -> asyncio.Future[None]:
        noted.appends += 1
        return append(self, batch)

    monkeypatch.setattr(Express, "take", noting)
    monkeypatch.setattr(Journal, "append", counting)
    return noted


@pytest.fixture
async def own_redis(short_dir: Path) -> AsyncIterator[EmbeddedRedis]:
    """A redis-server of the test's own, which nobody starts again when it dies."""
    one = EmbeddedRedis(short_dir / "redis", "everysec")
    await one.start(supervise=False)
    yield one
    await one.stop()


def body_of(**more: Any) -> bytes:
    """A report of a device nobody has heard of."""
    return orjson.dumps({"event": "delivery", "publishId": "p", "deviceId": f"fcm-{next(DEVICES)}",
                         "timestampSecs": 1_900_000_000} | more)


def request(account: Account, body: bytes | None = None, *, line: str = "POST {path} HTTP/1.1",
            headers: Sequence[str] = ("Content-Type: application/json",), length: bool = True) -> bytes:
    """A report as it goes over the wire."""
    path = ROUTE.format(instance_id=account.app.beams_instance_id)
    body = body_of() if body is None else body
    lines = [line.format(path=path), "Host: x", *headers, *([f"Content-Length: {len(body)}"] if length else [])]
    return "\r\n".join((*lines, "", "")).encode() + body


async def pause(service: Running, seconds: float) -> None:
    """Redis runs no command for so long: what is sent now is under way until then."""
    await service.service.redis.call("CLIENT", "PAUSE", int(seconds * 1000))


async def counted(service: Running) -> dict[str, int]:
    """The ledger, with what was not written yet."""
    await service.applied()
    await service.service.ledger._flush()
    return await ledger.read(service.service.redis, service.service.config.partitions)


async def answered(service: Running) -> dict[str, int]:
    """How many reports got each status, as the metrics tell it; and how many were timed."""
    text = (await service.call("GET", "/metrics")).body.decode()
    label = re.escape(f'route="{ROUTE}"')
    found = re.findall(rf'reportsvc_http_requests_total{{method="POST",{label},status="(\d+)"}} ([\d.]+)', text)
    timed = re.search(rf'reportsvc_http_request_seconds_count{{method="POST",{label}}} ([\d.]+)', text)
    return {status: int(float(count)) for status, count in found if float(count)} | {
        "timed": int(float(timed[1])) if timed else 0}


async def devices(service: Running, account: Account) -> int:
    """How many devices have the message."""
    await service.applied()
    totals = await service.service.queries.totals(
        account.app.id, ["p"], [Selection("received")], int(service.clock()), "test")
    return sum(totals.get("p", (0,)))


# ----------------------------------------------------------------------------------------------- the same as the other
def variants(account: Account) -> dict[str, list[bytes]]:
    """Reports of every shape, each in the packets it comes in; those that the short way takes, good or bad, first."""
    usual, small = request(account), body_of()
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(small), small)
    instance, json = account.app.beams_instance_id, "Content-Type: application/json"

    def made(*packets: bytes) -> list[bytes]:
        return list(packets)

    return {
        "TAKEN usual": made(usual),
        "TAKEN android": made(request(account, headers=["Content-Type: application/json; charset=UTF-8"])),
        "TAKEN many headers": made(request(account, headers=[
            json, "User-Agent: okhttp/3", "X-Pusher-Library: x", "Origin: https://a", "Accept-Encoding: gzip",
            "Connection: keep-alive", "Accept: text/html"])),
        "TAKEN small letters": made(request(account, headers=["content-type: application/json"])),
        "twice a type": made(request(account, headers=[json, "Content-Type: text/plain"])),
        "TAKEN shown": made(request(account, body_of(appInBackground=True, hasDisplayableContent=True, userId="u"))),
        "TAKEN large": made(request(account, body_of(note="x" * 100_000))),
        "TAKEN no JSON": made(request(account, b"{")),
        "TAKEN no text": made(request(account, b"\xff\xfe")),
        "TAKEN nothing": made(request(account, b"")),
        "TAKEN no length": made(request(account, b"", length=False)),
        "TAKEN an array": made(request(account, b"[]")),
        "TAKEN no device": made(request(account, body_of(deviceId=None))),
        "TAKEN another event": made(request(account, body_of(event="lost"))),
        "TAKEN half a character": made(request(account, body_of(deviceId="x").replace(b'"x"', b'"\\ud800"'))),
        "TAKEN an odd time": made(request(account, body_of().replace(b"1900000000", b"1e400"))),
        "TAKEN in two packets, the head apart": made(usual[:20], usual[20:]),
        "in two packets, the body apart": made(usual[:-10], usual[-10:]),
        "byte by byte": [bytes([one]) for one in usual],
        "over 256 KiB": made(request(account, body_of(note="x" * 300_000))),
        "1.0": made(request(account, line="POST {path} HTTP/1.0")),
        "1.0, to be kept": made(request(
            account, line="POST {path} HTTP/1.0", headers=[json, "Connection: keep-alive"])),
        "the last": made(request(account, headers=[json, "Connection: close"])),
        "doubled slash": made(request(account, line="POST /{path} HTTP/1.1")),
        "slash behind": made(request(account, line="POST {path}/ HTTP/1.1")),
        "a query": made(request(account, line="POST {path}?a=b HTTP/1.1")),
        "encoded": made(request(account, line="POST {path} HTTP/1.1").replace(b"/events ", b"/event%73 ")),
        "a whole URL": made(request(account, line="POST http://x{path} HTTP/1.1")),
        "large letters": made(usual.replace(instance.encode(), instance.upper().encode())),
        "nobody's instance": made(usual.replace(instance.encode(), b"426abfc7-41fe-492f-bcf1-27586fa9bd3f")),
        "no instance": made(usual.replace(instance.encode(), b"x" * 36)),
        "chunked": made(request(account, chunk, headers=[json, "Transfer-Encoding: chunked"], length=False)),
        "gzip": made(request(account, gzip.compress(small), headers=[json, "Content-Encoding: gzip"])),
        "said to be gzip": made(request(account, small, headers=[json, "Content-Encoding: gzip"])),
        "on request": made(request(account, headers=[json, "Expect: 100-continue"])),
        "on another request": made(request(account, headers=[json, "Expect: the-unexpected"])),
        "another protocol": made(request(account, headers=[json, "Connection: Upgrade", "Upgrade: h2c"])),
        "another type": made(request(account, headers=["Content-Type: text/plain"])),
        "another JSON": made(request(account, headers=["Content-Type: application/vnd.x+json"])),
        "another charset": made(request(account, headers=["Content-Type: application/json;charset:utf-8"])),
        "no type": made(request(account, headers=[])),
        "PUT": made(request(account, line="PUT {path} HTTP/1.1")),
        "no HTTP": made(request(account, line="POST {path} HTTP/9.Z")),
        "half of a length": made(request(account, headers=[json, "Content-Length: 5", "Content-Length: 7"])),
    }


async def conversation(service: Running, packets: Sequence[bytes]) -> bytes:
    """All that comes back on a connection, the dates apart, when a last request follows what *packets* are."""
    async with connected(service) as wire:
        for number, packet in enumerate(packets):
            if number:
                await asyncio.sleep(0.02 if len(packets) < 10 else 0)
            wire.send(packet)
        first = b""
        while not first.rpartition(b"HTTP/1.")[2][2:5].startswith((b"2", b"4", b"5")):  # 100 is no answer yet
            async with asyncio.timeout(10):
                more = await wire.reader.read(65536)
            if not more:
                break
            first += more
        wire.send(LAST)
        return re.sub(rb"Date: [^\r]*", b"Date:", first + await wire.rest())


@asynccontextmanager
async def ordinary(config: Config, clock: Clock, database: str) -> AsyncIterator[Running]:
    """A second service on the same stores that writes a log of requests, and so takes the ordinary route."""
    async with running(replace(config, access_log=True), clock, database) as service:
        yield service


async def test_same_answers_as_the_ordinary_route(config: Config, clock: Clock, database: str, seen: Seen,
                                                  running_service: Running, account: Account) -> None:
    """Whatever a report looks like, both ways answer the same bytes, keep or close the connection, count and time the
    same; and the short way takes just what it is for."""

    async with ordinary(config, clock, database) as other:
        found, expected, taken = {}, {}, set()
        before = await counted(running_service)
        for name, packets in variants(account).items():
            seen.taken.clear()
            found[name] = await conversation(running_service, packets)
            taken |= {name} if seen.taken else set()
        between = await counted(running_service)
        seen.taken.clear()
        for name, packets in variants(account).items():
            expected[name] = await conversation(other, packets)
        await other.service.ledger._flush()
        after = await counted(running_service)

        assert found == expected
        assert not seen.taken
        assert taken == {name for name in found if name.startswith("TAKEN")}
        assert {name: between[name] - before.get(name, 0) for name in between} == {
            name: after[name] - between.get(name, 0) for name in after}
        assert await answered(running_service) == await answered(other)
    assert found["TAKEN usual"].startswith(
        b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\n"), "an answer, and not the same silence twice"
    closing = {name for name, answer in found.items() if answer.count(b'{"status":"ok"}') != 1}
    assert closing == {"1.0", "the last", "no HTTP", "half of a length", "said to be gzip", "twice a type"}


# ------------------------------------------------------------------------------------------------------------ pipelines
def stream(account: Account, rng: random.Random, count: int) -> tuple[list[bytes], list[int]]:
    """Requests of every sort, and the statuses they are to get."""
    kinds: dict[int, list[Callable[[], bytes]]] = {
        200: [lambda: request(account), lambda: HEALTH,
              lambda: request(account, headers=["Content-Type: application/vnd.x+json"])],
        400: [lambda: request(account, b"{"), lambda: request(account, body_of(event="lost"))],
        401: [lambda: b"GET /v3/received?msg_ids=1 HTTP/1.1\r\nHost: x\r\n\r\n"],
        404: [lambda: b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"],
        204: [lambda: b"OPTIONS " + ROUTE.format(instance_id="x").encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n"],
    }
    statuses = [rng.choice([200, 200, 200, 200, *kinds]) for _ in range(count)]
    return [rng.choice(kinds[status])() for status in statuses], statuses


@pytest.mark.parametrize("seed", range(4))
async def test_pipelines_are_answered_in_order(running_service: Running, account: Account, seen: Seen,
                                               seed: int) -> None:
    """Requests sent without waiting, good and bad ones and others, cut into packets anywhere, are answered in order,
    and every good event counts."""

    rng, expected_devices = random.Random(seed), 0
    for count in (60, 20, 2):  # packets of about one request, of a few and of many: some of whole ones, some not
        requests, statuses = stream(account, rng, 60)
        expected_devices += sum(b'"delivery"' in one for one in requests)
        whole, ends = b"".join(requests), list(itertools.accumulate(map(len, requests)))[:-1]
        borders = sorted({*rng.sample(ends, count // 2), *rng.sample(range(1, len(whole)), count // 2)})
        async with connected(running_service) as wire:
            for start, end in zip([0, *borders], [*borders, len(whole)], strict=True):
                wire.send(whole[start:end])
                await asyncio.sleep(rng.choice([0, 0, 0.001, 0.005]))
            assert [await wire.status() for _ in statuses] == statuses
            wire.send(LAST)
            assert (await wire.answer())[2] == b'{"status":"ok"}'
            assert await wire.rest() == b""

    assert seen.taken
    assert await devices(running_service, account) == expected_devices


async def test_next_request_waits_for_the_answer(running_service: Running, account: Account, seen: Seen) -> None:
    """What follows while an event is on its way is answered behind it, whole requests and halves of them."""

    async with connected(running_service) as wire:
        wire.send(request(account))
        assert await wire.status() == 200
        await pause(running_service, 0.3)
        wire.send(request(account))
        await eventually(lambda: _is(len(seen.taken) == 2))
        following = HEALTH + request(account, b"{") + request(account) + LAST
        for start in range(0, len(following), 100):
            wire.send(following[start:start + 100])
            await asyncio.sleep(0.005)
        assert not seen.taken[1].done.done()

        assert [await wire.status() for _ in range(5)] == [200, 200, 400, 200, 200]
        assert await wire.rest() == b""
    assert await devices(running_service, account) == 3


async def _is(value: bool) -> bool:
    return value


# ------------------------------------------------------------------------------------------------------------- failures
async def test_redis_away_and_back(config: Config, database: str, own_redis: EmbeddedRedis, seen: Seen) -> None:
    """While Redis is away each report is a 503 after one try, on a connection that goes on and is 200 when it is
    back; all were received, and the good ones accepted."""

    async with running(replace(config, redis_url=own_redis.url), database=database) as service:
        account = await service.make_account()
        async with connected(service) as wire:
            wire.send(request(account))
            assert await wire.status() == 200
            os.kill(own_redis.pid, signal.SIGKILL)
            await asyncio.sleep(0.05)
            seen.appends = 0
            for _ in range(3):
                wire.send(request(account))
                status, headers, body = await wire.answer()
                assert (status, headers["Retry-After"], headers["Access-Control-Allow-Origin"], orjson.loads(body)) == (
                    "HTTP/1.1 503 Service Unavailable", "2", "*", UNAVAILABLE)
            assert (len(seen.taken), seen.appends) == (4, 3)

            await own_redis.start(supervise=False)
            wire.send(request(account))
            assert await wire.status() == 200
        assert len(seen.taken) == 5
        counts = await counted(service)
        assert (counts["received"], counts["accepted"], counts["applied"]) == (5, 2, 2)
        assert await answered(service) == {"200": 2, "503": 3, "timed": 5}


@pytest.mark.parametrize(("bound", "text"), [
    ("_full", "it is full"), ("_is_stopping", "the service is stopping")])
async def test_journal_that_takes_nothing(running_service: Running, account: Account, seen: Seen, bound: str, text: str,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that refuses at once makes a 503 on a connection that goes on, and works after that."""

    async def nothing() -> None:
        """The size of the journal is what the test says."""

    journal = running_service.service.journal
    journal._tasks[1].cancel()
    async with connected(running_service) as wire:
        with monkeypatch.context() as patch:
            patch.setattr(journal, bound, {journal._node(0)} if bound == "_full" else True)
            wire.send(request(account) + HEALTH)
            wire.send(request(account))
            assert [await wire.status() for _ in range(3)] == [503, 200, 503]
            wire.send(request(account))
            assert orjson.loads((await wire.answer())[2]) == {
                "error": "Service unavailable", "description": "journal is unavailable"}
            assert seen.taken[-1].done.exception() is not None and text in str(seen.taken[-1].done.exception())
        wire.send(request(account))
        assert await wire.status() == 200
    assert await devices(running_service, account) == 1


async def test_a_bug_is_a_500(running_service: Running, account: Account, seen: Seen,
                              monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A journal with a bug makes a 500 in the dialect's shape, a line in the log, and no harm to what follows."""

    def broken(self: Journal, batch: EventBatch) -> asyncio.Future[None]:
        raise RuntimeError("a bug")

    async with connected(running_service) as wire:
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "append", broken)
            wire.send(request(account))
            status, headers, body = await wire.answer()
        assert (status, headers["Access-Control-Allow-Origin"], orjson.loads(body)) == (
            "HTTP/1.1 500 Internal Server Error", "*",
            {"error": "Something went wrong", "description": "Internal server error"})
        wire.send(request(account))
        assert await wire.status() == 200
    assert len(seen.taken) == 2
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == [
        f"POST {ROUTE.format(instance_id=account.app.beams_instance_id)} failed"]


async def test_caller_who_goes_away(running_service: Running, account: Account, seen: Seen,
                                    caplog: pytest.LogCaptureFixture) -> None:
    """An event whose caller is gone when it is in the journal counts like any other, and nobody complains."""

    await pause(running_service, 0.3)
    async with connected(running_service) as wire:
        wire.send(request(account))
        await eventually(lambda: _is(bool(seen.taken)))
        wire.reset()
        await asyncio.sleep(0.05)
        assert not seen.taken[0].done.done()
    counts = await counted(running_service)

    assert (counts["received"], counts["accepted"]) == (1, 1)
    assert await answered(running_service) == {"200": 1, "timed": 1}
    assert await devices(running_service, account) == 1
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_caller_who_goes_away_before_a_failure(config: Config, database: str, own_redis: EmbeddedRedis,
                                                     seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    """An event whose caller is gone when it fails is counted as received, and leaves no unheard exception behind."""

    async with running(replace(config, redis_url=own_redis.url), database=database) as service:
        account = await service.make_account()
        os.kill(own_redis.pid, signal.SIGSTOP)
        async with connected(service) as wire:
            wire.send(request(account))
            await eventually(lambda: _is(bool(seen.taken)))
            wire.reset()
            await asyncio.sleep(0.05)
            os.kill(own_redis.pid, signal.SIGKILL)
            await eventually(lambda: _is(seen.taken[0].done.done()))
        await asyncio.sleep(0.02)
        assert seen.taken[0].done.exception() is not None
        await own_redis.start(supervise=False)
        counts = await counted(service)
        assert (counts["received"], counts["accepted"]) == (1, 0)
    seen.taken.clear()
    gc.collect()
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


# ----------------------------------------------------------------------------------------------------------------- time
#        0 s              1 s          2 s        2.5 s
# Redis  |-------------- stands still -------------|
# caller 200, next event  limit        limit       200      ... closed 1 s later
async def test_idle_connections_end_and_waiting_ones_do_not(config: Config, database: str, seen: Seen) -> None:
    """A connection is closed when it was idle for the time that is set, and never while its event is on its way."""

    async with running(replace(config, keepalive=1), database=database) as service:
        account = await service.make_account()
        async with connected(service) as wire:
            wire.send(request(account))  # its answer begins the time
            assert await wire.status() == 200
            await pause(service, 2.5)
            wire.send(request(account))
            assert await wire.status() == 200
            assert await wire.rest() == b""
        async with connected(service) as wire:
            for _ in range(4):  # each answer begins the time anew
                wire.send(request(account))
                assert await wire.status() == 200
                await asyncio.sleep(0.4)
            assert await wire.rest() == b""
        assert len(seen.taken) == 6


async def test_half_a_head_behind_an_event_ends(config: Config, database: str, seen: Seen,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """After an event, a head has the same short time to arrive as the first one; a whole one in time is answered."""

    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)
    async with running(replace(config, keepalive=600), database=database) as service:
        account = await service.make_account()
        async with connected(service) as wire:
            usual = request(account)
            for part in (usual, usual[:30], usual[30:], usual[:30]):
                wire.send(part)
                await asyncio.sleep(0.05)
            assert [await wire.status() for _ in range(2)] == [200, 200]
            assert await wire.rest() == b""
        async with connected(service) as wire:  # half of the next in the same packet, and the rest while it waits
            await pause(service, 0.2)
            wire.send(usual + usual[:30])
            await asyncio.sleep(0.05)
            wire.send(usual[30:])
            assert [await wire.status() for _ in range(2)] == [200, 200]
        assert len(seen.taken) == 4


async def test_stop_answers_what_is_under_way(config: Config, database: str, seen: Seen) -> None:
    """A service that is stopped while events are on their way answers them, then closes, without waiting for longer;
    what came behind is left."""

    async with asyncio.timeout(SHUTDOWN_SECONDS * 0.8), running(config, database=database) as service:
        account = await service.make_account()
        wires = []
        for _ in range(3):
            host, _, port = service.url.removeprefix("http://").partition(":")
            wires.append(Wire(*await asyncio.open_connection(host, int(port))))
        await pause(service, 0.5)
        for wire in wires:
            wire.send(request(account))
        await eventually(lambda: _is(len(seen.taken) == 3))
        wires[0].send(request(account))  # behind it
        await asyncio.sleep(0.02)
        assert not seen.taken[0].done.done()

    assert [await wire.status() for wire in wires] == [200] * 3
    assert [await wire.rest() for wire in wires] == [b""] * 3
    for wire in wires:
        wire.writer.close()


async def test_stop_answers_what_fails_meanwhile(config: Config, database: str, own_redis: EmbeddedRedis,
                                                 seen: Seen) -> None:
    """An event that fails while the service stops is answered with its failure before the connection closes."""

    async def kill_later() -> None:
        await asyncio.sleep(0.3)
        os.kill(own_redis.pid, signal.SIGKILL)

    async with asyncio.timeout(SHUTDOWN_SECONDS * 0.8), running(
            replace(config, redis_url=own_redis.url), database=database) as service:
        account = await service.make_account()
        host, _, port = service.url.removeprefix("http://").partition(":")
        wire = Wire(*await asyncio.open_connection(host, int(port)))
        os.kill(own_redis.pid, signal.SIGSTOP)
        wire.send(request(account))
        await eventually(lambda: _is(bool(seen.taken)))
        killing = asyncio.create_task(kill_later())

    await killing
    status, _, body = await wire.answer()
    assert (status, orjson.loads(body)) == ("HTTP/1.1 503 Service Unavailable", UNAVAILABLE)
    assert await wire.rest() == b""
    wire.writer.close()


async def test_caller_who_never_reads_is_let_go(running_service: Running, account: Account, seen: Seen,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends events and reads no answer fills a bounded buffer and is let go; others do not notice."""

    waiting: list[int] = []
    connections: list[_Connection] = []
    made, answer = _Connection.connection_made, _Connection._answer

    def connection_made(self: _Connection, transport: asyncio.BaseTransport) -> None:
        made(self, transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        transport.set_write_buffer_limits(4096)  # type: ignore[attr-defined]
        connections.append(self)

    def noting(self: _Connection, done: asyncio.Future[None]) -> None:
        answer(self, done)
        if self._wire is not None:
            waiting.append(self._wire.get_write_buffer_size())

    monkeypatch.setattr(server, "SEND_SECONDS", 0.5)
    monkeypatch.setattr(_Connection, "connection_made", connection_made)
    monkeypatch.setattr(_Connection, "_answer", noting)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        host, _, port = running_service.url.removeprefix("http://").partition(":")
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        async with asyncio.timeout(20):
            with suppress(ConnectionError):
                while True:
                    await asyncio.get_running_loop().sock_sendall(sock, request(account))
                    await asyncio.sleep(0.01)  # time for an answer: what comes in one packet goes the ordinary way
    async with connected(running_service) as wire:
        wire.send(request(account))
        assert await wire.status() == 200

    assert len(seen.taken) > 10
    assert 4096 < max(waiting) < 3 * 4096
    assert connections[0]._wire is None
