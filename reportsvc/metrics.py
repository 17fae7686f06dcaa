"""Every metric of the service, in one place: what there is, how it is counted, and how several processes add up.

Counting is done with plain numbers, because it happens on every request: some hundred nanoseconds, no lock, no string.
Everything that counts runs on the event loop, so none is needed. prometheus-client writes the numbers out when somebody
asks, and is imported only then.

Two kinds of figures are told apart. Most are this process's own. Those of the journal and the ledger come from Redis
when somebody asks: they are the same from whichever process, and survive every restart.

Workers behind one port leave their own figures in files, one a worker, and each adds up all of them; the one that
replaces a worker goes on from the figures of the one before, so no counter falls.
"""

from __future__ import annotations

import asyncio
import os
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson

Labels = tuple[str, ...]
Observe = Callable[[float], None]

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"

#: Seconds; a device's request takes one or two milliseconds, a report five to twenty, and a store that hangs fifteen.
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)
#: Seconds from the answer to the report; the promise is one.
_FRESHNESS: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 15.0, 60.0, 600.0, 3600.0)
_EVENTS: Final = (1.0, 10.0, 100.0, 1000.0, 5000.0, 10_000.0, 20_000.0, 40_000.0, 60_000.0,
                  120_000.0)
#: Labels come from closed lists; where one does not, it stops here.
_MOST_CHILDREN: Final = 1000


@dataclass(frozen=True, slots=True)
class Metric:
    """What one metric is; *name* is as Prometheus shows it, for a histogram without ``_bucket``."""

    name: str
    kind: str
    help: str
    labels: Labels = ()
    bounds: tuple[float, ...] = ()
    #: Whether it is read from the stores, and so the same from every process.
    is_shared: bool = False


REQUESTS: Final = Metric("reportsvc_http_requests_total", COUNTER, "Requests answered.", ("method", "route", "status"))
REQUEST_SECONDS: Final = Metric(
    "reportsvc_http_request_seconds", HISTOGRAM, "From a request's head to its answer.", ("method", "route"), _SECONDS)
BATCH_EVENTS: Final = Metric(
    "reportsvc_batch_events", HISTOGRAM, "Events in a batch that was applied.", (), _EVENTS)
APPLY_SECONDS: Final = Metric(
    "reportsvc_apply_seconds", HISTOGRAM, "Time to apply a batch, by step; `all` is the whole.", ("step",), _SECONDS)
FRESHNESS_SECONDS: Final = Metric(
    "reportsvc_freshness_seconds", HISTOGRAM, "From an event's place in the journal to its place in every report.", (),
    _FRESHNESS)
QUERY_SECONDS: Final = Metric(
    "reportsvc_query_seconds", HISTOGRAM, "Queries of ClickHouse, with the wait for a free connection.", ("report",),
    _SECONDS)
QUESTIONS: Final = Metric(
    "reportsvc_report_questions_total", COUNTER, "Questions that may share a query.", ("report",))
SHARED_QUERIES: Final = Metric(
    "reportsvc_report_queries_total", COUNTER, "Queries that answered them.", ("report",))
STORE_ERRORS: Final = Metric(
    "reportsvc_store_errors_total", COUNTER, "Times that a store failed somebody.", ("store", "during"))
PROCESSES: Final = Metric("reportsvc_processes", GAUGE, "Processes behind this port.", ("version", "role"))
CPU: Final = Metric("process_cpu_seconds_total", COUNTER, "Processor time.", ("worker",))
MEMORY: Final = Metric("process_resident_memory_bytes", GAUGE, "Memory in use.", ("worker",))
FILES: Final = Metric("process_open_fds", GAUGE, "Open files and connections.", ("worker",))
MOST_FILES: Final = Metric("process_max_fds", GAUGE, "How many there may be.", ("worker",))
STARTED: Final = Metric("process_start_time_seconds", GAUGE, "When it was started, in unix time.", ("worker",))

UP: Final = Metric("reportsvc_store_up", GAUGE, "Whether the store answered just now.", ("store",), is_shared=True)
EVENTS: Final = Metric("reportsvc_events_total", COUNTER, "The ledger: `received`, `accepted`, `applied`, `dead`, "
                       "`skewed`.", ("state",), is_shared=True)
REJECTED: Final = Metric("reportsvc_rejected_events_total", COUNTER, "The ledger: events refused.", ("reason",),
                         is_shared=True)
DEAD: Final = Metric("reportsvc_dead_events_total", COUNTER, "The ledger: events that could not be applied.",
                     ("reason",), is_shared=True)
DEAD_LETTERS: Final = Metric("reportsvc_dead_letters", GAUGE, "Entries that wait to be looked at.", ("partition",),
                             is_shared=True)
JOURNAL_ENTRIES: Final = Metric("reportsvc_journal_entries", GAUGE, "Entries that are not applied.", ("partition",),
                                is_shared=True)
JOURNAL_PENDING: Final = Metric("reportsvc_journal_pending_entries", GAUGE, "Those an aggregator is at work on.",
                                ("partition",), is_shared=True)
