"""A short text that tells people which message it is, from a payload of whatever shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: Where senders put it, best first; at each level of nesting.
_WORDS: Final = ("title", "alert", "subject", "message", "body", "text", "msg_content", "content")
#: No gateway nests it deeper: a vendor's part of the payload, the gateway's, the alert, the title.
_DEPTH: Final = 4
_MAX_CHARACTERS: Final = 120


def title_of(payload: object) -> str | None:
    """The title or the text of *payload*, whichever is found first on the way inwards; None where there is neither."""
    if isinstance(payload, str):
        return _shortened(payload) or None
    level: list[Any] = [payload]
    for _ in range(_DEPTH + 1):
        texts = [text for value in level for text in _texts(value)]
        if texts:
            return _shortened(min(texts, key=lambda found: found[0])[1])
        level = [part for value in level if isinstance(value, Mapping) for part in value.values()]
    return None


def _texts(value: object) -> list[tuple[int, str]]:
    """The texts of one level, each with its rank."""
    if not isinstance(value, Mapping):
        return []
    return [(rank, text) for rank, word in enumerate(_WORDS) if isinstance(text := value.get(word), str)
            and text.strip()]


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS - 1].rstrip() + "…"
