"""What is said of an operation, and how that becomes OpenAPI.

Nothing that the code knows is written down twice. Methods and paths are those of the routes; an operation is found by
the handler of its route. Errors are real errors of this service, answered by the dialect itself: status, code, shape
and headers of the document are what a caller would have got. Where a parser makes the error, it is asked to:
``said(parse_msg_ids, None)``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import orjson
from aiohttp import web

from reportsvc.api.common import BODY_SECONDS, MAX_BODY_BYTES, Dialect
from reportsvc.api.openapi.schemas import Schema
from reportsvc.errors import BadRequest, ReportError, StoreUnavailable, TooLarge

JSON: Final = "application/json"


@dataclass(frozen=True)
class Framework:
    """An error that no code of ours raises."""

    status: int
    text: str


#: An error, or what makes one.
Failure = ReportError | Framework | Callable[[], ReportError]


def said(refuse: Callable[..., Any], *args: Any) -> Callable[[], ReportError]:
    """The error with which ``refuse(*args)`` ends."""
    def error() -> ReportError:
        try:
            refuse(*args)
        except ReportError as error:
            return error
        raise AssertionError(f"{refuse.__name__} takes what the document says it refuses")
    return error


@dataclass(frozen=True)
class Example:
    """A value, and what it shows."""

    summary: str
    value: Any


@dataclass(frozen=True)
class Content:
    """A body: its schema by media type, and examples."""

    schema: Schema
    examples: Sequence[Example] = ()
    media: Sequence[str] = (JSON,)
    description: str = ""

    def document(self) -> dict[str, Any]:
        """As OpenAPI has it."""
        return {media: {"schema": self.schema} | examples(self.examples) for media in self.media}


@dataclass(frozen=True)
class Answer:
    """What is answered when nothing is wrong, and sometimes when something is."""

    description: str
    #: None: nothing but headers.
    content: Content | None = None
    headers: Sequence[str] = ()


@dataclass(frozen=True)
class Operation:
    """What a handler does, for those who call it."""

    id: str
    summary: str
    answers: Mapping[int, Answer]
    description: str = ""
    parameters: Sequence[Mapping[str, Any]] = ()
    body: Sequence[Content] = ()
    needs_body: bool = True
    errors: Sequence[Failure] = ()
    #: Instead of those of its section.
    security: Sequence[Mapping[str, list[str]]] | None = None


@dataclass(frozen=True)
class Section:
    """One dialect, or a part of one: a tag of the document."""

    tag: str
    description: str
    dialect: Dialect
    #: handler -> what is said of it; in the order in which a reader should meet them.
    operations: Mapping[Callable[..., Any], Operation]
    #: Where the vendor describes it.
    source: str = ""
    security: Sequence[Mapping[str, list[str]]] = ()
    schemas: Mapping[str, Schema] = field(default_factory=dict)
    #: name in a path -> its schema
    path_parameters: Mapping[str, Schema] = field(default_factory=dict)
    #: What each operation may answer beside its own errors.
    errors: Sequence[Failure] = ()
    #: Headers of every answer to a caller who is known.
    headers: Sequence[str] = ()

    @property
    def error_name(self) -> str:
        """The schema of its errors."""
        return re.sub(r"\W", "", self.tag) + "Error"


#: What a request may be answered wherever it goes, by what is around the handlers.
EVERYWHERE: Final = (
    Framework(400, "the request is not valid HTTP"), Framework(414, "the request line is over 131072 bytes"),
    Framework(431, "a header is over 16384 bytes"), Framework(500, ""))
#: What anything that reads a body may answer.
BODY: Final = (
    BadRequest(f"the body did not arrive within {BODY_SECONDS:.0f} seconds"),
    BadRequest("the body cannot be read; check Content-Encoding and Content-Length"),
    TooLarge(f"the body is over {MAX_BODY_BYTES} bytes"), StoreUnavailable("memory"))
#: What a path or a method that does not exist is answered.
STRAYS: Final = (Framework(404, "there is nothing at this path"), Framework(405, "Method Not Allowed"))

_CODE: Final = "\0code"
_TEXT: Final = "\0text"


def answered(dialect: Dialect, failure: Failure) -> tuple[web.Response, Any]:
    """The response with which *dialect* tells of *failure*, and its body."""
    if isinstance(failure, Framework):
        response = dialect.answer_status(failure.status, failure.text)
    else:
        response = dialect.answer(failure if isinstance(failure, ReportError) else failure())
    assert isinstance(response.body, bytes)
    return response, orjson.loads(response.body)


def error_schema(dialect: Dialect, codes: Sequence[Any]) -> Schema:
    """The shape of the dialect's errors, read off one of them."""
    return _shape(dialect.body(_CODE, _TEXT), codes)


