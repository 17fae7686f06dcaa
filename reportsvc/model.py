"""The nouns of the service and the closed vocabularies they use; no I/O.

An *event* says that a device reached a stage of a message. Where it happened (platform), who carried it (channel) and
what sort of message it was (kind) ride along. The four together come from small closed tables, so they travel as one
small integer, the *fact code*: validating an event is one dictionary look-up, and a batch of events is five flat
columns.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

# The position of a word is its number in fact codes and in Redis: append only, never reorder.
STAGES: Final = ("target", "sent", "online_push", "received", "display", "click", "online", "active")
KINDS: Final = ("notification", "message", "inapp", "live_activity")
#: ``""`` stands for "the event did not say": the device's own platform decides when a report is read.
PLATFORMS: Final = ("", "android", "ios", "web", "winphone", "quickapp", "hmos")
UNKNOWN_PLATFORM: Final = "unknown"
CHANNELS_BY_PLATFORM: Final = {
    "android": ("jg_android", "xiaomi", "huawei", "honor", "meizu", "oppo", "vivo", "asus", "fcm", "tuibida", "nio",
                "pushy"),
    "ios": ("jg_ios", "voip", "apns"),
    "web": ("webpush",),
    "winphone": ("mpns",),
    "quickapp": ("quick_jg", "quick_xiaomi", "quick_huawei", "quick_oppo"),
    "hmos": ("hmpns", "jg_hmos"),
}
CHANNELS: Final = ("", *(channel for channels in CHANNELS_BY_PLATFORM.values() for channel in channels))
PLATFORM_OF_CHANNEL: Final = {
    channel: platform for platform, channels in CHANNELS_BY_PLATFORM.items() for channel in channels
}
#: The two stages about a device alone; they name no message.
PRESENCE_STAGES: Final = frozenset({"online", "active"})
#: The stages that make a device a target of the message in ``/v3/status/message``.
TARGET_STAGES: Final = frozenset({"target", "sent", "online_push"})
#: The stages that say the user opened something.
ACTIVE_STAGES: Final = frozenset({"click", "active"})

#: Ids that Beams hands out say what they are.
PLATFORM_OF_PREFIX: Final = {"apns-": "ios", "fcm-": "android", "web-": "web"}
CHANNEL_OF_PREFIX: Final = {"apns-": "apns", "fcm-": "fcm", "web-": "webpush"}

MAX_ID_BYTES: Final = 256

#: The name of an interest, as a whole.
INTEREST: Final = re.compile(r"[a-zA-Z0-9_\-=@,.;]{1,164}")
#: Limits of a device's profile; MAX_DEVICES is that of a user who signed in on the devices themselves.
MAX_INTERESTS: Final = 5000
MAX_DEVICES: Final = 100
MAX_USER_CHARACTERS: Final = 164
#: Who takes a push to the devices that have a profile -> their platform. Ids begin with the gateway and a hyphen.
PLATFORM_OF_GATEWAY: Final = {prefix.rstrip("-"): platform for prefix, platform in PLATFORM_OF_PREFIX.items()}


def default_channel(platform: str, kind: str) -> str:
    """The channel of an event that names none, for a *platform* that is known."""
    if platform == "ios":
        return "jg_ios" if kind in ("message", "inapp") else "apns"
    return CHANNELS_BY_PLATFORM[platform][0] if platform in CHANNELS_BY_PLATFORM else ""


def dies_at(last: int) -> int:
    """When the statistics of a message with its last delivery at *last* are forgotten; both in unix seconds.

    One calendar month in UTC, cut to the end of a shorter month, as ClickHouse's ``addMonths`` has it. The clock is
    the time the service received an event, never the device's.
    """
    moment = datetime.fromtimestamp(last, UTC)
    year, month = moment.year + moment.month // 12, moment.month % 12 + 1
    day = min(moment.day, calendar.monthrange(year, month)[1])
    return int(moment.replace(year=year, month=month, day=day).timestamp())


@dataclass(frozen=True, slots=True)
class Fact:
    """What an event says beside who and when."""

    stage: str
    platform: str = ""
    channel: str = ""
    kind: str = "notification"

    @property
    def code(self) -> int:
        """The fact as a number below 2**13 (stage 3 bits, kind 2, platform 3, channel 5)."""
        return (STAGES.index(self.stage) | KINDS.index(self.kind) << 3
                | PLATFORMS.index(self.platform) << 5 | CHANNELS.index(self.channel) << 8)

    @classmethod
    def from_code(cls, code: int) -> Fact:
        """Undo :attr:`code`."""
        return cls(STAGES[code & 7], PLATFORMS[code >> 5 & 7], CHANNELS[code >> 8 & 31], KINDS[code >> 3 & 3])


FACT_CODES: Final = 1 << 13


def platform_rank(device_id: str, named: str) -> int:
    """How strongly a device is known to be of a platform: 0 unknown, 1-7 by its id's prefix, 9-15 named by somebody.

    The largest rank ever seen wins in every store, so the order of arrival never matters. ``rank & 7`` is the number
    of the platform.
    """
    if named:
        return PLATFORMS.index(named) | 8
    prefix = PLATFORM_OF_PREFIX.get(device_id[:device_id.find("-") + 1])
    return PLATFORMS.index(prefix) if prefix else 0


def platform_of_rank(rank: int) -> str:
    """The platform a rank stands for."""
    return PLATFORMS[rank & 7] or UNKNOWN_PLATFORM


@dataclass(slots=True)
class EventBatch:
    """Validated events of one app, as parallel columns of one length."""

    app_id: int
    msg_ids: list[str] = field(default_factory=list)
    device_ids: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    #: When each happened, unix seconds.
    times: list[int] = field(default_factory=list)
    #: The users the events name, by position; most events name none.
    users: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True, slots=True)
class DeviceUpsert:
    """What a registration says of one device; ``first_seen`` in unix seconds."""

    device_id: str
    platform: str = ""
    user_id: str = ""
    first_seen: int = 0


@dataclass(frozen=True, slots=True)
class Profile:
    """What a device told of itself when it registered with a gateway, and whose it is; its interests are kept apart.

    A device that only a sender knows has a profile too, of nothing but the user the sender named for it.
    """

    device_id: str
    number: int
    gateway: str = ""
    token: str = ""
    bundle_id: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    #: The user who signed in on the device, and the one that a sender named.
    user_id: str = ""
    named_user: str = ""
    #: Interests that were last added before this version were given up together.
    interests_since: int = 0
    #: Grows with every change, also of the interests; microseconds, where a clock can be trusted.
    version: int = 0


@dataclass(frozen=True, slots=True)
class Audience:
    """To whom a push goes: everybody, or exactly one of the three lists."""

    everyone: bool = False
    device_ids: Sequence[str] = ()
    interests: Sequence[str] = ()
    users: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Push:
    """One push as its sender registered it; times in unix seconds."""

    msg_id: str
    created_at: int
    expires_at: int
    payload: object
    vendor: str = ""
    scheduled_at: int | None = None
    kind: str = "notification"
    channel: str = ""


@dataclass(frozen=True, slots=True)
class FormerKeys:
    """Keys that were replaced, and when they stop, in unix seconds."""

    master_secret_sha256: str
    pushy_api_key_sha256: str
    beams_secret_key: str = field(repr=False)
    until: int


@dataclass(frozen=True, slots=True)
class App:
    """A tenant. Secrets are kept as SHA-256 digests, except those that sign: the Beams secret signs user tokens, the
    VAPID key what is sent to browsers."""

    id: int
    name: str
    app_key: str
    master_secret_sha256: str
    pushy_api_key_sha256: str
    beams_instance_id: str
    beams_secret_key: str = field(repr=False)
    timezone: str = "UTC"
    vip: bool = True
    #: As hexadecimal; empty for an app made before browsers could register.
    vapid_private_key: str = field(default="", repr=False)
    #: Calls to the reports a minute; None: what the service is set to.
    rate_limit: int | None = None
    former_keys: Sequence[FormerKeys] = ()
