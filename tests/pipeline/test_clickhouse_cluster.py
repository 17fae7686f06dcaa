"""The service on a ClickHouse cluster: the Distributed tables are ClickHouse's own, of one shard, and without Keeper.

What this cannot show (several shards, replication, quorums, ``ON CLUSTER`` by way of Keeper) stands in
deploy/README.md.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
import pytest_asyncio

from reportsvc.commands.stores import create_app
from reportsvc.config import Config
from reportsvc.pipeline.rebuild import Rebuild
from reportsvc.storage import cluster_schema, inventory, queries
from reportsvc.storage.clickhouse import ClickHouse
from reportsvc.storage.queries import TABLES
from reportsvc.storage.redis import Redis
from reportsvc.storage.schema import Schema, load
from tests.cli.program import reportsvc
from tests.faults.oracle import Oracle, in_batches, send_all, stream
from tests.pipeline.story import Story
from tests.support.clickhouse_http import CLUSTER, ClickHouseHttp, clickhouse_http_server
from tests.support.service import Account, Clock, Running, running

DAY: Final = 86400
MIGRATIONS: Final = [migration.on_cluster(CLUSTER, "db") for migration in load()]
STATEMENTS: Final = [statement for migration in MIGRATIONS for statement in (*migration.up, *migration.down)]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(suite_dir: Path) -> AsyncIterator[ClickHouseHttp]:
    """The cluster, for all of these tests."""
    async with clickhouse_http_server(suite_dir / "clickhouse-cluster", cluster=True) as one:
        yield one


@pytest.fixture
def store(config: Config, server: ClickHouseHttp, database: str) -> Config:
    """Settings for the cluster, with a database of the test's own."""
    return replace(config, clickhouse_url=f"{server.url}/{database}", clickhouse_cluster=CLUSTER)


@pytest.fixture
async def service(store: Config, clock: Clock) -> AsyncIterator[Running]:
    """A running service on it."""
    async with running(store, clock) as one:
        yield one


@pytest.fixture
async def account(service: Running) -> Account:
    """An app of that service."""
    return await service.make_account()


async def rows(service: Running, table: str) -> int:
    """The rows of the table that holds them."""
    count: int = (await service.service.clickhouse.query(f"SELECT count() FROM {table}_local", {}, label="test"))[0][0]
    return count


# ----------------------------------------------------------------------------------------------------------- statements
@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda statement: " ".join(statement.split()[:6]))
async def test_every_statement_is_read_as_it_is_meant(statement: str, server: ClickHouseHttp) -> None:
    """ClickHouse's own parser takes each statement, and finds the cluster and the engine in it."""
    clickhouse = ClickHouse(server.url, database="default")
    found = await clickhouse.query("SELECT formatQuerySingleLine({sql:String})", {"sql": statement}, label="test")
    await clickhouse.close()
    text: str = found[0][0]

    assert text.startswith("INSERT INTO") or "ON CLUSTER test" in text
    assert text.count("Replicated") == statement.count("Replicated")


def test_every_table_is_replicated_and_dealt_out() -> None:
    """Each table that holds rows has a replicated part and one that sends; what is joined is dealt out alike."""
    made = {statement.split()[5]: statement.rpartition("_local', ")[2][:-1] for statement in STATEMENTS
            if "ENGINE = Distributed" in statement}
    message, device = "cityHash64(app, msg_id)", "cityHash64(app, intDiv(number, 65536))"

    assert made == {
        "delivery": message, "pushes": message, "completions": message, "messages": message,
        "devices": device, "device_users": device, "device_profiles": device, "device_interests": device,
        "activity": "cityHash64(app, hour)", "device_platforms": "cityHash64(app)", "apps": "cityHash64(app)"}
    assert set(made) == {*cluster_schema.stored([one for migration in load() for one in migration.up])}
    assert {*TABLES, "apps"} == set(made)


@pytest.mark.parametrize("statement", [
    "CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a", "CREATE TABLE IF NOT EXISTS t (a UInt8) ENGINE = Memory",
    "OPTIMIZE TABLE t FINAL", "INSERT INTO t VALUES (1)"])
def test_statement_without_a_form_for_clusters_is_refused(statement: str) -> None:
    """A migration that nobody thought through for clusters fails here, not on the cluster of a user."""
    with pytest.raises(ValueError, match="no form for a cluster"):
        cluster_schema.for_cluster(statement, "c", "d")


def test_changed_tables_are_changed_in_both_parts() -> None:
    """A new column is one of both tables; an index or a lifetime is one of the table that has the rows."""
    both = [f"ALTER TABLE {name} ON CLUSTER `c` ADD COLUMN IF NOT EXISTS a UInt8" for name in ("t_local", "t")]

    assert cluster_schema.for_cluster("ALTER TABLE t ADD COLUMN IF NOT EXISTS a UInt8", "c", "d") == both
    assert cluster_schema.for_cluster("ALTER TABLE t MODIFY TTL h + INTERVAL 1 DAY", "c", "d") == [
        "ALTER TABLE t_local ON CLUSTER `c` MODIFY TTL h + INTERVAL 1 DAY"]


