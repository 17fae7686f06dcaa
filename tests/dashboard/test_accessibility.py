"""The dashboard for those without a mouse, a large screen or any screen, and what a checker says of every page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from tests.support.service import Account, Running

pytest.importorskip("playwright", reason="playwright is not installed, which drives the browser")
pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed, which checks the pages")
from axe_playwright_python.async_playwright import Axe  # noqa: E402  # only where it is there
from playwright.async_api import Browser, Route, expect  # noqa: E402

from tests.dashboard.browsing import DESK, PHONE, Visitor, visiting  # noqa: E402

CHARTED: Final = ".js-plotly-plot .main-svg"
#: Address -> what is there when it is drawn.
VIEWS: Final = {
    "#/messages": "table.messages", "#/messages/17": CHARTED, "#/messages/17?mode=new&platform=ios": CHARTED,
    "#/messages/none": ".panel", "#/users": CHARTED, "#/device?msg_id=17&device_id=a0,a9,x": "table.statuses",
    "#/elsewhere": ".panel",
}
#: Beside what WCAG 2.2 asks for, what good pages do.
AXE: Final = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


async def history(service: Running, account: Account) -> None:
    """Some messages, one of them with everything a view can show."""
    title = "A title that is long enough for a second line, even where there is much room"
    answer = await service.call("POST", "/v1/pushes", account, json={
        "msg_id": "17", "vendor": "jpush", "payload": {"notification": {"title": title}},
        "audience": {"device_ids": [f"a{n}" for n in range(9)] + ["i"]}})
    assert answer.status == 201
    now = int(service.clock())
    events = [{"msg_id": "17", "stage": stage, "device_id": f"a{n}", "platform": "android", "channel": channel,
               "ts": now - hours * 3600}
              for stage, count, hours in (("sent", 9, 9), ("online_push", 2, 9), ("received", 8, 8), ("display", 4, 5),
                                          ("click", 2, 1))
              for n in range(count) for channel in (("xiaomi", "fcm")[n % 2],)]
    await service.send(account, *events, {"msg_id": "17", "stage": "received", "device_id": "i", "platform": "ios"},
                       {"msg_id": "a-message-with-an-id-that-is-as-long-as-some-are-" + "0" * 60, "stage": "received",
                        "device_id": "x"})


async def open_details(visitor: Visitor) -> None:
    """Open everything that opens."""
    await visitor.page.evaluate("() => document.querySelectorAll('details').forEach(one => { one.open = true })")


async def violations(visitor: Visitor) -> list[tuple[str, str, Any]]:
    """What the checker finds: rule, where, and why."""
    results = await Axe().run(visitor.page, options=AXE)
    assert len(results.response["passes"]) > 10
    return [(one["id"], node["html"][:200], node["failureSummary"])
            for one in results.response["violations"] for node in one["nodes"]]


@pytest.mark.parametrize(("scheme", "screen"), [("light", DESK), ("dark", DESK), ("dark", PHONE)],
                         ids=["light", "dark", "phone"])
async def test_checker_finds_nothing(browser: Browser, running_service: Running, account: Account, scheme: str,
                                     screen: dict[str, int]) -> None:
    """Every view, open details included, passes the checker in both themes, and on a phone."""
    await history(running_service, account)
    async with visiting(browser, running_service, viewport=screen, color_scheme=scheme,
                        reduced_motion="reduce") as visitor:
        await visitor.page.goto(running_service.url)
        await visitor.page.get_by_role("button", name="Sign in").click()
        assert await violations(visitor) == []
        await visitor.sign_in(account)
        for address, there in VIEWS.items():
            await visitor.go(address)
            await visitor.page.locator(there).first.wait_for()
            await open_details(visitor)
            assert (address, await violations(visitor)) == (address, [])


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_checker_finds_nothing_when_things_are_wrong(
        browser: Browser, running_service: Running, account: Account, scheme: str) -> None:
    """The same for the states of a page without numbers: empty, loading, failed, limited, not allowed, and older
    numbers."""
    poor = await running_service.make_account("poor", vip=False)
    async with visiting(browser, running_service, color_scheme=scheme, reduced_motion="reduce") as visitor:
        page = visitor.page
        await visitor.sign_in(poor)
        await page.get_by_role("heading", name="No messages yet").wait_for()
        assert await violations(visitor) == []
        await visitor.go("#/users")
        await page.locator(".panel.warning").wait_for()
        assert await violations(visitor) == []
        for status, place in ((503, ".panel.danger"), (429, ".panel.warning"), (500, ".panel.danger"), (0, ".loading")):
            await page.route("**/v1/messages?*", answering(status))
            await page.reload()
            await visitor.go("#/messages")
            await page.locator(place).first.wait_for()
            assert (status, await violations(visitor)) == (status, [])
            await page.unroute("**/v1/messages?*")
            await visitor.go("#/elsewhere")


def answering(status: int) -> Callable[[Route], Awaitable[None]]:
    """Answers requests with an error; with status 0 never."""
    async def answer(route: Route) -> None:
        if status:
            await route.fulfill(status=status, headers={"Retry-After": "50"}, json={
                "error": {"code": "unavailable", "message": "redis is unavailable"}})
    return answer


async def test_nothing_is_wider_than_a_phone(browser: Browser, running_service: Running, account: Account) -> None:
    """At 360 pixels no view scrolls sideways; what is wider scrolls in a place of its own."""
    await history(running_service, account)
    async with visiting(browser, running_service, viewport=PHONE, has_touch=True) as visitor:
        await visitor.sign_in(account)
        for address, there in VIEWS.items():
            await visitor.go(address)
            await visitor.page.locator(there).first.wait_for()
            await open_details(visitor)
            width = await visitor.page.evaluate("() => document.documentElement.scrollWidth")
            assert (address, width) == (address, PHONE["width"])


async def test_keyboard_alone(visitor: Visitor, account: Account) -> None:
    """A keyboard reaches everything in the order it is seen, beginning with the way past the header; what has the focus
    is visible, and a view that opens has it at its heading."""
    await history(visitor.service, account)
    page = visitor.page
    await visitor.sign_in(account)
    await page.locator("table.messages").wait_for()
    await page.reload()
    await page.locator("table.messages").wait_for()

    reached = []
    for _ in range(11):
        await page.keyboard.press("Tab")
        name, outline = await page.evaluate(
            "() => { const one = document.activeElement; return ["
            "(one.ariaLabel ?? one.labels?.[0]?.innerText ?? one.innerText).trim().split('\\n')[0],"
            "getComputedStyle(one).outlineStyle] }")
        assert outline == "solid", name
        reached.append(name)
    assert reached == ["Skip to the content", "reportsvc, messages", "Messages", "Users", "Device look-up",
                       "Stop updating", "Theme", "Sign out", "Find a message", "Open", reached[10]]
    assert reached[10].startswith(("A title", "a-message"))

    await page.reload()
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.locator("main")).to_be_focused()
    await page.get_by_role("link", name="A title that").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_be_focused()
    await expect(page).to_have_title(
        "A title that is long enough for a second line, even where there is much room · reportsvc")


async def test_landmarks_headings_and_tables(visitor: Visitor, account: Account) -> None:
    """A screen reader finds one main part, named navigation, headings without gaps, and a caption at every table."""
    await history(visitor.service, account)
    await visitor.sign_in(account)
    for address, there in VIEWS.items():
        await visitor.go(address)
        await visitor.page.locator(there).first.wait_for()
        levels = await visitor.page.evaluate(
            "() => [...document.querySelectorAll('h1, h2, h3')].filter(one => one.checkVisibility())"
            ".map(one => +one.tagName[1])")
        assert levels[0] == 1 and levels.count(1) == 1, address
        assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False)), address
        assert await visitor.page.locator("main").count() == 1
        assert await visitor.page.locator("table:not(:has(caption))").count() == 0, address
        assert await visitor.page.locator("[role=img]:not([aria-label])").count() == 0, address
        assert await visitor.page.locator("nav:not([aria-label])").count() == 0, address


async def test_reduced_motion(browser: Browser, running_service: Running, account: Account) -> None:
    """Who asks for less motion gets none: nothing pulses and nothing slides."""
    await history(running_service, account)
    async with visiting(browser, running_service, reduced_motion="reduce") as visitor:
        await visitor.sign_in(account, "#/messages/17")
        await visitor.page.locator(CHARTED).first.wait_for()
        moving = await visitor.page.evaluate(
            "() => [...document.querySelectorAll('body *')].flatMap(one => ['', '::before', '::after'].map("
            "part => getComputedStyle(one, part))).filter(style => style.animationName !== 'none'"
            " || style.transitionDuration !== '0s').length")
        assert moving == 0
