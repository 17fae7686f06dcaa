"""The dashboard in a real browser: what people see, and that it is what the API says."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from reportsvc.config import Config
from tests.api.helpers import at_noon
from tests.support.clickhouse_http import clickhouse_http_server
from tests.support.service import Account, Clock, Running, eventually, running

pytest.importorskip("playwright", reason="playwright is not installed, which drives the browser")
from playwright.async_api import Browser, expect  # noqa: E402  # only where it is there

from tests.dashboard.browsing import Visitor, visiting  # noqa: E402

#: How long the page waits between two questions, in milliseconds.
BEAT: Final = 10_000
TABLE: Final = "table.messages"


def reached(msg_id: str, stage: str, count: int, platform: str = "android", **more: Any) -> Iterator[dict[str, Any]]:
    """One event for each of *count* devices."""
    for number in range(count):
        yield {"msg_id": msg_id, "stage": stage, "device_id": f"{platform}-{number}", "platform": platform} | more


async def push(service: Running, account: Account, msg_id: str, devices: list[str], title: str, **more: Any) -> None:
    """Register a push."""
    answer = await service.call("POST", "/v1/pushes", account, json={
        "msg_id": msg_id, "payload": {"notification": {"title": title}}, "audience": {"device_ids": devices}} | more)
    assert answer.status == 201, answer.body


async def campaign(service: Running, account: Account, at: int) -> None:
    """A message to 1 200 devices, 1 000 of them Android over two channels, over two hours from *at*; and one of which
    only a receipt is known."""
    await push(service, account, "17", [*(f"android-{n}" for n in range(1000)), *(f"ios-{n}" for n in range(200))],
               "Autumn sale", created_at=at)
    android: dict[str, Any] = {"channel": "xiaomi", "ts": at}
    await service.send(
        account, *reached("17", "sent", 1000, **android), *reached("17", "received", 800, **android),
        *reached("17", "display", 400, **android | {"ts": at + 3600}),
        *reached("17", "click", 40, **android | {"ts": at + 3600}),
        *reached("17", "received", 100, channel="fcm", ts=at + 3600),
        *reached("17", "sent", 200, "ios", ts=at), *reached("17", "received", 150, "ios", ts=at + 3600),
        *reached("plain", "received", 1, ts=at - 7200))


# -------------------------------------------------------------------------------------------------------------- session
async def test_signing_in_and_out(visitor: Visitor, account: Account) -> None:
    """Wrong keys are refused in the page, without a dialog; right ones open it, outlive a reload in this tab's session
    storage alone, and are gone after signing out."""
    page, url = visitor.page, visitor.service.url
    await page.goto(url)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_have_text("Type the app key.")
    await page.get_by_label("App key").fill(account.app.app_key)
    await page.get_by_label("Master secret", exact=True).fill("wrong")
    await page.keyboard.press("Enter")

    await expect(page.get_by_role("alert")).to_have_text(
        "These are not the key and master secret of an app of this service.")
    await expect(page.get_by_label("Master secret", exact=True)).to_be_focused()
    assert await stored(visitor) == ({}, {}, "")

    await page.get_by_label("Master secret", exact=True).fill(account.master_secret)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Messages", exact=True)).to_be_focused()
    await page.reload()
    await expect(page.get_by_role("heading", name="Messages", exact=True)).to_be_visible()
    session, local, cookies = await stored(visitor)
    assert json.loads(session["reportsvc.session"])["secret"] == account.master_secret
    assert (local, cookies) == ({}, "")
    assert [address for address in visitor.requests if account.master_secret in address] == []

    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_focused()
    assert await stored(visitor) == ({}, {}, "")


async def stored(visitor: Visitor) -> tuple[dict[str, str], dict[str, str], str]:
    """What the browser keeps: for the session, for good, and as cookies."""
    session, local, cookies = await visitor.page.evaluate(
        "() => [{...sessionStorage}, {...localStorage}, document.cookie]")
    return session, local, cookies


async def test_keys_that_stop_lead_back_to_signing_in(visitor: Visitor, account: Account) -> None:
    """Keys that are replaced meanwhile end the session, with the reason, and the address is kept for the next one."""
    await visitor.sign_in(account, "#/users?days=7")
    await expect(visitor.page.get_by_role("heading", name="Users")).to_be_visible()

    await visitor.page.evaluate("() => { const key = 'reportsvc.session', it = JSON.parse(sessionStorage[key]);"
                                "sessionStorage[key] = JSON.stringify({...it, secret: 'old'}) }")
    await visitor.page.reload()

    await expect(visitor.page.get_by_role("alert")).to_have_text("The service does not take these keys any more.")
    assert visitor.page.url.endswith("#/users?days=7")
    assert await stored(visitor) == ({}, {}, "")


# ------------------------------------------------------------------------------------------------------------- messages
async def test_list_and_message(visitor: Visitor, clock: Clock) -> None:
    """The list has every message with targets, received, clicked and rates, thousands separated, what is not known as
    "no data"; a message is a funnel, by platform and channel, with a timeline in the app's timezone."""

    # app    D-1 17:30   18:30          D 18:00 (now)
    # UTC    D-1 12:00   13:00          D 12:30
    # 17     900 of 1200 received, at both hours
    account = await visitor.service.make_account("kolkata", timezone="Asia/Kolkata")
    noon = at_noon(clock)
    at = noon - timedelta(days=1, minutes=30)
    await campaign(visitor.service, account, int(at.timestamp()))
    local = at + timedelta(hours=5, minutes=30)
    hours = [f"{local - timedelta(minutes=30) + timedelta(hours=hour):%Y-%m-%d %H:%M}" for hour in range(2)]

    await visitor.sign_in(account)
    assert await visitor.table(TABLE) == [
        ["Message", "Last event (Asia/Kolkata)", "Targets", "Received", "Clicked"],
        ["Autumn sale 17", hours[1], "1,200", "950 79.2%", "40 4.2%"],
        ["plain", f"{local - timedelta(hours=2, minutes=30):%Y-%m-%d %H:%M}", "no data", "1 no data", "no data"]]

    await visitor.page.get_by_role("link", name="Autumn sale").click()
    await expect(visitor.page.get_by_role("heading", name="Autumn sale")).to_be_focused()
    assert await funnel(visitor) == [
        "Target 1,200", "Sent 1,200 100.0% of target", "Received 950 79.2% of sent", "Displayed 400 42.1% of received",
        "Clicked 40 10.0% of displayed"]
    assert await visitor.table("table:has(caption:text-is('By platform'))") == [
        ["Platform", "Target", "Sent", "Received", "Displayed", "Clicked", "Received rate", "Click rate"],
        ["Android", "1,000", "1,000", "800", "400", "40", "80.0%", "5.0%"],
        ["iOS", "200", "200", "150", "no data", "no data", "75.0%", "no data"]]
    assert (await visitor.table("table:has(caption:text-is('By channel'))"))[1:] == [
        ["apns iOS", "200", "200", "150", "no data", "no data", "75.0%", "no data"],
        ["fcm Android", "no data", "no data", "100", "no data", "no data", "no data", "no data"],
        ["jg_android Android", "1,000", "no data", "no data", "no data", "no data", "no data", "no data"],
        ["xiaomi Android", "no data", "1,000", "800", "400", "40", "80.0%", "5.0%"]]
    await visitor.page.get_by_label("Devices", exact=True).select_option(label="Android, xiaomi")
    assert (await funnel(visitor))[:3] == ["Target no data", "Sent 1,000", "Received 800 80.0% of sent"]
    await visitor.page.get_by_label("Devices", exact=True).select_option(label="iOS")
    await visitor.page.get_by_text("Times are of Asia/Kolkata, the app's timezone. iOS devices.").wait_for()
    assert "platform=ios" in visitor.page.url

    await visitor.page.get_by_text("The numbers as a table").click()
    assert (await visitor.table(".numbers table"))[1:3] == [
        [hours[0], "no data", "200", "no data"], [hours[1], "no data", "200", "150"]]
    await visitor.page.get_by_role("radio", name="New").check()
    await expect(visitor.page.locator(".numbers caption")).to_have_text(
        "Devices new at each stage, by hour of iOS devices (Asia/Kolkata)")
    assert (await visitor.table(".numbers table"))[1:3] == [
        [hours[0], "no data", "200", "no data"], [hours[1], "no data", "no data", "150"]]
    await visitor.page.locator(".js-plotly-plot .main-svg").first.wait_for()
    label = await visitor.page.locator(".chart-canvas").get_attribute("aria-label")
    assert label and label.endswith("target 200, sent 200, received 150. The numbers are in the table below.")


