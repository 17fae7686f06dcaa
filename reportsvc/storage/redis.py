"""The only module that talks to Redis, and the only one that spells its keys.

Every operation in the hot path touches one key, so the same code runs on one server and on Redis Cluster. Operations
travel as plain tuples and are sent in pipelines: at a few microseconds each in Redis, the round trip is what costs.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import hiredis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as RedisClient
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (AskError, ClusterDownError, NoPermissionError, NoScriptError, OutOfMemoryError,
                              ReadOnlyError, RedisClusterException, RedisError)
from redis.exceptions import ResponseError as ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.exceptions import TryAgainError

from reportsvc.errors import StoreUnavailable
from reportsvc.storage.redis_cluster import Cluster

T = TypeVar("T")
U = TypeVar("U")
Command = Sequence[Any]

#: Long enough for a report over a thousand devices on a busy server, short enough for a caller to try elsewhere.
COMMAND_TIMEOUT_SECONDS: Final = 5.0
#: Each aggregator's read occupies one of them, and there may be 64; a burst of callers waits for a free one instead of
#: being refused.
MAX_CONNECTIONS: Final = 128
#: How long the aggregator's read waits for new entries before it looks at its other duties.
BLOCK_MILLISECONDS: Final = 100
#: A replica that is well has a write within a millisecond or two; one that takes this long is taken for away.
REPLICATION_MILLISECONDS: Final = 1000

#: Commands that change nothing which a replica would have to know; who has read an entry of a stream is found out
#: again.
_READS: Final = frozenset({
    "GET", "HGET", "HMGET", "HGETALL", "HKEYS", "HVALS", "HSCAN", "EXISTS", "MEMORY", "XRANGE", "XLEN", "XPENDING",
    "XINFO", "XREADGROUP", "XAUTOCLAIM", "PING", "INFO", "CONFIG", "TIME", "SCRIPT", "DBSIZE"})

#: Replies that say "not now" rather than "you are wrong". The driver cuts the word off where it has a class for it;
#: Redis 6 puts the reply to a script's command behind a text of its own.
_PASSING_CLASSES: Final = (OutOfMemoryError, ReadOnlyError, NoPermissionError, ClusterDownError, TryAgainError,
                           AskError)
_PASSING_WORDS: Final = re.compile(
    "(?:^|: -)(?:OOM|LOADING|BUSY|MISCONF|CLUSTERDOWN|TRYAGAIN|READONLY|MASTERDOWN|NOREPLICAS|NOPERM|MOVED|ASK) ")

# ---------------------------------------------------------------------------------------------------------------- keys
# The part in braces is what Redis Cluster hashes. Keys of one message and one range of devices share it, and so do a
# journal stream and its ledger, and the profile and the interests of a device, because each of those pairs changes in
# one transaction.


def apps_key() -> str:
    """Hash of every app: id -> JSON; the field ``v`` counts the changes."""
    return "apps"


def uses_key() -> str:
    """Hash of the last use of each key of every app: what is stored of the key -> unix seconds."""
    return "uses"


def devices_key(app_id: int, bucket: int) -> str:
    """Hash of one bucket of an app's devices: device id -> number and platform."""
    return f"d{{{app_id}:{bucket}}}"


def message_key(app_id: int, msg_id: str) -> str:
    """Hash of one message: its last delivery, and the push as registered."""
    return f"m{{{app_id}:{msg_id}}}"


def message_set_key(app_id: int, msg_id: str, name: str) -> tuple[str, str]:
    """Start and end of the chunk keys of a message's device set; *name* is ``t`` (targets) or ``r`` (received)."""
    return f"{name}{{{app_id}:{msg_id}:", "}"


def profile_key(app_id: int, device_id: str) -> str:
    """Hash of what a device registered of itself: gateway, token, metadata, user."""
    return f"b{{{app_id}:{device_id}}}"


def interests_key(app_id: int, device_id: str) -> str:
    """Sorted set, all of one score, of the interests of a device; changes in one script with the device's profile."""
    return f"s{{{app_id}:{device_id}}}"


def subscribers_key(app_id: int, interest: str) -> tuple[str, str]:
    """Start and end of the chunk keys of the device set of an interest."""
    return f"i{{{app_id}:{interest}:", "}"


def tokens_key(app_id: int, gateway: str, bucket: int) -> str:
    """Hash of one bucket of a gateway's tokens: digest of the token -> device id."""
    return f"k{{{app_id}:{gateway}:{bucket}}}"


def signed_in_key(app_id: int, user_id: str) -> str:
    """Hash of the devices on which a user signed in: device id -> number."""
    return f"u{{{app_id}:{user_id}}}"


def named_key(app_id: int, user_id: str) -> str:
    """Hash of the devices that a sender named a user for: device id -> number."""
    return f"n{{{app_id}:{user_id}}}"


def spare_key(key: str) -> str:
    """A key beside *key*, one of those above, that is there only while a script runs."""
    return "y" + key[key.index("{"):]


def app_keys_pattern(app_id: int) -> str:
    """What every key above of one app matches, and no other key."""
    return f"?{{{app_id}:*"


