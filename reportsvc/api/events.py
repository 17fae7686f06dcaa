"""Parsing of native events: strict about every field, and fast where nothing is wrong.

A batch whose events are all alike is read column by column; any other is looked at event by event and field by field,
to say what is wrong with it. One bad event never takes good ones with it.
"""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final

import orjson
from aiohttp import web

from reportsvc.api.common import parse_id
from reportsvc.errors import BadParameter
from reportsvc.model import (CHANNELS_BY_PLATFORM, KINDS, MAX_ID_BYTES, PLATFORM_OF_CHANNEL, PLATFORMS, PRESENCE_STAGES,
                             STAGES, EventBatch, Fact, default_channel)
from reportsvc.pipeline.journal import Journal
from reportsvc.pipeline.ledger import Ledger

JOURNAL: Final = web.AppKey("journal", Journal)
LEDGER: Final = web.AppKey("ledger", Ledger)
CLOCK: Final[web.AppKey[Callable[[], float]]] = web.AppKey("clock")

MAX_EVENTS: Final = 10_000
#: Errors told one by one; the rest are counted.
MAX_ERRORS: Final = 100
#: A clock this far ahead, or an event this old, is taken for wrong.
MAX_AHEAD_SECONDS: Final = 5 * 60
MAX_AGE_SECONDS: Final = 31 * 86400
#: Unix seconds do not get here before the year 5138; milliseconds did in 1973.
_MILLISECONDS_FROM: Final = 100_000_000_000
#: Ids of so many characters are within the limit in any encoding of them.
_SURELY_SHORT: Final = MAX_ID_BYTES // 4


@dataclass(slots=True)
class Rejected:
    """An event that was refused; *line* is that of an NDJSON body, from 1."""

    index: int
    reason: str
    message: str
    line: int = 0

    def document(self) -> dict[str, Any]:
        """As it is answered."""
        return {"index": self.index, "message": f"line {self.line}: {self.message}" if self.line else self.message}


@dataclass(slots=True)
class ParsedEvents:
    """The events of one request: the good ones as columns, the bad ones with reasons."""

    batch: EventBatch
    rejected: int = 0
    errors: list[Rejected] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    skewed: int = 0

    def reject(self, rejected: Rejected) -> None:
        """Count a bad event."""
        self.rejected += 1
        self.reasons[rejected.reason] += 1
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(rejected)


@dataclass(slots=True)
class Lines:
    """The values of an NDJSON body with their line numbers, and the lines that are no JSON."""

    values: list[Any] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    def merged(self, errors: Sequence[Rejected]) -> list[Rejected]:
        """*errors*, which are about the values, and those of the lines that are no JSON, in the order of the body."""
        unreadable = [rejected.line for rejected in self.rejected]
        for error in errors:
            error.index += bisect(unreadable, error.line)
        return sorted((*errors, *self.rejected), key=lambda rejected: rejected.index)


# (stage, platform, channel, kind) as they stand in an event -> fact code; filled as valid ones are met, and bounded,
# because the vocabularies are.
_CODES: dict[tuple[Any, ...], int] = {}
_PRESENCE_CODES: Final = frozenset(
    Fact(stage, platform, channel, kind).code
    for stage in PRESENCE_STAGES for kind in KINDS
    for platform in PLATFORMS for channel in ("", *CHANNELS_BY_PLATFORM.get(platform, ())))


def parse_events(items: Sequence[Any], app_id: int, now: int, lines: Sequence[int] = ()) -> ParsedEvents:
    """Validate *items*, decoded JSON values; *lines* has their line numbers if they came as lines."""
    uniform = _parse_uniform(items, app_id, now)
    if uniform is not None:
        return ParsedEvents(uniform)
    parsed = ParsedEvents(EventBatch(app_id))
    batch = parsed.batch
    for index, item in enumerate(items):
        try:
            msg_id, device_id, code, happened = parse_event(item)
            user = item.get("user_id")
            user_id = None if user is None else parse_id("user_id", user)
        except BadParameter as error:
            parsed.reject(Rejected(index, error.name, str(error), lines[index] if lines else 0))
            continue
        if user_id is not None:
            batch.users[len(batch)] = user_id
        if happened is None:
            happened = now
        else:
            happened, is_skewed = clamp_time(happened, now)
            parsed.skewed += is_skewed
        batch.msg_ids.append(msg_id)
        batch.device_ids.append(device_id)
        batch.codes.append(code)
        batch.times.append(happened)
    return parsed


