"""The two fast paths of event parsing, and that neither ever gives another verdict than the slow one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reportsvc.api import events
from reportsvc.api.common import FloatId, parse_id
from reportsvc.api.events import (MAX_AGE_SECONDS, MAX_AHEAD_SECONDS, MAX_ERRORS, Lines, Rejected, clamp_time,
                                  parse_event, parse_events, split_lines)
from reportsvc.errors import BadParameter
from reportsvc.model import CHANNELS, CHANNELS_BY_PLATFORM, KINDS, PLATFORMS, STAGES, Fact
from reportsvc.pipeline.ledger import REASONS

NOW = 1_750_000_000

WRONG: Final[Sequence[Any]] = (
    None, True, 0, -1, 1.5, 10 ** 18, "", "1", "unknown", "Received", "received ", "x" * 65, "x" * 257, "é" * 64,
    "é" * 65, "é" * 129, [], {}, ["received"], {"stage": "received"})
GOOD: Final = {"msg_id": "1", "stage": "received", "device_id": "d1", "platform": "android", "channel": "xiaomi",
               "kind": "message", "user_id": "alice", "ts": NOW}
JUNK: Final[st.SearchStrategy[Any]] = st.sampled_from(WRONG) | st.integers() | st.text(max_size=3)
SECONDS: Final = st.integers(NOW - 2 * MAX_AGE_SECONDS, NOW + 2 * MAX_AHEAD_SECONDS)


@st.composite
def items(draw: st.DrawFn) -> Any:
    """What may stand in a body: an event with nothing, or with one thing or two wrong with it."""
    platform = draw(st.sampled_from(PLATFORMS))
    item: Any = {"msg_id": draw(st.sampled_from(["1613113584", 1613113584])), "stage": draw(st.sampled_from(STAGES)),
                 "device_id": "fcm-1", "platform": platform or None,
                 "channel": draw(st.sampled_from([None, *CHANNELS_BY_PLATFORM.get(platform, CHANNELS[1:])])),
                 "kind": draw(st.sampled_from([None, *KINDS])), "user_id": draw(st.sampled_from([None, "alice", 7])),
                 "ts": draw(st.none() | SECONDS | SECONDS.map(lambda seconds: seconds * 1000)), "note": None}
    for name in draw(st.lists(st.sampled_from(sorted(item)), max_size=2)):
        item[name] = draw(JUNK)
    for name in draw(st.lists(st.sampled_from(sorted(item)), max_size=2)):
        item.pop(name, None)
    return item if draw(st.integers(0, 20)) else draw(JUNK)


ITEMS: Final = items()


def slow_verdict(item: Any) -> object:
    """What field by field comes out of *item*: a row, or the field that is wrong."""
    try:
        msg_id, device_id, code, happened = parse_event(item)
        time, is_skewed = (NOW, False) if happened is None else clamp_time(happened, NOW)
        users = [parse_id("user_id", item["user_id"])] if item.get("user_id") is not None else []
    except BadParameter as error:
        return error.name, str(error)
    except FloatId:
        return FloatId
    return msg_id, device_id, code, time, is_skewed, users


def fast_verdict(item: Any) -> object:
    """The same, from the way that requests go."""
    try:
        parsed = parse_events([item], 1, NOW)
    except FloatId:
        return FloatId
    if parsed.rejected:
        return parsed.errors[0].reason, parsed.errors[0].message
    batch = parsed.batch
    return (batch.msg_ids[0], batch.device_ids[0], batch.codes[0], batch.times[0], bool(parsed.skewed),
            list(batch.users.values()))


@lru_cache
def teach_every_word() -> None:
    """Show the parser a good event with each combination of words; from then on it may take the shortcut."""
    for platform, channels in {"": CHANNELS[1:], **CHANNELS_BY_PLATFORM}.items():
        for stage, channel, kind in itertools.product(STAGES, (None, *channels), (None, *KINDS)):
            parse_event({"msg_id": "1", "device_id": "1", "stage": stage, "platform": platform or None,
                         "channel": channel, "kind": kind})


@pytest.mark.parametrize("name", GOOD)
def test_fast_path_sees_each_wrong_field(name: str) -> None:
    """A field that holds what it must not, or should not, is read as the slow path reads it."""
    teach_every_word()
    items = [GOOD | {name: value} for value in WRONG]

    assert [fast_verdict(item) for item in items] == [slow_verdict(item) for item in items]


@settings(deadline=None, max_examples=1000)
@given(ITEMS)
def test_fast_path_gives_the_verdict_of_the_slow_one(item: Any) -> None:
    """Whatever an event looks like, the shortcut for common ones neither lets it pass nor reads it differently."""
    teach_every_word()
    slow = slow_verdict(item)

    assert fast_verdict(item) == slow


def test_common_events_take_the_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event like the one before it is not looked at field by field; else the test above would prove nothing."""
    item = {"msg_id": 1613113584, "stage": "received", "device_id": "1507bfd3a7c568d4761", "platform": "android",
            "channel": "xiaomi", "ts": NOW, "user_id": "alice"}
    parse_events([item], 1, NOW)
    monkeypatch.setattr(events, "parse_event", None)

    parsed = parse_events([item], 1, NOW)

    assert parsed.batch.codes == [Fact("received", "android", "xiaomi").code]


