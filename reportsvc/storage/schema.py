"""Applies the numbered SQL of ``migrations/`` to ClickHouse, forwards and back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from reportsvc.errors import BadConfig
from reportsvc.storage import cluster_schema
from reportsvc.storage.clickhouse import ClickHouse

_FILE_NAME: Final = re.compile(r"(\d{4})_(\w+)\.sql")
_UP: Final = "-- migrate:up"
_DOWN: Final = "-- migrate:down"
_APPLIED: Final = ("CREATE TABLE IF NOT EXISTS schema_migrations "
                   "(number UInt32, applied Bool, at DateTime64(6, 'UTC')) "
                   "ENGINE = ReplacingMergeTree(at) ORDER BY number")


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file; ``down`` is empty when the file says why there is no way back."""

    number: int
    name: str
    up: Sequence[str]
    down: Sequence[str]

    def on_cluster(self, cluster: str, database: str) -> Migration:
        """The same migration for a cluster."""
        up, down = ([one for statement in part for one in cluster_schema.for_cluster(statement, cluster, database)]
                    for part in (self.up, self.down))
        return Migration(self.number, self.name, up, down)


def load() -> list[Migration]:
    """Every migration in the package, in order."""
    return sorted(_load(), key=lambda migration: migration.number)


def _load() -> Iterator[Migration]:
    for entry in files("migrations").iterdir():
        if match := _FILE_NAME.fullmatch(entry.name):
            text = entry.read_text("utf-8")
            _, _, body = text.partition(_UP)
            up, _, down = body.partition(_DOWN)
            yield Migration(int(match[1]), match[2], statements(up), statements(down))


def statements(text: str) -> list[str]:
    """The statements of a script, without comments; each ends with a semicolon at the end of a line."""
    bare = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
    return [part.strip() for part in re.split(r";\s*(?:\n|$)", bare) if part.strip()]


class Schema:
    """The state of a database, and how to change it."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse

    def migrations(self) -> list[Migration]:
        """Every migration, as this database needs it."""
        migrations, cluster = load(), self._clickhouse.cluster
        if not cluster:
            return migrations
        return [migration.on_cluster(cluster, self._clickhouse.database) for migration in migrations]

    async def applied(self) -> set[int]:
        """Numbers of the migrations this database has; an untouched database is not changed by asking."""
        exists = await self._clickhouse.query(
            "SELECT count() FROM system.tables WHERE database = currentDatabase() AND name = 'schema_migrations'",
            {}, label="schema")
        if not exists[0][0]:
            return set()
        rows = await self._clickhouse.query(
            "SELECT number FROM schema_migrations FINAL WHERE applied", {}, label="schema")
        return {row[0] for row in rows}

    async def pending(self) -> list[Migration]:
        """The migrations still to apply, in order."""
        applied = await self.applied()
        return [migration for migration in self.migrations() if migration.number not in applied]

    async def up(self) -> list[Migration]:
        """Apply what is pending; returns it."""
        cluster = self._clickhouse.cluster
        await self._clickhouse.command(cluster_schema.journal_of_migrations(_APPLIED, cluster) if cluster else _APPLIED)
        pending = await self.pending()
        for migration in pending:
            for statement in migration.up:
                await self._clickhouse.command(statement)
            await self._record(migration, applied=True)
        return pending

    async def reversible(self, steps: int) -> list[Migration]:
        """The newest *steps* applied migrations, newest first.

        Raises:
            BadConfig: One of them has no way back.
        """
        applied = await self.applied()
        chosen = [migration for migration in reversed(self.migrations()) if migration.number in applied][:steps]
        for migration in chosen:
            if not migration.down:
                raise BadConfig(f"migration {migration.number:04} {migration.name} has no way back; its file says why")
        return chosen

    async def down(self, steps: int) -> list[Migration]:
        """Undo the newest *steps* migrations; returns them."""
        chosen = await self.reversible(steps)
        for migration in chosen:
            for statement in migration.down:
                await self._clickhouse.command(statement)
            await self._record(migration, applied=False)
        return chosen

    async def _record(self, migration: Migration, *, applied: bool) -> None:
        await self._clickhouse.command(
            f"INSERT INTO schema_migrations VALUES ({migration.number}, {str(applied).lower()}, now64(6))")
