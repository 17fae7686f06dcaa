"""The whole service, killed and stopped while events come in: what was answered 200 is counted, once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

from tests.faults.oracle import Oracle, in_batches, send_all, send_while, stream
from tests.faults.process import service_process
from tests.support.service import eventually


async def test_kills_in_a_stream_of_events_change_nothing(short_dir: Path) -> None:
    """Whatever moment the service is killed or stopped at, it goes on where it was, and every answer is exact."""
    rng, oracle, restarts = random.Random(41), Oracle(), 0
    async with service_process(short_dir) as service:
        await service.start()
        redis = service.redis_pid()
        sending = asyncio.create_task(send_while(lambda: restarts < 4, service.call, oracle, 41))
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
            await asyncio.sleep(0.1 + rng.random() / 4)
            assert await service.end(number) == (0 if number == signal.SIGTERM else -number)
            # A kill leaves the Redis behind, and the next service adopts it; a stop leaves none.
            assert service.redis_pid() == (0 if number == signal.SIGTERM else redis)
            await service.start()
            assert (service.redis_pid() == redis) == (number == signal.SIGKILL)
            redis, restarts = service.redis_pid(), restarts + 1
        refusals = await sending
        await eventually(service.is_settled, seconds=30)
        await oracle.check(service.call)
        counts = await service.ledger()

    assert 0 in refusals, "no request was ever cut off"
    # The app's own record is counted too, and so is what a client sent twice because its answer was lost.
    assert counts["dead"] == 0
    assert counts["applied"] == counts["accepted"]


async def test_stop_leaves_nothing_undone(short_dir: Path) -> None:
    """SIGTERM in the middle of a stream: everything answered 200 is applied when the process has ended."""
    oracle, events = Oracle(), stream(43, 3_000)
    async with service_process(short_dir, LINGER_MS="1000") as service:
        await service.start()
        # With a batch collected for a second, the last of these cannot be applied yet when the stop comes.
        await send_all(service.call, in_batches(events, 43, largest=200))
        oracle.tell(events)
        assert not await service.is_settled()
        assert await service.end(signal.SIGTERM) == 0
        after = await service.ledger()

        assert {name: after[name] for name in ("received", "accepted", "applied", "dead")} == {
            "received": 3_000, "accepted": 3_001, "applied": 3_001, "dead": 0}
        assert service.redis_pid() == 0
        await service.start()
        await oracle.check(service.call)


async def test_request_in_flight_is_answered_at_a_stop(short_dir: Path) -> None:
    """A request that waits for the journal when the service is asked to stop is written, answered and applied."""
    async with service_process(short_dir) as service:
        await service.start()
        await eventually(service.is_settled)
        await service.redis.call("CLIENT", "PAUSE", 500)
        asking = asyncio.create_task(service.call("POST", "/v1/events", json={
            "msg_id": "m", "stage": "received", "device_id": "d", "platform": "android"}))
        await asyncio.sleep(0.2)
        assert not asking.done()
        assert await service.end(signal.SIGTERM) == 0

        answer = await asking
        assert (answer.status, answer.json) == (200, {"accepted": 1, "rejected": 0, "errors": []})
        counts = await service.ledger()
        assert (counts["accepted"], counts["applied"], counts["dead"]) == (2, 2, 0)


async def test_second_service_is_refused(short_dir: Path) -> None:
    """A data directory has one service; the second says whose it is, ends, and leaves the first alone."""
    async with service_process(short_dir) as service:
        await service.start()
        assert service.process is not None
        redis = service.redis_pid()
        status, output, errors = await service.command("serve")

        assert (status, output) == (1, "")
        assert f"{short_dir} is in use by the service with pid {service.process.pid}; stop that one first" in errors
        assert (service.redis_pid(), (await service.call("GET", "/readyz")).status) == (redis, 200)
        assert await service.end(signal.SIGTERM) == 0
        assert service.redis_pid() == 0


async def test_redis_killed_together_with_the_service(short_dir: Path) -> None:
    """Both processes die at once, as with a container: with ``fsync always`` all that was answered 200 is there."""
    oracle, deaths = Oracle(), 0
    async with service_process(short_dir, FSYNC="always") as service:
        await service.start()
        sending = asyncio.create_task(send_while(lambda: deaths < 1, service.call, oracle, 47))
        await asyncio.sleep(0.3)
        os.kill(service.redis_pid(), signal.SIGKILL)
        await service.end(signal.SIGKILL)
        assert service.redis_pid() == 0
        await service.start()
        deaths += 1
        await sending
        await eventually(service.is_settled, seconds=30)
        await oracle.check(service.call)