def restored_keys_pattern() -> str:
    """What every key above matches that a rebuild restores, of all apps but :func:`apps_key`, and no other key."""
    return "[bdikmnrstu]{*"


def epoch_key(app_id: int) -> str:
    """Counter that grows with every batch of an app that became visible."""
    return f"e{{{app_id}}}"


def quota_key(app_id: int, scope: str) -> str:
    """Counter of the calls an app made in this minute; *scope* is a part of the API.

    It ends by itself within the minute, and a call may still make one while its app is being deleted: none of the keys
    that go with an app.
    """
    return f"calls{{{app_id}:{scope}}}"


def presence_key() -> str:
    """What every process at work writes now and then, and a rebuild watches."""
    return "presence"


def journal_key(partition: int) -> str:
    """Stream of events that are accepted and not yet applied."""
    return f"j{{{partition}}}"


def ledger_key(partition: int) -> str:
    """Hash of counters of a partition: accepted, applied, dead."""
    return f"l{{{partition}}}"


def dead_letters_key(partition: int) -> str:
    """Stream of entries that could not be applied, each with its reason."""
    return f"x{{{partition}}}"


def rejections_key() -> str:
    """Hash of counters of what was received and refused, by reason."""
    return "rejections"


# ------------------------------------------------------------------------------------------------------------- scripts
@dataclass(frozen=True)
class Script:
    """A Lua script, called by its digest; *writes*: whether a replica has to know what it did."""

    text: str
    writes: bool = True
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        sha1 = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "digest", sha1)
        _SCRIPTS[sha1] = self

    def __call__(self, keys: Sequence[str], *args: Any) -> Command:
        """The command that runs this script."""
        return ("EVALSHA", self.digest, len(keys), *keys, *args)


_SCRIPTS: dict[str, Script] = {}


def _with_script_text(command: Command) -> Command:
    return ("EVAL", _SCRIPTS[command[1]].text, *command[2:])


def _writes(command: Command) -> bool:
    return _SCRIPTS[command[1]].writes if command[0] == "EVALSHA" else command[0] not in _READS


# -------------------------------------------------------------------------------------------------------------- client
@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """Commands, and what makes an answer of their replies; two may share a round trip, see :meth:`Redis.ask`."""

    commands: Sequence[Command]
    parse: Callable[[Sequence[Any]], T]


