"""What the statements of ``migrations/`` become on a ClickHouse cluster; there is one source of the schema.

Each table ``x`` becomes two: ``x_local``, replicated within its shard, which holds the rows, and ``x``, which has none
and sends inserts and questions to the shards. The questions of the service are therefore the same on one server and on
a cluster; only who deletes has to name ``x_local``.

What a question joins lies on one shard, so that each shard can answer for its own part: everything of a message
(``delivery``, ``pushes``, ``completions``, ``messages``) by app and message, everything of a device by app and range of
65 536 numbers, the hours of ``activity`` by app and hour, and what is small by app. Views stand behind the tables that
send, so that what they make is sent to the shard that it belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

#: The tables that hold the rows are called as those of one server, with this behind.
SUFFIX: Final = "_local"
#: Read by every client of a cluster. Each insert waits until its shards have it, on most of their replicas; identical
#: inserts are not left out (they are harmless, and after a deletion needed); a question within a question is asked of
#: the shard at hand, and shards that cannot have a row are not asked.
SETTINGS: Final = {
    "distributed_foreground_insert": 1, "insert_quorum": "auto", "insert_deduplicate": 0,
    "distributed_product_mode": "local", "optimize_skip_unused_shards": 1, "parallel_distributed_insert_select": 0,
    "lightweight_deletes_sync": 1,
}

#: A column a table has -> by what its rows are dealt out; the first that is there decides.
_SHARDING: Final = (("msg_id", "cityHash64(app, msg_id)"), ("number", "cityHash64(app, intDiv(number, 65536))"),
                    ("hour", "cityHash64(app, hour)"), ("app", "cityHash64(app)"))

_TABLE: Final = re.compile(
    r"CREATE TABLE IF NOT EXISTS (?P<name>\w+) (?P<columns>\(.*\)) ENGINE = (?P<engine>\w+)(?:\((?P<options>[^()]*)\))?"
    r"(?P<rest>.*)", re.DOTALL)
_VIEW: Final = re.compile(r"CREATE MATERIALIZED VIEW IF NOT EXISTS (?P<name>\w+) (?P<rest>TO .*)", re.DOTALL)
_DROP: Final = re.compile(r"DROP (?P<kind>TABLE|VIEW) IF EXISTS (?P<name>\w+)")
_ALTER: Final = re.compile(r"ALTER TABLE (?P<name>\w+) (?P<rest>.*)", re.DOTALL)
_INSERT: Final = re.compile(r"INSERT INTO \w+ .*\bSELECT\b", re.DOTALL)


def make_database(database: str, cluster: str) -> str:
    """The database, on every node."""
    return f"CREATE DATABASE IF NOT EXISTS {database}{on(cluster)}"


def on(cluster: str) -> str:
    """Where a statement is carried out."""
    return f" ON CLUSTER `{cluster}`" if cluster else ""


def for_cluster(statement: str, cluster: str, database: str) -> list[str]:
    """What stands for one statement of a migration on *cluster*.

    Raises:
        ValueError: It is of a form that has none; whoever writes such a migration has to say here what it becomes.
    """
    everywhere = on(cluster)
    if match := _TABLE.fullmatch(statement):
        name, columns, engine, rest = match["name"], match["columns"], match["engine"], match["rest"]
        if engine == "Null":
            return [f"CREATE TABLE IF NOT EXISTS {name}{everywhere} {columns} ENGINE = Null{rest}"]
        if engine.endswith("MergeTree"):
            return [
                f"CREATE TABLE IF NOT EXISTS {name}{SUFFIX}{everywhere} {columns} "
                f"ENGINE = {_replicated(engine, match['options'], '{shard}/{database}/{table}', '{replica}')}{rest}",
                f"CREATE TABLE IF NOT EXISTS {name}{everywhere} AS {database}.{name}{SUFFIX} "
                f"ENGINE = Distributed('{cluster}', '{database}', '{name}{SUFFIX}', {sharding_of(columns)})"]
    elif match := _VIEW.fullmatch(statement):
        return [f"CREATE MATERIALIZED VIEW IF NOT EXISTS {match['name']}{everywhere} {match['rest']}"]
    elif match := _DROP.fullmatch(statement):
        # SYNC: the replica's name must be free at once, in case the table is made again.
        names = [match["name"]] if match["kind"] == "VIEW" else [match["name"], match["name"] + SUFFIX]
        return [f"DROP {match['kind']} IF EXISTS {name}{everywhere} SYNC" for name in names]
    elif match := _ALTER.fullmatch(statement):
        # The table that sends knows columns, and nothing of keys, indexes and lifetimes.
        names = [match["name"] + SUFFIX] + [match["name"]] * bool(re.match(r"\w+ COLUMN\b", match["rest"]))
        return [f"ALTER TABLE {name}{everywhere} {match['rest']}" for name in names]
    elif _INSERT.match(statement):
        return [statement]
    raise ValueError(f"this statement has no form for a cluster: {statement[:200]}")


def journal_of_migrations(statement: str, cluster: str) -> str:
    """The same for the table of what was applied: small, and whole on every node."""
    match = _TABLE.fullmatch(statement)
    assert match, statement
    name, columns, rest = match["name"], match["columns"], match["rest"]
    engine = _replicated(match["engine"], match["options"], "all/{database}/{table}", "{shard}-{replica}")
    return f"CREATE TABLE IF NOT EXISTS {name}{on(cluster)} {columns} ENGINE = {engine}{rest}"


def sharding_of(columns: str) -> str:
    """By what the rows of a table with these columns are dealt out."""
    for column, key in _SHARDING:
        if re.search(rf"^\s*{column} ", columns, re.MULTILINE):
            return key
    raise ValueError(f"a table without an app: {columns[:200]}")


def stored(statements: Sequence[str]) -> list[str]:
    """The names of the tables that *statements* make and that hold rows, on one server."""
    matches = [_TABLE.fullmatch(statement) for statement in statements]
    return [match["name"] for match in matches if match and match["engine"] != "Null"]


def _replicated(engine: str, options: str | None, path: str, replica: str) -> str:
    """The engine with its place in Keeper; ``{shard}`` and ``{replica}`` come from each server's macros."""
    words = ", ".join([f"'/clickhouse/tables/{path}'", f"'{replica}'", *([options] if options else [])])
    return f"Replicated{engine}({words})"
