"""Where an import has got to: a small file beside the imported one, so that it goes on there after any end.

It names a line up to which everything was answered. Lines behind it may have been sent too; sending them again changes
nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from reportsvc.commands.sources import Identity

_VERSION: Final = 1
_SUFFIX: Final = ".import-state"


@dataclass(slots=True)
class Counts:
    """What became of the lines so far."""

    accepted: int = 0
    rejected: int = 0
    #: Events whose time is too far from now for the service to take it.
    skewed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        """Take in those of a part."""
        self.accepted += other.accepted
        self.rejected += other.rejected
        self.skewed += other.skewed
        self.reasons.update(other.reasons)


@dataclass(frozen=True, slots=True)
class Place:
    """A line, and what became of all up to it; which file the refused ones were written to, and its size then."""

    line: int = 0
    counts: Counts = field(default_factory=Counts)
    rejects: str = ""
    rejects_size: int = 0


class Checkpoint:
    """The file, for one import of *identity* into the app *app_key* of *url*, with events of any time or without."""

    def __init__(self, identity: Identity, url: str, app_key: str, accept_skew: bool) -> None:
        self.path = Path(identity.path + _SUFFIX)
        self._of: dict[str, Any] = {"version": _VERSION, "file": asdict(identity), "url": url, "app_key": app_key,
                                    "accept_skew": accept_skew}

    def load(self) -> tuple[Place, str]:
        """Where an earlier import got to, and if it is of no use, why."""
        try:
            found = orjson.loads(self.path.read_bytes())
        except FileNotFoundError:
            return Place(), ""
        except (OSError, ValueError):
            return Place(), f"{self.path} cannot be read"
        if not isinstance(found, dict) or {name: found.get(name) for name in self._of} != self._of:
            return Place(), f"{self.path} is of another import, or the file has changed since"
        return Place(found["line"], _counts(found["counts"]), found["rejects"], found["rejects_size"]), ""

    def save(self, place: Place) -> None:
        """Note *place*: whole, or not at all."""
        beside = self.path.with_name(self.path.name + f".{os.getpid()}")
        beside.write_bytes(orjson.dumps(
            self._of | {"line": place.line, "counts": _document(place.counts), "rejects": place.rejects,
                        "rejects_size": place.rejects_size}))
        beside.replace(self.path)

    def remove(self) -> None:
        """The import is done."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def _document(counts: Counts) -> dict[str, Any]:
    return {"accepted": counts.accepted, "rejected": counts.rejected, "skewed": counts.skewed,
            "reasons": dict(counts.reasons)}


def _counts(found: Mapping[str, Any]) -> Counts:
    return Counts(found["accepted"], found["rejected"], found["skewed"], Counter(found["reasons"]))
