"""The page at ``/docs``: all of the document, readable without a script, a network or a mouse."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from html.parser import HTMLParser
from typing import Any, Final

import orjson
import pytest
from aiohttp import encode_basic_auth

from reportsvc.api.openapi import page
from reportsvc.api.openapi.handlers import PAGE_HEADERS
from tests.support.openapi import check_answer, document
from tests.support.service import Account, Running

#: Elements without an end.
_VOID: Final = {"meta", "link", "br", "img", "input", "hr"}


class Reader(HTMLParser):
    """What is on a page, and whether every element is closed by its own end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.headings: list[int] = []
        self.problems: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag: str) -> None:
        """An element ends."""
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        """Text."""
        if "style" not in self.open:
            self.words.append(data)


PAGE: Final = page.render(document())
READ: Final = Reader(PAGE)
TEXT: Final = "".join(READ.words)


def test_page_is_well_formed() -> None:
    """Every element is closed where it should be, ids are given once, and links within the page lead somewhere."""

    ids = [attributes["id"] for _, attributes in READ.elements if "id" in attributes]
    targets = [str(attributes["href"])[1:] for _, attributes in READ.elements
               if str(attributes.get("href", "")).startswith("#")]

    assert (READ.problems, READ.open) == ([], [])
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    assert targets and set(targets) <= set(ids)
    assert {attributes[name] for _, attributes in READ.elements for name in ("aria-labelledby",)
            if name in attributes} <= set(ids)


def test_page_has_every_operation_and_every_error() -> None:
    """Paths, parameters, bodies, answers and errors of the document are all on the page."""

    for path, methods in document()["paths"].items():
        assert path in TEXT
        for operation in methods.values():
            assert operation["summary"] in TEXT
            assert all(parameter["name"] in TEXT for parameter in operation["parameters"])
            for status, response in operation["responses"].items():
                for content in response.get("content", {}).values():
                    for example in content.get("examples", {}).values():
                        if int(status) >= 400:
                            texts = re.findall(r'"(?:message|description|error)":"((?:[^"\\]|\\.)*)"',
                                               orjson.dumps(example["value"]).decode())
                            assert [text for text in texts if text not in TEXT] == []


def test_page_needs_nothing_else() -> None:
    """Nothing is loaded, nothing runs, and the page's policy lets in its own style only."""

    names = {name for name, _ in READ.elements}
    assert names & {"script", "link", "img", "iframe", "form", "object", "svg"} == set()
    assert [attributes for _, attributes in READ.elements if "style" in attributes or any(
        name.startswith("on") for name in attributes)] == []
    assert "url(" not in page.STYLE and "@import" not in page.STYLE
    assert "default-src 'none'" in PAGE_HEADERS["Content-Security-Policy"]
    assert "unsafe" not in PAGE_HEADERS["Content-Security-Policy"]


def test_page_can_be_read_by_everyone() -> None:
    """A language, a title, a way past the menu, headings without gaps, headers and captions on tables, and a focus on
    all that scrolls; both light and dark; nothing that is wider than a phone."""

    by_name: dict[str, list[dict[str, Any]]] = {}
    for name, attributes in READ.elements:
        by_name.setdefault(name, []).append(attributes)

    assert by_name["html"] == [{"lang": "en"}]
    assert READ.elements[READ.elements.index(("body", {})) + 1] == ("a", {"class": "skip", "href": "#content"})
    assert READ.headings[0] == 1 and READ.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(READ.headings, READ.headings[1:], strict=False))
    assert len(by_name["caption"]) == len(by_name["table"]) == len(
        [one for one in by_name["div"] if one.get("role") == "group" and one["aria-label"] and one["tabindex"] == "0"])
    assert all(one.get("scope") in ("col", "row") for one in by_name["th"])
    assert all(one.get("tabindex") == "0" for one in by_name["pre"])
    assert {"main", "nav", "header"} <= set(by_name)
    assert "color-scheme:light dark" in page.STYLE and "prefers-color-scheme:dark" in page.STYLE
    assert "width=device-width" in PAGE


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_apart(scheme: str) -> None:
    """Every colour of text has a contrast of 4.5 to 1 or more on both backgrounds."""

    root = page.STYLE.partition("@media(prefers-color-scheme:dark)")[0 if scheme == "light" else 2].partition("}")[0]
    colours = dict(re.findall(r"--(\w+):(#[0-9a-f]+)", root))

    assert set(colours) == {"back", "soft", "line", "text", "faint", "link", "get", "post", "put", "delete", "options"}
    for name in set(colours) - {"back", "soft", "line"}:
        for back in ("back", "soft"):
            assert contrast(colours[name], colours[back]) >= 4.5, (name, back)


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, as WCAG has it."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    parts = [int(digits[place:place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_texts_are_escaped() -> None:
    """What the document says is text on the page, whatever it says."""

    assert page.inline("<b> & `a<b`") == "&lt;b&gt; &amp; <code>a&lt;b</code>"
    assert page.code("</code><script>") == '<pre tabindex="0"><code>&lt;/code&gt;&lt;script&gt;</code></pre>'


