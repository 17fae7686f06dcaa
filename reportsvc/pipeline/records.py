"""What stands in the journal: one JSON document an entry, its kind in ``type``.

JSON keeps dead letters readable, and a columnar document decodes at several million values a second. A record must
stay readable by the next release: add keys, never change one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import orjson

from reportsvc.model import DeviceUpsert, EventBatch, Profile

#: An entry larger than this would make one partition wait; a request may fill several.
MAX_EVENTS: Final = 10_000


def events(batches: Sequence[EventBatch], received_at: int) -> Iterable[tuple[int, bytes]]:
    """Entries for *batches* of one app, each with the number of events in it."""
    for batch in merge(batches):
        yield len(batch), _dump({
            "type": "events", "app": batch.app_id, "at": received_at, "msg_ids": batch.msg_ids,
            "device_ids": batch.device_ids, "codes": batch.codes, "times": batch.times,
            "users": {str(position): user for position, user in batch.users.items()},
        })


def merge(batches: Sequence[EventBatch]) -> list[EventBatch]:
    """The same events of one app in as few batches as may be; *batches* stay as they are."""
    if len(batches) == 1:
        return [batches[0]]
    merged: list[EventBatch] = []
    for batch in batches:
        if not merged or len(merged[-1]) + len(batch) > MAX_EVENTS:
            merged.append(EventBatch(batch.app_id))
        last = merged[-1]
        for position, user in batch.users.items():
            last.users[len(last) + position] = user
        last.msg_ids += batch.msg_ids
        last.device_ids += batch.device_ids
        last.times += batch.times
        last.codes += batch.codes
    return merged


def devices(app_id: int, upserts: Sequence[DeviceUpsert], received_at: int) -> bytes:
    """Registrations."""
    return _dump({"type": "devices", "app": app_id, "at": received_at,
                  "devices": [[one.device_id, one.platform, one.user_id, one.first_seen] for one in upserts]})


def deletion(app_id: int, device_id: str, deleted_at: int) -> bytes:
    """A device is no device of the app any more."""
    return _dump({"type": "deletion", "app": app_id, "at": deleted_at, "device_id": device_id})


def targets(app_id: int, msg_id: str, kind: str, channel: str, device_ids: Sequence[str], registered_at: int, *,
            in_record: bool) -> bytes:
    """Devices that a push is meant for; *in_record*: its record in Redis names them already."""
    return _dump({"type": "targets", "app": app_id, "at": registered_at, "msg_id": msg_id, "kind": kind,
                  "channel": channel, "device_ids": list(device_ids), "in_record": in_record})


def audience(app_id: int, msg_id: str, kind: str, channel: str, members: Mapping[str, str],
             registered_at: int, *, in_record: bool) -> bytes:
    """The same as numbers: each chunk of 65 536 with its members in base64."""
    return _dump({"type": "audience", "app": app_id, "at": registered_at, "msg_id": msg_id, "kind": kind,
                  "channel": channel, "members": dict(members), "in_record": in_record})


def profiles(app_id: int, changed: Iterable[Profile], at: int, *, seen: bool) -> bytes:
    """Profiles as they are now; *seen* if the devices themselves made it so."""
    return _dump({"type": "profiles", "app": app_id, "at": at, "seen": seen,
                  "profiles": [asdict(profile) for profile in changed]})


def profile_deletion(app_id: int, profile: Profile, at: int) -> bytes:
    """A profile is gone, and with it the interests of the device."""
    return _dump({"type": "profile_deletion", "app": app_id, "at": at, "device_id": profile.device_id,
                  "number": profile.number, "version": profile.version})


def interests(app_id: int, profile: Profile, names: Sequence[str], at: int, *, subscribed: bool) -> bytes:
    """As of the profile's version, the device has all of these interests, or none of them."""
    return _dump({"type": "interests", "app": app_id, "at": at, "device_id": profile.device_id,
                  "number": profile.number, "version": profile.version, "subscribed": subscribed,
                  "interests": list(names)})


def push(app_id: int, msg_id: str, record: dict[str, Any], digest: str, expires_at: int, registered_at: int) -> bytes:
    """A push as registered, with the *digest* of what was sent; ``ends`` in *record* makes everyone below it a target.
    """
    return _dump({"type": "push", "app": app_id, "at": registered_at, "msg_id": msg_id, "record": record,
                  "digest": digest, "expires_at": expires_at})


def app(record: dict[str, Any], version: int) -> bytes:
    """An app's settings, for the durable copy."""
    return _dump({"type": "app", "app": record["id"], "at": 0, "record": record, "version": version})


def app_deletion(app_id: int, version: int) -> bytes:
    """An app is gone, and everything of it goes."""
    return _dump({"type": "app_deletion", "app": app_id, "at": 0, "version": version})


def _dump(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document)