async def funnel(visitor: Visitor) -> list[str]:
    """The steps of the funnel, as they are seen; what explains a stage left out."""
    await visitor.page.locator(".funnel li").first.wait_for()
    steps: list[str] = await visitor.page.locator(".funnel li").evaluate_all(
        "steps => steps.map(step => [...step.querySelectorAll('.name, .count, .rate')].map(part => { "
        "const copy = part.cloneNode(true); copy.querySelectorAll('.unseen').forEach(one => one.remove());"
        "return copy.textContent.trim() }).filter(Boolean).join(' '))")
    return steps


async def test_older_messages_and_search(visitor: Visitor, account: Account) -> None:
    """The newest fifty come first and older ones on demand; a search narrows what is loaded, and opens an id that is
    not."""
    now = int(visitor.service.clock())
    await visitor.service.send(account, *(
        {"msg_id": f"m{n:02}", "stage": "received", "device_id": "d", "ts": now - n * 3600} for n in range(60)))
    page = visitor.page
    await visitor.sign_in(account)
    await expect(page.locator(f"{TABLE} tbody tr")).to_have_count(50)

    await page.get_by_role("button", name="Load older messages").click()
    await expect(page.locator(f"{TABLE} tbody tr")).to_have_count(60)
    await expect(page.get_by_role("button", name="Load older messages")).to_be_hidden()
    await page.get_by_label("Find a message").fill("M5")
    await expect(page.locator(f"{TABLE} tbody tr")).to_have_count(10)
    await page.get_by_label("Find a message").fill("no such/id")
    await page.get_by_role("button", name="Open", exact=True).click()

    await expect(page.get_by_role("heading", name="No such message")).to_be_visible()
    assert page.url.endswith("#/messages/no%20such%2Fid")