@given(st.lists(ITEMS, max_size=8))
def test_bad_events_take_no_good_ones_with_them(items: list[Any]) -> None:
    """A batch comes out as its events do one by one: good ones in order, bad ones by their place."""
    alone = [slow_verdict(item) for item in items]
    if FloatId in alone:
        with pytest.raises(FloatId):
            parse_events(items, 1, NOW)
        return
    good = [verdict for verdict in alone if isinstance(verdict, tuple) and len(verdict) == 6]
    bad = [(place, *verdict) for place, verdict in enumerate(alone) if isinstance(verdict, tuple) and len(verdict) == 2]

    parsed = parse_events(items, 1, NOW)

    batch = parsed.batch
    assert list(zip(batch.msg_ids, batch.device_ids, batch.codes, batch.times, strict=True)) == [
        verdict[:4] for verdict in good]
    assert batch.users == {place: verdict[5][0] for place, verdict in enumerate(good) if verdict[5]}
    assert [(error.index, error.reason, error.message) for error in parsed.errors] == bad
    assert parsed.rejected == sum(parsed.reasons.values()) == len(bad)
    assert set(parsed.reasons) <= set(REASONS)
    assert parsed.skewed == sum(verdict[4] for verdict in good)


def test_only_the_first_errors_are_told() -> None:
    """All bad events are counted, and the first hundred of them are named."""
    parsed = parse_events([{}] * (MAX_ERRORS + 5), 1, NOW)

    assert parsed.rejected == MAX_ERRORS + 5
    assert [error.index for error in parsed.errors] == list(range(MAX_ERRORS))


#        31 days ago                                  now      5 minutes ahead
# ts     |............................................|........|
@pytest.mark.parametrize(("happened", "verdict"), [
    (NOW, (NOW, False)),
    (NOW - MAX_AGE_SECONDS, (NOW - MAX_AGE_SECONDS, False)),
    (NOW - MAX_AGE_SECONDS - 1, (NOW, True)),
    (NOW + MAX_AHEAD_SECONDS, (NOW + MAX_AHEAD_SECONDS, False)),
    (NOW + MAX_AHEAD_SECONDS + 1, (NOW, True)),
    (NOW * 1000 + 999, (NOW, False)),
    ((NOW + MAX_AHEAD_SECONDS) * 1000 + 999, (NOW + MAX_AHEAD_SECONDS, False)),
    (0, (NOW, True)),
    (-NOW, (NOW, True)),
    (10 ** 30, (NOW, True)),
])
def test_wrong_clocks_are_moved_to_now(happened: int, verdict: tuple[int, bool]) -> None:
    """A time more than 5 minutes ahead or 31 days old is taken for now, and told so; milliseconds are recognised."""
    assert clamp_time(happened, NOW) == verdict


