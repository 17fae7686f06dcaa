"""Fixtures for the tests with a browser; they are skipped where there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.async_api import Browser

    from tests.dashboard.browsing import Visitor
    from tests.support.service import Running


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """A Chromium."""
    pytest.importorskip("playwright", reason="playwright is not installed, which drives the browser")
    from tests.dashboard.browsing import CHROMIUM, chromium
    if not CHROMIUM:
        pytest.skip("no Chromium on the PATH; install one, or name it in CHROMIUM")
    async with chromium() as one:
        yield one


@pytest.fixture
async def visitor(browser: Browser, running_service: Running) -> AsyncIterator[Visitor]:
    """Somebody at a desk."""
    from tests.dashboard.browsing import visiting
    async with visiting(browser, running_service) as one:
        yield one
