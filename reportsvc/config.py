"""Every knob of the service, with its default, its unit and the reason for that number.

Settings come from the environment alone, so that a container, a unit file and a shell set them the same way. They are
read once, at the start, into frozen data: nothing else in the service looks at the environment. A mistake stops the
service with advice; an unknown ``REPORTSVC_`` variable is a mistake too, because a typo that passes in silence leaves
a default in force that nobody wanted.
"""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from reportsvc.errors import BadConfig

PREFIX: Final = "REPORTSVC_"
#: Read by the commands that call a service from outside, for which they are no settings of this one.
CLIENT_VARIABLES: Final = ("REPORTSVC_URL", "REPORTSVC_APP_KEY", "REPORTSVC_MASTER_SECRET")
FSYNC_POLICIES: Final = ("everysec", "always")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
CLICKHOUSE_SCHEMES: Final = ("http", "https")
REDIS_CLUSTER_SCHEMES: Final = ("redis+cluster", "rediss+cluster")
#: Processes on one machine; no machine of today has more cores to gain from.
MAX_WORKERS: Final = 64
#: Calls a minute; more than anybody could make.
MAX_RATE_LIMIT: Final = 1_000_000_000
REDIS_SCHEMES: Final = ("redis", "rediss", "unix", *REDIS_CLUSTER_SCHEMES)