class Redis:
    """A server or a cluster, told apart by the URL (``redis+cluster://``).

    Every method raises :class:`StoreUnavailable` when Redis does not confirm. No command is sent twice by itself: a
    caller who may repeat one knows so and does it.

    With *replicas*, a write is confirmed once so many replicas of its server have it, and with it everything that the
    server had been told before; a replica that takes over then knows it too.
    """

    def __init__(self, url: str, *, timeout: float | None = COMMAND_TIMEOUT_SECONDS, replicas: int = 0) -> None:
        self.url = url
        self.is_cluster = "+cluster" in url
        self._timeout = timeout
        self._replicas = replicas
        self._wait: Command | None = ("WAIT", replicas, REPLICATION_MILLISECONDS) if replicas else None
        self._client: Any = None if self.is_cluster else self._connect()
        self._cluster = Cluster(
            url.replace("+cluster", ""), timeout=timeout, connect_timeout=COMMAND_TIMEOUT_SECONDS,
            connections=MAX_CONNECTIONS) if self.is_cluster else None

    def _connect(self) -> Any:
        # A dropped connection is met again at the next command; repeating here would hide how long a caller waited.
        retry = Retry(NoBackoff(), 0)
        return RedisClient.from_pool(BlockingConnectionPool.from_url(
            self.url, max_connections=MAX_CONNECTIONS, timeout=COMMAND_TIMEOUT_SECONDS, socket_timeout=None,
            socket_connect_timeout=COMMAND_TIMEOUT_SECONDS, redis_connect_func=_greet, retry=retry))

    async def close(self) -> None:
        """Give the connections back."""
        await (self._cluster.close() if self._cluster else self._client.aclose())

    def node_of(self, key: str) -> str:
        """A name for the server that has *key*; the same one for all keys where there is one server."""
        return self._cluster.name_of(key) if self._cluster else ""

    async def call(self, *command: Any) -> Any:
        """Run one command."""
        return (await self.run([command]))[0]

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """Run *commands* in as few round trips as they need; the replies are in their order.

        They are not one transaction: when this raises, some of them may have run.
        """
        if not commands:
            return []
        return await _finish(self._run(commands))

    async def ask(self, one: Question[T], other: Question[U]) -> tuple[T, U]:
        """The answers to both."""
        replies = await self.run([*one.commands, *other.commands])
        return one.parse(replies[:len(one.commands)]), other.parse(replies[len(one.commands):])

    async def _run(self, commands: Sequence[Command]) -> list[Any]:
        replies = await self._send(commands)
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            # A restarted or new node has no scripts; sending the text once teaches it.
            repeated = await self._send([_with_script_text(commands[index]) for index in unknown])
            for index, reply in zip(unknown, repeated, strict=True):
                replies[index] = reply
        for reply in replies:
            if isinstance(reply, Exception):
                raise _translate(reply)
        return replies

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        try:
            if self._cluster:
                replies, waits = await self._cluster.run(commands, _writes, self._wait)
            else:
                replies, waits = await self._send_to_server(commands)
        except NoScriptError as error:
            return [error]
        except (RedisError, RedisClusterException, OSError, TimeoutError) as error:
            raise _translate(error) from error
        if waits and min(waits) < self._replicas:
            raise StoreUnavailable("redis", f"not {self._replicas} of its replicas have confirmed")
        return replies

    async def _send_to_server(self, commands: Sequence[Command]) -> tuple[list[Any], list[int]]:
        wait = self._wait if self._wait and any(map(_writes, commands)) else None
        replies = await self._exchange([*commands, wait] if wait else commands)
        confirmed = [replies.pop()] if wait else []
        return replies, [reply if isinstance(reply, int) else 0 for reply in confirmed]

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        """The reply of each command, an error among them as it is.

        The driver's own pipeline packs word by word in Python and sets a deadline for each reply, which together takes
        longer than Redis does. Its parser is therefore asked without its connection in between.
        """
        pool = self._client.connection_pool
        async with asyncio.timeout(self._timeout):  # a server that hangs takes connections, and says nothing on them
            connection = await pool.get_connection()
        try:
            async with asyncio.timeout(self._timeout):
                await connection.send_packed_command([hiredis.pack_command(tuple(command)) for command in commands])
                read = connection._parser.read_response
                return [self._parsed(command[0], await read()) for command in commands]
        except BaseException:
            await connection.disconnect(nowait=True)  # a later caller must not be given the replies that are left
            raise
        finally:
            await pool.release(connection)

    def _parsed(self, name: str, reply: Any) -> Any:
        parse = None if isinstance(reply, Exception) else self._client.response_callbacks.get(name)
        return parse(reply) if parse else reply

    async def setting(self, name: str, default: int) -> int:
        """A number from the servers' configuration, the least of them; *default* where they do not tell (many managed
        ones)."""
        try:
            replies = await self._on_each("CONFIG", "GET", name)
        except ResponseError:
            return default
        pairs = [list(reply.values()) if isinstance(reply, dict) else list(reply)[1:] for reply in replies]
        return min((int(values[0]) for values in pairs if values), default=default)

    async def about(self) -> list[dict[str, Any]]:
        """What every server tells of itself, by the names of ``INFO``."""
        replies = await self._on_each("INFO")
        return [dict(reply) if isinstance(reply, dict) else self._parsed("INFO", reply) for reply in replies]

    async def _on_each(self, *command: Any) -> list[Any]:
        """The replies of every server."""
        if self._cluster is None:
            return [await self.call(*command)]
        try:
            replies = await _finish(self._cluster.on_each(*command))
        except (RedisError, RedisClusterException, OSError, TimeoutError) as error:
            raise _translate(error) from error
        for reply in replies:
            if isinstance(reply, Exception):
                raise _translate(reply)
        return replies

    async def _scan(self, pattern: str) -> AsyncIterator[bytes]:
        if self._cluster:
            async for key in self._cluster.scan(pattern, 1000):
                yield key
            return
        cursor = None
        while cursor != 0:
            cursor, keys = await self.call("SCAN", cursor or 0, "MATCH", pattern, "COUNT", 1000)
            for key in keys:
                yield key

    async def scan_pages(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """The same as :meth:`scan`, some keys at a time; a key may come twice."""
        page: list[bytes] = []
        try:
            async for key in self._scan(pattern):
                page.append(key)
                if len(page) == 1000:
                    yield page
                    page = []
        except (RedisError, RedisClusterException, OSError, TimeoutError) as error:
            raise _translate(error) from error
        if page:
            yield page

    async def scan(self, pattern: str) -> list[bytes]:
        """Every key that matches *pattern*; walks the whole key space, for rare work only."""
        async def collect() -> list[bytes]:
            try:
                return [key async for key in self._scan(pattern)]
            except (RedisError, RedisClusterException, OSError, TimeoutError) as error:
                raise _translate(error) from error
        return await _finish(collect())


async def _greet(connection: Any) -> None:
    """What the driver says first on a new connection, which it would give any time where commands have no deadline."""
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_SECONDS):
            await connection.on_connect()
    except BaseException as error:
        await connection.disconnect(nowait=True)  # the driver keeps one whose caller went away; see _exchange
        if isinstance(error, TimeoutError):
            raise RedisTimeoutError("no answer on a new connection") from error
        raise


async def _finish(call: Awaitable[T]) -> T:
    """Let *call* read its replies even if its caller goes away, so that no later caller is given them."""
    task = asyncio.ensure_future(call)
    # Where the caller has gone away, nobody else takes the outcome, and asyncio would complain of that.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(task)


def _translate(error: Exception) -> Exception:
    """Only a reply that says "you are wrong" is a bug of ours; all else is the store being away."""
    if (isinstance(error, ResponseError) and not isinstance(error, _PASSING_CLASSES)
            and not _PASSING_WORDS.search(str(error))):
        return error
    return StoreUnavailable("redis", str(error) or type(error).__name__)
