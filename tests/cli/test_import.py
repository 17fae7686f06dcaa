"""``reportsvc import``: files of events into a running service, whatever happens on the way."""

from __future__ import annotations

import asyncio
import gzip
import os
import pty
import re
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from backports import zstd

from reportsvc.config import Config
from reportsvc.pipeline import ledger
from reportsvc.storage.embedded import EmbeddedRedis
from tests.cli.program import Done, environment
from tests.support.service import Account, Running, eventually, running

EVENT = {"msg_id": "m", "stage": "received", "platform": "ios"}


def events(count: int, **more: Any) -> list[dict[str, Any]]:
    """One event for each of *count* devices."""
    return [EVENT | {"device_id": f"d{number}"} | more for number in range(count)]


def ndjson(items: Iterable[Any]) -> bytes:
    """Lines of JSON; bytes are lines as they stand."""
    return b"".join((item if isinstance(item, bytes) else orjson.dumps(item)) + b"\n" for item in items)


async def start(service: Running, account: Account, *arguments: str, stdin: bytes = b"", key: str = "",
                url: str = "") -> asyncio.subprocess.Process:
    """An import into *service*, running."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "reportsvc", "import", *arguments,
        env=environment(url=url or service.url, app_key=key or account.app.app_key,
                        master_secret=account.master_secret),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(stdin)
    process.stdin.close()
    return process


async def finish(process: asyncio.subprocess.Process) -> Done:
    """How it ended."""
    assert process.stdout is not None and process.stderr is not None
    output, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
    return Done(await process.wait(), output.decode(), errors.decode())


async def imported(service: Running, account: Account, *arguments: str, **options: Any) -> Done:
    """A whole import, after which reports have what it sent."""
    done = await finish(await start(service, account, *arguments, **options))
    await service.applied()
    return done


async def received(service: Running, account: Account) -> int | None:
    """How many devices have the message."""
    answer = await service.call("GET", "/v1/messages/m", account)
    count: int | None = answer.json["message"]["totals"]["received"] if answer.status == 200 else None
    return count


def report(accepted: int, rejected: int = 0, skewed: int = 0, **reasons: int) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {"accepted": accepted, "rejected": rejected, "skewed": skewed, "reasons": reasons}


CSV = b"\xef\xbb\xbfdevice_id,stage,msg_id,platform,comment\r\n" + b"".join(
    b'd%d,received,m,"ios","a, ""b"""\r\n' % number for number in range(20)) + b",,,,\r\n\r\n"
LINES = ndjson([*events(20), b"", b"  "])


@pytest.mark.parametrize(("name", "content"), [
    ("a.ndjson", LINES), ("a.csv", CSV), ("a.ndjson.gz", gzip.compress(LINES[:500]) + gzip.compress(LINES[500:])),
    ("a.csv.gz", gzip.compress(CSV)), ("a.zst", zstd.compress(LINES)), ("csv.zst", zstd.compress(CSV)),
    ("-", LINES), ("-", gzip.compress(CSV)), ("without newline", LINES.strip()), ("bom", b"\xef\xbb\xbf" + LINES),
])
async def test_every_form_of_file(running_service: Running, account: Account, tmp_path: Path, name: str,
                                  content: bytes) -> None:
    """Lines and tables, plain or packed, from a file or from standard input, give the same; twice gives no more."""

    if name != "-":
        name = str(tmp_path / name)
        Path(name).write_bytes(content)

    for _ in range(2):
        done = await imported(running_service, account, name, "--json", stdin=content if name == "-" else b"")
        assert (done.status, done.json) == (0, report(20))
        assert await received(running_service, account) == 20
    assert [path.name for path in tmp_path.iterdir()] == ([] if name == "-" else [Path(name).name])


