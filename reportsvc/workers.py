"""Several processes of the service on one machine, behind one port, under a parent that opens no store.

The parent makes a listening socket for each worker and keeps it open. The kernel spreads connections over the sockets;
when a worker dies, what was not accepted yet waits in its socket for the one that replaces it, and no caller is
refused. Workers are started as programs of their own: nothing is forked, and nothing is shared but the sockets.

SIGTERM and SIGINT end all workers in order, each after what it has accepted is written. SIGHUP replaces them one after
the other. A worker whose parent is gone ends by itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import orjson
from aiohttp import web

from reportsvc.config import Config, Role
from reportsvc.errors import BadConfig
from reportsvc.server import serve, url_of

log = logging.getLogger(__name__)

#: How a worker learns that it is one.
_VARIABLE: Final = "_REPORTSVC_WORKER"
_READY: Final = b"reportsvc is ready"
#: Seconds before a worker that did not get ready is started again; a store that is away may be back by then.
_RETRY_SECONDS: Final = (0.5, 1.0, 2.0, 5.0)
_PARENT_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker is told by its parent."""

    number: int
    parent: int
    #: Descriptors of its listening sockets; none for an aggregator beside API workers.
    sockets: Sequence[int]
    #: Where the workers leave their figures for each other.
    figures: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Worker | None:
        """What this process is told; None for one that is no worker."""
        return cls(**orjson.loads(environ[_VARIABLE])) if _VARIABLE in environ else None

    async def serve(self, app: web.Application, config: Config, on_ready: Callable[[str], Any]) -> None:
        """Serve on the sockets of the parent, for as long as it lives."""
        following = asyncio.create_task(self._follow_parent(), name="parent")
        try:
            await serve(app, config, on_ready, [socket.socket(fileno=number) for number in self.sockets])
        finally:
            following.cancel()

    async def _follow_parent(self) -> None:
        while os.getppid() == self.parent:
            await asyncio.sleep(_PARENT_SECONDS)
        log.warning("the parent is gone")
        os.kill(os.getpid(), signal.SIGTERM)


@dataclass
class _Slot:
    """A place for a worker, and the one that has it now."""

    number: int
    role: Role
    sockets: list[socket.socket]
    process: Process | None = None
    is_ready: asyncio.Event = field(default_factory=asyncio.Event)


def check(config: Config, role: Role, workers: int) -> None:
    """Refuse what cannot work.

    Raises:
        BadConfig: Several processes were asked for, on stores that belong to one.
    """
    if config.is_shareable or role is Role.ALL and workers == 1:
        return
    missing = [name for name, url in (("REPORTSVC_REDIS_URL", config.redis_url),
                                      ("REPORTSVC_CLICKHOUSE_URL", config.clickhouse_url)) if not url]
    wanted = f"--workers {workers}" if workers > 1 else f"--role {role}"
    raise BadConfig(f"{wanted} means several processes on the same stores, and the embedded ones belong to one; set "
                    f"{' and '.join(missing)} to servers that all of them can reach, or leave {wanted} out")


