"""What schemathesis has to be told of this service; it loads this file by its path.

It knows how to send lines of JSON: as they are.
"""

from __future__ import annotations

from typing import Any

import schemathesis

LINES = ("application/x-ndjson", "application/jsonl", "application/ndjson", "application/x-jsonlines")


@schemathesis.serializer(*LINES)
def as_they_are(ctx: schemathesis.SerializationContext, value: Any) -> bytes:
    """A string is the body; what is no string, as a bad body may be, is sent as its text."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
