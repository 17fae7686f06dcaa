"""API processes and aggregators apart, on one Redis and one ClickHouse: any of them may die, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from reportsvc import __version__
from reportsvc.pipeline.aggregator import GROUP
from reportsvc.storage.redis import journal_key
from tests.cli.program import Serving, reportsvc
from tests.faults.oracle import Oracle, in_batches, send_all, send_while, stream
from tests.faults.stores import Stores, shared_stores
from tests.support.service import Answer, eventually


@pytest.fixture
async def stores(short_dir: Path) -> AsyncIterator[Stores]:
    """Servers of the test's own."""
    async with shared_stores(short_dir) as servers:
        yield servers


def children(pid: int) -> list[int]:
    """The processes that *pid* has started, the oldest first."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def consumers(stores: Stores) -> int:
    """How many aggregators Redis knows."""
    return len(await stores.redis.call("XINFO", "CONSUMERS", journal_key(0), GROUP))


async def test_roles_do_their_part_and_no_other(stores: Stores) -> None:
    """An API process takes events and applies none; an aggregator applies them, and answers operations alone."""
    await stores.make_app()
    events = [{"msg_id": "m", "stage": "received", "device_id": f"d{n}", "platform": "android"} for n in range(20)]
    async with stores.process("--role", "api") as api:
        stores.urls = [api.url]
        answer = await stores.call("POST", "/v1/events", json=events)
        assert (answer.status, answer.json) == (200, {"accepted": 20, "rejected": 0, "errors": []})
        assert (await stores.call("GET", "/readyz")).json == {"status": "ok",
                                                              "stores": {"redis": "ok", "clickhouse": "ok"}}
        assert await stores.redis.call("XLEN", journal_key(0)) == 2  # and the app's own record

        async with stores.process("--role", "aggregator") as aggregator:
            counts = await stores.applied()
            assert (counts["accepted"], counts["applied"], counts["dead"]) == (21, 21, 0)
            received = await stores.call("GET", "/v3/received?msg_ids=m")
            assert [item["android_received"] for item in received.json] == [20]

            stores.urls = [aggregator.url]
            assert (await stores.call("GET", "/healthz")).json == {"status": "ok"}
            assert (await stores.call("GET", "/readyz")).json == {"status": "ok",
                                                                  "stores": {"redis": "ok", "clickhouse": "ok"}}
            for path, code in (("/v1/events", "not_found"), ("/v3/received", 3002)):
                refused = await stores.call("GET", path)
                assert (refused.status, refused.json) == (
                    404, {"error": {"code": code, "message": "there is nothing at this path"}})
            assert await consumers(stores) == 1
            assert await aggregator.stop() == 0
        assert await consumers(stores) == 0  # it left nothing of itself


# A   reads the entries ... collects ... kill -9
# B                                              gets what is new at once, and A's share when it is taken for dead
async def test_killed_aggregator_is_replaced_by_another(stores: Stores) -> None:
    """What an aggregator had read when it was killed is applied by another, once, and nothing new waits for that."""
    await stores.make_app()
    oracle, held, new = Oracle(), stream(51, 400), stream(52, 400)
    async with (stores.process("--role", "api") as api,
                stores.process("--role", "aggregator", linger_ms=10_000) as doomed):
        stores.urls = [api.url]
        await stores.applied()
        await send_all(stores.call, in_batches(held, 51))
        oracle.tell(held)
        await eventually(stores.pending)
        async with stores.process("--role", "aggregator"):
            assert await doomed.stop(signal.SIGKILL) == -signal.SIGKILL
            kept = await stores.pending()
            assert kept > 0
            await send_all(stores.call, in_batches(new, 52))
            oracle.tell(new)

            async def only_kept() -> bool:
                return bool(await stores.redis.call("XLEN", journal_key(0)) == kept == await stores.pending())
            await eventually(only_kept)
            counts = await stores.applied(60)
            assert (counts["accepted"], counts["applied"], counts["dead"]) == (801, 801, 0)
            await oracle.check(stores.call)


# api 1       up ... stop, start ........................... up
# api 2       up ............... stop, start ............... up
# aggr. 1, 2  up .......................... stop, start, each
# events      ..............................................
async def test_rolling_restart_loses_nothing(stores: Stores) -> None:
    """Every process is stopped and started again in its turn, under load: what was answered 200 is counted, once."""
    await stores.make_app()
    oracle, is_over = Oracle(), False
    roles = ("api", "api", "aggregator", "aggregator")
    async with AsyncExitStack() as stack:
        async def start(role: str) -> Serving:
            return await stack.enter_async_context(stores.process("--role", role))

        processes = list(await asyncio.gather(*map(start, roles)))
        stores.urls = [one.url for one in processes[:2]]
        sending = asyncio.create_task(send_while(lambda: not is_over, stores.call, oracle, 53))
        for place, role in enumerate(roles):
            assert await processes[place].stop() == 0
            old, processes[place] = processes[place].url, await start(role)
            stores.urls = [processes[place].url if url == old else url for url in stores.urls]
        is_over = True
        await sending
        counts = await stores.applied()
        assert (counts["accepted"], counts["dead"]) == (counts["applied"], 0)
        assert await consumers(stores) == 2
        await oracle.check(stores.call)


# ------------------------------------------------------------------------------------------------------------- workers
async def test_workers_are_replaced_and_drained(stores: Stores) -> None:
    """``serve --workers`` on one port: a killed worker is started again, SIGHUP replaces each, SIGTERM ends all, and
    what was answered 200 is counted, once."""
    oracle, is_over = Oracle(), False
    await stores.make_app()
    async with stores.process("--workers", "2") as service:
        stores.urls = [service.url]
        assert service.greeting == f"reportsvc is ready on {service.url}\n"
        first = children(service.process.pid)
        assert len(first) == 3  # two for the port, one that applies
        answered = 0

        async def call(*request: str, **options: Any) -> Answer:
            nonlocal answered
            answer = await stores.call(*request, **options)
            answered += answer.status == 200
            return answer
        sending = asyncio.create_task(send_while(lambda: not is_over, call, oracle, 54))

        os.kill(first[0], signal.SIGKILL)

        async def is_replaced() -> bool:
            now = children(service.process.pid)
            return len(now) == 3 and len(set(now) - set(first)) == 1
        await eventually(is_replaced)
        await eventually(lambda: said(service, "worker 0 ended with status -9; it is started again"))

        service.process.send_signal(signal.SIGHUP)

        async def is_renewed() -> bool:
            now = children(service.process.pid)
            return len(now) == 3 and not set(now) & set(first)
        await eventually(is_renewed, 60)
        await eventually(lambda: said(service, "ready on no port", times=2), 60)
        is_over = True
        await sending
        await stores.applied()
        await oracle.check(stores.call)

        # Counters have not fallen, whichever worker is asked; what a killed one had not left yet is missing.
        accepted = (await stores.applied())["accepted"]

        async def have_figures() -> bool:  # each worker leaves its own once a second
            return (await metrics(stores))["reportsvc_freshness_seconds_count",] >= accepted
        await eventually(have_figures)
        for _ in range(8):
            figures = await metrics(stores)
            assert figures["reportsvc_events_total", "applied"] == accepted
            assert {name[1:]: value for name, value in figures.items() if name[0] == "reportsvc_processes"} == {
                ("api", __version__): 2, ("aggregator", __version__): 1}
            assert {name[1] for name in figures if name[0] == "process_cpu_seconds_total"} == {"0", "1", "2"}
            assert figures["reportsvc_http_requests_total", "POST", "/v1/events", "200"] > 0.8 * answered

        workers = children(service.process.pid)
        assert await service.stop() == 0
        assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []


async def metrics(stores: Stores) -> dict[tuple[str, ...], float]:
    """Name and values of the labels, these by their names -> value."""
    answer = await stores.call("GET", "/metrics")
    return {(sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(answer.body.decode()) for sample in family.samples}


async def said(service: Serving, text: str, times: int = 1) -> bool:
    """Whether *text* is in the log of *service*."""
    return service.log.count(text) >= times


async def test_first_start_with_workers_makes_one_app_and_shows_it(stores: Stores) -> None:
    """Whoever starts several processes first is shown the first app's credentials, once, after the line that it is
    ready."""
    async with stores.process("--workers", "2") as service:
        await eventually(lambda: shown(service))
        words = [line.split() for line in service.greeting.splitlines()]
        found = {word[0]: word[1] for word in words if len(word) == 2}
        assert service.greeting.startswith(f"reportsvc is ready on {service.url}\n\nA first app was made.")
        assert service.greeting.count("master_secret") == 1
        listed = await reportsvc("apps", "list", "--json", **stores.settings)
        assert [(app["name"], app["app_key"]) for app in listed.json] == [("default", found["app_key"])]


async def shown(service: Serving) -> bool:
    """Whether the greeting has come to its last line."""
    return "timestampSecs" in service.greeting


async def test_workers_end_with_their_parent(stores: Stores) -> None:
    """A parent that is killed leaves no worker behind on its port."""
    async with stores.process("--role", "api", "--workers", "2") as service:
        workers = children(service.process.pid)
        assert len(workers) == 2
        await service.stop(signal.SIGKILL)

        async def are_gone() -> bool:
            return not any(Path(f"/proc/{pid}").exists() for pid in workers)
        await eventually(are_gone, 30)


async def test_what_cannot_be_shared_is_refused(stores: Stores) -> None:
    """Several processes on embedded stores, a port in use, a number of workers that is none: status 1 or 2, and why."""
    one, both, no_number = await asyncio.gather(
        reportsvc("serve", "--role", "api", redis_url=stores.redis_url, data_dir=stores.directory / "data"),
        reportsvc("serve", "--workers", "4", data_dir=stores.directory / "data"),
        reportsvc("serve", "--workers", "0"))
    assert [(done.status, done.output, done.errors) for done in (one, both)] == [(1, "", (
        f"reportsvc: {wanted} means several processes on the same stores, and the embedded ones belong to one; set "
        f"{missing} to servers that all of them can reach, or leave {wanted} out\n"))
        for wanted, missing in (("--role api", "REPORTSVC_CLICKHOUSE_URL"),
                                ("--workers 4", "REPORTSVC_REDIS_URL and REPORTSVC_CLICKHOUSE_URL"))]
    assert (no_number.status, no_number.errors.splitlines()[-1]) == (
        2, "reportsvc serve: error: argument --workers: must be 1 to 64, not '0'")

    async with stores.process("--role", "aggregator") as service:
        port = service.url.rpartition(":")[2]
        taken = await reportsvc("serve", "--workers", "2", **stores.settings | {"port": port})
    assert (taken.status, taken.output, taken.errors.splitlines()[-1]) == (
        1, "", f"reportsvc: error while attempting to bind on address ('127.0.0.1', {port}): address already in use")
