"""The dashboard's page and files as a browser gets them: types, caching, compression, a policy that lets nothing in."""

from __future__ import annotations

import asyncio
import configparser
import gzip
import importlib.metadata
import importlib.resources
import re
import threading
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin

import pytest
from yarl import URL

from reportsvc.api import dashboard
from reportsvc.config import Config
from tests.api.helpers import native_error
from tests.support.service import Account, Answer, Clock, Running, running

OWN: Final = {path.relative_to(dashboard.DIRECTORY).as_posix(): path.read_text("utf-8")
              for path in sorted(dashboard.DIRECTORY.rglob("*")) if path.is_file()}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types charts")
#: What every answer of the dashboard says, beside what its content is.
GUARDS: Final = {
    "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()", "Vary": "Accept-Encoding",
}
PLAIN: Final = {"Accept-Encoding": "identity"}
FOR_GOOD: Final = "public, max-age=31536000, immutable"


def described(answer: Answer) -> dict[str, Any]:
    """What of an answer's headers is promised; those of the connection left out."""
    unnamed = ("Date", "Server", "Content-Length", "Etag")
    return {name: value for name, value in answer.headers.items() if name not in unnamed}


async def addresses(service: Running) -> dict[str, str]:
    """Address -> content of everything that the page consists of, found as a browser finds it."""
    page = (await service.call("GET", "/", headers=PLAIN)).body.decode()
    waiting = [urljoin("/", found) for found in re.findall(r'(?:href|src|content)="(dashboard/[^"]+)"', page)]
    contents: dict[str, str] = {}
    while waiting:
        address = waiting.pop()
        if address in contents:
            continue
        answer = await service.call("GET", address, headers=PLAIN)
        assert answer.status == 200, address
        contents[address] = answer.body.decode()
        if not address.endswith(dashboard.CHART_FILE):
            imported = re.findall(r'^import .*?"(.+?)";', contents[address], re.MULTILINE | re.DOTALL)
            waiting += [urljoin(address, name) for name in imported]
    return contents


# ------------------------------------------------------------------------------------------------------------- headers
async def test_page_is_asked_for_each_time_and_guarded(running_service: Running) -> None:
    """``/`` is HTML that may not be kept unasked, with a policy that allows this origin alone; also with slashes."""
    for path in ("/", "//"):
        answer = await running_service.call("GET", path)

        assert (answer.status, described(answer)) == (200, GUARDS | {
            "Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-cache", "Content-Encoding": "gzip"})
        assert b"{{" not in answer.body


async def test_every_file_is_there_with_its_type_and_kept_for_good(running_service: Running) -> None:
    """What the page names, and what that imports, is all there is; each is kept under an address that names its
    content."""
    found = await addresses(running_service)

    names = {re.sub(r"^/dashboard/[^/]+/", "", address) for address in found}
    assert names == set(OWN) - {"index.html"} | {"plotly.min.js"}
    for address in found:
        answer = await running_service.call("GET", address)
        assert described(answer) == GUARDS | {
            "Content-Type": dashboard.CONTENT_TYPES[Path(address).suffix] + "; charset=utf-8",
            "Cache-Control": FOR_GOOD, "Content-Encoding": "gzip"}, address


async def test_what_is_known_is_not_sent_again(running_service: Running) -> None:
    """With the ETag of an answer, asked alone, among others or as ``*``, comes 304 and no body; with another the
    file."""
    for path in ("/", *[address for address in await addresses(running_service) if "main.js" in address]):
        first = await running_service.call("GET", path)
        tag = first.headers["Etag"]

        for known in (tag, f'"other", {tag}', tag.removeprefix("W/"), "*"):
            again = await running_service.call("GET", path, headers={"If-None-Match": known})
            assert (again.status, again.body) == (304, b"")
            assert (again.headers["Etag"], again.headers["Cache-Control"]) == (tag, first.headers["Cache-Control"])
            assert again.headers["Content-Security-Policy"] == POLICY
        changed = await running_service.call("GET", path, headers={"If-None-Match": '"other"'})
        assert (changed.status, changed.body) == (200, first.body)


async def test_compression_as_the_caller_can_read_it(running_service: Running) -> None:
    """Whoever takes gzip gets it, whoever does not gets the same bytes plain."""
    for accepted, encoding in {
            "gzip": "gzip", "br, gzip;q=0.5": "gzip", "*": "gzip", "identity": None, "": None, "gzip;q=0": None,
            "gzip; q=0.000, br": None, "br": None}.items():
        async with running_service.session.get(
                f"{running_service.url}/dashboard/1/style.css", headers={"Accept-Encoding": accepted},
                auto_decompress=False) as response:
            body = await response.read()
            assert (accepted, response.headers.get("Content-Encoding")) == (accepted, encoding)
        assert (gzip.decompress(body) if encoding else body).decode() == OWN["style.css"]


async def test_head_is_get_without_a_body(running_service: Running) -> None:
    """A monitor may ask with HEAD."""
    got, asked = [await running_service.call(method, "/") for method in ("GET", "HEAD")]

    assert (asked.status, asked.body, described(asked)) == (200, b"", described(got))


async def test_page_of_another_version_gets_what_there_is_and_keeps_nothing(running_service: Running) -> None:
    """In the middle of an upgrade a page may ask the other process for its files: it gets them, but not for good."""
    for name in ("main.js", "views/users.js", "plotly.min.js"):
        answer = await running_service.call("GET", f"/dashboard/0123/{name}", headers=PLAIN)

        assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-cache")


