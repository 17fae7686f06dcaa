"""The whole document: each route with what is said of its handler.

A route whose handler nobody described is left out here, and found by a test.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import orjson
from aiohttp import hdrs
from aiohttp.web_routedef import AbstractRouteDef, RouteDef

import reportsvc
from reportsvc.api import beams, beams_device, beams_reporting, dashboard
from reportsvc.api.openapi import beams as beams_text
from reportsvc.api.openapi import jpush, native, operations, page, pushy
from reportsvc.api.openapi.operation import (STRAYS, Answer, Operation, Section, all_codes, error_responses,
                                             error_schema, header_refs)
from reportsvc.api.openapi.schemas import SHARED, Schema, integer, string
from reportsvc.api.routes import dialect_of
from reportsvc.registry.ratelimit import WINDOW_SECONDS

SECTIONS: Final = (native.SECTION, jpush.SECTION, pushy.SECTION, beams_text.REPORTING, beams_text.DEVICE,
                   beams_text.SERVERS, operations.SECTION)
#: Handlers of paths in which something is missing; what they answer is said at the operation that was meant.
INCOMPLETE: Final = frozenset({beams_reporting.missing_instance, beams_device.missing_instance,
                               beams_device.missing_device, beams_device.missing_interest})
#: Handlers of pages for people, and of what those are made of.
PAGES: Final = frozenset({dashboard.page, dashboard.file})

_DESCRIPTION: Final = """\
Push-delivery statistics: events from devices, senders and push vendors come in, and the report APIs that teams already
call are answered. Five dialects on one port; each keeps its vendor's words, shapes and errors.

Doubled and trailing slashes do not matter. Ids are strings or integers of any size, and always answered as strings.
Keys of a request that nobody knows do not matter. A GET may be a HEAD. Every error is JSON in the shape of its path's
dialect, also where the path or the method does not exist. "No data" is null, never a zero."""

_SECURITY: Final = {
    "basic": {"type": "http", "scheme": "basic", "description": "`app_key:master_secret` of an app."},
    "pushyKey": {"type": "apiKey", "in": "query", "name": "api_key", "description": "An app's `pushy_api_key`."},
    "beamsUserToken": {
        "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
        "description": "HS256 with the app's `beams_secret_key`; `iss` is "
                       "`https://<instance id>.pushnotifications.pusher.com`, `sub` the user, `exp` has to be there."},
    "metricsToken": {"type": "http", "scheme": "bearer", "description": "`REPORTSVC_METRICS_TOKEN`, if it is set."},
    "beamsSecretKey": {"type": "http", "scheme": "bearer", "description": "An app's `beams_secret_key`."},
}
_HEADERS: Final[dict[str, tuple[str, Schema]]] = {
    "Retry-After": ("Seconds to wait before the next attempt.", integer(minimum=1)),
    "X-Rate-Limit-Limit": ("Calls that the app may make a minute; absent where there is no limit.", integer(minimum=1)),
    "X-Rate-Limit-Quota": ("The same under its other name.", integer(minimum=1)),
    "X-Rate-Limit-Remaining": ("Calls that are left of this minute.", integer(minimum=0)),
    "X-Rate-Limit-Reset": ("Seconds that are left of this minute.", integer(minimum=1, maximum=WINDOW_SECONDS)),
    **{name: ("The same for every page.", string(const=value)) for name, value in beams.CORS.items()},
    "ETag": ("What the content is known by.", string()), "Vary": ("What it depends on.", string()),
    "Cache-Control": ("It may be kept, but has to be asked about.", string()),
}


class Documentation:
    """The document of some routes, and the page made from it; each is made once."""

    def __init__(self, routes: Sequence[AbstractRouteDef]) -> None:
        self._routes = routes

    @functools.cached_property
    def document(self) -> dict[str, Any]:
        """The document."""
        return build(self._routes)

    @functools.cached_property
    def _json(self) -> bytes:
        return orjson.dumps(self.document)

    @functools.cached_property
    def _page(self) -> bytes:
        return page.render(self.document).encode()

    def json(self) -> bytes:
        """The document as it is served."""
        return self._json

    def page(self) -> bytes:
        """The page as it is served."""
        return self._page


def build(routes: Sequence[AbstractRouteDef]) -> dict[str, Any]:
    """The document of *routes*."""
    described = [(route, *found) for route in routes if isinstance(route, RouteDef)
                 and (found := description_of(route)) is not None]
    return {
        "openapi": "3.1.0",
        "info": {"title": "reportsvc", "version": reportsvc.__version__, "description": _DESCRIPTION},
        "servers": [{"url": "/", "description": "This service."}],
        "tags": [{"name": section.tag, "description": section.description}
                 | ({"externalDocs": {"url": section.source}} if section.source else {}) for section in SECTIONS],
        "paths": _paths(described),
        "components": {
            "schemas": SHARED | {name: schema for section in SECTIONS for name, schema in _schemas(section).items()},
            "responses": {f"{name}{status}": response for section in SECTIONS
                          for name, responses in [(section.error_name, _strays(section))]
                          for status, response in responses.items()},
            "headers": {name: {"description": text, "schema": schema} for name, (text, schema) in _HEADERS.items()},
            "securitySchemes": _SECURITY,
        },
    }


def description_of(route: RouteDef) -> tuple[Section, Operation] | None:
    """What is said of a route: by its handler, in a section of the dialect that answers errors there."""
    handler = handler_of(route)
    return next(((section, section.operations[handler]) for section in SECTIONS
                 if section.dialect is dialect_of(route.path) and handler in section.operations), None)


def handler_of(route: RouteDef) -> Callable[..., Any]:
    """The handler of a route, without what is around it."""
    handler: Callable[..., Any] = inspect.unwrap(route.handler)
    return handler


def template(path: str) -> str:
    """A route's path without the patterns of its parts."""
    return re.sub(r"\{(\w+):[^{}]*\}", r"{\1}", path)