async def test_empty_app_is_told_how_to_begin(visitor: Visitor, account: Account) -> None:
    """Where there is no message yet, the page shows commands that work when pasted, and then what they sent."""
    page = visitor.page
    await page.clock.install()
    await visitor.sign_in(account)
    await expect(page.get_by_role("heading", name="No messages yet")).to_be_visible()
    commands = await page.locator(".command pre").all_inner_texts()
    assert account.master_secret not in "".join(commands)

    for command in commands:
        words = iter(shlex.split(command.replace("$SECRET", account.master_secret)))
        given = {word: next(words) for word in words if word.startswith("-")}
        address = next(word for word in shlex.split(command) if word.startswith("http"))
        assert given["-u"] == f"{account.app.app_key}:{account.master_secret}"
        path = address.removeprefix(visitor.service.url)
        answer = await visitor.service.call("POST", path, account, data=given["-d"])
        assert answer.status in (200, 201), answer.body
    await visitor.service.applied()
    await page.clock.run_for(BEAT)

    assert (await visitor.table(TABLE))[1][2:] == ["2", "1 50.0%", "no data"]


# ---------------------------------------------------------------------------------------------------------------- users
async def test_users_by_day(visitor: Visitor, account: Account, clock: Clock) -> None:
    """New, online and active devices of each day are those of the API, for all platforms together and for one."""
    noon = datetime.fromtimestamp(clock(), UTC)
    yesterday = int((noon - timedelta(days=1)).timestamp())
    await visitor.service.send(
        account,
        *({"stage": "online", "device_id": f"a{n}", "platform": "android", "ts": yesterday} for n in range(1500)),
        {"stage": "active", "device_id": "i1", "platform": "ios"}, {"stage": "online", "device_id": "a1"})
    days = [f"{noon - timedelta(days=before):%Y-%m-%d}" for before in (2, 1, 0)]

    await visitor.sign_in(account, "#/users?days=7")
    await visitor.page.get_by_text("The numbers as a table").click()
    assert (await visitor.table(".numbers table"))[-3:] == [
        [days[0], "no data", "no data", "no data"], [days[1], "1,500", "1,500", "no data"], [days[2], "1", "2", "1"]]
    assert await visitor.page.locator(".tile .big").all_inner_texts() == ["1", "2", "1"]

    await visitor.page.get_by_label("Platform").select_option(label="Android")
    await expect(visitor.page.locator(".tile .big").first).to_have_text("no data")
    assert (await visitor.table(".numbers table"))[-2:] == [
        [days[1], "1,500", "1,500", "no data"], [days[2], "no data", "1", "no data"]]
    await visitor.page.get_by_role("radio", name="30 days").check()
    await expect(visitor.page.locator(".numbers tbody tr")).to_have_count(30)
    assert visitor.page.url.endswith("#/users?days=30&platform=android")


