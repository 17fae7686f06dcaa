"""``reportsvc export``: reports of a running service as tables."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet
import pytest

from tests.api.helpers import at_noon, reached
from tests.cli.program import Done, reportsvc
from tests.support.service import Account, Clock, Running

HOUR = 3600
MESSAGE = ("msg_id", "vendor", "kind", "title", "created_at", "expires_at", "first_event_at", "last_event_at", "target",
           "sent", "online_push", "received", "display", "click", "received_rate", "display_rate", "click_rate")


async def exported(service: Running, account: Account, *arguments: str, url: str = "") -> Done:
    """One export."""
    return await reportsvc("export", *arguments, url=url or service.url, app_key=account.app.app_key,
                           master_secret=account.master_secret)


async def fill(service: Running, account: Account, clock: Clock) -> int:
    """A push that devices of two platforms got over two hours, and a message that was only reported; when."""
    noon = int(at_noon(clock).timestamp())
    await service.call("POST", "/v1/pushes", account, json={
        "msg_id": "0012", "vendor": "jpush", "payload": {"title": 'Say "hi", ü'}, "created_at": noon - 60,
        "time_to_live": 86400, "audience": {"device_ids": [f"ios{number}" for number in range(4)]}})
    await service.send(
        account, *reached("0012", "received", 3, "ios", ts=noon), *reached("0012", "click", 1, "ios", ts=noon),
        *reached("0012", "received", 2, "android", ts=noon - HOUR), *reached("1", "sent", 1, "web", ts=noon - HOUR))
    return noon


def read_back(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, with numbers as numbers and nothing as None."""
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
        return rows
    if path.suffix == ".ndjson":
        return [orjson.loads(line) for line in path.read_bytes().splitlines()]
    texts = ("msg_id", "vendor", "kind", "title", "time", "stage", "platform")
    return [{name: value if name in texts and value else orjson.loads(value or "null") for name, value in row.items()}
            for row in csv.DictReader(io.StringIO(path.read_bytes().decode(), newline=""))]


@pytest.mark.parametrize("suffix", ["csv", "ndjson", "parquet"])
async def test_messages(running_service: Running, account: Account, clock: Clock, tmp_path: Path, suffix: str) -> None:
    """Each format has the same columns, types and rows; what is not known is empty, and ids stay texts."""

    noon = await fill(running_service, account, clock)
    path = tmp_path / f"out.{suffix}"

    done = await exported(running_service, account, "messages", "--output", str(path))

    assert (done.status, done.output, done.errors) == (0, "", f"2 rows in {path}\n")
    nothing = dict.fromkeys(MESSAGE)
    assert read_back(path) == [
        nothing | {"msg_id": "0012", "vendor": "jpush", "kind": "notification", "title": 'Say "hi", ü',
                   "created_at": noon - 60, "expires_at": noon - 60 + 86400, "first_event_at": noon - HOUR * 3 // 2,
                   "last_event_at": noon - HOUR // 2, "target": 4, "received": 5, "click": 1, "received_rate": 1.25,
                   "click_rate": 0.2},
        nothing | {"msg_id": "1", "first_event_at": noon - HOUR * 3 // 2, "last_event_at": noon - HOUR * 3 // 2,
                   "sent": 1}]
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", ["csv", "ndjson", "parquet"])
async def test_timeline(running_service: Running, account: Account, clock: Clock, tmp_path: Path, suffix: str) -> None:
    """A row for each interval and stage, of all messages or of those that are named."""

    noon = await fill(running_service, account, clock)
    path, day = tmp_path / f"out.{suffix}", datetime.fromtimestamp(noon, UTC).strftime("%Y-%m-%d")
    midnight = noon - HOUR * 25 // 2

    await exported(running_service, account, "timeline", "--output", str(path), "--msg-id", "0012", "--msg-id", "1",
                   "--interval", "day")
    columns = ("msg_id", "time", "start", "stage", "new", "cumulative")
    assert read_back(path) == [dict(zip(columns, row, strict=True)) for row in (
        ("0012", day, midnight, "target", 4, 4), ("0012", day, midnight, "received", 5, 5),
        ("0012", day, midnight, "click", 1, 1), ("1", day, midnight, "sent", 1, 1))]

    done = await exported(running_service, account, "timeline", "--output", str(path))
    first, second = noon - HOUR * 3 // 2, noon - HOUR // 2
    assert done.errors == f"5 rows in {path}\n"
    assert [tuple(row.values()) for row in read_back(path)] == [
        ("0012", f"{day} 11:00", first, "received", 2, 2), ("0012", f"{day} 12:00", second, "target", 4, 4),
        ("0012", f"{day} 12:00", second, "received", 3, 5), ("0012", f"{day} 12:00", second, "click", 1, 1),
        ("1", f"{day} 11:00", first, "sent", 1, 1)]


