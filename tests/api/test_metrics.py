"""``GET /metrics``: every figure, as Prometheus reads it, also while a store is away or hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from reportsvc import metrics as metrics_module
from reportsvc.config import Config
from reportsvc.metrics import COUNTER, HISTOGRAM, METRICS, Metrics
from reportsvc.pipeline import figures
from reportsvc.storage.embedded import EmbeddedRedis
from tests.api.helpers import raw
from tests.support.clickhouse_http import clickhouse_http_server
from tests.support.service import Account, Clock, Running, running

EVENTS_ROUTE = "/reporting_api/v2/instances/{instance_id}/events"


async def scrape(service: Running) -> dict[str, Metric]:
    """The families of an answer, by their names."""
    answer = await service.call("GET", "/metrics")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return {family.name: family for family in text_string_to_metric_families(answer.body.decode())}


async def values(service: Running) -> dict[tuple[str, ...], float]:
    """Every sample but those of buckets: name and the values of its labels, these by their names -> value."""
    return {(sample.name, *sample.labels.values()): sample.value
            for family in (await scrape(service)).values() for sample in family.samples
            if not sample.name.endswith("_bucket")}


async def test_every_metric_is_served_with_its_type_and_labels(running_service: Running, account: Account) -> None:
    """What the service tells is what metrics.py and with it the README say, no more and no less."""
    await running_service.send(account, {"msg_id": "m", "stage": "received", "device_id": "d"})
    families = await scrape(running_service)

    assert [(family.name, family.type, family.documentation) for family in families.values()] == [
        (metric.name.removesuffix("_total"), metric.kind, metric.help) for metric in METRICS]
    for metric in METRICS:
        for sample in families[metric.name.removesuffix("_total")].samples:
            assert set(sample.labels) - {"le"} == set(metric.labels), sample


async def test_ledger_and_journal(running_service: Running, account: Account) -> None:
    """What was received, refused and applied is told as the ledger has it, and an empty journal as empty."""
    good = {"msg_id": "m", "stage": "received", "device_id": "d"}
    answer = await running_service.call(
        "POST", "/v1/events", account, json=[good, {**good, "ts": 1}, {**good, "stage": 1}])
    assert answer.json["accepted"] == 2
    await running_service.applied()
    await running_service.service.ledger.stop()  # which writes what it has
    found = await values(running_service)

    assert {name: value for name, value in found.items() if name[0].startswith("reportsvc_") and name[0] in {
        metric.name for metric in METRICS if metric.is_shared} - {"reportsvc_journal_bytes"}} == {
            ("reportsvc_store_up", "redis"): 1, ("reportsvc_store_up", "clickhouse"): 1,
            ("reportsvc_events_total", "received"): 3, ("reportsvc_events_total", "accepted"): 2,
            ("reportsvc_events_total", "applied"): 2, ("reportsvc_events_total", "dead"): 0,
            ("reportsvc_events_total", "skewed"): 1, ("reportsvc_rejected_events_total", "stage"): 1,
            ("reportsvc_dead_letters", "0"): 0, ("reportsvc_journal_entries", "0"): 0,
            ("reportsvc_journal_pending_entries", "0"): 0, ("reportsvc_journal_oldest_seconds", "0"): 0,
            ("reportsvc_journal_max_bytes",): 1 << 30, ("reportsvc_aggregators", "0"): 1}
    assert (found["reportsvc_batch_events_count",], found["reportsvc_batch_events_sum",]) == (1, 2)
    assert found["reportsvc_freshness_seconds_count",] == 2
    assert 0 < found["reportsvc_freshness_seconds_sum",] < 120
    steps = ("collect", "numbers", "devices", "sets", "counters", "pushes", "all")
    assert [found["reportsvc_apply_seconds_count", step] for step in steps] == [1] * 7


async def test_waiting_entries_are_told_with_their_age(running_service: Running, account: Account) -> None:
    """While nobody applies, the journal's entries, their memory and the age of the oldest are told."""
    for aggregator in running_service.service.aggregators:
        await aggregator.stop()
    event = {"msg_id": "m", "stage": "received", "device_id": "d"}
    for _ in range(2):
        await running_service.call("POST", "/v1/events", account, json=event)
        await asyncio.sleep(0.2)
    found = await values(running_service)

    assert found["reportsvc_journal_entries", "0"] == 2
    assert found["reportsvc_journal_pending_entries", "0"] == 0
    assert 0.4 <= found["reportsvc_journal_oldest_seconds", "0"] < 60
    assert found["reportsvc_journal_bytes", "", "0"] == await running_service.service.journal.backlog_bytes() > 0
    assert found["reportsvc_aggregators", "0"] == 0  # it has left