# ---------------------------------------------------------------------------------------------------------------- lines
def slow_lines(body: bytes) -> Lines:
    """NDJSON by the letter: each line that is not blank is one JSON value, or is rejected."""
    lines = Lines()
    for number, line in enumerate(body.split(b"\n"), 1):
        if line.strip():
            try:
                value = orjson.loads(line)
            except ValueError:
                index = len(lines.values) + len(lines.rejected)
                lines.rejected.append(Rejected(index, "json", "not valid JSON", number))
            else:
                lines.values.append(value)
                lines.numbers.append(number)
    return lines


#: Lines, and pieces that look like lines to somebody who only looks at their ends.
LINES = st.one_of(
    st.sampled_from([
        b'{"a":1}', b'{}', b' {"a":1}', b'{"a":1}\r', b'{"a":"\\u007d"}', b'{"a":{"b":"}"}}', b'', b' ', b'5', b'null',
        b'[{"a":1}]', b'"{"', b'{"a":1', b'"a":1}', b'{},{}', b'{}{}', b'{"a":[{}', b'{}]}', b'{"a":"}', b'{"}', b'{]}',
        b'{"a":"},{"b":"}"}', b'{"\xff":1}', b'{"a":1}}', b'{{"a":1}']),
    st.recursive(st.integers(0, 99) | st.text(max_size=3), lambda value: st.dictionaries(st.text(max_size=2), value),
                 max_leaves=4).map(orjson.dumps))


@settings(deadline=None, max_examples=500)
@example([b'{},{}', b'{"a":[{}', b'{}]}'])
@given(st.lists(LINES, max_size=5))
def test_lines_decoded_together_are_lines_decoded_alone(parts: list[bytes]) -> None:
    """Decoding all lines at once is only faster: it never takes pieces of lines for lines."""
    body = b"\n".join(parts)

    assert split_lines(body) == slow_lines(body)


def test_flat_events_are_decoded_together() -> None:
    """Ordinary lines take one call of the decoder; else the test above would prove nothing."""
    calls = []

    def loads(text: bytes) -> Any:
        calls.append(text)
        return orjson.loads(text)

    assert split_lines(b'{"a":1}\r\n{"b":2}\n', loads) == Lines([{"a": 1}, {"b": 2}], [1, 2])
    assert len(calls) == 1


# ----------------------------------------------------------------------------------------------------- columns and rows
#: What all events of a batch may have, and values for each of them: those that columns take, and others.
COLUMNS: Final[dict[str, tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]]] = {
    "msg_id": (st.sampled_from(["1613113584", "m", "é" * 64]), st.sampled_from([7, 2 ** 63, 1e30, 10 ** 70, True, ""])),
    "stage": (st.sampled_from([stage for stage in STAGES if stage not in ("online", "active")]),
              st.sampled_from(["online", "active", "Received", None, 1])),
    "device_id": (st.sampled_from(["fcm-1", "d", "x" * 64]),
                  st.sampled_from([7, None, "x" * 65, "é" * 129, ["d"], {}])),
    "platform": (st.just("android"), st.sampled_from([None, "ios", "", "unknown", []])),
    "channel": (st.sampled_from(["xiaomi", "fcm"]), st.sampled_from([None, "apns", "", 3])),
    "kind": (st.sampled_from(KINDS), st.sampled_from([None, "toast", {}])),
    "ts": (st.sampled_from([NOW, NOW - MAX_AGE_SECONDS, NOW + MAX_AHEAD_SECONDS]),
           st.sampled_from([None, NOW - MAX_AGE_SECONDS - 1, NOW + MAX_AHEAD_SECONDS + 1, NOW * 1000, NOW + 0.5, True,
                            "1", -1])),
    "user_id": (st.sampled_from(["alice", "bob"]), st.sampled_from([None, 7, "", "u" * 257, 1e40, False])),
    "note": (st.sampled_from(["", None, 1, {"a": [1]}]), st.just([])),
}


