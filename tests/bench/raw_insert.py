"""How fast ClickHouse takes the aggregator's rows, with nothing else around it: the limit for batches."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import numpy as np

from reportsvc.storage import rowbinary as rb
from reportsvc.storage.clickhouse import ClickHouse
from reportsvc.storage.schema import Schema

_COLUMNS = ("app", "msg_id", "kind", "platform", "channel", "stage", "hour", "seen", "devices", "last")


def rows_per_second(batches: int, events: int = 30_000, messages: int = 20) -> float:
    """Events a second, inserted *events* at a time, grouped by message as the aggregator groups them."""
    return asyncio.run(_measure(batches, events, messages))


async def _measure(batches: int, events: int, messages: int) -> float:
    rng = np.random.default_rng(1)
    now = int(time.time())
    words = b"".join(map(rb.string, ("notification", "android", "xiaomi", "received")))
    with tempfile.TemporaryDirectory() as directory:
        clickhouse = ClickHouse(directory=Path(directory))
        await Schema(clickhouse).up()
        blocks = [b"".join(
            rb.uint32(1) + rb.string(str(message)) + words + rb.uint32(now // 3600 * 3600) + rb.uint8(1)
            + rb.length(events // messages) + rng.integers(0, 100_000, events // messages).astype("<u4").tobytes()
            + rb.uint32(now) for message in range(messages)) for _ in range(10)]
        start = time.perf_counter()
        for number in range(batches):
            await clickhouse.insert("ingest", _COLUMNS, blocks[number % len(blocks)])
        rate = batches * (events // messages * messages) / (time.perf_counter() - start)
        await clickhouse.close()
    return rate
