"""Small builders of JSON Schema, and the schemas that all dialects share, from the limits that the code holds to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from reportsvc.api.beams import INSTANCE
from reportsvc.model import MAX_ID_BYTES

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """A schema of ``components``."""
    return {"$ref": f"#/components/schemas/{name}"}


def string(description: str = "", **more: Any) -> Schema:
    """A string."""
    return _described({"type": "string"} | more, description)


def integer(description: str = "", **more: Any) -> Schema:
    """A whole number."""
    return _described({"type": "integer"} | more, description)


def boolean(description: str = "") -> Schema:
    """True or false."""
    return _described({"type": "boolean"}, description)


def words(allowed: Iterable[str], description: str = "", **more: Any) -> Schema:
    """A word of a closed vocabulary."""
    return string(description, enum=list(allowed), **more)


def array(items: Schema, description: str = "", **more: Any) -> Schema:
    """A list."""
    return _described({"type": "array", "items": items} | more, description)


def open_object(properties: Mapping[str, Schema], required: Sequence[str] = (), description: str = "") -> Schema:
    """An object of a request: keys that nobody knows do not matter."""
    schema: Schema = {"type": "object", "properties": dict(properties)}
    return _described(schema | ({"required": list(required)} if required else {}), description)


def closed_object(properties: Mapping[str, Schema], optional: Sequence[str] = (), description: str = "") -> Schema:
    """An object of an answer: exactly these keys, all of them but the *optional* ones."""
    schema: Schema = {"type": "object", "properties": dict(properties),
                      "required": [name for name in properties if name not in optional], "additionalProperties": False}
    return _described(schema, description)


def nullable(schema: Schema) -> Schema:
    """*schema*, or null."""
    if "$ref" in schema or "type" not in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    more = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return schema | {"type": [*types, "null"]} | more


def whole(pattern: re.Pattern[str]) -> str:
    """*pattern* for a whole string, as JSON Schema has it: without flags, with anchors."""
    text = pattern.pattern
    if pattern.flags & re.IGNORECASE:
        text = text.replace("a-f", "a-fA-F")
    return f"^(?:{text})$"


def _described(schema: Schema, description: str) -> Schema:
    return schema | ({"description": description} if description else {})


#: Nobody reaches the device, so a count never goes down to it: a stage without one is null.
COUNT: Final = nullable(integer(minimum=1))
INSTANCE_ID: Final = string("An app's `beams_instance_id`.", pattern=whole(INSTANCE))

SHARED: Final[dict[str, Schema]] = {
    "Id": {"type": ["string", "integer"], "minLength": 1, "maxLength": MAX_ID_BYTES,
           "description": f"An id: a string of 1 to {MAX_ID_BYTES} bytes, or an integer of any size, which is the "
                          "same as its digits. Answers always have strings."},
    "Count": COUNT | {"description": "Distinct devices; null if there is none, never 0."},
    "UnixTime": integer("Unix time, in seconds.", minimum=0),
}
