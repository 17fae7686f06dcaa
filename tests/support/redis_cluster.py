"""A Redis Cluster on this machine, from the same ``redis-server`` program: nodes that a test can kill, hang and move.

There is no tool to set it up but this: each node is started on a free port, the slots are dealt out, the nodes are
introduced to one another, and those that are to be replicas are told whose. ``cluster-node-timeout`` is short, so that
a master that died is replaced within two or three seconds.

By hand: ``python -m tests.support.redis_cluster --replicas 1``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from reportsvc.storage.embedded import TUNING, redis_program
from tests.support.service import eventually

SLOTS: Final = 16384
#: Milliseconds of silence after which a node is taken for dead. Longer than a busy machine keeps a process waiting.
NODE_TIMEOUT: Final = 1500
START_SECONDS: Final = 20.0


def slot_of(key: str) -> int:
    """The slot of a key."""
    slot: int = key_slot(key.encode())
    return slot


def free_port() -> int:
    """A port that is free, and whose bus port, 10 000 above, is free too."""
    for _ in range(100):
        with closing(socket.socket()) as one, closing(socket.socket()) as bus:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            with suppress(OSError, OverflowError):
                bus.bind(("127.0.0.1", port + 10_000))
                return port
    raise OSError("no two ports 10 000 apart are free")


@dataclass(eq=False)
class Node:
    """One redis-server of the cluster."""

    directory: Path
    port: int
    appendonly: bool = True
    process: subprocess.Popen[bytes] | None = None
    id: str = ""

    @property
    def name(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, for the first time or again, and return when it answers."""
        self.directory.mkdir(exist_ok=True)
        settings = {
            **TUNING, "port": str(self.port), "bind": "127.0.0.1", "daemonize": "no", "dir": str(self.directory),
            "logfile": str(self.directory / "redis.log"), "save": "", "appendonly": "yes" if self.appendonly else "no",
            "appendfsync": "always", "cluster-enabled": "yes", "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": str(NODE_TIMEOUT), "cluster-require-full-coverage": "no",
            "cluster-migration-barrier": "99", "repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0",
            # A replica that was cut off for a while still knows nearly everything.
            "cluster-replica-validity-factor": "0", "repl-ping-replica-period": "1"}
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        self.process = subprocess.Popen([redis_program(), *words], stdin=subprocess.DEVNULL, close_fds=True)

        async def answers() -> bool:
            with suppress(RedisError, OSError):
                return bool(await self.call("PING"))
            return False
        await eventually(answers, START_SECONDS)
        self.id = (await self.call("CLUSTER", "MYID")).decode()

    async def call(self, *command: Any) -> Any:
        """One command to this very node."""
        client: Any = Redis(host="127.0.0.1", port=self.port, socket_timeout=10)
        try:
            return await client.execute_command(*command)
        finally:
            await client.aclose()

    async def info(self, section: str) -> dict[str, Any]:
        """What INFO says."""
        found: dict[str, Any] = await self.call("INFO", section)
        return found

    def signal(self, number: signal.Signals) -> None:
        """Send a signal: SIGSTOP hangs it, SIGCONT lets it go on."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """``kill -9``."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class RedisCluster:
    """The nodes: *masters* as they were at first, the replicas of each, and masters that have no slot."""

    masters: list[Node] = field(default_factory=list)
    replicas: list[Node] = field(default_factory=list)
    spares: list[Node] = field(default_factory=list)

    @property
    def nodes(self) -> list[Node]:
        """All of them."""
        return [*self.masters, *self.replicas, *self.spares]

    @property
    def url(self) -> str:
        """What the service is given."""
        return f"redis+cluster://{self.masters[0].name}"

    def node_at(self, port: int) -> Node:
        """The node that listens on *port*."""
        return next(node for node in self.nodes if node.port == port)

    async def start(self) -> None:
        """Start every node, deal out the slots, introduce them, and return when all of them agree."""
        await asyncio.gather(*(node.start() for node in self.nodes))
        for number, node in enumerate(self.masters):
            share = range(SLOTS * number // len(self.masters), SLOTS * (number + 1) // len(self.masters))
            await node.call("CLUSTER", "ADDSLOTS", *share)
        for number, node in enumerate(self.nodes):
            # Epochs that differ from the start need not be settled between the nodes first.
            await node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            await node.call("CLUSTER", "MEET", "127.0.0.1", self.masters[0].port)

        async def all_know_all() -> bool:
            return all([len(await self._view(node)) == len(self.nodes) for node in self.nodes])
        await eventually(all_know_all, START_SECONDS)
        for number, node in enumerate(self.replicas):
            await node.call("CLUSTER", "REPLICATE", self.masters[number % len(self.masters)].id)
        await self.settled()

    async def settled(self) -> None:
        """Wait until every node that runs says that all is well, and every replica follows its master."""
        async def is_settled() -> bool:
            for node in self.nodes:
                if node.process is None:
                    continue
                with suppress(RedisError, OSError):
                    state = await node.call("CLUSTER", "INFO")
                    replication = await node.info("replication")
                    if _is_ok(state) and (replication["role"] == "master"
                                          or replication["master_link_status"] == "up"):
                        continue
                return False
            return len(await self.owners()) > 0
        await eventually(is_settled, START_SECONDS)

    async def owners(self) -> dict[int, Node]:
        """The master of each slot, as the first node that runs sees it."""
        found: dict[int, Node] = {}
        for node in self.nodes:
            if node.process is not None:
                with suppress(RedisError, OSError):
                    for line in (await self._view(node)).values():
                        if "master" in line[2] and "fail" not in line[2]:
                            owner = self.node_at(int(line[1].partition("@")[0].rpartition(":")[2]))
                            for part in line[8:]:
                                if not part.startswith("["):
                                    first, _, last = part.partition("-")
                                    found.update(dict.fromkeys(range(int(first), int(last or first) + 1), owner))
                    return found
        return found

    async def owner_of(self, key: str) -> Node:
        """The master that has *key* now."""
        return (await self.owners())[slot_of(key)]

    async def move(self, slots: Sequence[int], target: Node) -> None:
        """Move *slots* to another master, key by key, while everybody works on."""
        owners = await self.owners()
        for slot in slots:
            source = owners[slot]
            if source is target:
                continue
            await target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
            await source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
            while keys := await source.call("CLUSTER", "GETKEYSINSLOT", slot, 10):
                await source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            for node in (target, source, *self.masters):
                if node.process is not None:
                    with suppress(RedisError):  # a replica does not have to be told
                        await node.call("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    async def replaced(self, master: Node) -> Node:
        """Wait until a replica has taken the place of *master*; which one it is."""
        async def find() -> Node | None:
            for node in self.replicas:
                if node is not master and node.process is not None:
                    with suppress(RedisError, OSError):
                        replication = await node.info("replication")
                        if replication["role"] == "master" and node in (await self.owners()).values():
                            return node
            return None

        async def is_replaced() -> bool:
            return await find() is not None
        await eventually(is_replaced, 30)
        found = await find()
        assert found is not None
        return found

    async def flush(self) -> None:
        """Empty every master."""
        for node in set((await self.owners()).values()):
            await node.call("FLUSHALL")

    def kill(self) -> None:
        """End all of them."""
        for node in self.nodes:
            if node.process is not None:
                node.signal(signal.SIGCONT)
                node.kill()

    @staticmethod
    async def _view(node: Node) -> dict[str, list[str]]:
        """The lines of CLUSTER NODES by id, in words."""
        text: Any = await node.call("CLUSTER", "NODES")
        if isinstance(text, dict):  # the driver has parsed it
            return {about["node_id"]: [about["node_id"], address, about["flags"], *[""] * 5,
                                       *("-".join(part) for part in about["slots"])]
                    for address, about in text.items()}
        words = [line.split() for line in text.decode().splitlines()]
        return {line[0]: line for line in words}


def _is_ok(state: Any) -> bool:
    if isinstance(state, dict):
        return bool(state["cluster_state"] == "ok")
    return b"cluster_state:ok" in state


@asynccontextmanager
async def redis_cluster(directory: Path, *, masters: int = 3, replicas: int = 0, spares: int = 0,
                        appendonly: bool = True) -> AsyncIterator[RedisCluster]:
    """A running cluster of *masters*, each with so many *replicas*, and of *spares*, in *directory*."""
    count = masters * (1 + replicas)
    nodes = [Node(directory / f"node-{number}", free_port(), appendonly) for number in range(count + spares)]
    cluster = RedisCluster(nodes[:masters], nodes[masters:count], nodes[count:])
    try:
        await cluster.start()
        yield cluster
    finally:
        cluster.kill()


async def _show(replicas: int) -> None:
    with tempfile.TemporaryDirectory(prefix="rs-") as directory:
        async with redis_cluster(Path(directory), replicas=replicas) as cluster:
            print(f"REPORTSVC_REDIS_URL={cluster.url}", flush=True)
            await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="A Redis Cluster for tests, until standard input ends.")
    parser.add_argument("--replicas", type=int, default=0, help="of each master")
    asyncio.run(_show(parser.parse_args().replicas))


if __name__ == "__main__":
    os.umask(0o077)
    main()
