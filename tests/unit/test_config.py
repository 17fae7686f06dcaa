"""The settings: what is read, what is refused, and whether the refusal helps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from reportsvc.config import VARIABLES, Config, field_of
from reportsvc.errors import BadConfig

EVERY_VARIABLE = {
    "REPORTSVC_HOST": ("0.0.0.0", "0.0.0.0"),
    "REPORTSVC_PORT": ("0", 0),
    "REPORTSVC_DATA_DIR": ("/srv/reportsvc/../data", Path("/srv/data")),
    "REPORTSVC_CLICKHOUSE_URL": ("https://me:secret@ch.example:8443/stats", "https://me:secret@ch.example:8443/stats"),
    "REPORTSVC_REDIS_URL": ("redis+cluster://redis.example:6379", "redis+cluster://redis.example:6379"),
    "REPORTSVC_REDIS_REPLICAS": ("2", 2),
    "REPORTSVC_CLICKHOUSE_CLUSTER": ("push-stats_1", "push-stats_1"),
    "REPORTSVC_FSYNC": ("Always", "always"),
    "REPORTSVC_PARTITIONS": ("64", 64),
    "REPORTSVC_DISK_RESERVE": ("1073741824", 1 << 30),
    "REPORTSVC_JOURNAL_MAX_BYTES": ("1048576", 1 << 20),
    "REPORTSVC_LINGER_MS": ("0", 0),
    "REPORTSVC_DEVICE_CACHE": ("1000", 1000),
    "REPORTSVC_SWEEP_INTERVAL": ("60", 60),
    "REPORTSVC_RATE_LIMIT": ("0", 0),
    "REPORTSVC_RATE_LIMIT_NATIVE": ("60000", 60_000),
    "REPORTSVC_RATE_LIMIT_PUSHY": ("600", 600),
    "REPORTSVC_KEEPALIVE": ("75", 75),
    "REPORTSVC_METRICS_TOKEN": ("t0ken-of_ours.~+/==", "t0ken-of_ours.~+/=="),
    "REPORTSVC_ACCESS_LOG": ("1", True),
    "REPORTSVC_LOG_LEVEL": ("debug", "debug"),
}


def test_empty_environment_gives_the_documented_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without any variable the service runs on embedded stores below the current directory."""
    monkeypatch.chdir(tmp_path)

    assert dataclasses.asdict(Config.from_env({"PATH": "/bin"})) == {
        "host": "127.0.0.1", "port": 8080, "data_dir": tmp_path.resolve() / ".data", "clickhouse_url": "",
        "redis_url": "", "redis_replicas": 0, "clickhouse_cluster": "", "fsync": "everysec", "partitions": 1,
        "journal_max_bytes": 1 << 30, "disk_reserve": 256 << 20, "linger_ms": 100,
        "device_cache": 2_000_000, "sweep_interval": 3600, "rate_limit": 2400, "rate_limit_native": 0,
        "rate_limit_pushy": 0, "keepalive": 25, "metrics_token": "", "access_log": False, "log_level": "info",
    }


def test_every_variable_sets_its_field() -> None:
    """Each variable reaches the field that carries its name, and no other."""
    config = Config.from_env({name: text for name, (text, _) in EVERY_VARIABLE.items()})

    assert dataclasses.asdict(config) == {field_of(name): value for name, (_, value) in EVERY_VARIABLE.items()}


def test_table_and_fields_agree() -> None:
    """A field without a variable, or a variable without a field, cannot be added by accident."""
    fields = [field.name for field in dataclasses.fields(Config)]

    assert fields == [field_of(name) for name in VARIABLES]
    assert sorted(EVERY_VARIABLE) == sorted(VARIABLES)


def test_empty_variable_keeps_the_default() -> None:
    """Compose files pass unset variables as empty ones; that is no setting."""
    assert Config.from_env(dict.fromkeys(VARIABLES, " ")) == Config.from_env({})


