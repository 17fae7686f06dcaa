"""Sends commands to the masters of a Redis Cluster: one pipeline a node, all of them at once.

The driver knows the nodes and their slots; what it would do on its own account is kept out of the way, because it
sends a command again when a connection breaks, closes every connection of the process when a few slots have moved, and
confirms a write without asking whether a replica has it. Here a command is sent once more only when a node refused it
unread (the slot is elsewhere, or is just moving), and the wait for replicas stands in the same pipeline as the write.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.cluster import PRIMARY
from redis.exceptions import AskError, ClusterDownError
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import MovedError
from redis.exceptions import TimeoutError as TimedOut
from redis.exceptions import TryAgainError

Command = Sequence[Any]

_BROKEN: Final = (ConnectionLost, TimedOut, OSError)

DEFAULT_PORT: Final = 6379
#: How long a command follows a slot that is moving. Its keys move in milliseconds; a caller waits no longer for it.
_FOLLOW_SECONDS: Final = 2.0
_FOLLOW_EVERY_SECONDS: Final = 0.02
#: While a node is away, the others are asked so often who has its slots now.
_LOOK_EVERY_SECONDS: Final = 0.2

#: Where the key stands in commands in which it is not the first word.
_KEY_POSITIONS: Final = {"EVAL": 3, "EVALSHA": 3, "XGROUP": 2, "XINFO": 2, "MEMORY": 2, "OBJECT": 2}
#: Commands about a node, not about a key: every master is told, and the first one's answer is taken.
_KEYLESS: Final = frozenset({"PING", "INFO", "CONFIG", "TIME", "SCRIPT", "DBSIZE", "CLIENT", "FLUSHALL"})


class Cluster:
    """The masters of one cluster. Failures are raised as the driver words them."""

    def __init__(self, url: str, *, timeout: float | None, connect_timeout: float, connections: int) -> None:
        """*connections* bounds those to each node; who finds none free waits *connect_timeout* seconds for one."""
        parts = urlsplit(url)
        self._home = [(parts.hostname or "", parts.port or DEFAULT_PORT)]
        self._client: Any = RedisCluster.from_url(
            url, socket_timeout=timeout, socket_connect_timeout=connect_timeout, retry=Retry(NoBackoff(), 0),
            # What the nodes that are up hold can be read and written while another is down, if the cluster allows it.
            require_full_coverage=False, reinitialize_steps=0, max_connections=connections)
        self._free = asyncio.Semaphore(connections)
        self._patience = connect_timeout
        self._is_stale = False
        self._failed: str | None = None
        self._looked_at = 0.0
        self._newcomers: dict[tuple[str, int], ClusterNode] = {}

    async def close(self) -> None:
        """Give the connections back."""
        await self._client.aclose()
        for node in self._newcomers.values():
            await node.disconnect()

    async def run(self, commands: Sequence[Command], needs_wait: Callable[[Command], bool],
                  wait: Command | None) -> tuple[list[Any], list[int]]:
        """The reply of each command, an error among them as it is, and the replies of *wait* where it was sent: behind
        the commands of every node that were given one for which *needs_wait*."""
        async with asyncio.timeout(self._patience):
            await self._free.acquire()
        try:
            await self._look()
            if len(commands) == 1 and commands[0][0] in _KEYLESS:
                return (await self.on_each(*commands[0]))[:1], []
            return await self._follow(commands, needs_wait, wait)
        finally:
            self._free.release()

    async def _follow(self, commands: Sequence[Command], needs_wait: Callable[[Command], bool],
                      wait: Command | None) -> tuple[list[Any], list[int]]:
        replies: list[Any] = [None] * len(commands)
        waits: list[int] = []
        asked: dict[int, ClusterNode] = {}
        todo: Sequence[int] = range(len(commands))
        deadline = time.monotonic() + _FOLLOW_SECONDS
        while True:
            places: dict[tuple[ClusterNode, bool], list[int]] = {}
            for position in todo:
                node = asked.get(position)
                places.setdefault((node or self._node(commands[position]), node is not None), []).append(position)
            answers = await asyncio.gather(*(
                self._send(node, [commands[position] for position in positions], is_asking,
                           wait if any(needs_wait(commands[position]) for position in positions) else None)
                for (node, is_asking), positions in places.items()), return_exceptions=True)
            again: list[int] = []
            for positions, answer in zip(places.values(), answers, strict=True):
                if isinstance(answer, BaseException):
                    raise answer
                refused = []
                for position, reply in zip(positions, answer[0], strict=True):
                    replies[position] = reply
                    asked.pop(position, None)
                    if isinstance(reply, (AskError, TryAgainError)):
                        refused.append(position)
                        if target := await self._redirect(reply):
                            asked[position] = target
                    elif isinstance(reply, ClusterDownError):
                        self._is_stale = True
                if len(refused) < len(positions):
                    waits += answer[1]
                again += refused
            if not again or time.monotonic() > deadline:
                return replies, waits
            if any(isinstance(replies[position], TryAgainError) for position in again):
                await asyncio.sleep(_FOLLOW_EVERY_SECONDS)
            todo = sorted(again)

    async def _redirect(self, refusal: AskError | TryAgainError) -> ClusterNode | None:
        """Take note of who has the slot now; the node to ask for this once, while the slot is moving there."""
        if isinstance(refusal, MovedError):
            await self._client.nodes_manager.move_slot(refusal)
        elif isinstance(refusal, AskError):
            return self._node_at(refusal)
        return None

    async def _send(self, node: ClusterNode, commands: Sequence[Command], is_asking: bool,
                    wait: Command | None) -> tuple[list[Any], list[int]]:
        pipeline = self._client.pipeline()
        for command in commands:
            if is_asking:
                pipeline.execute_command("ASKING", target_nodes=node)
            pipeline.execute_command(*command, target_nodes=node)
        if wait:
            pipeline.execute_command(*wait, target_nodes=node)
        try:
            replies = await pipeline.execute(raise_on_error=False, allow_redirections=False)
        except _BROKEN as error:
            await self._note_failure(node)
            raise error
        waits = [replies.pop()] if wait else []
        if is_asking:
            replies = replies[1::2]
        for reply in (*replies, *waits):
            # The connection broke between two replies.
            if isinstance(reply, _BROKEN):
                await self._note_failure(node)
                raise reply
        return replies, [reply if isinstance(reply, int) else 0 for reply in waits]

    async def _note_failure(self, node: ClusterNode) -> None:
        """A node failed: its connections are of no use any more, and its slots may be elsewhere."""
        self._is_stale, self._failed = True, node.name
        node.update_active_connections_for_reconnect()
        await node.disconnect_free_connections()

    async def _look(self) -> None:
        """Learn who has which slot, at first and after a failure."""
        await self._client.initialize(additional_startup_nodes_info=self._home)
        now = time.monotonic()
        if self._is_stale and now - self._looked_at > _LOOK_EVERY_SECONDS:
            self._looked_at = now
            failed, self._failed, self._is_stale = self._failed, None, False
            try:
                await self._client.nodes_manager.initialize(
                    additional_startup_nodes_info=self._home, last_failed_node_name=failed)
            except BaseException:
                self._failed, self._is_stale = failed, True
                raise

    def _node(self, command: Command) -> ClusterNode:
        name = command[0]
        position = command.index("STREAMS") + 1 if name == "XREADGROUP" else _KEY_POSITIONS.get(name, 1)
        node: ClusterNode = self._client.get_node_from_key(command[position])
        return node

    def _node_at(self, redirection: AskError) -> ClusterNode:
        host, port = redirection.host, redirection.port
        node: ClusterNode | None = self._client.get_node(host=host, port=port) or self._newcomers.get((host, port))
        if node is None:
            # It has no slot of its own yet, so the driver has not heard of it.
            kwargs = self._client.nodes_manager.connection_kwargs
            node = self._newcomers[host, port] = ClusterNode(host, port, PRIMARY, **kwargs)
        return node

    def masters(self) -> list[ClusterNode]:
        """The masters, as far as is known."""
        nodes: list[ClusterNode] = self._client.get_primaries()
        return nodes

    async def on_each(self, *command: Any) -> list[Any]:
        """The replies of every master."""
        await self._look()
        return [(await self._send(node, [command], False, None))[0][0] for node in self.masters()]

    def name_of(self, key: str) -> str:
        """Which master has *key*, as far as is known; empty if none does."""
        slots = self._client.nodes_manager.slots_cache.get(self._client.keyslot(key))
        return slots[0].name if slots else ""

    def scan(self, pattern: str, count: int) -> AsyncIterator[bytes]:
        """Every key that matches *pattern*, of all masters; one may come twice."""
        keys: AsyncIterator[bytes] = self._client.scan_iter(match=pattern, count=count)
        return keys