async def test_refused_lines_are_told(running_service: Running, account: Account, tmp_path: Path) -> None:
    """Each bad line is told with file, number, reason and text, however many there are; the good ones count."""

    bad = [b'{"stage":', b"[]", *(ndjson([EVENT | {"stage": "seen", "device_id": f"b{number}"}]).strip()
                                  for number in range(250)), b"x" * (1 << 21)]
    (tmp_path / "a").write_bytes(ndjson([*events(3), *bad, *events(5)]))
    (tmp_path / "b.csv").write_bytes(b"stage,device_id,msg_id\nreceived,e1,m\nreceived,e2\nreceived,,m\n"
                                     b'received,"e"3,m\nreceived,e4,m\n')

    done = await imported(running_service, account, str(tmp_path / "a"), str(tmp_path / "b.csv"), "--rejects",
                          str(tmp_path / "rejects"), "--json")

    stage = "stage: must be one of target, sent, online_push, received, display, click, online, active"
    reasons = {stage: 250, "not valid JSON": 1, "must be a JSON object": 0, "longer than 1048576 bytes": 1}
    rejects = [orjson.loads(line) for line in (tmp_path / "rejects").read_bytes().splitlines()]
    told = [(reject["file"].rpartition("/")[2], reject["line"], reject["reason"]) for reject in rejects]
    assert told == [
        ("a", 4, "not valid JSON"), ("a", 5, "event: must be a JSON object"),
        *(("a", 6 + number, stage) for number in range(250)), ("a", 256, "longer than 1048576 bytes"),
        ("b.csv", 3, "2 columns, not 3"), ("b.csv", 4, "device_id: required"),
        ("b.csv", 5, "not valid CSV: ',' expected after '\"'")]
    assert rejects[2]["text"] == '{"msg_id":"m","stage":"seen","platform":"ios","device_id":"b0"}'
    assert (done.json["accepted"], done.json["rejected"]) == (10, 256)
    assert {name: done.json["reasons"][name] for name, count in reasons.items() if count} == {
        name: count for name, count in reasons.items() if count}
    assert (done.status, done.errors.splitlines()[-1]) == (
        1, f"reportsvc: 256 lines were refused; they are in {tmp_path / 'rejects'}")
    assert await received(running_service, account) == 7


async def test_report_for_people(running_service: Running, account: Account, tmp_path: Path) -> None:
    """The report says what was accepted, how long it is kept, and the first lines that were not."""

    (tmp_path / "a").write_bytes(ndjson([*events(3), b"broken"]))

    done = await imported(running_service, account, str(tmp_path / "a"))

    lines = done.output.splitlines()
    assert lines[0] == "3 events accepted, 1 lines refused"
    assert lines[1].startswith("What was imported is kept for a month from now, until 20")
    assert lines[2:] == ["        1 not valid JSON", f"{tmp_path / 'a'}: line 4: not valid JSON: broken"]
    assert done.errors == "reportsvc: 1 lines were refused; --rejects FILE keeps them all\n"


# now - 40 days    now - 32 days    now - 30 days    now    now + 1 hour
# too old          too old          d0, d1           d2     ahead
async def test_old_events_are_not_moved_to_now_in_silence(running_service: Running, account: Account,
                                                          tmp_path: Path) -> None:
    """An event that would count as of now is refused, unless that is wanted, and both are said."""

    now = int(time.time())
    moments = [now - 30 * 86400, (now - 30 * 86400) * 1000, now, now - 32 * 86400, now - 40 * 86400, now + 3600]
    (tmp_path / "a").write_bytes(ndjson(
        EVENT | {"device_id": f"d{place}", "ts": moment} for place, moment in enumerate(moments)))

    done = await imported(running_service, account, str(tmp_path / "a"), "--json")
    old = "ts: over 31 days old, and would count as of now; --accept-skew sends it so"
    ahead = "ts: in the future, and would count as of now; --accept-skew sends it so"
    assert (done.status, done.json) == (1, report(3, 3, 3, **{old: 2, ahead: 1}))
    assert await received(running_service, account) == 3

    done = await imported(running_service, account, str(tmp_path / "a"), "--accept-skew")
    assert done.status == 0
    assert done.output.splitlines()[:2] == [
        "6 events accepted, 0 lines refused",
        "3 events have a time that is over 31 days old or in the future: counted as of now"]
    assert await received(running_service, account) == 6


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_import_goes_on_after_it_was_stopped(running_service: Running, account: Account, tmp_path: Path,
                                                   number: signal.Signals) -> None:
    """Killed half-way, the same command goes on behind the last line that was noted, and its report has all of it."""

    file, state, count = tmp_path / "a.gz", tmp_path / "a.gz.import-state", 300_000
    lines: Sequence[Any] = [*events(10), b"broken"] * 2
    file.write_bytes(gzip.compress(ndjson(lines) + ndjson(
        {**EVENT, "device_id": f"d{place % 40_000}", "msg_id": f"m{place // 40_000}"} for place in range(count)), 1))
    arguments = (str(file), "--json", "--rejects", str(tmp_path / "rejects"))
    process = await start(running_service, account, *arguments)

    async def is_under_way() -> bool:
        return state.exists()
    await eventually(is_under_way, 60)
    process.send_signal(number)
    stopped = await finish(process)
    noted = orjson.loads(state.read_bytes())["line"]
    assert 5000 <= noted < count
    assert stopped.status == (130 if number == signal.SIGINT else -9)
    if number == signal.SIGINT:
        assert stopped.errors.splitlines()[-1] == (
            f"stopped after line {noted:,}; the same command goes on from there")

    done = await imported(running_service, account, *arguments)

    assert f"a.gz: going on after line {noted:,}" in done.errors
    assert done.json == report(count + 20, 2, **{"not valid JSON": 2})
    assert len((tmp_path / "rejects").read_bytes().splitlines()) == 2
    assert not state.exists()
    totals = (await running_service.call("GET", "/v1/messages", account)).json["messages"]
    assert {message["msg_id"]: message["totals"]["received"] for message in totals} == {
        "m": 10, **{f"m{place}": 40_000 for place in range(7)}, "m7": 20_000}
    # What was sent twice is what was on its way, not the whole.
    counts = await ledger.read(running_service.service.redis, 1)
    assert count <= counts["accepted"] < count + 60_000


