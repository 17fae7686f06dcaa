"""Pusher's own web SDK, from npm, against a running service: the page's part and the service worker's.

It runs under Node, where ``beams_web_sdk.mjs`` is what a browser would be around it, the rules about calls to another
origin included. The packages are installed once into the virtual environment.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from tests.api.helpers import at_noon
from tests.support.beams import base, push, statuses, user_token
from tests.support.service import Account, Running

#: esbuild makes one file of the service worker, whose built form is not in the package; the other is a browser's store.
PACKAGES: Final = {"@pusher/push-notifications-web": "2.1.0", "esbuild": "0.28.2", "fake-indexeddb": "6.2.8"}
DRIVER: Final = Path(__file__).with_name("beams_web_sdk.mjs")
INSTALL_SECONDS: Final = 100

pytestmark = pytest.mark.skipif(
    not (shutil.which("node") and shutil.which("npm")), reason="needs Node and npm, which are not on the PATH")


@pytest.fixture(scope="module")
def packages() -> Path:
    """A folder with the packages in ``node_modules``."""
    folder = Path(sys.prefix) / "share" / "reportsvc-tests" / "web-sdk"
    wanted = json.dumps({"private": True, "dependencies": PACKAGES})
    stamp = folder / "installed.json"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(wanted)
        asyncio.run(install(folder))
        stamp.write_text(wanted)
    return folder


async def install(folder: Path) -> None:
    """Install what ``package.json`` names; no package runs anything of its own on the way."""
    npm = await asyncio.create_subprocess_exec(
        "npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", cwd=folder,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    async with asyncio.timeout(INSTALL_SECONDS):
        output, _ = await npm.communicate()
    assert npm.returncode == 0, output.decode()


class Browser:
    """A browser with the SDK in it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin and process.stdout
        self._input, self._output = process.stdin, process.stdout

    async def call(self, name: str, *args: Any) -> Any:
        """What a method of the SDK's client (or one of the driver's) returns; raises what it throws, as SdkError."""
        self._input.write(json.dumps({"call": name, "args": args}).encode() + b"\n")
        async with asyncio.timeout(30):
            answer = json.loads(await self._output.readline())
        if "error" in answer:
            raise SdkError(answer["error"])
        return answer["result"]


class SdkError(Exception):
    """What the SDK threw."""