def _parse_uniform(items: Sequence[Any], app_id: int, now: int) -> EventBatch | None:
    """The events of *items*, column by column, where all have the same fields and nothing is unusual; else None.

    A program that sends batches builds its events in one place, so this is what most batches are.
    """
    try:
        fields = tuple(items[0])
        columns: dict[str, Sequence[Any]] = dict(zip(fields, zip(*map(itemgetter(*fields), items)), strict=True))
        absent = (None,) * len(items)
        codes = list(map(_CODES.__getitem__, zip(
            columns["stage"], *(columns.get(name, absent) for name in ("platform", "channel", "kind")), strict=True)))
        msg_ids, device_ids = columns["msg_id"], columns["device_id"]
    except (IndexError, KeyError, TypeError, ValueError):
        return None
    users, times = columns.get("user_id", ()), columns.get("ts", (now,) * len(items))
    if set(map(type, msg_ids)) == {int}:
        msg_ids = list(map(str, msg_ids))
    # As many fields as the first, and all of its fields: the same fields.
    if (set(map(type, items)) != {dict} or set(map(len, items)) != {len(fields)}
            or not _PRESENCE_CODES.isdisjoint(codes)
            or not _are_ids(msg_ids) or not _are_ids(device_ids) or (users and not _are_ids(users))
            or set(map(type, times)) != {int}
            or min(times) < now - MAX_AGE_SECONDS or max(times) > now + MAX_AHEAD_SECONDS):
        return None
    return EventBatch(app_id, list(msg_ids), list(device_ids), codes, list(times), dict(enumerate(users)))


def _are_ids(values: Sequence[Any]) -> bool:
    """Whether all of *values* surely are ids as they stand."""
    if set(map(type, values)) != {str}:
        return False
    lengths = set(map(len, values))
    return 0 < min(lengths) and max(lengths) <= _SURELY_SHORT


def parse_event(item: Any) -> tuple[str, str, int, int | None]:
    """Message, device, fact code and time of one event, checked field by field.

    Raises:
        BadParameter: The first thing that is wrong with it.
    """
    if not isinstance(item, dict):
        raise BadParameter("event", "must be a JSON object")
    words = item.get("stage"), item.get("platform"), item.get("channel"), item.get("kind")
    try:
        code = _CODES[words]
    except (KeyError, TypeError):
        code = parse_fact(item).code
        _CODES[words] = code
    device_id = parse_id("device_id", item.get("device_id"))
    msg_id = "" if code in _PRESENCE_CODES else parse_id("msg_id", item.get("msg_id"))
    happened = item.get("ts")
    if happened is not None and (isinstance(happened, bool) or not isinstance(happened, (int, float))):
        raise BadParameter("ts", "must be a unix time in seconds or milliseconds")
    return msg_id, device_id, code, None if happened is None else int(happened)


def parse_fact(item: dict[str, Any]) -> Fact:
    """Stage, platform, channel and kind of an event; a channel that is named names its platform."""
    stage = parse_word(item, "stage", STAGES)
    kind = parse_word(item, "kind", KINDS, "notification")
    platform = parse_word(item, "platform", ("unknown", *PLATFORMS[1:]), "unknown")
    platform = "" if platform == "unknown" else platform
    allowed = CHANNELS_BY_PLATFORM[platform] if platform else tuple(PLATFORM_OF_CHANNEL)
    channel = parse_word(item, "channel", allowed, "")
    platform = platform or PLATFORM_OF_CHANNEL.get(channel, "")
    return Fact(stage, platform, channel or default_channel(platform, kind), kind)


def parse_word(item: dict[str, Any], name: str, allowed: Iterable[str], default: str | None = None) -> str:
    """A word of a closed vocabulary; *default* where none is given, unless one must be."""
    value = item.get(name)
    if value is None and default is not None:
        return default
    words = tuple(allowed)
    if not isinstance(value, str) or value not in words:
        raise BadParameter(name, ("required: " if value is None else "must be ") + f"one of {', '.join(words)}")
    return value


def clamp_time(happened: int, now: int) -> tuple[int, bool]:
    """*happened* in seconds, moved to *now* (and told so) if it is over 5 minutes ahead or 31 days old."""
    if happened >= _MILLISECONDS_FROM:
        happened //= 1000
    if now - MAX_AGE_SECONDS <= happened <= now + MAX_AHEAD_SECONDS:
        return happened, False
    return now, True


def split_lines(body: bytes, loads: Callable[[bytes], Any] = orjson.loads) -> Lines:
    """The values of an NDJSON body, one a line; empty lines do not matter."""
    joined = _load_joined(body, loads)
    if joined is not None:
        return Lines(joined, list(range(1, len(joined) + 1)))
    lines = Lines()
    for number, line in enumerate(body.split(b"\n"), 1):
        if not line.strip():
            continue
        index = len(lines.values) + len(lines.rejected)
        try:
            lines.values.append(loads(line))
        except ValueError:
            lines.rejected.append(Rejected(index, "json", "not valid JSON", number))
        else:
            lines.numbers.append(number)
    return lines


def _load_joined(body: bytes, loads: Callable[[bytes], Any]) -> list[Any] | None:
    """All lines decoded at once, where each line is one whole object; None where that cannot be told."""
    body = body.rstrip(b" \t\r\n")
    if b"\r" in body:
        body = body.replace(b"\r\n", b"\n")
    count = body.count(b"\n") + 1
    # One pair of braces a line: no line can then be two objects and make up for two that are only one.
    if not body.count(b"{") == count == body.count(b"}\n{") + 1 or body[:1] != b"{" or body[-1:] != b"}":
        return None
    try:
        values = loads(b"[%b]" % body.replace(b"\n", b","))
    except ValueError:
        return None
    return values if len(values) == count else None
