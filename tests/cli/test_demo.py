"""``reportsvc demo``: an app with weeks behind it, in a service of its own or in one that runs."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import ClientSession, encode_basic_auth

from reportsvc.commands.demo_data import Demo, Size
from reportsvc.model import CHANNELS, MAX_ID_BYTES, PLATFORM_OF_CHANNEL
from tests.cli.program import environment, reportsvc
from tests.support.service import eventually

NOW = 1_795_305_600
DAY = 86400
SIZE = Size(days=14, devices=600, pushes_a_day=3)
FUNNEL = ("target", "sent", "received", "display", "click")
SMALL = ("--days", "3", "--devices", "80", "--pushes", "2")


def everything(demo: Demo) -> tuple[list[Any], list[Any], list[Any]]:
    """All that a demo would send."""
    return list(demo.devices()), demo.pushes(), list(demo.events())


def test_same_seed_same_app() -> None:
    """A seed makes the same app again, to the last event, and another seed another one."""
    assert everything(Demo(SIZE, 7, NOW)) == everything(Demo(SIZE, 7, NOW))
    assert everything(Demo(SIZE, 7, NOW)) != everything(Demo(SIZE, 8, NOW))


def test_figures_are_believable() -> None:
    """Every push loses devices from stage to stage, nights are quiet, all words are real, and nothing is from the
    future or older than the service takes it."""
    demo = Demo(SIZE, 1, NOW)
    devices, pushes, events = everything(demo)
    reached: dict[str, Counter[str]] = defaultdict(Counter)
    for event in events:
        reached[event.get("msg_id", "")][event["stage"]] += 1

    assert len(devices) == 600
    assert len(pushes) >= 3 * 13
    for push in pushes:
        counts = [reached[push["msg_id"]][stage] for stage in FUNNEL]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] == len(push["audience"]["device_ids"])
    assert {device["platform"] for device in devices} == {"android", "ios", "web", "hmos"}
    assert {event["platform"] for event in events if "channel" in event
            and PLATFORM_OF_CHANNEL[event["channel"]] != event["platform"]} == set()
    assert {event["channel"] for event in events if "channel" in event} <= set(CHANNELS)
    assert all(NOW - 31 * DAY < event["ts"] <= NOW for event in events)
    assert max(len(push["msg_id"]) for push in pushes) <= MAX_ID_BYTES
    hours = Counter(event["ts"] % DAY // 3600 for event in events if event["stage"] in ("online", "active"))
    assert sum(hours[hour] for hour in range(1, 5)) * 4 < sum(hours[hour] for hour in range(18, 22))
    # Receipts come at first, and then ever fewer.
    ages = Counter((event["ts"] - push["created_at"]) // 3600 for push in pushes[:20] for event in events
                   if event.get("msg_id") == push["msg_id"] and event["stage"] == "received")
    assert ages[0] > ages[1] + ages[2] > ages[8] + ages[9]


async def ask(url: str, access: Mapping[str, str], path: str) -> Any:
    """The body of a successful answer."""
    authorization = encode_basic_auth(access["app_key"], access["master_secret"])
    async with ClientSession(headers={"Authorization": authorization}) as session:
        async with session.get(url + path) as response:
            assert response.status == 200
            return orjson.loads(await response.read())


def signed_in(output: str) -> Mapping[str, str]:
    """What is printed to sign in with."""
    return dict(re.findall(r"^  (app_key|master_secret) +(\w+)$", output, re.MULTILINE))


@pytest.mark.timeout(300)
async def test_demo_serves_and_fills_what_runs(short_dir: Path) -> None:
    """Without a service it starts one, fills it and serves; with one it fills that, with an app of another name."""
    output, settings = short_dir / "output", {"data_dir": short_dir / "data", "linger_ms": 10}
    with output.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "reportsvc", "demo", *SMALL, env=environment(**settings, port=0),
            stdin=asyncio.subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        async def is_serving() -> bool:
            assert process.returncode is None, output.read_text()
            return "until Ctrl-C" in output.read_text()
        await eventually(is_serving, 120)
        printed = output.read_text()
        url = re.findall(r"^Open (http://\S+)/ and sign in", printed, re.MULTILINE)[0]
        access = signed_in(printed)
        assert re.search(r"^The app 'demo' has 80 devices, \d pushes, [\d,]+ events\.$", printed, re.MULTILINE)

        messages = (await ask(url, access, "/v1/messages"))["messages"]
        assert len(messages) == int(re.findall(r"(\d) pushes", printed)[0]) >= 4
        assert all(message["title"] and message["totals"]["target"] for message in messages)
        assert sum(message["totals"]["received"] or 0 for message in messages) > 0

        again = await reportsvc("demo", *SMALL, "--seed", "2", port=url.rpartition(":")[2], **settings)
        assert (again.status, "The app 'demo-2' has 80 devices" in again.output) == (0, True), again
        assert signed_in(again.output)["app_key"] != access["app_key"]
        assert (await ask(url, signed_in(again.output), "/v1/messages"))["messages"]

        taken = await reportsvc("demo", *SMALL, "--app", "demo", port=url.rpartition(":")[2], **settings)
        assert (taken.status, taken.errors) == (
            1, "reportsvc: an app named 'demo' exists; choose another name, or delete it first\n")
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_demo_once(short_dir: Path) -> None:
    """With --once it ends when the app is made, and the app is there for the next service."""
    done = await reportsvc("demo", *SMALL, "--once", "--app", "shop", "--timezone", "Asia/Tokyo",
                           data_dir=short_dir / "data", port=0)
    assert done.status == 0, done
    assert "The app 'shop' has 80 devices" in done.output
    listed = await reportsvc("apps", "list", "--json", data_dir=short_dir / "data")
    assert [(app["name"], app["timezone"]) for app in listed.json] == [("shop", "Asia/Tokyo")]

    wrong = await reportsvc("demo", "--once", "--timezone", "Mars", data_dir=short_dir / "data", port=0)
    assert wrong.status == 1
    assert "Mars" in wrong.errors