def _paths(described: Sequence[tuple[RouteDef, Section, Operation]]) -> dict[str, Any]:
    # In the order of the sections and of their operations: that is how a reader should meet them.
    places = {(section.tag, operation.id): (SECTIONS.index(section), list(section.operations.values()).index(operation))
              for _, section, operation in described}
    paths: dict[str, Any] = {}
    first: dict[str, str] = {}
    for route, section, operation in sorted(
            described, key=lambda item: (item[0].method == hdrs.METH_OPTIONS, places[item[1].tag, item[2].id])):
        path = template(route.path)
        same_as = first.setdefault(operation.id, path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(path, section, operation, same_as)
    return paths


def _operation(path: str, section: Section, operation: Operation, same_as: str) -> dict[str, Any]:
    security = section.security if operation.security is None else operation.security
    document = {
        "operationId": operation.id + _suffix(path, same_as), "tags": [section.tag], "summary": operation.summary,
        "parameters": [*_path_parameters(path, section), *operation.parameters],
        "responses": responses(section, operation),
        # Empty where no credentials are looked at.
        "security": [dict(one) for one in security],
    }
    if operation.description:
        document["description"] = operation.description
    if operation.body:
        document["requestBody"] = {"required": True, "content": {
            media: content for body in operation.body for media, content in body.document().items()}}
    return document


def responses(section: Section, operation: Operation) -> dict[str, Any]:
    """All that an operation may answer."""
    found: dict[int, dict[str, Any]] = {
        status: _answer(answer, section.headers) for status, answer in operation.answers.items()}
    told = error_responses(section.dialect, section.error_name, [*operation.errors, *section.errors], section.headers)
    for status, response in told.items():
        found[status] = _either(response, found[status]) if status in found else response
    return {str(status): found[status] for status in sorted(found)}


def _answer(answer: Answer, headers: Sequence[str]) -> dict[str, Any]:
    document: dict[str, Any] = {"description": answer.description}
    names = [*answer.headers, *headers]
    if names:
        document["headers"] = header_refs(names)
    if answer.content is not None:
        document["content"] = answer.content.document()
    return document


def _either(error: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    """A response that is an error in one of two shapes."""
    mine, theirs = error["content"]["application/json"], answer["content"]["application/json"]
    content = {"schema": {"anyOf": [mine["schema"], theirs["schema"]]},
               "examples": mine["examples"] | theirs.get("examples", {})}
    return {**error, "content": {"application/json": content}}


def _schemas(section: Section) -> dict[str, Schema]:
    """A section's schemas, and that of its dialect's errors."""
    return {**section.schemas, section.error_name: error_schema(section.dialect, all_codes(section.dialect))}


def _strays(section: Section) -> dict[int, dict[str, Any]]:
    """What a section answers where there is no path or no such method."""
    return error_responses(section.dialect, section.error_name, STRAYS, ())


def _path_parameters(path: str, section: Section) -> list[dict[str, Any]]:
    found = []
    for name in re.findall(r"\{(\w+)\}", path):
        schema = dict(section.path_parameters.get(name, {"type": "string"}))
        parameter = {"name": name, "in": "path", "required": True, "description": schema.pop("description", "")}
        shown = schema.pop("examples", [])
        found.append(parameter | ({"example": shown[0]} if shown else {}) | {"schema": schema})
    return found


def _suffix(path: str, same_as: str) -> str:
    """What tells operations of one handler apart: the words of the path that the first one has not."""
    if path == same_as:
        return ""
    known = set(re.findall(r"\w+", same_as))
    return "".join(part.capitalize() for word in re.findall(r"\w+", path) if word not in known
                   for part in word.split("_"))