@pytest.mark.parametrize(("name", "value"), [
    ("REPORTSVC_HOST", "http://localhost"),
    ("REPORTSVC_PORT", "65536"),
    ("REPORTSVC_PORT", "-1"),
    ("REPORTSVC_PORT", "8_080"),
    ("REPORTSVC_CLICKHOUSE_URL", "clickhouse://host:9000"),
    ("REPORTSVC_CLICKHOUSE_URL", "http:///stats"),
    ("REPORTSVC_CLICKHOUSE_URL", "http://host:8123/a/b"),
    ("REPORTSVC_CLICKHOUSE_URL", "http://host:8123/stats?compress=1"),
    ("REPORTSVC_CLICKHOUSE_URL", "http://host:port"),
    ("REPORTSVC_CLICKHOUSE_URL", "http://[::1"),
    ("REPORTSVC_REDIS_URL", "localhost:6379"),
    ("REPORTSVC_REDIS_URL", "unix://redis.sock"),
    ("REPORTSVC_REDIS_URL", "redis://host/zero"),
    ("REPORTSVC_REDIS_URL", "redis+cluster://host:6379/1"),
    ("REPORTSVC_FSYNC", "no"),
    ("REPORTSVC_PARTITIONS", "0"),
    ("REPORTSVC_PARTITIONS", "65"),
    ("REPORTSVC_JOURNAL_MAX_BYTES", "1GiB"),
    ("REPORTSVC_LINGER_MS", "0.1"),
    ("REPORTSVC_DEVICE_CACHE", "٣٠٠٠"),
    ("REPORTSVC_SWEEP_INTERVAL", "0"),
    ("REPORTSVC_RATE_LIMIT", "none"),
    ("REPORTSVC_RATE_LIMIT_NATIVE", "-1"),
    ("REPORTSVC_RATE_LIMIT_PUSHY", "1000000001"),
    ("REPORTSVC_KEEPALIVE", "0"),
    ("REPORTSVC_ACCESS_LOG", "yes"),
    ("REPORTSVC_LOG_LEVEL", "verbose"),
])
def test_wrong_value_is_named_with_advice(name: str, value: str) -> None:
    """The refusal says which variable, what it held, and what to write."""
    with pytest.raises(BadConfig) as refusal:
        Config.from_env({name: value})

    assert str(refusal.value) == f"{name}={value} cannot be used; write {VARIABLES[name].advice}"


@pytest.mark.parametrize("value", [
    "redis://host", "redis://host/", "redis://:secret@host:6379/3", "rediss://user:secret@host:6380",
    "unix:///run/redis.sock", "unix:///run/redis.sock?db=2", "rediss+cluster://host:6379/0",
])
def test_redis_url_may_be_of_every_documented_kind(value: str) -> None:
    """One server, TLS, a socket or a cluster are all accepted as written."""
    assert Config.from_env({"REPORTSVC_REDIS_URL": value}).redis_url == value


def test_password_is_never_shown() -> None:
    """Neither a refusal nor the settings in a log show a password."""
    with pytest.raises(BadConfig) as refusal:
        Config.from_env({"REPORTSVC_CLICKHOUSE_URL": "http://me:hun/ter@2@host:8123/a/b"})
    config = Config.from_env({"REPORTSVC_REDIS_URL": "redis://:hunter2@host"})

    assert "ter" not in str(refusal.value).partition("cannot")[0]
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize("value", ["hunter2", "hunter2 hunter2", "hunter2=hunter2", "hunter2" * 30])
def test_token_that_is_none_is_refused_and_not_shown(value: str) -> None:
    """What no ``Authorization`` header can carry, or is quickly guessed, is no token; the refusal keeps it secret."""
    with pytest.raises(BadConfig) as refusal:
        Config.from_env({"REPORTSVC_METRICS_TOKEN": value})

    assert str(refusal.value) == ("REPORTSVC_METRICS_TOKEN=*** cannot be used; write "
                                  f"{VARIABLES['REPORTSVC_METRICS_TOKEN'].advice}")
    assert "t0ken-of-ours" not in repr(Config.from_env({"REPORTSVC_METRICS_TOKEN": "t0ken-of-ours"}))


def test_typo_is_refused_with_the_closest_name() -> None:
    """A misspelt variable stops the service instead of leaving a default in force."""
    with pytest.raises(BadConfig) as refusal:
        Config.from_env({"REPORTSVC_JOURNAL_MAXBYTES": "1"})

    assert str(refusal.value) == ("REPORTSVC_JOURNAL_MAXBYTES is not a setting of this service; "
                                  "did you mean REPORTSVC_JOURNAL_MAX_BYTES?")


def test_name_like_no_other_is_refused_with_all_names() -> None:
    """Where nothing is close, the refusal lists what there is."""
    with pytest.raises(BadConfig) as refusal:
        Config.from_env({"REPORTSVC_ZZZ": "1"})

    assert all(name in str(refusal.value) for name in VARIABLES)