def _shape(body: Any, codes: Sequence[Any]) -> Schema:
    if body == _CODE:
        return {"enum": list(codes)}
    if body == _TEXT:
        return {"type": "string"}
    return {"type": "object", "properties": {name: _shape(value, codes) for name, value in body.items()},
            "required": list(body), "additionalProperties": False}


def code_and_text(dialect: Dialect, body: Any) -> tuple[Any, str]:
    """The vendor's code, or title, and the text in an error's *body*."""
    def find(shape: Any, value: Any) -> dict[str, Any]:
        if isinstance(shape, dict):
            return {name: found for key in shape for name, found in find(shape[key], value[key]).items()}
        return {shape: value}
    found = find(dialect.body(_CODE, _TEXT), body)
    return found[_CODE], found[_TEXT]


def all_codes(dialect: Dialect) -> list[Any]:
    """Every code that the dialect may answer, in the order of its tables."""
    return list(dict.fromkeys([*(code for _, code in dialect.errors.values()), *dialect.framework.values()]))


def error_responses(dialect: Dialect, error_name: str, failures: Sequence[Failure],
                    headers: Sequence[str]) -> dict[int, dict[str, Any]]:
    """The responses for *failures*, by status; *headers* are those of callers who are known."""
    told: dict[int, list[tuple[web.Response, Any]]] = {}
    for failure in failures:
        response, body = answered(dialect, failure)
        told.setdefault(response.status, []).append((response, body))
    return {status: _error_response(dialect, error_name, status, answers, () if status == 401 else headers)
            for status, answers in sorted(told.items())}


def _error_response(dialect: Dialect, error_name: str, status: int, answers: Sequence[tuple[web.Response, Any]],
                    headers: Sequence[str]) -> dict[str, Any]:
    told = [code_and_text(dialect, body) for _, body in answers]
    schema = {"allOf": [{"$ref": f"#/components/schemas/{error_name}"},
                        _only(dialect.body(_CODE, _TEXT), list(dict.fromkeys(code for code, _ in told)))]}
    names = [name for response, _ in answers for name in response.headers if name != "Content-Type"]
    return {"description": phrase(status), "headers": header_refs([*headers, *names]),
            "content": {JSON: {"schema": schema} | examples(
                [Example(text, body) for (_, text), (_, body) in zip(told, answers, strict=True)])}}


def _only(body: Any, codes: Sequence[Any]) -> Schema:
    """That the code in *body* is one of *codes*."""
    if body == _CODE:
        return {"enum": list(codes)}
    return {"properties": {name: _only(value, codes) for name, value in body.items()
                           if isinstance(value, dict) or value == _CODE}}


def phrase(status: int) -> str:
    """The words of an HTTP status; Python 3.13 has other words for some."""
    return {413: "Content Too Large", 414: "URI Too Long", 422: "Unprocessable Content"}.get(
        status, HTTPStatus(status).phrase)


def header_refs(names: Sequence[str]) -> dict[str, Any]:
    """Headers of ``components``."""
    return {str(name): {"$ref": f"#/components/headers/{name}"} for name in dict.fromkeys(names)}


def examples(given: Sequence[Example]) -> dict[str, Any]:
    """Examples under names made of their summaries."""
    named = {slug(example.summary): {"summary": example.summary, "value": example.value} for example in given}
    return {"examples": named} if named else {}


def slug(text: str) -> str:
    """A name made of the first words of *text*."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower())[:12]) or "example"


def query(name: str, schema: Schema, description: str, *, required: bool = False, example: Any = None,
          **more: Any) -> dict[str, Any]:
    """A parameter of the query."""
    shown = {} if example is None else {"example": example}
    return {"name": name, "in": "query", "required": required, "description": description,
            "schema": schema} | shown | more