JOURNAL_OLDEST: Final = Metric("reportsvc_journal_oldest_seconds", GAUGE, "Age of the oldest of them; 0 without any.",
                               ("partition",), is_shared=True)
JOURNAL_BYTES: Final = Metric("reportsvc_journal_bytes", GAUGE, "Memory they take in Redis, by the node of a cluster "
                              "that has them.", ("partition", "node"), is_shared=True)
JOURNAL_BOUND: Final = Metric("reportsvc_journal_max_bytes", GAUGE, "Memory above which events are refused, of each "
                              "node.", is_shared=True)
AGGREGATORS: Final = Metric("reportsvc_aggregators", GAUGE, "Consumers that asked for entries in the last 30 seconds.",
                            ("partition",), is_shared=True)

#: In the order of the answer. A test compares them with the README.
METRICS: Final = (
    PROCESSES, UP, EVENTS, REJECTED, DEAD, DEAD_LETTERS, JOURNAL_ENTRIES, JOURNAL_PENDING, JOURNAL_OLDEST,
    JOURNAL_BYTES, JOURNAL_BOUND, AGGREGATORS, REQUESTS, REQUEST_SECONDS, BATCH_EVENTS, APPLY_SECONDS,
    FRESHNESS_SECONDS, QUERY_SECONDS, QUESTIONS, SHARED_QUERIES, STORE_ERRORS, CPU, MEMORY, FILES, MOST_FILES, STARTED,
)
#: What stands for labels beyond the bound.
_OTHER: Final = "other"


# ------------------------------------------------------------------------------------------------------------ counting
@dataclass(slots=True)
class Count:
    """A number that grows."""

    value: float = 0.0

    def numbers(self) -> list[float]:
        """As it is kept and added."""
        return [self.value]

    def add(self, numbers: Sequence[float]) -> None:
        """Add those of another."""
        self.value += numbers[0]


class Distribution:
    """How many values fell between the bounds, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Note a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def numbers(self) -> list[float]:
        """As it is kept and added."""
        return [*self.counts, self.sum]

    def add(self, numbers: Sequence[float]) -> None:
        """Add those of another."""
        for index, count in enumerate(numbers[:-1]):
            self.counts[index] += int(count)
        self.sum += numbers[-1]


class _Family(dict[Labels, Any]):
    """The children of one metric, by their labels; one that is asked for is made."""

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self._make = partial(Distribution, metric.bounds) if metric.kind == HISTOGRAM else Count
        self._other = (_OTHER,) * len(metric.labels)

    def __missing__(self, labels: Labels) -> Any:
        if len(self) >= _MOST_CHILDREN:
            labels = self._other
        child = self.get(labels)
        if child is None:
            child = self[labels] = self._make()
        return child


class Metrics:
    """The figures of this process; each part of the service that counts is given them."""

    def __init__(self) -> None:
        self._families = {metric: _Family(metric) for metric in METRICS if not metric.is_shared}
        self._freshness: Distribution = self._families[FRESHNESS_SECONDS][()]
        self._batches: Distribution = self._families[BATCH_EVENTS][()]

    def requests(self, method: str, route: str, status: int) -> Observe:
        """What to call with the seconds that an answer of this kind took."""
        count: Count = self._families[REQUESTS][method, route, str(status)]
        seconds: Distribution = self._families[REQUEST_SECONDS][method, route]
        counts, bounds = seconds.counts, seconds.bounds

        def observe(took: float) -> None:
            # Distribution.observe, unrolled: this is on the way of every request.
            count.value += 1
            counts[bisect_left(bounds, took)] += 1
            seconds.sum += took
        return observe

    def applied(self, batch: Iterable[tuple[bytes, int]], now: float) -> None:
        """A batch of entries (id, events) is in every report at *now*; the ids begin with milliseconds."""
        total = 0
        for entry_id, events in batch:
            self._freshness.observe(max(0.0, now - int(entry_id.partition(b"-")[0]) / 1000), events)
            total += events
        self._batches.observe(total)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step of applying a batch; one that fails is left out."""
        started = time.perf_counter()
        yield
        self._families[APPLY_SECONDS][name,].observe(time.perf_counter() - started)

    def queried(self, label: str, seconds: float) -> None:
        """A query of ClickHouse was answered; the first word of *label* names the report."""
        self._families[QUERY_SECONDS][label.partition(" ")[0],].observe(seconds)

    def shared(self, report: str, questions: int) -> None:
        """One query has answered so many questions."""
        self._families[QUESTIONS][report,].value += questions
        self._families[SHARED_QUERIES][report,].value += 1

    def failed(self, store: str, during: str) -> None:
        """A store was away when it was needed for something."""
        self._families[STORE_ERRORS][store, during].value += 1

    def snapshot(self) -> Snapshot:
        """Everything counted, as plain data."""
        return {metric.name: [(labels, child.numbers()) for labels, child in family.items()]
                for metric, family in self._families.items() if family}

    def add(self, snapshot: Mapping[str, Iterable[tuple[Sequence[str], Sequence[float]]]]) -> None:
        """Add what another process has counted."""
        for metric, family in self._families.items():
            for labels, numbers in snapshot.get(metric.name, ()):
                family[tuple(labels)].add(numbers)