async def test_users_of_an_app_that_is_no_vip(visitor: Visitor) -> None:
    """Where the API says 2003, the page says plainly that this app has no such report, and asks no more."""
    account = await visitor.service.make_account("plain", vip=False)
    await visitor.page.clock.install()
    await visitor.sign_in(account, "#/users")

    await expect(visitor.page.get_by_role("heading", name="This app has no users report")).to_be_visible()
    await expect(visitor.page.get_by_text("(code 2003)")).to_be_visible()
    await visitor.page.clock.run_for(300_000)
    assert visitor.calls("/v3/users") == 1


# -------------------------------------------------------------------------------------------------------------- look-up
async def test_looking_devices_up(visitor: Visitor, account: Account) -> None:
    """Each status is said in words, now and as of a past day; an address with ids in it looks them up at once."""
    now = datetime.fromtimestamp(visitor.service.clock(), UTC)
    await push(visitor.service, account, "9", ["has", "waits"], "Hi")
    await visitor.service.send(account, {"msg_id": "9", "stage": "received", "device_id": "has"},
                               {"stage": "online", "device_id": "other"})

    await visitor.sign_in(account, "#/device?msg_id=9&device_id=has,waits,other,nobody")
    assert await visitor.table("table.statuses") == [
        ["Device", "Status"], ["has", "Received The device has the message."],
        ["waits", "Not received It is a target of the message and has not received it."],
        ["other", "Not a target It is a device of this app, but the message was not for it."],
        ["nobody", "Unknown device It is no device of this app: never heard of, or deleted."]]

    await visitor.page.get_by_label("Device ids").fill("has")
    await visitor.page.get_by_label("As of the end of").fill(f"{now - timedelta(days=1):%Y-%m-%d}")
    await visitor.page.get_by_role("button", name="Look up").click()
    await expect(visitor.page.locator("table.statuses tbody tr")).to_have_count(1)
    assert (await visitor.table("table.statuses"))[1][0] == "has"
    await visitor.page.get_by_label("As of the end of").fill(f"{now + timedelta(days=9):%Y-%m-%d}")
    await visitor.page.get_by_role("button", name="Look up").click()
    await expect(visitor.page.get_by_role("heading", name="The service refused the question")).to_be_visible()
    await visitor.page.get_by_label("Message id").fill("")
    await visitor.page.get_by_role("button", name="Look up").click()
    await expect(visitor.page.get_by_role("alert")).to_have_text("Type the id of a message.")
    await expect(visitor.page.get_by_label("Message id")).to_be_focused()