def commands() -> list[str]:
    """The calls on the page."""
    return [text for text in READ.words if text.startswith("curl ")]


def test_every_operation_has_a_call() -> None:
    """There is a line to paste for each operation, but for what only browsers ask."""

    expected = [entry for entries in page.operations_by_tag(document()).values() for entry in entries
                if entry[1] != "options"]

    assert len(commands()) == len(expected)


async def test_calls_work_as_they_stand(running_service: Running, account: Account) -> None:
    """Each line on the page is a call that the service understands: its path and method exist, and it is answered as
    described, with its credentials accepted."""

    environment = {"$KEY": account.app.app_key, "$SECRET": account.master_secret, "$API_KEY": account.pushy_api_key,
                   "$TOKEN": account.app.beams_secret_key, "$URL": ""}
    for command in commands():
        for name, value in environment.items():
            command = command.replace(name, value)
        method, path, headers, body = parsed(shlex.split(command))
        path = path.replace("426abfc7-41fe-492f-bcf1-27586fa9bd3f", account.app.beams_instance_id, 1)
        answer = await running_service.call(method, path, headers=headers, data=body)

        check_answer(method, path, answer)
        assert answer.status not in (404, 405, 413) or path.startswith("/device_api/") or method == "DELETE" or (
            b"1613113584" in answer.body), command
        assert answer.status < 500 and (answer.status != 401 or path.endswith("/user")), (command, answer)


def parsed(words: list[str]) -> tuple[str, str, dict[str, str], str | None]:
    """Method, path, headers and body of a ``curl``."""
    method, path, headers, body = "", "", {}, None
    rest = iter(words[1:])
    for word in rest:
        if word == "-X":
            method = next(rest)
        elif word == "-u":
            user, _, secret = next(rest).partition(":")
            headers["Authorization"] = encode_basic_auth(user, secret)
        elif word == "-H":
            name, _, value = next(rest).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = next(rest)
        else:
            path = word
    return method or ("POST" if body is not None else "GET"), path, headers, body


async def test_document_and_page_are_served(running_service: Running) -> None:
    """Both are there without credentials, compressed, and not sent again to who has them already."""

    for path, content_type, start in (("/openapi.json", "application/json", b'{"openapi":"3.1.0"'),
                                      ("/docs", "text/html; charset=utf-8", b"<!doctype html>")):
        answer = await running_service.call("GET", path)
        again = await running_service.call("GET", path, headers={"If-None-Match": answer.headers["Etag"]})

        assert (answer.status, answer.headers["Content-Type"]) == (200, content_type)
        assert answer.body.startswith(start)
        assert answer.headers["Content-Encoding"] in ("gzip", "deflate")
        assert (again.status, again.body, again.headers["Etag"]) == (304, b"", answer.headers["Etag"])
        check_answer("GET", path, answer)
        check_answer("GET", path, again)
    assert (await running_service.call("GET", "/openapi.json")).json == document()
    assert (await running_service.call("GET", "/docs")).body.decode() == PAGE
