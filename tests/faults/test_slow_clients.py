"""Callers that stop half-way are let go, whichever way they do it, and nobody else notices."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from io import BytesIO

import orjson
import pytest

from reportsvc import server
from reportsvc.api import common
from reportsvc.config import Config
from reportsvc.pipeline import aggregator
from tests.api.helpers import NOTHING_RECEIVED, jpush_error, native_error
from tests.faults.slow_clients import Way, behave, hang, ways
from tests.support.service import Account, Running, eventually, running

#: The time that a way of hanging must not outlast; far over the short limits below, far below the real ones.
PATIENCE_SECONDS = 12.0
#: The ways that begin with a whole request.
AFTER = ("nothing more", "half of the next")


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines that a test can wait for."""
    monkeypatch.setattr(server, "HEAD_SECONDS", 1.0)
    monkeypatch.setattr(server, "LINGER_SECONDS", 0.5)
    monkeypatch.setattr(server, "SEND_SECONDS", 1.0)
    monkeypatch.setattr(common, "BODY_SECONDS", 1.0)
    monkeypatch.setattr(aggregator, "BLOCK_MILLISECONDS", 20)


@asynccontextmanager
async def impatient(config: Config, database: str, keepalive: int = 600) -> AsyncIterator[tuple[Running, Account]]:
    """A service with those deadlines, and an app of it."""
    async with running(replace(config, keepalive=keepalive, rate_limit=0), database=database) as service:
        yield service, await service.make_account()


def body_of(answer: bytes) -> object:
    """The JSON body of the last response in *answer*."""
    return orjson.loads(answer.rpartition(b"\r\n\r\n")[2])


async def test_a_hundred_that_hang_are_gone_and_good_ones_do_not_notice(config: Config, database: str) -> None:
    """Every way of stopping half-way is ended, byte by byte too, and whoever does as he should is answered 200."""

    async with impatient(config, database) as (service, account):
        every = [way for way in ways(account.auth, account.app.beams_instance_id, pace=0.2) if way.name not in AFTER]
        stop = asyncio.Event()
        beside = asyncio.create_task(behave(service.url, account.auth, account.app.beams_instance_id, stop))
        async with asyncio.timeout(PATIENCE_SECONDS):
            ended = await asyncio.gather(*(hang(service.url, way) for way in every * 8))
        stop.set()
        good = await beside

    assert set(good.statuses) == {200}
    # An idle connection, and what is no whole head, is closed without a word: nobody knows who would read it.
    assert {one.way for one in ended if not one.answer} == {
        "nothing", "half a line", "half a head", "a head byte by byte"}
    assert len([one for one in ended if one.answer]) == 8 * (len(every) - 4)


async def test_idle_connections_end(config: Config, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an answer a connection may be idle for the time that is set, and no longer if half a request came along."""

    monkeypatch.setattr(server, "HEAD_SECONDS", 600.0)
    async with impatient(config, database, keepalive=1) as (service, account):
        every = [way for way in ways(account.auth, account.app.beams_instance_id) if way.name in AFTER]
        async with asyncio.timeout(PATIENCE_SECONDS):
            ended = await asyncio.gather(*(hang(service.url, way) for way in every * 8))

    assert [body_of(one.answer) for one in ended] == [{"status": "ok"}] * 16


async def test_half_a_body_is_answered_in_the_words_of_the_dialect(config: Config, database: str) -> None:
    """Whoever sends half of a body is told so and that the connection ends, before it does."""

    text = "the body did not arrive within 1 seconds"
    answers = {"half a body": native_error("invalid_request", text),
               "a body byte by byte": native_error("invalid_request", text),
               "no body": jpush_error(3002, text), "half a chunk": {"error": "Bad request", "description": text},
               "a body on request": {"error": "Bad request", "description": text},
               "a body without a key": native_error("unauthorized", "Basic authentication failed"),
               "a body that nobody reads": [{"msg_id": "1"} | NOTHING_RECEIVED]}

    async with impatient(config, database) as (service, account):
        every = [way for way in ways(account.auth, account.app.beams_instance_id, pace=0.2) if way.name in answers]
        ended = await asyncio.gather(*(hang(service.url, way) for way in every))

    assert {one.way: body_of(one.answer) for one in ended} == answers
    assert [one.way for one in ended if b"Connection: close" not in one.answer] == ["a body that nobody reads"]


async def test_slow_but_whole_requests_are_answered(config: Config, database: str) -> None:
    """A request in many small pieces is served if it is whole in time, the second on a connection like the first."""

    async with impatient(config, database) as (service, account):
        body, done = b'[{"msg_id":"m","stage":"received","device_id":"d"}]', b'{"accepted":1,"rejected":0,"errors":[]}'
        request = (f"POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: {account.auth}\r\n"
                   f"Content-Length: {len(body)}\r\n\r\n").encode() + body
        host, _, port = service.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        answers = []
        for _ in range(2):
            for start in range(0, len(request), 40):
                writer.write(request[start:start + 40])
                await asyncio.sleep(0.05)
            head = await reader.readuntil(b"\r\n\r\n")
            answers.append((head.split(b"\r\n")[0], await reader.readexactly(len(done))))
        writer.close()
        await writer.wait_closed()

    assert answers == [(b"HTTP/1.1 200 OK", done)] * 2


async def test_whoever_takes_no_answer_is_cut_off(config: Config, database: str) -> None:
    """A caller who asks and asks and never reads does not hold what waits for him."""

    async with impatient(config, database) as (service, account):
        request = (f"GET /v3/received?msg_ids={','.join(str(one) for one in range(100))} HTTP/1.1\r\nHost: x\r\n"
                   f"Authorization: {account.auth}\r\n\r\n").encode()
        host, _, port = service.url.removeprefix("http://").partition(":")
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((host, int(port)))
            deaf.setblocking(False)
            questions = memoryview(request * 2000)

            async def is_cut_off() -> bool:
                nonlocal questions
                try:
                    with suppress(BlockingIOError):
                        questions = questions[deaf.send(questions):]
                except ConnectionError:
                    return True
                return deaf.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
            await eventually(is_cut_off, PATIENCE_SECONDS)


async def test_memory_for_large_bodies_is_bounded(config: Config, database: str,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """When too many large bodies arrive at once, more of them are told to come back; small ones are still taken."""

    monkeypatch.setattr(common, "MAX_ARRIVING_BYTES", 2 * 1024 * 1024)
    monkeypatch.setattr(common, "BODY_SECONDS", 3.0)
    large = b"[" + b" " * (1536 * 1024)
    event = {"msg_id": "m", "stage": "received", "device_id": "d"}

    async with impatient(config, database) as (service, account):
        head = (f"POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: {account.auth}\r\n"
                f"Content-Length: {len(large) + 1}\r\n\r\n").encode()
        holding = asyncio.create_task(hang(service.url, Way("large", head + large)))

        async def is_held() -> bool:
            return common._arriving > 1024 * 1024
        await eventually(is_held)
        refused = await service.call("POST", "/v1/events", account, data=BytesIO(large + b"]"))
        small = await service.call("POST", "/v1/events", account, json=event)
        held = await holding
        later = await service.call("POST", "/v1/events", account, data=BytesIO(large + orjson.dumps(event) + b"]"))

    assert (refused.status, refused.json, refused.headers["Retry-After"]) == (
        503, native_error("unavailable", "memory is unavailable"), "2")
    assert small.json == later.json == {"accepted": 1, "rejected": 0, "errors": []}
    assert body_of(held.answer) == native_error("invalid_request", "the body did not arrive within 3 seconds")
    assert common._arriving == 0