async def test_requests_are_counted_by_template_and_status(running_service: Running, account: Account) -> None:
    """Each answer counts once: by the template of the path that answered it, however it was written; and paths that do
    not exist have one name together, as anybody may make them up."""
    event = {"event": "delivery", "publishId": "m", "deviceId": "fcm-1", "timestampSecs": 1700000000}
    beams = f"/reporting_api/v2/instances/{account.app.beams_instance_id}/events"
    for method, path, body in (
            ("POST", beams, event), ("POST", beams, event), ("POST", f"{beams}//", event), ("POST", beams, []),
            ("GET", "/v3/received?msg_ids=1", None), ("GET", "/v3//received/?msg_ids=1", None),
            ("GET", "/v3/received", None), ("GET", "/a", None), ("GET", "/b/c", None), ("PUT", "/v3/received", None),
            ("DELETE", "/v1/devices/nobody", None)):
        await running_service.call(method, path, account, json=body)
    found = await values(running_service)

    assert {name[1:]: value for name, value in found.items() if name[0] == "reportsvc_http_requests_total"} == {
        ("POST", EVENTS_ROUTE, "200"): 3, ("POST", EVENTS_ROUTE, "400"): 1, ("GET", "/v3/received", "200"): 2,
        ("GET", "/v3/received", "400"): 1, ("", "none", "404"): 2, ("", "none", "405"): 1,
        ("DELETE", "/v1/devices/{device_id}", "404"): 1}
    assert {name[1:]: value for name, value in found.items() if name[0] == "reportsvc_http_request_seconds_count"} == {
        ("POST", EVENTS_ROUTE): 4, ("GET", "/v3/received"): 3, ("", "none"): 3,
        ("DELETE", "/v1/devices/{device_id}"): 1}


async def test_queries_and_who_shared_them(running_service: Running, account: Account) -> None:
    """A query's time is told by its report; callers that come together share one, and both are counted."""
    await running_service.send(account, {"msg_id": "m", "stage": "received", "device_id": "d"})
    before = await values(running_service)
    await asyncio.gather(*(running_service.call("GET", f"/v3/received?msg_ids=m{n}", account) for n in range(20)))
    found = await values(running_service)

    queries = found["reportsvc_report_queries_total", "received"]
    assert found["reportsvc_report_questions_total", "received"] == 20
    assert 1 <= queries < 20
    assert found["reportsvc_query_seconds_count", "received"] == queries
    assert ("reportsvc_query_seconds_count", "received") not in before


async def test_histograms_add_up(running_service: Running, account: Account) -> None:
    """Buckets grow up to the count, and end in ``+Inf``."""
    await running_service.send(account, {"msg_id": "m", "stage": "received", "device_id": "d"})
    families = await scrape(running_service)

    for metric in METRICS:
        if metric.kind == HISTOGRAM:
            series: dict[tuple[str, ...], list[tuple[float, float]]] = {}
            counts: dict[tuple[str, ...], float] = {}
            for sample in families[metric.name].samples:
                labels = tuple(sample.labels[name] for name in metric.labels)
                if sample.name.endswith("_bucket"):
                    series.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
                elif sample.name.endswith("_count"):
                    counts[labels] = sample.value
            for labels, buckets in series.items():
                assert [bound for bound, _ in buckets] == [*metric.bounds, float("inf")]
                assert [value for _, value in buckets] == sorted(value for _, value in buckets)
                assert buckets[-1][1] == counts[labels]


async def test_openmetrics_is_spoken(running_service: Running) -> None:
    """A Prometheus that asks for the newer format is answered in it."""
    answer = await running_service.call("GET", "/metrics", headers={
        "Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"})

    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.body.endswith(b"# EOF\n")


# -------------------------------------------------------------------------------------------------------------- stores
@pytest.fixture
async def lone_service(config: Config, clock: Clock, database: str,
                       short_dir: Path) -> AsyncIterator[tuple[Running, EmbeddedRedis]]:
    """A service on a Redis of its own."""
    server = EmbeddedRedis(short_dir / "redis", "everysec")
    await server.start()
    async with running(replace(config, redis_url=server.url), clock, database) as service:
        yield service, server
        await server.start()  # so that nothing has to wait for it at the end
    await server.stop()


