"""A real Chromium in front of a real service, and a little of what a person does with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect

from tests.support.service import Account, Running

#: A browser by one of these names on the PATH, or what CHROMIUM names.
_NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM: Final = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), "")
_OPTIONS: Final = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                   "--disable-background-networking", "--disable-component-update", "--disable-sync")
#: Milliseconds; on a busy machine the charting library alone takes seconds.
PATIENCE: Final = 20_000
expect.set_options(timeout=PATIENCE)
DESK: Final = {"width": 1280, "height": 860}
PHONE: Final = {"width": 360, "height": 740}
#: What Chromium logs of its own accord: an answer that is an error, and styles for maps, which plotly brings along and
#: the policy keeps out.
_EXPECTED: Final = ("Failed to load resource", "sha256-ji27qzEtxXZW+7dun6UwjHXJ18e6WAin1VvNtkzIE/o=")


@dataclass
class Visitor:
    """Somebody at a browser; *troubles* is what went wrong in it."""

    page: Page
    service: Running
    #: Addresses of all requests, in order.
    requests: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    async def sign_in(self, account: Account, address: str = "#/messages") -> None:
        """Sign in and be at *address*."""
        await self.page.goto(f"{self.service.url}/{address}")
        await self.page.get_by_label("App key").fill(account.app.app_key)
        await self.page.get_by_label("Master secret", exact=True).fill(account.master_secret)
        await self.page.get_by_role("button", name="Sign in").click()
        await self.page.locator("#header nav").wait_for()

    async def go(self, address: str) -> None:
        """Be at another address, as by a link."""
        await self.page.evaluate("address => { location.hash = address }", address)

    async def table(self, selector: str) -> list[list[str]]:
        """The text of a table's cells, headings included, as it is seen."""
        await self.page.locator(selector).first.wait_for()
        rows: list[list[str]] = await self.page.locator(selector).first.evaluate(
            "table => [...table.rows].map(row => [...row.cells].map("
            "cell => cell.innerText.replace(/\\s+/g, ' ').trim()))")
        return rows

    async def heading(self) -> str:
        """The first heading."""
        return await self.page.locator("h1").inner_text()

    async def announced(self) -> str:
        """What a screen reader was told last."""
        return await self.page.locator("#announcer").inner_text()

    def calls(self, path: str) -> int:
        """How many requests went to *path* of the API."""
        return sum(address.startswith(f"{self.service.url}{path}") for address in self.requests)

    def note(self, message: ConsoleMessage) -> None:
        """A line of the browser's console."""
        if message.type in ("error", "warning") and not any(words in message.text for words in _EXPECTED):
            self.troubles.append(message.text)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(_OPTIONS))
        yield browser
        await browser.close()


@asynccontextmanager
async def visiting(browser: Browser, service: Running, **options: Any) -> AsyncIterator[Visitor]:
    """A visitor with a browser of his own, far from the app's timezone, where the API may be all that is asked."""
    context = await browser.new_context(**{"viewport": DESK, "timezone_id": "America/New_York"} | options)
    context.set_default_timeout(PATIENCE)
    visitor = Visitor(await context.new_page(), service)
    page = visitor.page
    page.on("request", lambda request: visitor.requests.append(request.url))
    page.on("pageerror", lambda error: visitor.troubles.append(str(error)))
    page.on("dialog", lambda dialog: visitor.troubles.append(dialog.message))
    page.on("console", visitor.note)
    yield visitor
    await context.close()
    assert visitor.troubles == []
    assert [address for address in visitor.requests if not address.startswith(service.url + "/")] == []