@st.composite
def batches(draw: st.DrawFn) -> list[Any]:
    """Events that all have the same fields, and of which some then differ in one or another thing."""
    names = ["msg_id", "stage", "device_id", *draw(st.lists(
        st.sampled_from(["platform", "channel", "kind", "ts", "user_id", "note"]), unique=True))]
    names = draw(st.permutations(names))
    are_int = draw(st.booleans())
    batch: list[Any] = [{name: draw(COLUMNS[name][0]) for name in names} for _ in range(draw(st.integers(1, 6)))]
    for item in batch:
        item["msg_id"] = draw(st.integers(0, 2 ** 64)) if are_int else item["msg_id"]
    for item in draw(st.lists(st.sampled_from(batch), max_size=2)):
        name = draw(st.sampled_from(sorted(COLUMNS)))
        change = draw(st.sampled_from(["value", "value", "absent", "more", "order", "other"]))
        if change == "value" and name in item:
            item[name] = draw(COLUMNS[name][1])
        elif change == "absent":
            item.pop(name, None)
        elif change == "more":
            item[draw(st.sampled_from([name, "more"]))] = draw(COLUMNS[name][0])
        elif change == "order":
            item[name] = item.pop(name, None)
    if draw(st.integers(0, 9)) == 0:
        batch.insert(draw(st.integers(0, len(batch))), draw(JUNK))
    return batch


def outcome(items: Sequence[Any]) -> object:
    """All that is told of a batch."""
    try:
        parsed = parse_events(items, 1, NOW, range(1, len(items) + 1))
    except FloatId:
        return FloatId
    return (parsed.batch, parsed.rejected, [error.document() for error in parsed.errors],
            [error.reason for error in parsed.errors], parsed.reasons, parsed.skewed)


@settings(deadline=None, max_examples=1500)
@given(batches())
def test_columns_give_the_verdict_of_rows(batch: list[Any]) -> None:
    """A batch that is read column by column, or nearly could be, comes out as it does event by event."""
    teach_every_word()
    found = outcome(batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "_parse_uniform", lambda *_: None)
        expected = outcome(batch)

    assert found == expected
    if found is not FloatId:
        rows: Any = found, expected
        ours, theirs = ([*map(type, (*one[0].times, *one[0].msg_ids))] for one in rows)
        assert ours == theirs  # 1 == 1.0 == True


def test_uniform_batches_are_read_by_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch whose events differ only in their values takes the columns; else the test above would prove nothing."""
    teach_every_word()
    monkeypatch.setattr(events, "parse_event", None)
    batch: list[dict[str, Any]] = [
        {"device_id": f"d{number}", "msg_id": number, "stage": STAGES[number % 5], "ts": NOW - number, "user_id": "u",
         "more": [number]} for number in range(10)]
    batch[3] = dict(reversed(batch[3].items()))

    parsed = parse_events(batch, 1, NOW)

    assert parsed.batch.msg_ids == [str(number) for number in range(10)]
    assert parsed.batch.times == [NOW - number for number in range(10)]
    assert parsed.batch.device_ids == [f"d{number}" for number in range(10)]
    assert parsed.batch.users == dict.fromkeys(range(10), "u")


#: Lines whose ends deceive: strings that begin in one and end in another, several values in one, odd white space.
DECEPTIONS: Final = st.sampled_from([
    b'{"a":1},"}', b'{",5,"}', b'{"},5,"}', b'{"},5}', b'{"a":"}', b'{"}', b'{","b":1}', b'{"a":1}],["}',
    b'{"a":1}\x0c', b'{"a":1}\x0b', b'\x0c', b'{"a":1}\r', b'{"a":1}\t ', b'{"a":1,"a":2}', b'{"a":"\\n"}',
    b'{"a":"x', b'y"}', b'\r', b'{"a":1}\r\r', b'{"a":\r1}', b'{"\xc3\xa9":"\xf0\x9f\x98\x80"}', b'{"a":"{"}',
    b'{"a":1},', b',{"a":1}', b'\xef\xbb\xbf{}'])


@settings(deadline=None, max_examples=1500)
@example([b'{"a":"}', b'{"}'], b"\n")
@given(st.lists(DECEPTIONS | LINES, max_size=5), st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
def test_lines_that_deceive_are_read_by_the_letter(parts: list[bytes], end: bytes) -> None:
    """Whatever stands in lines, and however they end, they are told apart as one by one."""
    body = end.join(parts)

    assert split_lines(body) == slow_lines(body)
    assert split_lines(body + end) == slow_lines(body + end)
