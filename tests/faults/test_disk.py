"""A disk that fills up under the embedded ClickHouse, which would take writes that fail for good ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reportsvc.config import Config
from reportsvc.errors import StoreUnavailable
from reportsvc.pipeline import ledger
from reportsvc.storage.clickhouse import ClickHouse
from tests.support.service import Clock, eventually, running

#: More than any disk has.
EVERYTHING = 1 << 60


async def merges_are_stopped(clickhouse: ClickHouse) -> bool:
    """Whether two parts stay two although somebody wants one."""
    for _ in range(2):
        await clickhouse.query("INSERT INTO probe SELECT 1", {}, label="")
    try:
        await clickhouse.query("OPTIMIZE TABLE probe FINAL SETTINGS optimize_throw_if_noop = 1", {}, label="")
    except StoreUnavailable as error:
        assert "Cancelled merging parts" in str(error)
        return True
    return False


async def test_events_wait_while_the_disk_is_nearly_full(config: Config, clock: Clock, database: str) -> None:
    """With less free than the reserve, events are taken and wait, reports tell what they knew, and nothing is merged;
    with room again everything is counted."""
    async with running(config, clock, database) as service:
        account = await service.make_account()
        event = {"msg_id": "m", "stage": "received", "platform": "android"}
        await service.send(account, event | {"device_id": "a"})
        clickhouse = service.service.clickhouse
        await clickhouse.command("CREATE TABLE probe (n UInt8) ENGINE = MergeTree ORDER BY n")

        clickhouse._disk_reserve = EVERYTHING
        answer = await service.call("POST", "/v1/events", account, json=[event | {"device_id": "b"}])
        assert answer.json == {"accepted": 1, "rejected": 0, "errors": []}

        async def is_noticed() -> bool:
            return clickhouse._is_disk_low
        await eventually(is_noticed)
        counts = await ledger.read(service.service.redis, 1)
        assert (counts["accepted"] - counts["applied"], counts["dead"]) == (1, 0)
        report = await service.call("GET", "/v3/received?msg_ids=m", account)
        assert (report.status, report.json[0]["android_received"]) == (200, 1)
        assert await merges_are_stopped(clickhouse)

        clickhouse._disk_reserve = 0
        await service.applied()
        report = await service.call("GET", "/v3/received?msg_ids=m", account)
        assert report.json[0]["android_received"] == 2
        assert not await merges_are_stopped(clickhouse)


async def test_no_start_on_a_full_disk(config: Config, clock: Clock, database: str) -> None:
    """A service that could not write does not start, and says how much room it needs."""
    with pytest.raises(StoreUnavailable, match=r"has \d+ MiB of free space, and 1099511627776 MiB are needed to write"):
        async with running(replace(config, disk_reserve=EVERYTHING), clock, database):
            pass