@asynccontextmanager
async def browser_of(packages: Path, service: Running, account: Account) -> AsyncIterator[Browser]:
    """A browser on a page that uses the app's Beams instance."""
    process = await asyncio.create_subprocess_exec(
        "node", str(DRIVER), str(packages), service.url, account.app.beams_instance_id, str(service.clock.ahead),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    browser = Browser(process)
    try:
        assert await browser.call("load") == "PERMISSION_GRANTED_NOT_REGISTERED_WITH_BEAMS"
        yield browser
    finally:
        process.stdin.close()  # type: ignore[union-attr]  # it is a pipe
        await process.wait()


def pusher(account: Account, publish_id: str) -> dict[str, Any]:
    """The payload of a push that shows something and can be reported."""
    return {"notification": {"title": "Hello", "body": "World"}, "data": {"shop": 1, "pusher": {
        "instanceId": account.app.beams_instance_id, "publishId": publish_id, "hasDisplayableContent": True,
        "hasData": False}}}


async def test_the_web_sdk_from_start_to_stop(running_service: Running, account: Account, packages: Path) -> None:
    """Start, interests, user, a push and a click that the service worker reports, stop: each does what it says, and the
    reports show it."""

    service, noon = running_service, at_noon(running_service.clock)
    async with browser_of(packages, service, account) as browser:
        device_id = await browser.call("start")
        path = f"{base(account)}/devices/web/{device_id}"
        assert device_id.startswith("web-")
        assert await browser.call("getRegistrationState") == "PERMISSION_GRANTED_REGISTERED_WITH_BEAMS"
        assert (await service.call("GET", path)).json == {
            "id": device_id, "userId": None, "metadata": {"sdkVersion": "2.1.0"}}

        await browser.call("addDeviceInterest", "donuts;a,b")
        await browser.call("addDeviceInterest", "news")
        await browser.call("removeDeviceInterest", "donuts;a,b")
        assert await browser.call("getDeviceInterests") == {"interests": ["news"]}
        names = [f"i{number:03}" for number in range(150)]
        await browser.call("setDeviceInterests", [*names, names[0]])
        page = await browser.call("getDeviceInterests")
        assert page == {"interests": names[:100], "nextCursor": page["nextCursor"]}
        assert await browser.call("getDeviceInterests", 100, page["nextCursor"]) == {"interests": names[100:]}
        await browser.call("clearDeviceInterests")
        assert await browser.call("getDeviceInterests") == {"interests": []}
        await browser.call("addDeviceInterest", "news")

        await browser.call("setUserId", "cucas", user_token(account, "cucas", now=service.clock()))
        assert await browser.call("getUserId") == "cucas"
        assert (await service.call("GET", path)).json["userId"] == "cucas"

        assert await push(service, account, "pubid-1", interests=["news"]) == 1
        assert await push(service, account, "pubid-2", users=["cucas"]) == 1
        assert await push(service, account, "pubid-3", interests=["other"]) == 0
        shown = await browser.call("push", pusher(account, "pubid-1"))
        assert (shown["title"], shown["body"]) == ("Hello", "World")
        await browser.call("click")
        await browser.call("push", pusher(account, "pubid-2"), True)
        await service.applied()

        assert await statuses(service, account, "pubid-1", device_id) == [0]
        await browser.call("stop")
        assert await browser.call("getRegistrationState") == "PERMISSION_GRANTED_NOT_REGISTERED_WITH_BEAMS"
        assert (await service.call("GET", path)).status == 404
        assert await statuses(service, account, "pubid-1", device_id) == [2]

    await service.applied()
    received = await service.call("GET", "/v3/received?msg_ids=pubid-1,pubid-2,pubid-3&web=1", account)
    assert [item["web_received"] for item in received.json] == [1, 1, None]
    messages = await service.call("GET", "/v3/messages?msg_ids=pubid-1,pubid-2,pubid-3&web=1", account)
    assert [item["web"] for item in messages.json] == [
        {"received": 1, "target": 1, "sent": None, "click": 1},
        {"received": 1, "target": 1, "sent": None, "click": None},
        {"received": None, "target": None, "sent": None, "click": None}]
    users = await service.call("GET", f"/v3/users?time_unit=DAY&start={noon.date()}&duration=1", account)
    assert users.json["items"] == [{"time": str(noon.date()), "web": {"new": 1, "online": 1, "active": 1}}]


async def test_what_the_reports_of_jpush_have_no_field_for(running_service: Running, account: Account,
                                                           packages: Path) -> None:
    """Without ``web=1`` the answers are the vendor's to the letter; a browser's receipt is in none of his fields."""

    async with browser_of(packages, running_service, account) as browser:
        await browser.call("start")
        await browser.call("push", pusher(account, "m"))
    await running_service.applied()

    received = await running_service.call("GET", "/v3/received?msg_ids=m", account)
    messages = await running_service.call("GET", "/v3/messages?msg_ids=m", account)

    assert received.json == [{"msg_id": "m"} | dict.fromkeys((
        "android_received", "ios_apns_sent", "ios_apns_received", "ios_msg_received", "wp_mpns_sent"))]
    assert list(messages.json[0]) == ["android", "ios", "winphone", "msg_id"]


async def test_a_push_in_the_background_is_displayed(running_service: Running, account: Account,
                                                     packages: Path) -> None:
    """A push that shows something while no window of the page is visible counts as displayed too."""

    async with browser_of(packages, running_service, account) as browser:
        await browser.call("start")
        await browser.call("push", pusher(account, "background"))
        await browser.call("push", pusher(account, "foreground"), True)
    await running_service.applied()

    rows = await running_service.service.clickhouse.query(
        "SELECT msg_id, stage, groupBitmapMerge(devices) FROM delivery GROUP BY msg_id, stage ORDER BY msg_id, stage",
        {}, label="test")
    assert list(map(tuple, rows)) == [("background", "display", 1), ("background", "received", 1),
                                      ("foreground", "received", 1)]


async def test_token_of_the_web_sdk(running_service: Running, account: Account, packages: Path) -> None:
    """A page that starts again while its subscription lives is the same device, and one with another is another; what
    is told of a changed browser arrives."""

    async with browser_of(packages, running_service, account) as browser:
        first = await browser.call("start")
        assert await browser.call("start") == first
        await browser.call("changeBrowser", "Node of tomorrow")
        token = await browser.call("getToken")
        assert list(orjson.loads(base64.b64decode(token))) == ["endpoint", "expirationTime", "keys"]
        await browser.call("clearAllState")
        second = await browser.call("getDeviceId")

    again = await running_service.call("POST", f"{base(account)}/devices/web", json={"token": token})
    assert len({first, second, again.json["id"]}) == 3  # the first was deleted, and its token is nobody's


async def test_errors_of_the_web_sdk(running_service: Running, account: Account, packages: Path) -> None:
    """The SDK reads our errors as it reads Pusher's: status, title and description."""

    other = await running_service.make_account("other")
    async with browser_of(packages, running_service, account) as browser:
        await browser.call("start")
        expired = user_token(account, "alice", now=running_service.clock() - 2 * 86400)
        foreign = user_token(other, "alice", now=running_service.clock())
        unnamed = user_token(account, None, now=running_service.clock())
        texts = []
        for token in (expired, foreign, unnamed):
            with pytest.raises(SdkError) as caught:
                await browser.call("setUserId", "alice", token)
            texts.append(str(caught.value))

    assert texts == [
        "Unexpected status code 401: Unauthorized, Invalid JWT claims: Token is expired",
        "Unexpected status code 401: Unauthorized, Invalid JWT signature",
        "Unexpected status code 400: Bad Request, Missing subject (sub) field in JWT"]