# -------------------------------------------------------------------------------------------------------------- updates
async def test_totals_update_by_themselves(visitor: Visitor, account: Account) -> None:
    """On each beat the page asks again: new numbers appear where the old ones were, the focus stays, a screen reader is
    told at most once a minute; in a hidden tab, or stopped by hand, nothing is asked."""
    page, service = visitor.page, visitor.service
    await service.send(account, *reached("17", "received", 2))
    await page.clock.install()
    await visitor.sign_in(account)
    await expect(page.locator(f"{TABLE} tbody td").nth(2)).to_have_text(re.compile("^2"))
    await page.get_by_role("link", name="17").focus()

    async def beat(count: int) -> None:
        """Some more devices; and the page asks again."""
        await service.send(account, *reached("17", "received", count), *reached(f"new{count}", "received", 1))
        await page.clock.run_for(BEAT)
        await expect(page.locator(f"{TABLE} tr:has(a:text-is('17')) td").nth(2)).to_have_text(re.compile(f"^{count}"))

    await beat(3)
    await expect(page.get_by_role("link", name="17")).to_be_focused()
    assert await visitor.announced() == "The totals of the messages have changed."
    await page.evaluate("() => { document.getElementById('announcer').textContent = '' }")
    await beat(4)
    assert await visitor.announced() == ""

    for stop, go_on in (
            ("() => { Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
             "document.dispatchEvent(new Event('visibilitychange')) }",
             "() => { delete document.hidden; document.dispatchEvent(new Event('visibilitychange')) }"),
            ("() => document.querySelector('[aria-label=\"Stop updating\"]').click()",
             "() => document.querySelector('[aria-label=\"Go on updating\"]').click()")):
        await page.evaluate(stop)
        calls = visitor.calls("/v1/messages")
        await page.clock.run_for(10 * BEAT)
        assert visitor.calls("/v1/messages") == calls
        await page.evaluate(go_on)
        await eventually(partial(_more, visitor, calls))


async def _more(visitor: Visitor, calls: int) -> bool:
    return visitor.calls("/v1/messages") > calls


async def test_rate_limit_is_respected(browser: Browser, config: Config, clock: Clock, database: str) -> None:
    """After a 429 the numbers stay, the page says so, and asks again when the service allows it, not before."""
    async with running(replace(config, rate_limit_native=3), clock, database) as service:
        account = await service.make_account()
        async with visiting(browser, service) as visitor:
            page = visitor.page
            await page.clock.install()
            await visitor.sign_in(account)  # one call to check the keys, one for the list
            await page.get_by_role("heading", name="No messages yet").wait_for()

            async def is_told() -> bool:
                await page.clock.run_for(BEAT)
                return await page.locator(".notice").count() > 0
            await eventually(is_told)
            await expect(page.locator(".notice")).to_contain_text("Too many calls this minute.")
            await expect(page.get_by_role("heading", name="No messages yet")).to_be_visible()
            assert (await visitor.announced()).startswith("Too many calls this minute.")
            calls = visitor.calls("/v1/messages")

            await page.clock.run_for(20_000)
            assert visitor.calls("/v1/messages") == calls
            await page.clock.run_for(70_000)
            await eventually(partial(_more, visitor, calls))


async def test_store_that_is_away(browser: Browser, config: Config, clock: Clock, short_dir: Path) -> None:
    """While ClickHouse is away the page keeps the last numbers and says from when they are, a new page says what is
    wrong and what is not, neither shows a zero, and both come back by themselves."""
    async with (clickhouse_http_server(short_dir / "clickhouse") as server,
                running(replace(config, clickhouse_url=server.url), clock) as service,
                visiting(browser, service) as old, visiting(browser, service) as new):
        account = await service.make_account()
        await service.send(account, *reached("17", "received", 2))
        for visitor in (old, new):
            await visitor.page.clock.install()
            await visitor.sign_in(account, "#/messages" if visitor is old else "#/nowhere")
        before = await old.table(TABLE)
        await server.refuse()
        # Answers are kept while nothing changes, store or no store.
        answer = await service.call("POST", "/v1/events", account, json=list(reached("17", "received", 3)))
        assert answer.status == 200
        await old.page.clock.run_for(BEAT)
        await new.go("#/messages")

        await expect(old.page.locator(".notice strong")).to_have_text(
            re.compile(r"^The store of the numbers is away\. These numbers are from \d\d:\d\d:\d\d\.$"))
        assert await old.table(TABLE) == before
        await expect(new.page.get_by_role("heading", name="The store of the numbers is away")).to_be_visible()
        await expect(new.page.get_by_text("clickhouse is unavailable")).to_be_visible()
        assert await new.page.locator("table, .tile").count() == 0

        await server.recover()
        await service.applied()
        for visitor in (old, new):
            for _ in range(5):
                await visitor.page.clock.run_for(30_000)
            await expect(visitor.page.locator(f"{TABLE} tbody td").nth(2)).to_have_text(re.compile("^3"))
            await expect(visitor.page.locator(".notice")).to_have_count(0)
        assert await old.announced() == "The numbers are up to date again."


