"""Memory of a device set with few members of a large app, in a redis-server of its own."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

import numpy as np

from reportsvc.registry.messages import Messages, received_by
from reportsvc.storage.device_set import CHUNK_BITS, small_chunk_limit
from reportsvc.storage.embedded import EmbeddedRedis
from reportsvc.storage.redis import Redis


def bytes_each(app_size: int, members: int) -> float:
    """Bytes of Redis per member, keys and the message's hash included."""
    return asyncio.run(_measure(app_size, members))


async def _measure(app_size: int, members: int) -> float:
    directory = Path(tempfile.mkdtemp(prefix="rsb-", dir="/tmp"))
    server = EmbeddedRedis(directory, "everysec")
    await server.start()
    redis = Redis(server.url)
    try:
        limit = await small_chunk_limit(redis)
        numbers = np.random.default_rng(1).choice(app_size, members, replace=False).astype(np.uint32)
        chunks = np.unique(numbers >> CHUNK_BITS).tolist()
        sets = [str(1613113584 + number) for number in range(20)]
        before = await _used(redis)
        for message in sets:
            await redis.run([Messages(redis).touch(1, message, 2_000_000_000, chunks)])
            await redis.run(received_by(1, message).add(numbers, limit))
        return (await _used(redis) - before) / members / len(sets)
    finally:
        await redis.close()
        await server.stop()
        shutil.rmtree(directory, ignore_errors=True)


async def _used(redis: Redis) -> int:
    """Memory of the data, its keys and their tables, without buffers of connections."""
    stats = await redis.call("MEMORY", "STATS")
    pairs = stats if isinstance(stats, dict) else dict(zip(stats[::2], stats[1::2], strict=True))
    values = {name.decode() if isinstance(name, bytes) else name: value for name, value in pairs.items()}
    return int(values["total.allocated"] - values["clients.normal"] - values["aof.buffer"])