class Supervisor:
    """Starts the workers, and sees to it that they run."""

    def __init__(self, config: Config, role: Role, workers: int) -> None:
        """*workers* processes of *role*; for everything, so many API processes, and one aggregator without a port."""
        self._config = config
        self._roles = [Role.API] * workers + [Role.AGGREGATOR] if role is Role.ALL else [role] * workers
        self._with_socket = workers
        self._slots: list[_Slot] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._figures = ""
        self._stop = asyncio.Event()
        self._renew = asyncio.Event()
        self._is_ready = False
        self._held: list[bytes] = []

    async def run(self) -> None:
        """Until SIGTERM or SIGINT.

        Raises:
            BadConfig: A worker could not start at all; it has said why.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._renew.set)
        with tempfile.TemporaryDirectory(prefix="reportsvc-") as self._figures:
            sockets = await _listening(self._config.host, self._config.port, self._with_socket)
            self._slots = [_Slot(number, role, sockets[number] if number < self._with_socket else [])
                           for number, role in enumerate(self._roles)]
            try:
                await self._start()
                if not self._stop.is_set():
                    self._greet(url_of(self._config.host, sockets[0][0].getsockname()[1]))
                await self._watch()
            finally:
                await self._end()

    async def _start(self) -> None:
        # The first alone: it applies migrations and makes the first app.
        for group in (self._slots[:1], self._slots[1:]):
            if self._stop.is_set():
                return
            self._tasks += [asyncio.create_task(self._keep(slot), name=f"worker-{slot.number}") for slot in group]
            await self._wait_for(*(slot.is_ready for slot in group))

    def _greet(self, url: str) -> None:
        self._is_ready = True
        _say(_READY + f" on {url}\n".encode())
        for line in self._held:
            _say(line)
        log.info("ready on %s with %d workers", url, len(self._slots))

    async def _watch(self) -> None:
        while not self._stop.is_set():
            await self._wait_for(self._renew)
            if self._renew.is_set() and not self._stop.is_set():
                self._renew.clear()
                await self._replace_all()

    async def _replace_all(self) -> None:
        for slot in self._slots:
            log.info("worker %d is replaced", slot.number)
            slot.is_ready.clear()
            _send(slot, signal.SIGTERM)
            await self._wait_for(slot.is_ready)

    async def _wait_for(self, *events: asyncio.Event) -> None:
        """Wait for all *events*, for the end, or for a worker that cannot start."""
        tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._stop.wait()),
                                            asyncio.gather(*(event.wait() for event in events))]
        done, _ = await asyncio.wait([*tasks, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for failed in done.intersection(self._tasks):
            failed.result()

    async def _end(self) -> None:
        self._stop.set()
        for slot in self._slots:
            for one in slot.sockets:
                one.close()  # who comes now is refused at once
            _send(slot, signal.SIGTERM)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, slot: _Slot) -> None:
        """Have a worker in *slot*; the first must get ready, each later one is tried again until it does."""
        failures, is_first = 0, True
        while not self._stop.is_set():
            status = await self._run_one(slot)
            if self._stop.is_set():
                return
            if slot.is_ready.is_set():
                log.warning("worker %d ended with status %d; it is started again", slot.number, status)
                failures, is_first = 0, False
            elif status == 0:  # it was asked to go
                is_first = False
            elif is_first:
                raise BadConfig(f"worker {slot.number} could not start; what it said stands above")
            else:
                log.error("worker %d does not start; it is tried again", slot.number)
                with suppress(TimeoutError):
                    await asyncio.wait_for(
                        self._stop.wait(), _RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
                failures += 1
            slot.is_ready.clear()

    async def _run_one(self, slot: _Slot) -> int:
        """One worker, from its start to its end; its exit status."""
        sockets = [one.fileno() for one in slot.sockets]
        worker = Worker(slot.number, os.getpid(), sockets, self._figures)
        slot.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "reportsvc", "serve", "--role", slot.role.value, stdout=PIPE, pass_fds=sockets,
            env=os.environ | {_VARIABLE: orjson.dumps(asdict(worker)).decode()})
        if self._stop.is_set():
            _send(slot, signal.SIGTERM)
        assert slot.process.stdout is not None
        async for line in slot.process.stdout:
            if line.startswith(_READY):
                slot.is_ready.set()
            elif self._is_ready:
                _say(line)
            else:
                self._held.append(line)
        return await slot.process.wait()


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def _send(slot: _Slot, number: signal.Signals) -> None:
    if slot.process is not None and slot.process.returncode is None:
        slot.process.send_signal(number)


async def _listening(host: str, port: int, count: int) -> list[list[socket.socket]]:
    """For each of *count* workers a socket on every address that *host* has, all on one port."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[list[socket.socket]] = [[] for _ in range(count)]
    for family, _, _, _, address in dict.fromkeys(found):
        # Sockets that may share a port would also share it with a second service; a bind on its own finds that out.
        with _bound(family, address, port, socket.SO_REUSEADDR) as probe:
            port = probe.getsockname()[1]
        for one in sockets:
            one.append(_bound(family, address, port, socket.SO_REUSEPORT))
    return sockets


def _bound(family: int, address: tuple[object, ...], port: int, option: int) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, option, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind((address[0], port, *address[2:]))
    except OSError as error:
        one.close()
        raise OSError(error.errno, f"error while attempting to bind on address {(address[0], port)}: "
                                   f"{(error.strerror or str(error)).lower()}") from None
    return one