# ----------------------------------------------------------------------------------------------------------- processes
Snapshot = dict[str, list[tuple[Labels, list[float]]]]


@dataclass(frozen=True, slots=True)
class Identity:
    """Which process this is."""

    version: str
    role: str
    worker: int = 0

    def figures(self) -> Snapshot:
        """What the kernel tells of it now."""
        from prometheus_client import CollectorRegistry, ProcessCollector

        names = {metric.name for metric in (CPU, MEMORY, FILES, MOST_FILES, STARTED)}
        figures: Snapshot = {sample.name: [((str(self.worker),), [sample.value])]
                             for family in ProcessCollector(registry=CollectorRegistry()).collect()
                             for sample in family.samples if sample.name in names}
        return figures | {PROCESSES.name: [((self.version, self.role), [1.0])]}


# ------------------------------------------------------------------------------------------------------------- writing
@dataclass(frozen=True, slots=True)
class Shared:
    """Figures from the stores; of a store that did not answer there are none."""

    #: metric -> labels and value
    values: Mapping[Metric, Sequence[tuple[Labels, float]]] = field(default_factory=dict)


class _Collector:
    """What prometheus-client asks for the figures."""

    def __init__(self, metrics: Metrics, shared: Shared) -> None:
        self._metrics = metrics
        self._shared = shared

    def collect(self) -> Iterator[Any]:
        """Every metric that there is something to tell of."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        kinds: dict[str, Any] = {COUNTER: CounterMetricFamily, GAUGE: GaugeMetricFamily,
                                 HISTOGRAM: HistogramMetricFamily}
        for metric in METRICS:
            family = kinds[metric.kind](metric.name, metric.help, labels=metric.labels)
            if metric.is_shared:
                for labels, value in self._shared.values.get(metric, ()):
                    family.add_metric(labels, value)
            else:
                for labels, child in self._metrics._families[metric].items():
                    if metric.kind == HISTOGRAM:
                        family.add_metric(labels, *_buckets(child))
                    else:
                        family.add_metric(labels, child.value)
            yield family


def _buckets(child: Distribution) -> tuple[list[tuple[str, float]], float]:
    """Cumulative counts by upper bound, and the sum."""
    total, buckets = 0, []
    for bound, count in zip((*map(repr, child.bounds), "+Inf"), child.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets, child.sum


def render(metrics: Metrics, shared: Shared, accept: str) -> tuple[bytes, str]:
    """The text that Prometheus reads, and its content type, in the newest form that *accept* names."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(metrics, shared))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


# ------------------------------------------------------------------------------------------------------------- workers
class Peers:
    """The figures of the workers behind one port, in a directory of their parent."""

    #: Seconds between two writes; what a killed worker had counted since its last one is lost.
    INTERVAL: Final = 1.0

    def __init__(self, directory: Path, metrics: Metrics, identity: Identity) -> None:
        self._directory = directory
        self._metrics = metrics
        self._identity = identity
        self._file = directory / f"{identity.worker}.figures"
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Go on from the figures of the worker that had this number before, and leave ours now and then."""
        self._metrics.add(_read(self._file).get("counted", {}))
        self._write()
        self._task = asyncio.create_task(self._repeat(), name="figures")

    async def stop(self) -> None:
        """Leave them a last time."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._write()

    def add_others(self, total: Metrics) -> None:
        """Add the figures of every other worker to *total*; those of the process only while it lives."""
        for file in self._directory.glob("*.figures"):
            if file != self._file:
                figures = _read(file)
                total.add(figures.get("counted", {}))
                if time.time() - figures.get("at", 0) < 5 * self.INTERVAL:
                    total.add(figures["process"])

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(self.INTERVAL)
            self._write()

    def _write(self) -> None:
        new = self._file.with_suffix(f".{os.getpid()}")
        with suppress(OSError):  # the parent, and its directory, may be gone
            new.write_bytes(orjson.dumps({"at": time.time(), "counted": self._metrics.snapshot(),
                                          "process": self._identity.figures()}))
            new.replace(self._file)


def _read(file: Path) -> dict[str, Any]:
    try:
        figures: dict[str, Any] = orjson.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    return figures


class Exposition:
    """What ``/metrics`` answers."""

    def __init__(self, metrics: Metrics, identity: Identity, peers: Peers | None,
                 shared: Callable[[], Awaitable[Shared]]) -> None:
        self._metrics = metrics
        self._identity = identity
        self._peers = peers
        self._shared = shared
        render(metrics, Shared(), "")  # what that imports takes a while, and no request should wait for it

    async def text(self, accept: str) -> tuple[bytes, str]:
        """The text that Prometheus reads, in the newest form that *accept* names, and its content type."""
        shared = await self._shared()
        total = Metrics()
        total.add(self._metrics.snapshot())
        total.add(self._identity.figures())
        if self._peers is not None:
            self._peers.add_others(total)
        return render(total, shared, accept)