async def test_service_that_does_not_answer(visitor: Visitor, account: Account) -> None:
    """Off the network the page says so, waits longer after each failure, and can be told to try now."""
    page = visitor.page
    await page.clock.install()
    await visitor.sign_in(account)
    await page.get_by_role("heading", name="No messages yet").wait_for()
    await page.route("**/v1/messages*", lambda route: route.abort())
    await page.clock.run_for(BEAT)
    await expect(page.locator(".notice")).to_contain_text("The service does not answer.")
    calls = visitor.calls("/v1/messages")

    for _ in range(20):
        await page.clock.run_for(30_000)
    assert calls + 4 <= visitor.calls("/v1/messages") <= calls + 12
    await page.unroute("**/v1/messages*")
    await page.get_by_role("button", name="Try now").click()
    await expect(page.locator(".notice")).to_have_count(0)


# --------------------------------------------------------------------------------------------------------------- charts
async def test_charts_are_loaded_when_one_is_shown_and_done_without(visitor: Visitor, account: Account) -> None:
    """The charting library is asked for with the first chart, and then not again; where it does not come, the numbers
    are there, and the next chart tries once more."""
    await visitor.service.send(account, *reached("17", "received", 2))
    await visitor.page.route("**/plotly.min.js", lambda route: route.abort())
    await visitor.sign_in(account)
    await visitor.table(TABLE)
    assert visitor.calls("/dashboard/plotly") == 0

    await visitor.go("#/messages/17")

    await expect(visitor.page.get_by_text("The chart cannot be drawn here. Its numbers are below.")).to_be_visible()
    assert [row[1] for row in await visitor.table(".numbers table")] == ["Received", "2"]
    await visitor.page.unroute("**/plotly.min.js")
    for address in ("#/users", "#/messages/17"):
        await visitor.go(address)
        await visitor.page.locator(".js-plotly-plot .main-svg").first.wait_for()
    assert visitor.calls("/dashboard/plotly") == 2


async def test_lines_of_a_chart_can_be_hidden(visitor: Visitor, account: Account) -> None:
    """The names beside a chart are boxes that a keyboard can tick; a line that is not ticked is not drawn."""
    await visitor.service.send(account, *reached("17", "sent", 3), *reached("17", "received", 2))
    await visitor.sign_in(account, "#/messages/17")
    await expect(visitor.page.locator(".scatterlayer .trace")).to_have_count(2)

    await visitor.page.get_by_role("checkbox", name="Sent").focus()
    await visitor.page.keyboard.press("Space")

    await expect(visitor.page.locator(".scatterlayer .trace")).to_have_count(1)


# ---------------------------------------------------------------------------------------------------------------- theme
async def test_theme(visitor: Visitor, account: Account) -> None:
    """The page follows the system's theme until one is chosen, and then that, also after a reload; charts too."""
    await visitor.service.send(account, *reached("17", "received", 2))
    page = visitor.page
    ground = "() => getComputedStyle(document.documentElement).backgroundColor"
    line = page.locator(".scatterlayer .js-line").first
    light, dark = "rgb(245, 246, 250)", "rgb(15, 18, 26)"
    light_received, dark_received = "rgb(20, 112, 204)", "rgb(93, 177, 255)"
    await visitor.sign_in(account, "#/messages/17")
    await expect(line).to_have_css("stroke", light_received)
    assert await page.evaluate(ground) == light

    await page.emulate_media(color_scheme="dark")
    await expect(line).to_have_css("stroke", dark_received)
    assert await page.evaluate(ground) == dark
    await page.get_by_label("Theme").select_option(label="Light")
    assert await page.evaluate(ground) == light
    await page.reload()
    assert await page.evaluate(ground) == light
    await expect(line).to_have_css("stroke", light_received)
    await page.get_by_label("Theme").select_option(label="System")
    assert await page.evaluate(ground) == dark
    assert await page.evaluate("() => ({...localStorage})") == {}