async def test_redis_away(lone_service: tuple[Running, EmbeddedRedis]) -> None:
    """Without Redis its figures are missing, none is zero, and one says that it is away; all else is told."""
    service, server = lone_service
    account = await service.make_account()
    await server.stop()
    refused = await service.call("POST", "/v1/events", account, json={
        "msg_id": "m", "stage": "received", "device_id": "d"})
    assert refused.status == 503
    found = await values(service)

    shared = {metric.name for metric in METRICS if metric.is_shared}
    assert {name: value for name, value in found.items() if name[0] in shared} == {
        ("reportsvc_store_up", "redis"): 0, ("reportsvc_store_up", "clickhouse"): 1,
        ("reportsvc_journal_max_bytes",): 1 << 30}
    assert found["reportsvc_store_errors_total", "request", "redis"] == 1
    assert found["reportsvc_store_errors_total", "apply", "redis"] >= 1
    assert found["reportsvc_http_requests_total", "POST", "/v1/events", "503"] == 1


async def test_stores_that_hang(config: Config, clock: Clock, short_dir: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that takes the question and never answers it delays nobody for longer than the time it is given; and
    however many ask meanwhile, it is asked once."""
    monkeypatch.setattr(figures, "ANSWER_SECONDS", 0.2)
    asked = 0
    answer_it = figures._answer

    async def counted(question: Callable[[], Awaitable[Any]]) -> list[Any]:
        nonlocal asked
        asked += 1
        return await answer_it(question)

    monkeypatch.setattr(figures, "_answer", counted)
    async with clickhouse_http_server(short_dir / "clickhouse") as clickhouse:
        async with running(replace(config, clickhouse_url=clickhouse.url), clock) as service:
            await clickhouse.hang()
            await service.service.redis.call("CLIENT", "PAUSE", 2000)
            answers = await asyncio.gather(*(service.call("GET", "/metrics") for _ in range(10)))
            assert {answer.status for answer in answers} == {200}
            found = await values(service)
            assert (found["reportsvc_store_up", "redis"], found["reportsvc_store_up", "clickhouse"]) == (0, 0)
            assert asked == 2
            await clickhouse.recover()


# --------------------------------------------------------------------------------------------------------------- token
async def test_token_is_asked_for_if_one_is_set(config: Config, clock: Clock, database: str) -> None:
    """With ``REPORTSVC_METRICS_TOKEN`` nobody reads the figures without it; without one, anybody may."""
    async with running(replace(config, metrics_token="t0ken-of-ours"), clock, database) as service:
        refused = [await service.call("GET", "/metrics", headers=headers) for headers in (
            {}, {"Authorization": "Bearer t0ken-of-others"}, {"Authorization": "Basic t0ken-of-ours"},
            {"Authorization": "Bearer"})]
        strange = await raw(service, b"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n"
                                     b"Connection: close\r\n\r\n")
        taken = await service.call("GET", "/metrics", headers={"Authorization": "bearer t0ken-of-ours"})

    assert [(answer.status, answer.json) for answer in (*refused, strange)] == [(401, {"error": {
        "code": "unauthorized", "message": "a Bearer token is needed here, and this is none or another one"}})] * 5
    assert taken.status == 200


# -------------------------------------------------------------------------------------------------------------- module
def test_labels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a label is filled with, one metric has so many children and no more; the rest count together."""
    monkeypatch.setattr(metrics_module, "_MOST_CHILDREN", 3)
    counted = Metrics()
    for number in range(10):
        counted.failed(f"store-{number}", "request")

    assert dict(counted.snapshot()["reportsvc_store_errors_total"]) == {
        ("store-0", "request"): [1], ("store-1", "request"): [1], ("store-2", "request"): [1], ("other", "other"): [7]}


def test_figures_of_processes_add_up() -> None:
    """Two snapshots added are what one process would have counted."""
    parts, whole = [Metrics(), Metrics()], Metrics()
    for number, took in enumerate((0.0005, 0.003, 0.003, 30.0)):
        for one in (parts[number % 2], whole):
            one.requests("GET", "/v3/received", 200)(took)
            one.shared("received", 3)
    total = Metrics()
    for part in parts:
        total.add(part.snapshot())

    assert total.snapshot() == whole.snapshot()
    assert {metric.kind for metric in METRICS} >= {COUNTER, HISTOGRAM}
