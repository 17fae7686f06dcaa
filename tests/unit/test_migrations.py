"""Migrations: each leads there and back, explains what it makes, and survives being interrupted."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Final

import pytest

from reportsvc.errors import BadConfig
from reportsvc.storage import schema
from reportsvc.storage.clickhouse import ClickHouse
from reportsvc.storage.schema import Migration, Schema, load, statements

TEXTS: Final = {entry.name: entry.read_text("utf-8") for entry in files("migrations").iterdir()
                if entry.name.endswith(".sql")}


@pytest.fixture
async def clickhouse(engine: Path, database: str) -> AsyncIterator[ClickHouse]:
    """An empty database."""
    clickhouse = ClickHouse(directory=engine / "clickhouse", database=f"{database}_migrations")
    yield clickhouse
    await clickhouse.close()


async def tables(clickhouse: ClickHouse) -> dict[str, str]:
    """What there is, and how it was made."""
    rows = await clickhouse.query(
        "SELECT name, create_table_query FROM system.tables WHERE database = currentDatabase() "
        "AND name != 'schema_migrations'", {}, label="test")
    return {row[0]: row[1] for row in rows}


# ---------------------------------------------------------------------------------------------------------------- files
def test_numbers_have_no_gap() -> None:
    """Migrations are numbered 1, 2, 3, …, so that two made at the same time collide in review."""
    assert [migration.number for migration in load()] == list(range(1, len(TEXTS) + 1))


@pytest.mark.parametrize("name", TEXTS)
def test_every_table_is_explained(name: str) -> None:
    """Right over each CREATE TABLE stands a sentence that says what the table is."""
    tables = re.findall(r"((?:^--.*\n)*)^CREATE TABLE (?:IF NOT EXISTS )?(\w+)", TEXTS[name], re.MULTILINE)

    assert len(tables) == TEXTS[name].count("CREATE TABLE")
    assert [table for comment, table in tables if not re.match(r"-- [A-Z](?:.|\n-- )+\.\n\Z", comment)] == []


@pytest.mark.parametrize("name", TEXTS)
def test_every_migration_has_a_way_back_or_a_reason(name: str) -> None:
    """After ``migrate:down`` stands the reverse, or a sentence on why there is none."""
    _, mark, down = TEXTS[name].partition("-- migrate:down\n")

    assert mark
    assert statements(down) or re.search(r"^-- \w.*\.$", down, re.MULTILINE)


@pytest.mark.parametrize("name", TEXTS)
def test_every_statement_may_run_twice(name: str) -> None:
    """A migration that stopped half-way is applied from the start, so each statement says IF (NOT) EXISTS."""
    assert [one for one in statements(TEXTS[name]) if re.match(r"CREATE|DROP|ALTER", one)
            and not re.search(r"IF (NOT )?EXISTS", one)] == []


def test_statements_are_cut_at_the_ends_of_lines() -> None:
    """Comments go, semicolons inside a line stay."""
    assert statements("-- one; two\nSELECT ';'\n  -- three\n, 1;\n\nSELECT 2;  \n;\nSELECT 3") == [
        "SELECT ';'\n, 1", "SELECT 2", "SELECT 3"]


# ------------------------------------------------------------------------------------------------------------- database
async def test_all_the_way_up_down_and_up_again(clickhouse: ClickHouse) -> None:
    """Down leaves nothing behind, and up again makes the very same tables."""
    everything, migrations = Schema(clickhouse), load()

    assert await everything.up() == migrations
    made = await tables(clickhouse)
    assert await everything.down(len(migrations)) == migrations[::-1]
    assert (await tables(clickhouse), await everything.applied()) == ({}, set())
    assert await everything.up() == migrations
    assert await tables(clickhouse) == made != {}


async def test_up_twice_changes_nothing(clickhouse: ClickHouse) -> None:
    """What is applied is not applied again, by the same process or the next."""
    await Schema(clickhouse).up()
    made = await tables(clickhouse)

    assert await Schema(clickhouse).up() == []
    assert await Schema(clickhouse).pending() == []
    assert await tables(clickhouse) == made


async def test_asking_changes_nothing(clickhouse: ClickHouse) -> None:
    """What is pending can be asked of a database that was never touched, and stays so."""
    everything = Schema(clickhouse)

    assert await everything.pending() == load()
    assert await everything.reversible(5) == []
    rows = await clickhouse.query("SELECT count() FROM system.tables WHERE database = currentDatabase()", {}, label="")
    assert rows[0][0] == 0


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
async def test_crash_on_the_way_up_is_mended_by_the_next_start(clickhouse: ClickHouse, share: float) -> None:
    """Wherever a migration stopped, applying it again completes it."""
    await Schema(clickhouse).up()
    made = await tables(clickhouse)
    await Schema(clickhouse).down(len(load()))
    for migration in load():
        for statement in migration.up[:max(1, int(len(migration.up) * share))]:
            await clickhouse.command(statement)

    await Schema(clickhouse).up()

    assert await tables(clickhouse) == made


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
async def test_crash_on_the_way_down_is_mended_by_the_next_attempt(clickhouse: ClickHouse, share: float) -> None:
    """Wherever undoing stopped, undoing again completes it."""
    everything = Schema(clickhouse)
    await everything.up()
    newest = load()[-1]
    for statement in newest.down[:max(1, int(len(newest.down) * share))]:
        await clickhouse.command(statement)

    assert await everything.down(1) == [newest]

    assert await everything.applied() == {migration.number for migration in load()} - {newest.number}
    await everything.down(len(load()))
    assert await tables(clickhouse) == {}


async def test_newest_is_undone_first(clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """``down N`` undoes the newest N that are applied, newest first, and leaves the rest."""
    three = [Migration(number, f"table_{number}", [f"CREATE TABLE IF NOT EXISTS t{number} (n UInt8) ENGINE = Null"],
                       [f"DROP TABLE IF EXISTS t{number}"]) for number in (1, 2, 3)]
    monkeypatch.setattr(schema, "load", lambda: three)
    everything = Schema(clickhouse)
    await everything.up()

    undone = await everything.down(2)

    assert undone == [three[2], three[1]]
    assert sorted(await tables(clickhouse)) == ["t1"]
    assert await everything.pending() == [three[1], three[2]]


async def test_no_way_back_undoes_nothing(clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """If one of those to undo has no reverse, none is undone, and the text says which."""
    two = [Migration(1, "data", ["CREATE TABLE IF NOT EXISTS t1 (n UInt8) ENGINE = Null"], []),
           Migration(2, "view", ["CREATE TABLE IF NOT EXISTS t2 (n UInt8) ENGINE = Null"], ["DROP TABLE t2"])]
    monkeypatch.setattr(schema, "load", lambda: two)
    everything = Schema(clickhouse)
    await everything.up()

    with pytest.raises(BadConfig) as refusal:
        await everything.down(2)

    assert str(refusal.value) == "migration 0001 data has no way back; its file says why"
    assert sorted(await tables(clickhouse)) == ["t1", "t2"]
