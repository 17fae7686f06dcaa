"""The vocabularies, the numbers they travel as, and the rules that need no store."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest

from reportsvc.model import (CHANNELS, CHANNELS_BY_PLATFORM, FACT_CODES, KINDS, PLATFORM_OF_CHANNEL, PLATFORMS, STAGES,
                             Fact, default_channel, dies_at, platform_of_rank, platform_rank)


def unix(text: str) -> int:
    """``2026-01-31 12:00:00`` in UTC as unix seconds."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def test_fact_survives_its_code() -> None:
    """Every combination of stage, platform, channel and kind has a number of its own, and comes back from it."""
    facts = [Fact(*words) for words in itertools.product(STAGES, PLATFORMS, CHANNELS, KINDS)]
    codes = [fact.code for fact in facts]

    assert [Fact.from_code(code) for code in codes] == facts
    assert len(set(codes)) == len(facts)


def test_codes_fit_their_bits() -> None:
    """The vocabularies still fit the 13 bits that tables of codes and packed keys are made for."""
    assert (len(STAGES) <= 8, len(KINDS) <= 4, len(PLATFORMS) <= 8, len(CHANNELS) <= 32) == (True,) * 4
    assert FACT_CODES == 2 ** 13
    assert max(Fact(*words).code for words in itertools.product(STAGES, PLATFORMS, CHANNELS, KINDS)) < FACT_CODES


def test_numbers_of_words_never_change() -> None:
    """Codes and ranks lie in journals and stores, so a word keeps its place: new ones go to the end."""
    assert STAGES == ("target", "sent", "online_push", "received", "display", "click", "online", "active")
    assert KINDS == ("notification", "message", "inapp", "live_activity")
    assert PLATFORMS == ("", "android", "ios", "web", "winphone", "quickapp", "hmos")
    assert CHANNELS == (
        "", "jg_android", "xiaomi", "huawei", "honor", "meizu", "oppo", "vivo", "asus", "fcm", "tuibida", "nio",
        "pushy", "jg_ios", "voip", "apns", "webpush", "mpns", "quick_jg", "quick_xiaomi", "quick_huawei", "quick_oppo",
        "hmpns", "jg_hmos")


def test_channel_belongs_to_one_platform() -> None:
    """A channel tells its platform, so no two platforms may have one of the same name."""
    assert sorted(PLATFORM_OF_CHANNEL) == sorted(channel for channels in CHANNELS_BY_PLATFORM.values()
                                                 for channel in channels)
    assert set(CHANNELS_BY_PLATFORM) == set(PLATFORMS) - {""}


@pytest.mark.parametrize(("platform", "kind", "channel"), [
    ("android", "notification", "jg_android"), ("android", "message", "jg_android"),
    ("ios", "notification", "apns"), ("ios", "live_activity", "apns"),
    ("ios", "message", "jg_ios"), ("ios", "inapp", "jg_ios"),
    ("web", "notification", "webpush"), ("winphone", "notification", "mpns"),
    ("quickapp", "notification", "quick_jg"), ("hmos", "message", "hmpns"),
    ("", "notification", ""),
])
def test_default_channel(platform: str, kind: str, channel: str) -> None:
    """An event that names no channel was carried by its platform's own; with no platform there is none to name."""
    assert default_channel(platform, kind) == channel


# id          named by an event    rank          platform
@pytest.mark.parametrize(("device_id", "named", "rank", "platform"), [
    ("1507bfd3a7c568d4761", "", 0, "unknown"),
    ("1507bfd3a7c568d4761", "android", 9, "android"),
    ("1507bfd3a7c568d4761", "hmos", 14, "hmos"),
    ("apns-8f3c", "", 2, "ios"),
    ("fcm-8f3c", "", 1, "android"),
    ("web-8f3c", "", 3, "web"),
    ("fcm-8f3c", "ios", 10, "ios"),
    # Only the whole prefix says something.
    ("fcm", "", 0, "unknown"),
    ("-fcm-8f3c", "", 0, "unknown"),
    ("FCM-8f3c", "", 0, "unknown"),
    ("weblog-1", "", 0, "unknown"),
])
def test_platform_rank(device_id: str, named: str, rank: int, platform: str) -> None:
    """A platform that somebody names outranks the id's prefix, and that outranks knowing nothing."""
    assert platform_rank(device_id, named) == rank
    assert platform_of_rank(rank) == platform


def test_any_named_platform_outranks_any_prefix() -> None:
    """Whatever the order of arrival, the largest rank is one that was named, if any was."""
    named = [platform_rank("apns-1", platform) for platform in PLATFORMS[1:]]
    prefixes = [platform_rank(f"{prefix}-1", "") for prefix in ("apns", "fcm", "web")]

    assert min(named) > max(prefixes) > platform_rank("1", "")
    assert max(named) < 16


# last delivery   2026-01-31 12:00  →  the month ends where February does: 2026-02-28 12:00
@pytest.mark.parametrize(("last", "end"), [
    ("2026-01-15 12:00:00", "2026-02-15 12:00:00"),
    ("2026-01-31 12:00:00", "2026-02-28 12:00:00"),
    ("2028-01-31 12:00:00", "2028-02-29 12:00:00"),
    ("2026-02-28 12:00:00", "2026-03-28 12:00:00"),
    ("2026-08-31 23:59:59", "2026-09-30 23:59:59"),
    ("2026-12-31 00:00:00", "2027-01-31 00:00:00"),
])
def test_statistics_live_a_calendar_month(last: str, end: str) -> None:
    """A month from the last delivery, cut to the end of a shorter month."""
    assert dies_at(unix(last)) == unix(end)
