"""The dashboard: the page at ``/`` and the files it is made of.

The page talks to the public API alone, with the credentials that its user typed in; nothing here knows an app. The
files are ES modules and styles from ``reportsvc/dashboard``, as they are written, and one file of the installed
``plotly`` package, which draws the charts. Their addresses contain a digest of what they hold, so that a browser may
keep them for good; the page itself is asked for each time, and then mostly answered with 304.

The page may load nothing from anywhere else, run no script that is not one of these files, and be in nobody's frame.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from aiohttp import ETag, hdrs, web

from reportsvc.errors import NotFound

T = TypeVar("T")

DIRECTORY: Final = Path(__file__).parent.parent / "dashboard"
PAGE: Final = "index.html"
#: The package that draws charts, and its one file that a browser needs.
CHART_PACKAGE: Final = "plotly"
CHART_FILE: Final = "plotly.min.js"
#: Where the addresses of files begin; relative, so that a proxy may put the service below a path of its own.
FILES: Final = "dashboard"

CONTENT_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

HEADERS: Final = {
    "Content-Security-Policy": "; ".join((
        "default-src 'none'",
        "script-src 'self'",
        # The digest is that of nothing: plotly puts an empty style element into the page and gives it rules by script.
        "style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='",
        "img-src 'self'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
        "require-trusted-types-for 'script'", "trusted-types charts")),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
#: Its address changes with its content.
_FOR_GOOD: Final = "public, max-age=31536000, immutable"
#: To be kept, and asked about each time.
_ASK: Final = "no-cache"


@dataclass(frozen=True, slots=True)
class File:
    """What is served under one address."""

    content_type: str
    #: Compressed with gzip; those who cannot read that get it unpacked.
    packed: bytes
    digest: str

    @classmethod
    def of(cls, name: str, content: bytes) -> File:
        """The file *name*."""
        return cls(CONTENT_TYPES[Path(name).suffix], gzip.compress(content, mtime=0), digest_of(content))


@dataclass(frozen=True, slots=True)
class Files:
    """The page and what it consists of: name -> file; *version* is the digest of them all."""

    version: str
    files: Mapping[str, File]


class _Once(Generic[T]):
    """What *make* returns; it is called in a thread, when somebody first asks."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: list[T] = []
        self._lock = asyncio.Lock()

    async def get(self) -> T:
        """The one value."""
        if not self._made:
            async with self._lock:
                if not self._made:
                    self._made.append(await asyncio.to_thread(self._make))
        return self._made[0]


class Assets:
    """The dashboard's files; read, digested and compressed once, and not before somebody wants to see it."""

    def __init__(self) -> None:
        self.own = _Once(read_files)
        self.charts = _Once(read_charts)


ASSETS: Final = web.AppKey("assets", Assets)


# ------------------------------------------------------------------------------------------------------------- handlers
async def page(request: web.Request) -> web.Response:
    """``GET /``: the page, which loads the rest."""
    own = await request.app[ASSETS].own.get()
    return await _answer(request, own.files[PAGE], _ASK)


async def file(request: web.Request) -> web.Response:
    """``GET /dashboard/<version>/<name>``: one of the files."""
    assets = request.app[ASSETS]
    version, name = request.match_info["version"], request.match_info["name"]
    own = await assets.own.get()
    if name == CHART_FILE:
        found, current = await assets.charts.get(), charts_version()
    else:
        found, current = own.files.get(name), own.version
    if found is None or name == PAGE:
        raise NotFound("the dashboard has no such file")
    # A page of another version, as during an upgrade, gets what there is, but must not keep it under that address.
    return await _answer(request, found, _FOR_GOOD if version == current else _ASK)


async def _answer(request: web.Request, found: File, cache: str) -> web.Response:
    headers = HEADERS | {hdrs.CACHE_CONTROL: cache, hdrs.ETAG: f'W/"{found.digest}"', hdrs.VARY: hdrs.ACCEPT_ENCODING}
    if is_known(request.if_none_match, found.digest):
        return web.Response(status=304, headers=headers)
    if takes_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, "")):
        body = found.packed
        headers[hdrs.CONTENT_ENCODING] = "gzip"
    else:
        body = await asyncio.to_thread(gzip.decompress, found.packed)
    return web.Response(body=body, content_type=found.content_type, charset="utf-8", headers=headers)


def is_known(tags: tuple[ETag, ...] | None, digest: str) -> bool:
    """Whether the caller has that content already; *tags* is what its ``If-None-Match`` says."""
    return any(tag.value in (digest, "*") for tag in tags or ())


def takes_gzip(accepted: str) -> bool:
    """Whether an ``Accept-Encoding`` header allows gzip; browsers name it, without a weight."""
    weights = {name.strip().lower(): weight.replace(" ", "") for name, _, weight in (
        part.partition(";") for part in accepted.split(","))}
    weight = weights.get("gzip", weights.get("*", "q=0"))
    return not re.fullmatch(r"q=0(\.0*)?", weight)


# ---------------------------------------------------------------------------------------------------------------- files
def digest_of(content: bytes) -> str:
    """A short name for *content*."""
    return hashlib.sha256(content).hexdigest()[:20]


def read_files() -> Files:
    """The dashboard's own files."""
    contents = {path.relative_to(DIRECTORY).as_posix(): path.read_bytes()
                for path in sorted(DIRECTORY.rglob("*")) if path.suffix in CONTENT_TYPES}
    version = digest_of(b"".join(digest_of(name.encode() + content).encode() for name, content in contents.items()))
    addresses = {"FILES": f"{FILES}/{version}", "CHARTS": f"{FILES}/{charts_version()}/{CHART_FILE}"}
    for word, address in addresses.items():
        contents[PAGE] = contents[PAGE].replace(b"{{%s}}" % word.encode(), address.encode())
    return Files(version, {name: File.of(name, content) for name, content in contents.items()})


def charts_version() -> str:
    """What the address of the charting library says of its content."""
    try:
        return f"{CHART_PACKAGE}-{importlib.metadata.version(CHART_PACKAGE)}"
    except importlib.metadata.PackageNotFoundError:
        return "none"


def read_charts() -> File | None:
    """The charting library; None where it is not installed, and the page then shows tables instead."""
    package = importlib.util.find_spec(CHART_PACKAGE)
    path = Path(package.origin).parent / "package_data" / CHART_FILE if package and package.origin else None
    return File.of(CHART_FILE, path.read_bytes()) if path and path.exists() else None