class Role(enum.StrEnum):
    """What a process of the service does."""

    #: Everything, in one process: the only role on embedded stores.
    ALL = "all"
    #: The HTTP dialects: writes the journal, answers reports. Keeps nothing of its own.
    API = "api"
    #: Applies the journal and sweeps; over HTTP it only tells how it is.
    AGGREGATOR = "aggregator"

    @property
    def serves(self) -> bool:
        """Whether it answers the dialects."""
        return self is not Role.AGGREGATOR

    @property
    def applies(self) -> bool:
        """Whether it applies the journal."""
        return self is not Role.API


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one process. Each field is the variable of the same name: ``port`` is ``REPORTSVC_PORT``."""

    #: Address to listen on. Only this machine by default: there is no TLS here, a proxy in front has it.
    host: str = "127.0.0.1"
    #: TCP port to listen on; 0 takes any free one and logs which. 8080 needs no root.
    port: int = 8080
    #: Directory of the embedded stores and of the lock that keeps a second service out. Relative to where the
    #: service is started, so that trying it out leaves everything in one place.
    data_dir: Path = field(default_factory=lambda: _path(".data"))
    #: ClickHouse server, ``http://user:password@host:8123/database``; the database is ``reportsvc`` unless named.
    #: Empty: the engine runs inside this process. Not in the ``repr``, as it may hold a password.
    clickhouse_url: str = field(default="", repr=False)
    #: Redis server, ``redis://host:6379/0``, ``unix:///path``, or ``redis+cluster://host:6379`` for a cluster
    #: (``rediss`` for TLS). Empty: the service starts its own. Not in the ``repr``, as it may hold a password.
    redis_url: str = field(default="", repr=False)
    #: Replicas of a Redis server that must have a write before it is confirmed. 0: a replica that takes over may lack
    #: the last moment, and then the service stops until it is rebuilt. 1 or more: what was answered 200 survives it.
    redis_replicas: int = 0
    #: Name of the ClickHouse cluster (as in its ``remote_servers``) on which the tables are made, replicated and
    #: distributed. Empty: one server. It cannot be changed once the tables are there.
    clickhouse_cluster: str = ""
    #: When the embedded Redis writes its log through to the disk. ``everysec``: a crash of the service or of Redis
    #: loses nothing, a power cut the last second. ``always``: not even that, and each group commit waits for the disk.
    fsync: str = "everysec"
    #: Journal streams, 1-64. One aggregator keeps up with one stream on one machine; raise it to the number of
    #: aggregator processes. It can grow at any time, and shrink once the streams given up are empty.
    partitions: int = 1
    #: Free space, in bytes, below which the embedded ClickHouse writes nothing; see storage/clickhouse.py.
    disk_reserve: int = 256 << 20
    #: Bytes of journal in Redis above which ingest answers 503. Events take 60 bytes in batches and 180 alone, so 1 GiB
    #: is four hours without ClickHouse at 1 000 events a second in batches, and still small beside the device sets.
    journal_max_bytes: int = 1 << 30
    #: Milliseconds the aggregator collects a batch. ClickHouse wants few large inserts and readers want the event
    #: within a second; 100 leaves nine tenths of that second to the work itself.
    linger_ms: int = 100
    #: Devices whose number an aggregator remembers, which saves it a look-up in Redis. About 150 bytes each with ids
    #: of 32 characters, so two million are 300 MB when full; a device that is not remembered is only slower.
    device_cache: int = 2_000_000
    #: Seconds between two retention sweeps. Reports apply retention to the second by themselves; the sweep only frees
    #: space, so an hour is soon enough.
    sweep_interval: int = 3600
    #: Calls to ``/v3`` a minute for each app that has no limit of its own, over all processes; 0 is no limit. JPush's
    #: own figure, so that code written against it behaves the same here.
    rate_limit: int = 2400
    #: The same for ``/v1``. Off: senders and importers are the owner's own, and events must not be lost to a limit.
    rate_limit_native: int = 0
    #: The same for ``/pushes``. Off: Pushy documents none.
    rate_limit_pushy: int = 0
    #: Seconds a connection may be idle between two requests. 25 frees what stuck clients hold within half a minute; a
    #: proxy that keeps connections to us must give them up before we do, so set its time lower or this one higher.
    keepalive: int = 25
    #: What a caller of ``/metrics`` has to send as its Bearer token. Empty: none, as figures about load are no secret
    #: inside a network; whoever shows the port to others sets one. Not in the ``repr``, as it is a password.
    metrics_token: str = field(default="", repr=False)
    #: Whether each request is logged, 0 or 1. Off: at thousands of requests a second the log would cost more than
    #: the answers, and the metrics count them all.
    access_log: bool = False
    #: The least severe messages that are logged. ``info`` is a line per start, stop and recovery, none per request.
    log_level: str = "info"

    @property
    def is_shareable(self) -> bool:
        """Whether several processes can work on these stores: embedded ones belong to one process."""
        return bool(self.redis_url and self.clickhouse_url)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Config:
        """Read the settings from *environ*; a variable that is unset or empty keeps its default.

        Raises:
            BadConfig: names the variable, its value and what to write instead.
        """
        for name in environ:
            if name.startswith(PREFIX) and name not in VARIABLES and name not in CLIENT_VARIABLES:
                raise BadConfig(_unknown(name))
        given = {name: environ[name].strip() for name in VARIABLES if environ.get(name, "").strip()}
        config = cls(**{field_of(name): _read(name, value) for name, value in given.items()})
        if config.redis_replicas and not config.redis_url:
            raise BadConfig("REPORTSVC_REDIS_REPLICAS needs a REPORTSVC_REDIS_URL: the embedded server has no replica")
        if config.clickhouse_cluster and not config.clickhouse_url:
            raise BadConfig("REPORTSVC_CLICKHOUSE_CLUSTER needs a REPORTSVC_CLICKHOUSE_URL: the embedded engine is in "
                            "no cluster")
        return config


def field_of(name: str) -> str:
    """The field of :class:`Config` that the variable *name* sets."""
    return name.removeprefix(PREFIX).lower()


@dataclass(frozen=True, slots=True)
class Variable:
    """How one variable is read: *parse* raises ``ValueError``, *advice* says what to write instead."""

    parse: Callable[[str], Any]
    advice: str


def _text(value: str) -> str:
    if re.search(r"[\s/]", value):
        raise ValueError("not a host")
    return value


def _token(value: str) -> str:
    # RFC 6750: what may stand behind "Bearer".
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]{8,200}=*", value):
        raise ValueError("not a token")
    return value


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,99}", value):
        raise ValueError("not a name")
    return value


def _path(value: str) -> Path:
    return Path(value).expanduser().resolve()


def _whole(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        # int() alone also takes "1_000", " 7" and digits of other scripts.
        if not re.fullmatch(r"[0-9]{1,18}", value) or not lowest <= int(value) <= highest:
            raise ValueError("not in range")
        return int(value)
    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value.lower() not in words:
            raise ValueError("not a known word")
        return value.lower()
    return parse


def _switch(value: str) -> bool:
    return ("0", "1").index(value) == 1


def _split(value: str, schemes: tuple[str, ...]) -> SplitResult:
    url = urlsplit(value)
    if url.scheme not in schemes or url.fragment or url.port == 0:
        raise ValueError("not such a URL")
    return url


def _clickhouse_url(value: str) -> str:
    url = _split(value, CLICKHOUSE_SCHEMES)
    if not url.hostname or url.query or not re.fullmatch(r"/?|/[A-Za-z_][A-Za-z0-9_]*/?", url.path):
        raise ValueError("not a ClickHouse URL")
    return value


def _redis_url(value: str) -> str:
    url = _split(value, REDIS_SCHEMES)
    if url.scheme == "unix":
        usable = url.path.startswith("/")
    else:
        # A cluster has one database only, number 0.
        database = r"/?0?" if url.scheme in REDIS_CLUSTER_SCHEMES else r"/?[0-9]*"
        usable = bool(url.hostname and re.fullmatch(database, url.path))
    if not usable:
        raise ValueError("not a Redis URL")
    return value


VARIABLES: Final[Mapping[str, Variable]] = {
    "REPORTSVC_HOST": Variable(_text, "an address or name of this machine, such as 127.0.0.1, or 0.0.0.0 for all"),
    "REPORTSVC_PORT": Variable(_whole(0, 65535), "a port, 1 to 65535, or 0 for any free one"),
    "REPORTSVC_DATA_DIR": Variable(_path, "a directory that this user can write to"),
    "REPORTSVC_CLICKHOUSE_URL": Variable(
        _clickhouse_url, "http://user:password@host:8123/database (or https://), or nothing for the embedded engine"),
    "REPORTSVC_REDIS_URL": Variable(
        _redis_url, "redis://host:6379/0, rediss://…, unix:///path/to/socket, redis+cluster://host:6379 or "
                    "rediss+cluster://… for a cluster, or nothing for the embedded server"),
    "REPORTSVC_REDIS_REPLICAS": Variable(_whole(0, 10), "how many replicas must have each write, 0 to 10"),
    "REPORTSVC_CLICKHOUSE_CLUSTER": Variable(_name, "the name of a cluster, letters, digits, _ and -"),
    "REPORTSVC_FSYNC": Variable(_one_of(*FSYNC_POLICIES), " or ".join(FSYNC_POLICIES)),
    "REPORTSVC_PARTITIONS": Variable(_whole(1, 64), "a whole number of streams, 1 to 64"),
    "REPORTSVC_DISK_RESERVE": Variable(_whole(0, 1 << 60), "a whole number of bytes, 0 or more"),
    "REPORTSVC_JOURNAL_MAX_BYTES": Variable(_whole(1 << 20, 1 << 50), "a whole number of bytes, 1048576 or more"),
    "REPORTSVC_LINGER_MS": Variable(_whole(0, 10_000), "a whole number of milliseconds, 0 to 10000"),
    "REPORTSVC_DEVICE_CACHE": Variable(_whole(1000, 1 << 32), "a whole number of devices, 1000 or more"),
    "REPORTSVC_SWEEP_INTERVAL": Variable(_whole(1, 86_400), "a whole number of seconds, 1 to 86400"),
    "REPORTSVC_RATE_LIMIT": Variable(_whole(0, MAX_RATE_LIMIT), "calls a minute, or 0 for no limit"),
    "REPORTSVC_RATE_LIMIT_NATIVE": Variable(_whole(0, MAX_RATE_LIMIT), "calls a minute, or 0 for no limit"),
    "REPORTSVC_RATE_LIMIT_PUSHY": Variable(_whole(0, MAX_RATE_LIMIT), "calls a minute, or 0 for no limit"),
    "REPORTSVC_KEEPALIVE": Variable(_whole(1, 3600), "a whole number of seconds, 1 to 3600"),
    "REPORTSVC_METRICS_TOKEN": Variable(
        _token, "8 to 200 letters, digits or ._~+/- (for example of `openssl rand -hex 24`), or nothing for no token"),
    "REPORTSVC_ACCESS_LOG": Variable(_switch, "0 or 1"),
    "REPORTSVC_LOG_LEVEL": Variable(_one_of(*LOG_LEVELS), ", ".join(LOG_LEVELS[:-1]) + " or " + LOG_LEVELS[-1]),
}


def _read(name: str, value: str) -> Any:
    variable = VARIABLES[name]
    try:
        return variable.parse(value)
    except ValueError:
        # The URLs may hold a password, the token is one, and this text ends up in logs.
        shown = "***" if name.endswith("_TOKEN") else re.sub(r"//.*@", "//***@", value)
        raise BadConfig(f"{name}={shown} cannot be used; write {variable.advice}") from None


def _unknown(name: str) -> str:
    # Compared without the prefix: with it, every name would be close to every other.
    known = [known.removeprefix(PREFIX) for known in VARIABLES]
    close = difflib.get_close_matches(name.removeprefix(PREFIX), known, n=1)
    advice = f"did you mean {PREFIX}{close[0]}?" if close else "the known ones are " + ", ".join(VARIABLES)
    return f"{name} is not a setting of this service; {advice}"
