"""``reportsvc serve``: the first start and those after it, mistakes in its settings, its log, and its end."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, encode_basic_auth

from tests.cli.program import Done, environment, reportsvc, serving
from tests.support.service import eventually

#: Stands in for curl where there is none: the few options that the greeting uses.
CURL = f"""#!{sys.executable}
import base64, sys, urllib.error, urllib.request
url, body, headers, words = "", None, {{}}, iter(sys.argv[1:])
for word in words:
    if word == "-u":
        headers["Authorization"] = "Basic " + base64.b64encode(next(words).encode()).decode()
    elif word == "-d":
        body = next(words).encode()
    elif word == "-H":
        name, _, value = next(words).partition(": ")
        headers[name] = value
    else:
        url = word
try:
    print(urllib.request.urlopen(urllib.request.Request(url, body, headers)).read().decode(), end="")
except urllib.error.HTTPError as error:
    print(error.read().decode(), end="")
"""


async def bash(directory: Path, script: str) -> list[Any]:
    """Paste *script* into bash; the JSON documents that come out of it."""
    path = environment()["PATH"]
    if shutil.which("curl") is None:
        (directory / "curl").write_text(CURL)
        (directory / "curl").chmod(stat.S_IRWXU)
        path = f"{directory}:{path}"
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", script, env={"PATH": path}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    documents, text = [], output.decode()
    while text := text.strip():
        document, end = json.JSONDecoder().raw_decode(text)
        documents.append(document)
        text = text[end:]
    return documents


async def test_first_start_shows_what_works_when_pasted(short_dir: Path) -> None:
    """A first start prints credentials and curl lines, which answer as promised; the next start prints neither, and
    has everything that was counted."""
    async with serving(short_dir) as service:
        first, _, second = service.greeting.partition("\ncurl")[2].partition("sleep 1\n")
        assert first and second
        registered = await bash(short_dir, "curl" + first)

        async def is_applied() -> bool:
            done = await reportsvc("ledger", "--json", data_dir=short_dir / "data")
            return bool(done.json["accepted"] == done.json["applied"] > 0)
        await eventually(is_applied, 30)
        reported = await bash(short_dir, second)
        credentials = dict(re.findall(r"^  (\w+) +(\S+)$", service.greeting, re.MULTILINE))
        assert await service.stop() == 0

    assert registered == [{"accepted": 2, "rejected": 0, "errors": []}, {"msg_id": "1613113584", "targets": 2},
                          {"accepted": 1, "rejected": 0, "errors": []}]
    received, status, messages, users, pushed = reported
    assert received == [{"msg_id": "1613113584", "android_received": 1, "ios_apns_sent": None,
                         "ios_apns_received": None, "ios_msg_received": None, "wp_mpns_sent": None}]
    assert status == {"1507bfd3a7c568d4761": {"status": 0}, "02078f0f1b8": {"status": 1}, "0207870a9b8": {"status": 2}}
    assert messages == [{
        "android": {"received": 1, "target": 2, "online_push": None, "click": None, "msg_click": None},
        "ios": {"apns_sent": None, "apns_target": None, "apns_received": None, "click": None, "target": None,
                "received": None},
        "winphone": {"mpns_target": None, "mpns_sent": None, "click": None}, "msg_id": "1613113584"}]
    assert users["items"] == [{"time": users["start"], "android": {"new": 2, "online": 2}}]
    assert pushed["push"]["pending_devices"] == ["02078f0f1b8"]
    assert credentials["name"] == "default"

    async with serving(short_dir) as service, ClientSession() as session:
        assert service.greeting == f"reportsvc is ready on {service.url}\n"
        # One more since: the last line pasted was the receipt of another device, told by its own SDK.
        headers = {"Authorization": encode_basic_auth(credentials["app_key"], credentials["master_secret"])}
        async with session.get(f"{service.url}/v3/received?msg_ids=1613113584", headers=headers) as answer:
            assert (await answer.json())[0]["android_received"] == 2


async def test_an_app_made_before_the_first_start_is_the_first_app(short_dir: Path) -> None:
    """Whoever has made an app of his own gets no default one, and his is usable from the start."""
    made = await reportsvc("apps", "create", "shop", "--json", data_dir=short_dir / "data")

    async with serving(short_dir) as service, ClientSession() as session:
        headers = {"Authorization": encode_basic_auth(made.json["app_key"], made.json["master_secret"])}
        async with session.get(f"{service.url}/v3/received?msg_ids=1", headers=headers) as answer:
            assert answer.status == 200
        assert service.greeting == f"reportsvc is ready on {service.url}\n"
        listed = await reportsvc("apps", "list", "--json", data_dir=short_dir / "data")
    assert [app["name"] for app in listed.json] == ["shop"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_end_it_in_order(short_dir: Path, number: signal.Signals) -> None:
    """Asked to end, it ends with status 0, its redis-server with it, and what it accepted last is counted."""
    async with serving(short_dir, linger_ms=5000) as service, ClientSession() as session:
        credentials = dict(re.findall(r"^  (\w+) +(\S+)$", service.greeting, re.MULTILINE))
        headers = {"Authorization": encode_basic_auth(credentials["app_key"], credentials["master_secret"])}
        async with session.post(f"{service.url}/v1/events", headers=headers, json={
                "msg_id": "1", "stage": "received", "device_id": "d1"}) as answer:
            assert answer.status == 200

        assert await service.stop(number) == 0

    assert not (short_dir / "data/redis/redis.sock").exists()
    counted = await reportsvc("ledger", "--json", data_dir=short_dir / "data")
    assert (counted.json["accepted"], counted.json["applied"]) == (2, 2)  # the event, and the first app


# ------------------------------------------------------------------------------------------------------------ refusals
async def test_mistakes_stop_the_start_with_advice(short_dir: Path) -> None:
    """A wrong setting, an unknown one, a directory in use, an address in use: status 1, and what to do about it."""
    async with serving(short_dir) as service:
        port = service.url.rpartition(":")[2]
        mistakes: dict[str, dict[str, object]] = {
            "REPORTSVC_PORT=http cannot be used; write a port, 1 to 65535, or 0 for any free one": {"port": "http"},
            "REPORTSVC_PROT is not a setting of this service; did you mean REPORTSVC_PORT?": {"prot": 80},
            f"{short_dir}/data is in use by the service with pid {service.process.pid}; stop that one first, or set "
            "another REPORTSVC_DATA_DIR for this one": {"data_dir": short_dir / "data"},
            f"error while attempting to bind on address ('127.0.0.1', {port}): address already in use":
                {"data_dir": short_dir / "other", "port": port},
        }

        done = await asyncio.gather(*(reportsvc("serve", **settings) for settings in mistakes.values()))

    assert [(one.status, one.output, last_line(one)) for one in done] == [
        (1, "", f"reportsvc: {advice}") for advice in mistakes]


def last_line(done: Done) -> str:
    """The last line on standard error, where log lines may stand before."""
    return done.errors.splitlines()[-1]


async def test_usage() -> None:
    """``--version`` tells it, and a word that is no command is refused with those that are."""
    version, unknown, nothing = await asyncio.gather(*(reportsvc(*words) for words in (["--version"], ["start"], [])))

    assert (version.status, version.output) == (0, "reportsvc 0.1.0\n")
    assert (unknown.status, nothing.status) == (2, 2)
    assert "choose from serve, migrate, rebuild, apps, ledger, deadletters" in unknown.errors.replace("'", "")


# ------------------------------------------------------------------------------------------------------------------ log
async def call_with_secrets(url: str, greeting: str) -> list[str]:
    """Make calls that carry secrets, some of which fail; the secrets."""
    credentials = dict(re.findall(r"^  (\w+) +(\S+)$", greeting, re.MULTILINE))
    headers = {"Authorization": encode_basic_auth(credentials["app_key"], credentials["master_secret"])}
    wrong = {"Authorization": encode_basic_auth(credentials["app_key"], "s3cret-typed-wrong")}
    async with ClientSession() as session:
        for method, path, more in (
                ("GET", "/v3/received?msg_ids=1", {"headers": headers}),
                ("GET", "/v3/received?msg_ids=1", {"headers": wrong}),
                ("GET", f"/pushes/1?api_key={credentials['pushy_api_key']}", {}),
                ("GET", "/pushes/1?api_key=s3cret-typed-wrong", {}),
                ("POST", "/v1/events", {"headers": headers, "data": b'{"user_id": "s3cret-alice"'}),
                ("GET", "/healthz", {})):
            async with session.request(method, url + path, **more) as answer:
                await answer.read()
    return [credentials["master_secret"], credentials["pushy_api_key"], credentials["beams_secret_key"], "s3cret",
            headers["Authorization"].split()[1], wrong["Authorization"].split()[1]]


async def test_log_is_json_and_silent_about_requests(short_dir: Path) -> None:
    """Each line of the log is a JSON object with time, level, logger and message; requests are not logged unasked."""
    async with serving(short_dir, log_level="debug") as service:
        secrets = await call_with_secrets(service.url, service.greeting)
        assert await service.stop() == 0
        lines = [json.loads(line) for line in service.log.splitlines()]

    assert lines
    assert [line for line in lines if not {"time", "level", "logger", "message"} <= set(line)] == []
    assert [line for line in lines if line["logger"] == "reportsvc.access" or "/v3/" in line["message"]] == []
    assert [secret for secret in secrets if secret in service.log] == []


async def test_access_log_is_written_when_asked_and_has_no_secret(short_dir: Path) -> None:
    """With ``REPORTSVC_ACCESS_LOG=1`` each request is a line: method, path and status, without query or headers."""
    async with serving(short_dir, access_log=1) as service:
        secrets = await call_with_secrets(service.url, service.greeting)
        assert await service.stop() == 0
        lines = [json.loads(line) for line in service.log.splitlines()]

    access = [line for line in lines if line["logger"] == "reportsvc.access"]
    assert [(line["message"], line["status"]) for line in access] == [
        ("GET /v3/received", 200), ("GET /v3/received", 401), ("GET /pushes/1", 400), ("GET /pushes/1", 401),
        ("POST /v1/events", 400), ("GET /healthz", 200)]
    assert {tuple(line) for line in access} == {
        ("time", "level", "logger", "message", "status", "milliseconds", "bytes", "remote")}
    assert [secret for secret in secrets if secret in service.log] == []
