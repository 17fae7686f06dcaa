"""Holds answers against the document: an answer that it does not describe is an error."""

from __future__ import annotations

import functools
import operator
import re
from typing import Any

import jsonschema_rs
import orjson

from reportsvc.api.openapi.document import SECTIONS, build
from reportsvc.api.routes import ROUTES, dialect_of
from tests.support.service import Answer

#: What is described where it is meant: the page and its files, and paths in which something is missing.
UNDESCRIBED = re.compile(r"/?$|/dashboard/|/device_api/|/reporting_api/v2/instances/events$")


@functools.cache
def document() -> dict[str, Any]:
    """The document of this service."""
    return build(ROUTES)


@functools.cache
def _templates() -> list[tuple[re.Pattern[str], str]]:
    """The paths of the document as patterns, those with fewer variable parts first."""
    def pattern(path: str) -> re.Pattern[str]:
        parts = re.split(r"\{\w+\}", path)
        last = ".+" if re.search(r"\{(interest|user_id)\}$", path) else "[^/]+"
        body = "[^/]+".join(re.escape(part) for part in parts[:-1])
        return re.compile(body + (last + re.escape(parts[-1]) if len(parts) > 1 else re.escape(path)), re.DOTALL)

    return [(pattern(path), path) for path in sorted(document()["paths"], key=lambda path: path.count("{"))]


@functools.cache
def validator(*at: str) -> jsonschema_rs.Draft202012Validator:
    """A validator for the schema at a place of the document: ``validator("components", "schemas", "Id")``."""
    schema: Any = document()
    for name in at:
        schema = schema[int(name) if isinstance(schema, list) else name]
    return jsonschema_rs.Draft202012Validator({"components": document()["components"], "allOf": [schema]})


def path_of(url_path: str) -> str | None:
    """The path of the document that answers at *url_path*."""
    path = re.sub("/{2,}", "/", url_path).rstrip("/") or "/"
    return next((template for pattern, template in _templates() if pattern.fullmatch(path)), None)


def check_answer(method: str, url: str, answer: Answer) -> None:
    """Raise unless the document has this answer to a request."""
    path = url.partition("?")[0]
    template, method = path_of(path), method.lower()
    template_methods = document()["paths"].get(template, {})
    method = "get" if method == "head" and "get" in template_methods else method
    where = f"{method.upper()} {path} {answer.status}"
    if method in template_methods:
        responses = template_methods[method]["responses"]
        assert str(answer.status) in responses, f"{where}: not in the document, which has {', '.join(responses)}"
        check_response(where, answer, "paths", str(template), method, "responses", str(answer.status))
    else:
        _check_stray(where, path, answer)


def check_response(where: str, answer: Answer, *at: str) -> None:
    """Raise unless *answer* has the body and the headers of the response *at* a place of the document."""
    response = functools.reduce(operator.getitem, at, document())
    headers = {name.lower(): value for name, value in answer.headers.items()}
    for name, header in response.get("headers", {}).items():
        if name.lower() in headers:
            schema = document()["components"]["headers"][name]["schema"]
            value: Any = headers[name.lower()]
            value = int(value) if schema["type"] == "integer" else value
            assert jsonschema_rs.is_valid(schema, value), f"{where}: {name}: {value}"
        assert header == {"$ref": f"#/components/headers/{name}"}
    unknown = {name for name in headers if name.startswith(("x-rate-", "access-control-", "retry-"))} - {
        name.lower() for name in response.get("headers", {})}
    assert not unknown, f"{where}: headers that the document has not: {unknown}"
    content = response.get("content")
    if content is None or not answer.body:
        assert not answer.body or content is not None, f"{where}: a body, and the document has none: {answer.body!r}"
        return
    media = headers["content-type"].partition(";")[0]
    assert media in content, f"{where}: {media}, and the document has {', '.join(content)}"
    if media == "application/json":
        errors = list(validator(*at, "content", media, "schema").iter_errors(orjson.loads(answer.body)))
        assert not errors, f"{where}: {answer.body[:500]!r}\n" + "\n".join(str(error) for error in errors[:3])


def _check_stray(where: str, path: str, answer: Answer) -> None:
    """An answer where the document has no such path or method: an error in the dialect of the path."""
    assert answer.status in (400, 401, 404, 405, 413, 414, 429, 431, 500, 503) or UNDESCRIBED.match(path), where
    if answer.status >= 400 and answer.body:
        name = next(section.error_name for section in SECTIONS if section.dialect is dialect_of(path))
        errors = list(validator("components", "schemas", name).iter_errors(orjson.loads(answer.body)))
        assert not errors, f"{where}: {answer.body[:500]!r}\n" + "\n".join(str(error) for error in errors[:3])