async def test_nothing_else_is_served(running_service: Running) -> None:
    """A name that is none of the dashboard's files is 404 in JSON, whatever it could mean on a disk."""
    for name in ("nothing.js", "index.html", "../api/auth.py", "%2e%2e/api/auth.py", "..%2fapi%2fauth.py",
                 "/etc/passwd", "%2fetc%2fpasswd", "views", "views/"):
        url = URL(f"{running_service.url}/dashboard/1/{name}", encoded=True)
        async with running_service.session.get(url) as response:
            assert (name, response.status, (await response.json())["error"]["code"]) == (name, 404, "not_found")


async def test_posting_to_the_page_is_refused(running_service: Running) -> None:
    """A form that would send the secret to the page's address is refused like any wrong method."""
    answer = await running_service.call("POST", "/", data={"secret": "s"})

    assert (answer.status, answer.json) == (405, native_error("invalid_request", "Method Not Allowed"))


async def test_refusals_open_no_dialog_of_the_browser(running_service: Running) -> None:
    """A 401 of a path that the dashboard calls has no challenge: the page asks for keys itself."""
    for path in ("/v1/messages", "/v1/messages/1", "/v1/messages/1/timeline", "/v3/users", "/v3/status/message"):
        answer = await running_service.call("POST" if path.endswith("status/message") else "GET", path)

        assert (path, answer.status, answer.headers.get("WWW-Authenticate")) == (path, 401, None)


# --------------------------------------------------------------------------------------------------------------- charts
async def test_charts_come_from_the_installed_package(running_service: Running) -> None:
    """The charting library is the file of the wheel, byte for byte, under an address with its version."""
    found = await addresses(running_service)

    address = f"/dashboard/plotly-{importlib.metadata.version('plotly')}/plotly.min.js"
    installed = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
    assert found[address] == installed.read_text("utf-8")


async def test_without_the_package_the_page_still_works(
        running_service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation that lacks it serves everything else, and says of the library that it is not there."""
    monkeypatch.setattr(dashboard, "CHART_PACKAGE", "no_such_package_here")

    page = await running_service.call("GET", "/", headers=PLAIN)
    library = await running_service.call("GET", "/dashboard/none/plotly.min.js")

    assert (page.status, b'content="dashboard/none/plotly.min.js"' in page.body) == (200, True)
    assert (library.status, library.json) == (404, native_error("not_found", "the dashboard has no such file"))


async def test_files_are_prepared_once_and_not_on_the_event_loop(
        config: Config, clock: Clock, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask at once, reading and compressing happens one time, in a thread, so events are taken
    meanwhile."""
    threads = []
    for name in ("read_files", "read_charts"):
        def noting(read: Any = getattr(dashboard, name)) -> Any:
            threads.append(threading.current_thread())
            return read()
        monkeypatch.setattr(dashboard, name, noting)

    async with running(config, clock, database) as service:
        paths = ["/"] * 5 + ["/dashboard/1/main.js"] * 5 + ["/dashboard/1/plotly.min.js"] * 5
        answers = await asyncio.gather(*(service.call("GET", path) for path in paths))

    assert [answer.status for answer in answers] == [200] * 15
    assert len(threads) == 2
    assert threading.main_thread() not in threads


# --------------------------------------------------------------------------------------------------------------- source
@pytest.mark.parametrize("name", OWN)
def test_no_file_names_another_origin(name: str) -> None:
    """Nothing is loaded from, sent to or linked to any other place; the one address in there is a name, not a place."""
    text = OWN[name].replace("http://www.w3.org/2000/svg", "")

    assert re.findall(r"(?:https?:|wss?:|[\"'(=]\s*)//[^\s/]\S*", text) == []


@pytest.mark.parametrize("name", [name for name in OWN if name.endswith((".js", ".html"))])
def test_no_data_can_become_code(name: str) -> None:
    """No script makes HTML or code out of text, and the page has no script, style or handler of its own."""
    makers = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser"
    assert re.findall(makers, OWN[name]) == []
    if name.endswith(".html"):
        assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:", OWN[name]) == []
        assert re.findall(r"<script(?![^>]*\ssrc=)", OWN[name]) == []


def test_every_file_is_in_the_package() -> None:
    """What is in the folder is installed too: ``setup.cfg`` names it, and every kind of file has a type."""
    setup = configparser.ConfigParser()
    setup.read(Path(dashboard.__file__).parents[2] / "setup.cfg")
    root = dashboard.DIRECTORY.parent
    patterns = setup["options.package_data"]["reportsvc"].split(",")

    packed = {path for pattern in patterns for path in root.glob(pattern.strip()) if path.is_file()}
    assert packed == {dashboard.DIRECTORY / name for name in OWN}
    assert {path.suffix for path in packed} <= set(dashboard.CONTENT_TYPES)


async def test_page_needs_no_store(running_service: Running, account: Account) -> None:
    """The page and its files come while both stores are away: it is the page that tells so."""
    await running_service.service.redis.close()
    await running_service.service.clickhouse.close()

    answers = [await running_service.call("GET", path) for path in ("/", "/dashboard/1/main.js")]

    assert [answer.status for answer in answers] == [200, 200]