async def test_users(running_service: Running, account: Account, tmp_path: Path) -> None:
    """A row for each day and platform that had devices, until today."""

    now = int(running_service.clock())
    await running_service.send(account, *reached("1", "click", 2, "ios", ts=now),
                               *reached("1", "sent", 1, "web", ts=now - 5 * 86400))

    done = await exported(running_service, account, "users", "--days", "7")

    days = [(datetime.fromtimestamp(now, UTC) - timedelta(days=ago)).strftime("%Y-%m-%d") for ago in (5, 0)]
    assert done.output.splitlines() == [
        "time,platform,new,online,active", f"{days[0]},web,1,1,", f"{days[1]},ios,2,2,2"]
    assert done.errors == "2 rows\n"


async def test_all_pages(running_service: Running, account: Account) -> None:
    """More messages than a page has are all there, once, newest first; of none there is a head alone."""

    assert (await exported(running_service, account, "messages")).output == ",".join(MESSAGE) + "\r\n"
    now = int(running_service.clock())
    await running_service.send(account, *(
        {"msg_id": f"{number:03}", "stage": "sent", "device_id": "d", "ts": now} for number in range(450)))

    done = await exported(running_service, account, "messages", "--format", "ndjson")

    assert [orjson.loads(line)["msg_id"] for line in done.output.splitlines()] == [
        f"{number:03}" for number in reversed(range(450))]


async def test_file_is_whole_or_as_it_was(running_service: Running, account: Account, tmp_path: Path) -> None:
    """An export that fails leaves the file of before, and nothing beside it."""

    path = tmp_path / "out.csv"
    path.write_text("before")

    done = await exported(running_service, account, "messages", "--msg-id", "none", "--output", str(path))

    assert (done.status, done.errors) == (1, "reportsvc: the app has no message none\n")
    assert path.read_text() == "before"
    assert [one.name for one in tmp_path.iterdir()] == ["out.csv"]


async def test_what_cannot_be_done_is_told(running_service: Running, account: Account, tmp_path: Path) -> None:
    """No format, no such directory, no VIP, no service: a line of advice each, and status 1."""

    poor = await running_service.make_account("poor", vip=False)

    async def advice(account: Account, *arguments: str, **options: str) -> str:
        done = await exported(running_service, account, *arguments, **options)
        assert (done.status, done.output) == (1, "")
        return done.errors
    name = str(tmp_path / "out")
    assert await advice(account, "messages", "--output", name) == (
        f"reportsvc: {name} names no format; add --format csv, ndjson or parquet\n")
    assert await advice(account, "messages", "--output", str(tmp_path / "none" / "out.csv")) == (
        "reportsvc: No such file or directory\n")
    assert "Not authorized to use this interface" in await advice(poor, "users", "--output", f"{name}.csv")
    assert await advice(account, "users", url="http://127.0.0.1:9") == (
        "reportsvc: nothing answers at http://127.0.0.1:9; is the service running there?\n")
    assert list(tmp_path.iterdir()) == []
