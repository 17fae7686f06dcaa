"""Parsing of native events: strict about every field, and fast where nothing is wrong.

The common case costs a few dictionary look-ups an event; only an event that misses one of them is looked at field by
field, to say what is wrong with it. One bad event never takes good ones with it.
"""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
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
    parsed = ParsedEvents(EventBatch(app_id))
    batch = parsed.batch
    msg_ids, device_ids, codes, times = batch.msg_ids, batch.device_ids, batch.codes, batch.times
    oldest, newest = now - MAX_AGE_SECONDS, now + MAX_AHEAD_SECONDS
    for index, item in enumerate(items):
        try:
            get = item.get
            code = _CODES[get("stage"), get("platform"), get("channel"), get("kind")]
            msg_id, device_id, happened = get("msg_id"), item["device_id"], get("ts")
            if type(msg_id) is int:
                msg_id = str(msg_id)
            fast = (type(msg_id) is str and type(device_id) is str and 0 < len(msg_id) <= _SURELY_SHORT
                    and 0 < len(device_id) <= _SURELY_SHORT and (happened is None or type(happened) is int)
                    and code not in _PRESENCE_CODES)
        except (AttributeError, KeyError, TypeError):
            fast = False
        if not fast:
            try:
                msg_id, device_id, code, happened = parse_event(item)
            except BadParameter as error:
                line = lines[index] if lines else 0
                parsed.reject(Rejected(index, error.name, str(error), line))
                continue
        user = item.get("user_id")
        if user is not None:
            try:
                batch.users[len(codes)] = parse_id("user_id", user)
            except BadParameter as error:
                parsed.reject(Rejected(index, "user_id", str(error), lines[index] if lines else 0))
                continue
        if happened is None:
            happened = now
        elif not oldest <= happened <= newest:
            happened, is_skewed = clamp_time(happened, now)
            parsed.skewed += is_skewed
        msg_ids.append(msg_id)
        device_ids.append(device_id)
        codes.append(code)
        times.append(happened)
    return parsed


def parse_event(item: Any) -> tuple[str, str, int, int | None]:
    """Message, device, fact code and time of one event, checked field by field.

    Raises:
        BadParameter: The first thing that is wrong with it.
    """
    if not isinstance(item, dict):
        raise BadParameter("event", "must be a JSON object")
    fact = parse_fact(item)
    device_id = parse_id("device_id", item.get("device_id"))
    msg_id = "" if fact.stage in PRESENCE_STAGES else parse_id("msg_id", item.get("msg_id"))
    happened = item.get("ts")
    if happened is not None and (isinstance(happened, bool) or not isinstance(happened, (int, float))):
        raise BadParameter("ts", "must be a unix time in seconds or milliseconds")
    _CODES[item["stage"], item.get("platform"), item.get("channel"), item.get("kind")] = fact.code
    return msg_id, device_id, fact.code, None if happened is None else int(happened)


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
    body = body.rstrip().replace(b"\r\n", b"\n")
    count = body.count(b"\n") + 1
    # One pair of braces a line: no line can then be two objects and make up for two that are only one.
    if not body.count(b"{") == body.count(b"}") == count == body.count(b"}\n{") + 1 or body[:1] != b"{":
        return None
    try:
        values = loads(b"[" + body.replace(b"}\n{", b"},{") + b"]")
    except ValueError:
        return None
    return values if len(values) == count else None
