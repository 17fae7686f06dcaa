"""Redis over a network that breaks in the middle of an answer: nobody is given what was meant for somebody else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from reportsvc.errors import StoreUnavailable
from reportsvc.storage import redis as redis_module
from reportsvc.storage.embedded import EmbeddedRedis
from reportsvc.storage.redis import MAX_CONNECTIONS, Redis, ResponseError, Script


@dataclass
class Proxy:
    """Stands between a client and a server, and harms what the server says."""

    server: str
    url: str = ""
    #: Bytes of answers that still pass; what follows is lost with the connection. None for all.
    passes: int | None = None
    #: Cleared while answers are kept back.
    flows: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A client connected."""
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        server_reader, server_writer = await asyncio.open_unix_connection(self.server)
        asking = asyncio.create_task(self._ask(reader, server_writer))
        try:
            with suppress(ConnectionError):
                while answer := await server_reader.read(65536):
                    await self.flows.wait()
                    if self.passes is not None:
                        answer, is_cut = answer[:self.passes], len(answer) > self.passes
                        self.passes -= len(answer)
                        writer.write(answer)
                        await writer.drain()
                        if is_cut:
                            break
                    else:
                        writer.write(answer)
                        await writer.drain()
        finally:
            asking.cancel()
            writer.close()
            server_writer.close()
            self.tasks.discard(task)

    @staticmethod
    async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while question := await reader.read(65536):
                writer.write(question)
                await writer.drain()
        writer.close()


@pytest.fixture
async def proxy(short_dir: Path) -> AsyncIterator[Proxy]:
    """A proxy before a redis-server."""
    server = EmbeddedRedis(short_dir / "redis", "everysec")
    await server.start()
    between = Proxy(urlsplit(server.url).path)
    between.flows.set()
    listening = await asyncio.start_server(between.meet, "127.0.0.1", 0)
    between.url = f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield between
    listening.close()
    for task in list(between.tasks):
        task.cancel()
    await asyncio.gather(*between.tasks, return_exceptions=True)
    await server.stop()


@asynccontextmanager
async def client(proxy: Proxy, timeout: float = 5.0) -> AsyncIterator[Redis]:
    """A client behind the proxy."""
    redis = Redis(proxy.url, timeout=timeout)
    try:
        yield redis
    finally:
        await redis.close()


def echoes(*words: str) -> list[Any]:
    """Commands whose replies tell whose they are."""
    return [("ECHO", word) for word in words]


def in_use(redis: Redis) -> int:
    """Connections that were taken from the pool and not given back."""
    return len(redis._client.connection_pool._in_use_connections)


async def test_an_error_in_the_middle_is_that_command_s_own(proxy: Proxy) -> None:
    """Replies around an error, of a plain command and of a script, stay with their commands, on the same connection."""
    broken = Script("return redis.call('INCR', KEYS[1])")
    async with client(proxy) as redis:
        await redis.call("SET", "text", "no number")
        for wrong in (("INCR", "text"), broken(("text",))):
            with pytest.raises(ResponseError, match="not an integer"):
                await redis.run([*echoes("a"), wrong, *echoes("b")])
            replies = await redis._exchange([*echoes("a"), ("INCR", "text"), *echoes("b", "c")])
            assert [replies[0], type(replies[1]), *replies[2:]] == [b"a", ResponseError, b"b", b"c"]
        assert await redis.run(echoes("d", "e")) == [b"d", b"e"]
        assert (proxy.connections, in_use(redis)) == (1, 0)


async def test_a_connection_that_breaks_anywhere_between_replies(proxy: Proxy) -> None:
    """Wherever in three replies the connection ends, the call fails as a whole and the next one has its own replies."""
    whole = len(b"$3\r\none\r\n" * 3)
    async with client(proxy) as redis:
        for passes in range(whole):
            assert await redis.run(echoes("hello")) == [b"hello"]
            proxy.passes = passes
            with pytest.raises(StoreUnavailable, match="^redis is unavailable: "):
                await redis.run(echoes("one", "two", "six"))
            proxy.passes = None
            assert await redis.run(echoes("ten", "one")) == [b"ten", b"one"]
        assert in_use(redis) == 0


