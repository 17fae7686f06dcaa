"""The page at ``/docs`` in a browser: on a phone, in light and dark, with the keyboard, and under a checker's eyes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.service import Running

pytest.importorskip("playwright", reason="playwright is not installed, which drives the browser")
pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed, which checks the page")
from axe_playwright_python.async_playwright import Axe  # noqa: E402  # only where it is there
from playwright.async_api import Browser  # noqa: E402

from tests.dashboard.browsing import CHROMIUM, DESK, PHONE, chromium, visiting  # noqa: E402
from tests.dashboard.test_accessibility import AXE, open_details  # noqa: E402


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """A Chromium."""
    if not CHROMIUM:
        pytest.skip("no Chromium on the PATH; install one, or name it in CHROMIUM")
    async with chromium() as one:
        yield one


async def test_checker_finds_nothing(browser: Browser, running_service: Running) -> None:
    """With everything open that opens, and on a phone, the page passes the checker. Of its colours it is not asked,
    which takes long: test_page has them."""

    async with visiting(browser, running_service, viewport=PHONE) as visitor:
        await visitor.page.goto(f"{running_service.url}/docs")
        await open_details(visitor)

        results = await Axe().run(visitor.page, options=AXE | {"rules": {"color-contrast": {"enabled": False}}})
        assert len(results.response["passes"]) > 10
        assert [(one["id"], node["html"][:200])
                for one in results.response["violations"] for node in one["nodes"]] == []


@pytest.mark.parametrize("screen", [DESK, PHONE], ids=["desk", "phone"])
async def test_page_is_no_wider_than_the_screen(browser: Browser, running_service: Running,
                                                screen: dict[str, int]) -> None:
    """Only tables and code scroll sideways, each by itself; and the page asks for nothing but itself."""

    async with visiting(browser, running_service, viewport=screen) as visitor:
        await visitor.page.goto(f"{running_service.url}/docs")
        await open_details(visitor)

        assert await visitor.page.evaluate("() => document.documentElement.scrollWidth") == screen["width"]
        assert set(visitor.requests) <= {f"{running_service.url}/docs", f"{running_service.url}/favicon.ico"}


async def test_keyboard_alone(browser: Browser, running_service: Running) -> None:
    """The first stop is the way past the menu; what folds opens with a key, and what scrolls can be reached."""

    async with visiting(browser, running_service) as visitor:
        page = visitor.page
        await page.goto(f"{running_service.url}/docs")
        await page.keyboard.press("Tab")
        assert await page.evaluate("() => document.activeElement.textContent") == "Skip to the content"
        await page.keyboard.press("Enter")
        assert await page.evaluate("() => location.hash") == "#content"

        errors = page.locator("summary", has_text="Errors").first
        await errors.focus()
        assert not await errors.evaluate("one => one.parentElement.open")
        await page.keyboard.press("Enter")
        assert await errors.evaluate("one => one.parentElement.open")
        await page.keyboard.press("Tab")
        assert await page.evaluate("() => document.activeElement.getAttribute('role')") == "group"