async def test_bar_on_a_terminal(running_service: Running, account: Account, tmp_path: Path) -> None:
    """Somebody who looks on sees how much is done, how fast, and what is left; the report stays clean."""

    (tmp_path / "a").write_bytes(ndjson(events(30_000)))
    parent, terminal = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "reportsvc", "import", str(tmp_path / "a"), "--json", stderr=terminal,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        env=environment(url=running_service.url, app_key=account.app.app_key, master_secret=account.master_secret)
        | {"TERM": "xterm", "COLUMNS": "120"})
    os.close(terminal)
    output, _ = await process.communicate()
    shown = os.read(parent, 1 << 20).decode()
    os.close(parent)

    assert orjson.loads(output) == report(30_000)
    assert re.search(r"a .*100%.* 30,000 events [\d,]+/s .*0:00:00", shown.rpartition("\r")[0])


async def test_state_of_another_file_is_not_used(running_service: Running, account: Account, tmp_path: Path) -> None:
    """A file that has changed since is read from its beginning, and so is one for another app."""

    file, state = tmp_path / "a", tmp_path / "a.import-state"
    file.write_bytes(ndjson(events(4)))
    state.write_bytes(b'{"version":1,"file":{"path":"?"},"line":3}')

    done = await imported(running_service, account, str(file), "--json")

    assert done.json == report(4)
    assert done.errors == (
        f"beginning anew: {state} is of another import, or the file has changed since\n")
    assert not state.exists()


async def test_store_that_is_away_is_waited_for(config: Config, database: str, short_dir: Path,
                                                tmp_path: Path) -> None:
    """While the service says 503, the import waits and says so; then it goes on and loses nothing."""

    redis = EmbeddedRedis(short_dir / "redis", "everysec")
    await redis.start(supervise=False)
    try:
        async with running(replace(config, redis_url=redis.url), database=database) as service:
            account = await service.make_account()
            (tmp_path / "a").write_bytes(ndjson(events(12_000)))
            await redis.stop()
            process = await start(service, account, str(tmp_path / "a"), "--json")
            assert process.stderr is not None
            told = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
            await redis.start(supervise=False)

            done = await finish(process)

            assert told == "a: 0 events, 0/s, 0 %, waiting: redis is unavailable\n"
            assert (done.status, done.json) == (0, report(12_000))
            await service.applied()
            assert await received(service, account) == 12_000
    finally:
        await redis.stop()


async def test_what_cannot_be_done_is_told(running_service: Running, account: Account, tmp_path: Path) -> None:
    """No service, no such key, no such file, a broken one, no credentials: one line of advice each, and status 1."""

    good, broken, table = tmp_path / "good", tmp_path / "broken.gz", tmp_path / "table.csv"
    good.write_bytes(ndjson(events(2)))
    broken.write_bytes(gzip.compress(ndjson(events(50)))[:-20])
    table.write_bytes(b"a,b\n1,2\n")

    async def advice(*arguments: str, **options: Any) -> str:
        done = await finish(await start(running_service, account, *arguments, **options))
        assert (done.status, done.output) == (1, "")
        return done.errors.splitlines()[-1].removeprefix("reportsvc: ")
    url = running_service.url
    assert await advice(str(good), url="http://127.0.0.1:9") == (
        "nothing answers at http://127.0.0.1:9; is the service running there?")
    assert await advice(str(good), key="0" * 24) == f"{url} does not know this key and secret"
    assert await advice(str(good), "--key", "0" * 24) == f"{url} does not know this key and secret"
    assert await advice(str(tmp_path / "none")) == f"{tmp_path / 'none'} is no file"
    assert await advice(str(good), str(good)) == "a file is named twice"
    assert (await advice(str(broken))).startswith(f"{broken} cannot be read to its end: ")
    assert await advice(str(table)) == (
        f"{table} has no column stage and no column device_id in its first line; it needs stage and device_id, and may "
        "have msg_id, stage, device_id, platform, channel, kind, ts, user_id")
    nobody = Account(replace(account.app, app_key=""), "", "")
    done = await finish(await start(running_service, nobody, str(good)))
    assert done.errors == ("reportsvc: as which app? Set REPORTSVC_APP_KEY and REPORTSVC_MASTER_SECRET, or give --key "
                           "and --secret\n")