async def test_all_the_way_up_down_and_up_again(store: Config, server: ClickHouseHttp) -> None:
    """Down leaves nothing behind, and up makes the same again."""
    clickhouse = ClickHouse(store.clickhouse_url, cluster=CLUSTER)

    async def tables() -> list[Any]:
        return [tuple(row) for row in await clickhouse.query(
            "SELECT name, engine FROM system.tables WHERE database = currentDatabase() AND name != 'schema_migrations' "
            "ORDER BY name", {}, label="test")]

    await Schema(clickhouse).up()
    made = await tables()
    await Schema(clickhouse).down(len(load()))
    nothing = await tables()
    await Schema(clickhouse).up()

    assert (nothing, await tables()) == ([], made)
    assert {name for name, engine in made if engine == "Distributed"} == {
        name.removesuffix("_local") for name, engine in made if engine.endswith("MergeTree")}
    await clickhouse.close()


async def test_dry_run_shows_what_a_cluster_gets(store: Config, short_dir: Path) -> None:
    """``migrate --dry-run`` prints the statements for the cluster, and runs none."""
    shown = await reportsvc("migrate", "--dry-run", data_dir=short_dir / "data", clickhouse_url=store.clickhouse_url,
                            clickhouse_cluster=CLUSTER)
    clickhouse = ClickHouse(store.clickhouse_url, cluster=CLUSTER)
    applied = await Schema(clickhouse).applied()
    await clickhouse.close()

    database = clickhouse.database
    assert (shown.status, shown.errors, applied) == (0, "", set())
    assert shown.output == "\n".join("\n\n".join([f"-- {one.number:04} {one.name}", *(f"{sql};" for sql in one.up)])
                                     for one in (one.on_cluster(CLUSTER, database) for one in load())) + "\n"


def families(sql: str) -> set[str]:
    """By what the tables that a question reads are dealt out."""
    made = {statement.split()[5]: statement.rpartition("_local', ")[2][:-1] for statement in STATEMENTS
            if "ENGINE = Distributed" in statement}
    return {made[table] for table in re.findall(r"(?:FROM|JOIN) (\w+)", sql) if table in made}


@pytest.mark.parametrize("module", [queries, inventory], ids=["queries", "inventory"])
def test_questions_within_questions_stay_on_a_shard(module: ModuleType) -> None:
    """Where a question has another behind ``IN``, both read tables that are dealt out alike: each shard can answer both
    for its own rows. (Two shards cannot be had here; this is what they need.)"""
    source = Path(module.__file__ or "").read_text("utf-8")
    functions = re.split(r"\n    (?:async )?def ", source)
    nested = [re.sub(r"\{_(?:WITH_)?PLATFORMS\}", "", text) for text in functions if re.search(r"IN \(SELECT", text)]

    assert (len(nested) >= 3) is (module is queries)
    for function in nested:
        # Several statements of one function are told apart by who runs them.
        for statement in re.split(r"_clickhouse\.(?:query|command)\(", function)[1:]:
            assert "IN (SELECT" not in statement or len(families(statement)) == 1, statement


# -------------------------------------------------------------------------------------------------------------- service
async def test_every_kind_of_record_and_report(service: Running, account: Account, clock: Clock) -> None:
    """Devices, pushes, deletions, events, and all reports about them."""
    story = Story(service, clock, account)
    await story.tell()
    await service.applied()
    await story.check()
    clock.ahead += 2 * DAY
    await story.check_later()


async def test_stream_is_counted_exactly(service: Running, account: Account) -> None:
    """Duplicates and any order change no number, and the rows are where they belong."""
    oracle, events = Oracle(), stream(181, 2_000, messages=20)
    oracle.tell(events)
    call = partial(service.call, account=account)
    assert await send_all(call, in_batches(events, 181, largest=300)) == []
    await service.applied()

    await oracle.check(call)
    assert await rows(service, "delivery") > 0


async def test_sweep_and_deletion_reach_the_rows(service: Running, account: Account, clock: Clock) -> None:
    """Dead messages, and everything of an app that is deleted, go from the tables that have the rows."""
    other = await service.make_account("other")
    for one in (account, other):
        await service.send(one, *({"msg_id": f"m{number}", "stage": "received", "device_id": f"d{number}",
                                   "platform": "ios"} for number in range(30)))
    before = await rows(service, "delivery")
    clock.ahead += 40 * DAY
    await service.send(other, {"msg_id": "m0", "stage": "received", "device_id": "d0", "platform": "ios"})
    removed = await service.service.sweep.run()
    kept = await rows(service, "delivery")
    await service.service.queries.delete_app(other.app.id)

    assert (before > 0, removed, kept > 0) == (True, 59, True)
    assert [await rows(service, table) for table in ("delivery", "messages")] == [0, 0]


async def test_redis_is_rebuilt_from_a_cluster(store: Config, clock: Clock, server: ClickHouseHttp,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is wiped and rebuilt from the cluster: every status is as before."""
    monkeypatch.setattr("reportsvc.pipeline.presence._INTERVAL", 0.1)
    oracle, events = Oracle(), stream(183, 600)
    oracle.tell(events)
    async with running(store, clock) as service:
        credentials = await create_app(service.service.redis, "one")
        await service.service.apps.refresh()
        account = Account(credentials.app, credentials.master_secret, credentials.pushy_api_key)
        await send_all(partial(service.call, account=account), in_batches(events, 183))
        await service.applied()
    redis, clickhouse = Redis(store.redis_url), ClickHouse(store.clickhouse_url, cluster=CLUSTER)
    await redis.call("FLUSHALL")
    counts = await Rebuild(redis, clickhouse, lambda line: None, clock).run(force=False)
    await redis.close()
    await clickhouse.close()

    assert (counts["apps"], counts["messages"], counts["devices"]) == (1, 8, len(oracle.devices))
    async with running(store, clock) as service:
        await oracle.check(partial(service.call, account=account))