async def test_a_deadline_in_the_middle(proxy: Proxy) -> None:
    """Replies that come after the deadline of their call go to nobody."""
    async with client(proxy, timeout=0.2) as redis:
        for number in range(5):
            proxy.flows.clear()
            calls = [redis.run(echoes(f"{number}a{call}", f"{number}b{call}")) for call in range(4)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(result) for result in results] == [StoreUnavailable] * 4
            proxy.flows.set()
            assert await asyncio.gather(*(redis.run(echoes(f"{number}c{call}")) for call in range(4))) == [
                [b"%dc%d" % (number, call)] for call in range(4)]
        assert in_use(redis) == 0


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_breaks_replies_are_never_mixed_up(proxy: Proxy, seed: int) -> None:
    """With cuts, delays and callers who go away at random, each reply is that of its own command, or there is none."""
    rng = random.Random(seed)
    outcomes: set[type] = set()

    async def ask(redis: Redis, number: int) -> None:
        words = [f"{number}-{place}" for place in range(rng.randrange(1, 6))]
        await asyncio.sleep(rng.random() / 100)
        assert await redis.run(echoes(*words)) == [word.encode() for word in words]

    async with client(proxy, timeout=0.1) as redis:
        for round_ in range(25):
            proxy.passes = rng.choice([None, None, rng.randrange(400)])
            tasks = [asyncio.create_task(ask(redis, round_ * 100 + number)) for number in range(12)]
            if rng.random() < 0.3:
                proxy.flows.clear()
            await asyncio.sleep(rng.random() / 50)
            for task in rng.sample(tasks, 3):
                task.cancel()
            await asyncio.sleep(rng.choice([0, 0.15]))
            proxy.flows.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            outcomes |= set(map(type, results))
        proxy.passes, redis._timeout = None, 5.0
        await asyncio.gather(*(ask(redis, number) for number in range(50)))
        assert in_use(redis) == 0
    assert outcomes == {type(None), StoreUnavailable, asyncio.CancelledError}


# server  |-- says nothing -------------|-- answers everything
# call    connects ... deadline  the next|-- its own reply
async def test_a_deadline_before_the_first_word(proxy: Proxy) -> None:
    """What the server answers late to the greeting of a connection whose caller has gone is nobody's reply."""
    async with client(proxy, timeout=0.5) as redis:
        proxy.flows.clear()
        with pytest.raises(StoreUnavailable):
            await redis.run(echoes("a"))
        following = asyncio.ensure_future(redis.run(echoes("b", "c")))
        await asyncio.sleep(0.1)
        proxy.flows.set()
        assert await following == [b"b", b"c"]
        assert in_use(redis) == 0


async def test_failures_leave_no_connection_taken(proxy: Proxy) -> None:
    """After a thousand calls that failed, as many calls at once as there are connections are answered."""
    async with client(proxy) as redis:
        proxy.passes = 0
        for _ in range(10):
            results = await asyncio.gather(*(redis.run(echoes("a", "b")) for _ in range(100)), return_exceptions=True)
            assert {type(result) for result in results} == {StoreUnavailable}
        assert in_use(redis) == 0
        proxy.passes = None
        replies = await asyncio.gather(*(redis.run(echoes(str(number))) for number in range(2 * MAX_CONNECTIONS)))
        assert replies == [[b"%d" % number] for number in range(2 * MAX_CONNECTIONS)]


async def test_a_server_that_says_nothing_holds_nobody(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs, from the first word on a new connection or on one in use, ends every call in time."""
    monkeypatch.setattr(redis_module, "COMMAND_TIMEOUT_SECONDS", 0.2)
    async with client(proxy, timeout=0.2) as redis:
        await redis.run([("SET", f"key{number}", "") for number in range(3)])
        proxy.flows.clear()
        async with asyncio.timeout(10):
            for _ in range(3):  # the first on the connection that is there, the others on new ones
                with pytest.raises(StoreUnavailable):
                    await redis.call("PING")
                with pytest.raises(StoreUnavailable):
                    await redis.scan("key*")
                with pytest.raises(StoreUnavailable):
                    _ = [page async for page in redis.scan_pages("key*")]
        assert in_use(redis) == 0
        proxy.flows.set()
        assert sorted(await redis.scan("key*")) == [b"key0", b"key1", b"key2"]
