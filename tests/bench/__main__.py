"""``make bench``: every figure beside its limit and beside the naive way, in one run.

Machines are shared and noisy, so the figures to quote are ratios: the rounds take turns between the sides, and the
median of the rounds' ratios is reported. ``python -m tests.bench [--quick] [--only NAME] [--json FILE]``
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import orjson
import redis as redis_py

from tests.bench import load
from tests.bench.load import Request
from tests.bench.service import Target, beside, service

FIRST_MSG_ID: Final = 1613113584


@dataclass(frozen=True)
class Row:
    """One line of the table; *wanted* is the figure to reach, as a text."""

    name: str
    figure: str
    wanted: str
    reached: bool
    detail: str


@dataclass(frozen=True)
class Scale:
    """How long and how large: the real thing, or a look in between."""

    rounds: int
    seconds: float
    sustained_seconds: float
    devices: int
    large_app: int


FULL: Final = Scale(rounds=5, seconds=5, sustained_seconds=60, devices=1_000_000, large_app=10_000_000)
QUICK: Final = Scale(rounds=2, seconds=2, sustained_seconds=10, devices=100_000, large_app=500_000)


def device_id(number: int) -> str:
    """An id of the usual length."""
    return f"{number:019x}"


# -------------------------------------------------------------------------------------------------------- single events
def single_event(scale: Scale) -> Iterator[Row]:
    """One Beams event a request, durable when answered."""
    with service() as ours, beside("nothing") as limit, beside("xadd", ours.redis_url) as naive:
        path = f"/reporting_api/v2/instances/{ours.credentials['beams_instance_id']}/events"
        now = int(time.time())
        bodies = [orjson.dumps({
            "publishId": "pubid-1", "event": "delivery", "deviceId": f"fcm-{number}", "userId": None,
            "timestampSecs": now, "appInBackground": False, "hasDisplayableContent": True, "hasData": False})
            for number in range(20_000)]

        def measure(base: str) -> load.Load:
            return load.run(Request("POST", base + path, {"Content-Type": "application/json"}, bodies), 64,
                            scale.seconds)
        measure(ours.url)  # the devices are numbered now
        rounds = [(measure(limit), measure(ours.url), measure(naive)) for _ in range(scale.rounds)]
    of_limit = statistics.median(mine.requests_per_second / top.requests_per_second for top, mine, _ in rounds)
    of_naive = statistics.median(mine.requests_per_second / low.requests_per_second for _, mine, low in rounds)
    rates = " / ".join(
        f"{statistics.median(one[side].requests_per_second for one in rounds):,.0f}" for side in (0, 1, 2))
    errors = sum(mine.errors for _, mine, _ in rounds)
    yield Row("single event, durable 200, 64 connections", f"{of_limit:.2f} of the limit, {of_naive:.1f}x naive",
              ">= 0.90 of the limit", of_limit >= 0.90 and not errors,
              f"requests/s limit / ours / one XADD each: {rates}; errors {errors}")


# -------------------------------------------------------------------------------------------------------------- batches
def _batches(count: int, devices: int, messages: int, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    now = int(time.time())
    return [b"\n".join(
        b'{"msg_id":"%d","stage":"received","device_id":"%s","platform":"android","channel":"xiaomi","ts":%d}'
        % (FIRST_MSG_ID + rng.randrange(messages), device_id(rng.randrange(devices)).encode(), now)
        for _ in range(1000)) for _ in range(count)]


def _lines(target_url: str, headers: dict[str, str], bodies: Sequence[bytes]) -> Request:
    return Request("POST", target_url + "/v1/events", headers | {"Content-Type": "application/x-ndjson"}, bodies)


def _register(ours: Target, devices: int) -> None:
    for start in range(0, devices, 10_000):
        ours.call("POST", "/v1/devices", orjson.dumps([
            {"device_id": device_id(number), "platform": "android"}
            for number in range(start, min(start + 10_000, devices))]))
    ours.settle()


def batches(scale: Scale) -> Iterator[Row]:
    """Lines of JSON, a thousand a request, until they stand in the reports."""
    bodies = _batches(400, 100_000, 20, 1)
    with service() as ours, beside("parse") as limit, beside("hset", ours.redis_url) as naive:
        _register(ours, 100_000)
        parsed = load.run(_lines(limit, {}, bodies), 8, scale.seconds).requests_per_second * 1000
        # A request takes it seconds.
        low = load.run(_lines(naive, {}, bodies[:20]), 8, max(scale.seconds, 15.0)).requests_per_second * 1000
        before, started = ours.ledger(), time.monotonic()
        samples: list[tuple[float, int]] = []
        done = threading.Event()
        watcher = threading.Thread(target=_watch_backlog, args=(ours, samples, done))
        watcher.start()
        sent = load.run(_lines(ours.url, ours.auth, bodies), 8, scale.sustained_seconds)
        elapsed, after = time.monotonic() - started, ours.ledger()
        done.set()
        watcher.join()
        visible = (after["applied"] - before["applied"]) / elapsed
        half = len(samples) // 2
        growth = statistics.median(size for _, size in samples[half:]) - statistics.median(
            size for _, size in samples[:half])
        ours.settle()
        raw, scattered = _raw_insert(100), _raw_insert(20, messages=30_000)
        yield Row("batches of 1 000, visible, sustained", f"{visible:,.0f} events/s, {visible / low:.0f}x naive",
                  ">= 150 000 events/s and >= 25x naive, backlog not growing",
                  visible >= 150_000 and visible >= 25 * low and growth < visible and not sent.errors,
                  f"{elapsed:.0f} s; a handler that only parses {parsed:,.0f}/s; raw ClickHouse insert of the same "
                  f"rows {raw:,.0f}/s, where each is of another message {scattered:,.0f}/s; naive "
                  f"{low:,.0f}/s; backlog grew by {growth:,.0f}; errors {sent.errors}")
        yield _freshness(ours, bodies, visible / 2, scale.sustained_seconds / 2)


def _watch_backlog(ours: Target, samples: list[tuple[float, int]], done: threading.Event) -> None:
    client = redis_py.Redis.from_url(ours.redis_url)
    while not done.wait(0.5):
        accepted, applied = (int(value or 0) for value in client.hmget("l{0}", ["accepted", "applied"]))
        samples.append((time.monotonic(), accepted - applied))
    client.close()


def _raw_insert(batches_of_rows: int, messages: int = 20) -> float:
    """Rows a second of one insert after another into the same table, in an engine of its own."""
    from tests.bench.raw_insert import rows_per_second
    return rows_per_second(batches_of_rows, messages=messages)


def _freshness(ours: Target, bodies: Sequence[bytes], rate: float, seconds: float) -> Row:
    """How long after its answer an event is in the reports, at a given load."""
    stop = threading.Event()
    sender = threading.Thread(target=_send_paced, args=(ours, bodies, rate, stop))
    sender.start()
    lags, deadline, number = [], time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        number += 1
        probe = f"probe-{number}"
        ours.call("POST", "/v1/events", orjson.dumps(
            {"msg_id": probe, "stage": "received", "device_id": "d", "platform": "android"}))
        answered = time.monotonic()
        while ours.call("GET", f"/v3/received?msg_ids={probe}")[0]["android_received"] is None:
            time.sleep(0.005)
        lags.append(time.monotonic() - answered)
    stop.set()
    sender.join()
    p99 = sorted(lags)[len(lags) * 99 // 100]
    return Row("acknowledged -> visible at half that load", f"p99 {p99 * 1000:.0f} ms", "p99 <= 1 s", p99 <= 1,
               f"{len(lags)} probes at {rate:,.0f} events/s, p50 {statistics.median(lags) * 1000:.0f} ms")


def _send_paced(ours: Target, bodies: Sequence[bytes], rate: float, stop: threading.Event) -> None:
    start, sent = time.monotonic(), 0
    while not stop.is_set():
        ours.call("POST", "/v1/events", bodies[sent % len(bodies)], "application/x-ndjson")
        sent += 1
        time.sleep(max(0.0, start + sent * 1000 / rate - time.monotonic()))


# -------------------------------------------------------------------------------------------------------------- reports
def _broadcast(ours: Target, messages: Sequence[str], devices: int) -> None:
    """Register *messages* for everybody, and let everybody receive them."""
    for message in messages:
        ours.call("POST", "/v1/pushes", orjson.dumps({"msg_id": message, "audience": "all"}))
        for start in range(0, devices, 10_000):
            ours.call("POST", "/v1/events", orjson.dumps([
                {"msg_id": message, "stage": "received", "device_id": device_id(number), "platform": "android"}
                for number in range(start, min(start + 10_000, devices))]))
    ours.settle()


def received(scale: Scale) -> Iterator[Row]:
    """A hundred messages a request, as a dashboard asks."""
    with service() as ours, beside("constant") as limit:
        _register(ours, 20_000)
        messages = [str(FIRST_MSG_ID + number) for number in range(100)]
        _broadcast(ours, messages, 20_000)
        path = "/v3/received?msg_ids=" + ",".join(messages)

        def measure(base: str) -> load.Load:
            return load.run(Request("GET", base + path, ours.auth), 64, scale.seconds)
        measure(ours.url)
        rounds = [(measure(limit), measure(ours.url)) for _ in range(scale.rounds)]
        one = load.run(Request("GET", ours.url + path, ours.auth), 1, scale.seconds)
    ratio = statistics.median(mine.requests_per_second / top.requests_per_second for top, mine in rounds)
    p99 = statistics.median(mine.p99 for _, mine in rounds)
    yield Row("/v3/received, 100 ids, 64 connections", f"{ratio:.2f} of the limit, p99 {p99:.0f} ms",
              ">= 0.25 of the limit, p99 <= 100 ms", ratio >= 0.25 and p99 <= 100,
              f"requests/s limit / ours {statistics.median(top.requests_per_second for top, _ in rounds):,.0f} / "
              f"{statistics.median(mine.requests_per_second for _, mine in rounds):,.0f}; one query per request (1 "
              f"connection, nothing to share): {one.requests_per_second:,.0f}")


def status(scale: Scale) -> Iterator[Row]:
    """A thousand devices of a broadcast."""
    with service() as ours:
        _register(ours, scale.devices)
        _broadcast(ours, ["1"], scale.devices)
        ids = [device_id(number) for number in random.Random(1).sample(range(scale.devices), 1000)]
        body = orjson.dumps({"msg_id": 1, "registration_ids": ids})
        client = redis_py.Redis.from_url(ours.redis_url)
        commands = _status_reads(client, ours, ids)
        naive = {one: 0 for one in ids}
        client.hset("naive-status", mapping=naive)  # type: ignore[arg-type]

        def time_of(call: Callable[[], Any]) -> float:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start

        def raw() -> None:
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
            pipeline.execute()
        # A client that only waits for the last byte: what it would do with the answer is no part of the service.
        exchange = load.exchanger(Request("POST", ours.url + "/v3/status/message",
                                          ours.auth | {"Content-Type": "application/json"}, [body]))
        for _ in range(5):
            raw()
            exchange()
        rounds = [(time_of(raw), time_of(exchange),
                   time_of(lambda: client.hmget("naive-status", ids))) for _ in range(scale.rounds * 20)]
        client.close()
    ratio = statistics.median(mine / low for low, mine, _ in rounds)
    yield Row("/v3/status/message, 1 000 ids", f"{ratio:.1f}x one raw round trip", "<= 3x", ratio <= 3,
              "milliseconds raw / ours over HTTP / HMGET of a hash per message: " + " / ".join(
                  f"{statistics.median(one[side] for one in rounds) * 1000:.1f}" for side in (0, 1, 2))
              + f"; message with {scale.devices:,} targets")


def _status_reads(client: Any, ours: Target, ids: Sequence[str]) -> list[tuple[Any, ...]]:
    """The same reads as a status call makes, as raw commands."""
    from reportsvc.registry.devices import bucket_of
    from reportsvc.registry.messages import received_by, targets_of
    from reportsvc.storage.device_set import split
    from reportsvc.storage.redis import devices_key, message_key
    by_bucket: dict[int, list[str]] = {}
    for one in ids:
        by_bucket.setdefault(bucket_of(one), []).append(one)
    commands: list[tuple[Any, ...]] = [("HMGET", devices_key(1, bucket), *some) for bucket, some in by_bucket.items()]
    commands.append(("HMGET", message_key(1, "1"), "l", "p", "f", "c", "n"))
    values = [value for bucket, some in by_bucket.items() for value in client.hmget(devices_key(1, bucket), some)]
    numbers = np.array([int(value) >> 4 for value in values], np.uint32)
    for device_set in (targets_of(1, "1"), received_by(1, "1")):
        commands += [("GETRANGE", device_set.chunk_key(chunk), 0, 8191) for chunk, _, _ in split(numbers)]
    return commands


# --------------------------------------------------------------------------------------------------------------- memory
def memory(scale: Scale) -> Iterator[Row]:
    """Bytes of Redis for one device of one message, and for one push to one device."""
    with service() as ours:
        client = redis_py.Redis.from_url(ours.redis_url)
        _register(ours, scale.devices)
        yield _memory_row(ours, client, f"broadcast to {scale.devices:,}", 0.2, range(scale.devices),
                          {"audience": "all"})
        single = 2000
        for number in range(single):
            ours.call("POST", "/v1/pushes", orjson.dumps({
                "msg_id": f"single-{number:017}", "payload": {"message": "Hello World!"},
                "audience": {"device_ids": [device_id(number)]}}))
        ours.settle()
        each = _bytes_of(client, "single-") / single
        yield Row("Redis: a push to one device, with its record", f"{each:.0f} bytes", "<= 300", each <= 300, "")
        client.close()
    yield from _sparse(scale)


def _sparse(scale: Scale) -> Iterator[Row]:
    """Sets of few devices of a large app, built as the aggregator builds them."""
    from tests.bench.sparse import bytes_each
    size = scale.large_app
    for count, wanted in ((size // 100, 5.0), (min(1000, size // 100), 25.0)):
        each = bytes_each(size, count)
        yield Row(f"Redis: {count:,} of {size:,} devices", f"{each:.1f} bytes each", f"<= {wanted:g}",
                  each <= wanted, "")


def _memory_row(ours: Target, client: Any, name: str, wanted: float, devices: range, push: dict[str, Any]) -> Row:
    ours.call("POST", "/v1/pushes", orjson.dumps({"msg_id": "all", "payload": {"message": "Hello World!"}} | push))
    for start in range(0, len(devices), 10_000):
        ours.call("POST", "/v1/events", orjson.dumps([
            {"msg_id": "all", "stage": "received", "device_id": device_id(number), "platform": "android"}
            for number in devices[start:start + 10_000]]))
    ours.settle()
    each = _bytes_of(client, "all") / len(devices)
    return Row(f"Redis: {name}, a device", f"{each:.3f} bytes", f"<= {wanted}", each <= wanted, "")


def _bytes_of(client: Any, messages: str) -> int:
    """Memory of everything about the messages whose ids begin so, with their keys and what the key space needs."""
    keys = list(client.scan_iter(match=f"?{{1:{messages}*", count=1000))
    assert keys
    # A pointer or two a key in the table of all keys is not in what Redis tells.
    return sum(client.memory_usage(key, samples=0) + 16 for key in keys)


# --------------------------------------------------------------------------------------------------------------- growth
def growth(scale: Scale) -> Iterator[Row]:
    """The same work in a large app and in a small one."""
    known, seconds = (100_000, scale.large_app), scale.sustained_seconds / 10
    with service() as small_app, service() as large_app:
        sides = [(app, _lines(app.url, app.auth, _batches(400, devices, 20, 2)))
                 for app, devices in zip((small_app, large_app), known, strict=True)]
        for (app, _), devices in zip(sides, known, strict=True):
            _register(app, devices)
            app.settle_files()

        def rate_of(app: Target, request: Request) -> float:
            before, started = app.ledger(), time.monotonic()
            load.run(request, 8, seconds)
            app.settle()
            return (app.ledger()["applied"] - before["applied"]) / (time.monotonic() - started)
        rates = [[rate_of(app, request) for app, request in sides] for _ in range(scale.rounds)]
    ratio = statistics.median(large / small for small, large in rates)
    yield Row(f"batch ingest, {scale.large_app:,} known devices against 100 000", f"{ratio:.2f}", ">= 0.8",
              ratio >= 0.8, " and ".join(f"{statistics.median(side):,.0f}" for side in zip(*rates, strict=True))
              + " events/s; the devices fit the cache")
    with service() as ours:
        _register(ours, scale.devices)
        small, large = [f"s{number}" for number in range(5)], [f"l{number}" for number in range(5)]
        _broadcast(ours, small, 1000)
        _broadcast(ours, large, scale.devices)

        def seconds_of(messages: Sequence[str], number: int) -> float:
            start = time.perf_counter()
            # Never the same question again: an answer that is kept would say nothing of the sets.
            ours.call("GET", f"/v3/received?msg_ids={','.join(messages)}&number={number}")
            return time.perf_counter() - start
        pairs = [(seconds_of(small, number), seconds_of(large, number)) for number in range(scale.rounds * 10)]
    ratio = statistics.median(high / low for low, high in pairs)
    yield Row(f"a report on messages of {scale.devices:,} devices against 1 000", f"{ratio:.2f}x", "<= 2x", ratio <= 2,
              f"{statistics.median(low for low, _ in pairs) * 1000:.1f} and "
              f"{statistics.median(high for _, high in pairs) * 1000:.1f} ms")


BENCHMARKS: Final = {"single": single_event, "batches": batches, "received": received, "status": status,
                     "memory": memory, "growth": growth}


def main() -> int:
    """Run, print a table, write JSON; the exit status tells nothing about the figures."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small and short: a look, no figures to quote")
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="one of them; may be given again")
    parser.add_argument("--json", default="bench.json", metavar="FILE")
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    print(f"load generator: {load.generator()}; {scale}\n", flush=True)
    rows: list[Row] = []
    for name in options.only or BENCHMARKS:
        for row in BENCHMARKS[name](scale):
            rows.append(row)
            print(f"{'ok  ' if row.reached else 'MISS'} {row.name}: {row.figure}   (to reach: {row.wanted})\n"
                  f"     {row.detail}", flush=True)
    with open(options.json, "w", encoding="utf-8") as file:
        json.dump({"scale": asdict(scale), "generator": load.generator(), "rows": [asdict(row) for row in rows]}, file,
                  indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
