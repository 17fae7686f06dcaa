"""No secret and no payload is in any log, whatever goes wrong; nor does an error tell a caller of our inside."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, replace
from typing import Any

import jwt
import orjson
import pytest
from aiohttp import encode_basic_auth

from reportsvc import logs
from reportsvc.config import Config
from reportsvc.errors import StoreUnavailable
from reportsvc.pipeline.apply import Applier
from reportsvc.registry.apps import AppStore
from reportsvc.registry.pushes import PushRegistry
from reportsvc.reports.delivery import DeliveryReport
from reportsvc.reports.status import StatusReport
from reportsvc.storage.redis import journal_key
from tests.api.helpers import raw
from tests.support.service import Account, Clock, Running, eventually, running

PAYLOAD = "meet-me-at-noon"
TOKEN = "apns-token-of-alices-phone"


class Output:
    """The log as it is written, line by line."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        """A part of it."""
        self.text += text

    def flush(self) -> None:
        """Nothing waits."""


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Iterator[Output]:
    """What the service logs when it is set to log everything."""
    written = Output()
    root, ours = logging.getLogger(), logging.getLogger("reportsvc")
    before = root.handlers[:], root.level, ours.level
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", written)
        logs.configure("debug")
    yield written
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


@pytest.fixture
async def service(config: Config, clock: Clock, database: str, output: Output) -> AsyncIterator[Running]:
    """A service that logs each request as well."""
    async with running(replace(config, access_log=True, rate_limit=20), clock, database) as started:
        yield started


def secrets(account: Account) -> dict[str, str]:
    """Everything that must not be found."""
    return {
        "master secret": account.master_secret, "pushy key": account.pushy_api_key,
        "beams secret": account.app.beams_secret_key, "vapid key": account.app.vapid_private_key,
        "authorization": account.auth.removeprefix("Basic "), "payload": PAYLOAD, "device token": TOKEN,
    }


def found(output: Output, needles: dict[str, str]) -> list[str]:
    """The secrets that are in the log."""
    return [name for name, needle in needles.items() if needle in output.text]


async def go_wrong(service: Running, account: Account) -> None:
    """Requests that fail at the door, each with a secret or a payload in it."""
    app, auth = account.app, account.auth
    device = f"/device_api/v1/instances/{app.beams_instance_id}/devices/fcm"
    event = {"msg_id": "m", "stage": "received", "device_id": "d", "payload": PAYLOAD}
    head = f"Host: x\r\nAuthorization: {auth}\r\n"
    for request in (
            f"GET /pushes/m?api_key={account.pushy_api_key} HTTP/9.9\r\n\r\n",
            f"GET /pushes/m?api_key={account.pushy_api_key} and more\r\n\r\n",
            f"GET /v3/received HTTP/1.1\r\n{head}Broken {PAYLOAD}\r\n\r\n",
            f"GET /v3/received HTTP/1.1\r\nHost: x\r\nAuthorization : {auth}\r\n\r\n",
            f"GET /v3/received HTTP/1.1\r\nHost: x\r\nAuthorization: {auth}\0\r\n\r\n",
            f"GET /v3/received HTTP/1.1\r\n{head}{head}\r\n",
            f"GET /v3/received HTTP/1.1\r\n{head}X-Long: {PAYLOAD * 2000}\r\n\r\n",
            f"GET /pushes/m?api_key={account.pushy_api_key}{'x' * 200_000} HTTP/1.1\r\n\r\n",
            f"{account.pushy_api_key} / HTTP/1.1\r\n\r\n",
            f"POST /v1/events HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n{PAYLOAD}\r\n",
            f"POST /v1/events HTTP/1.1\r\n{head}Expect: {PAYLOAD}\r\nConnection: close\r\n\r\n"):
        assert (await raw(service, request.encode())).status >= 400
    for body, more in ((PAYLOAD.encode(), {}), (b'{"payload":"' + PAYLOAD.encode(), {}),
                       (PAYLOAD.encode(), {"Content-Encoding": "gzip"}),
                       (orjson.dumps(event | {"stage": PAYLOAD, "ts": PAYLOAD, "platform": TOKEN}), {}),
                       (orjson.dumps(event | {"user_id": [PAYLOAD]}) + b"\n{" + TOKEN.encode(), {})):
        for path in ("/v1/events", "/v1/pushes", "/v1/devices", "/v1/pushes/m/targets", "/v3/status/message"):
            answer = await service.call("POST", path, account, data=body, headers=more)
            assert answer.status >= 400
    for login, password in ((app.app_key, account.pushy_api_key), (account.master_secret, app.app_key)):
        wrong = {"Authorization": encode_basic_auth(login, password)}
        assert (await service.call("GET", "/v3/received", headers=wrong)).status == 401
    assert (await service.call("GET", "/pushes/m", params={"api_key": account.master_secret})).status == 401
    for claims, key in (({"sub": PAYLOAD}, app.beams_secret_key), ({"sub": "alice"}, account.master_secret * 2)):
        bearer = {"Authorization": "Bearer " + jwt.encode(claims, key, "HS256")}
        assert (await service.call("PUT", f"{device}/fcm-1/user", headers=bearer)).status >= 400
    for body in (orjson.dumps({"token": [TOKEN]}), TOKEN.encode()):
        assert (await service.call("POST", device, data=body, headers={
            "Content-Type": "application/json"})).status == 400


async def test_refused_requests_leave_no_trace(service: Running, output: Output) -> None:
    """Whatever is wrong with a request, its keys and its content are not in the log, even where all is logged."""

    account = await service.make_account()
    await go_wrong(service, account)
    await service.call("GET", "/v3/received?msg_ids=1", account)

    assert '"reportsvc.access"' in output.text
    assert found(output, secrets(account)) == []


async def test_good_requests_leave_no_trace(service: Running, output: Output) -> None:
    """Nor are those of requests that go well, through every part of the service."""

    account = await service.make_account()
    instance = account.app.beams_instance_id
    devices = f"/device_api/v1/instances/{instance}/devices/fcm"
    push = {"msg_id": "m", "audience": {"device_ids": ["d"]}, "payload": {"message": PAYLOAD}}
    token = jwt.encode({"iss": f"https://{instance}.pushnotifications.pusher.com", "sub": "alice",
                        "exp": int(service.clock()) + 60}, account.app.beams_secret_key, "HS256")
    device = (await service.call("POST", devices, json={"token": TOKEN})).json["id"]
    answers = [
        await service.call("PUT", f"{devices}/{device}/user", headers={"Authorization": f"Bearer {token}"}),
        await service.call("POST", "/v1/pushes", account, json=push)]
    await service.send(account, {"msg_id": "m", "stage": "received", "device_id": "d"})
    answers += [await service.call("GET", f"/pushes/m?api_key={account.pushy_api_key}"),
                await service.call("GET", "/v3/received?msg_ids=m", account)]

    assert [answer.status for answer in answers] == [200, 201, 200, 200]
    assert answers[2].json["push"]["payload"] == {"message": PAYLOAD}
    assert output.text.count("reportsvc.access") >= 5
    assert found(output, secrets(account) | {"token": token}) == []


async def test_faults_of_ours_leave_no_trace(service: Running, output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback tells where and what kind, but not the text: that may be a value of the request or of a store."""

    account = await service.make_account()
    await service.call("POST", "/v1/pushes", account, json={"msg_id": "m", "audience": "all", "payload": PAYLOAD})
    await service.applied()

    async def index(*_: object) -> Any:
        return dict[str, int]()[PAYLOAD]

    async def redis_error(*_: object) -> Any:
        return await service.service.redis.call("NO-SUCH-COMMAND", PAYLOAD, account.master_secret)

    async def clickhouse_error(*_: object) -> Any:
        return await service.service.clickhouse.query(f"SELECT toUInt32('{PAYLOAD}')", {}, label="test")
    monkeypatch.setattr(DeliveryReport, "totals", index)
    monkeypatch.setattr(StatusReport, "statuses", redis_error)
    monkeypatch.setattr(PushRegistry, "find", clickhouse_error)
    status = {"msg_id": "m", "registration_ids": ["d"]}
    answers = [await service.call("GET", "/v3/received?msg_ids=m", account),
               await service.call("POST", "/v3/status/message", account, json=status),
               await service.call("GET", f"/pushes/m?api_key={account.pushy_api_key}")]

    assert [answer.status for answer in answers] == [500, 500, 500]
    assert all(kind in output.text for kind in ("KeyError", "ResponseError", "DatabaseError"))
    assert "in totals" not in output.text and "in received" in output.text
    assert found(output, secrets(account)) == []
    assert [answer.body for answer in answers if PAYLOAD.encode() in answer.body] == []


async def test_faults_behind_the_journal_leave_no_trace(service: Running, output: Output,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a record that cannot be applied, or a background task that ends with an error."""

    account = await service.make_account()
    redis = service.service.redis
    for record in (PAYLOAD.encode(), orjson.dumps({"type": PAYLOAD}), orjson.dumps(
            {"type": "push", "app": account.app.id, "at": 0, "msg_id": "m", "record": PAYLOAD, "expires_at": PAYLOAD})):
        await redis.call("XADD", journal_key(0), "*", "n", 1, "e", record)

    async def is_dead() -> bool:
        return output.text.count("is dead") == 3
    await eventually(is_dead)

    async def stumble(*_: object) -> None:
        raise ValueError(PAYLOAD)
    with monkeypatch.context() as patch:
        patch.setattr(Applier, "apply", stumble)
        await service.call("POST", "/v1/events", account, json={"msg_id": "m", "stage": "received", "device_id": "d"})

        async def is_buried() -> bool:
            return output.text.count("is dead") == 4
        await eventually(is_buried)
    task = asyncio.create_task(stumble())
    await asyncio.wait([task])
    del task
    gc.collect()

    assert "Task exception was never retrieved" in output.text
    assert found(output, secrets(account)) == []


async def test_callers_learn_nothing_of_the_inside(service: Running, output: Output,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """What a driver says of a store, with hosts and files in it, is in the log alone; ``/readyz`` names the store."""

    account = await service.make_account()
    inside = "Error 111 connecting to redis.internal:6379"

    async def away(*_: object) -> Any:
        raise StoreUnavailable("redis", inside)
    monkeypatch.setattr(DeliveryReport, "totals", away)
    monkeypatch.setattr(type(service.service.redis), "call", away)
    answers = [await service.call("GET", "/v3/received?msg_ids=m", account), await service.call("GET", "/readyz")]

    assert [answer.status for answer in answers] == [503, 503]
    assert answers[1].json == {"status": "unavailable", "stores": {"redis": "redis is unavailable",
                                                                   "clickhouse": "ok"}}
    assert [answer.body for answer in answers if b"internal" in answer.body] == []
    assert output.text.count(inside) >= 2


async def test_unknown_app_is_compared_like_a_known_one(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong secret costs the same comparison whether or not there is such an app, and is answered alike."""

    account = await service.make_account()
    compared: list[tuple[str, str]] = []

    def compare(given: str, stored: str) -> bool:
        compared.append((given, stored))
        return given == stored
    monkeypatch.setattr("reportsvc.registry.apps.hmac.compare_digest", compare)
    apps = service.service.apps
    await apps.refresh()
    found = []
    for app_key in (account.app.app_key, "0" * 24):
        compared.clear()
        found.append((await apps.by_master_secret(app_key, "wrong"), len(compared), {len(one) for pair in compared
                                                                                     for one in pair}))

    assert found == [(None, 1, {64})] * 2


async def test_nothing_shows_secrets_by_accident(service: Running) -> None:
    """Apps, their credentials and the settings hide their secrets where they are printed."""

    credentials, _ = await AppStore(service.service.redis).create("shown")
    rotated, _ = await AppStore(service.service.redis).rotate(credentials.app, 60, 1)
    texts = repr([credentials, rotated, service.service.config, *await AppStore(service.service.redis).all()])

    assert credentials.app.app_key in texts
    assert [name for one in (credentials, rotated) for name, value in (
        *one.document().items(), *asdict(one.app).items())
        if name.endswith(("secret", "secret_key", "api_key", "private_key")) and value in texts] == []


def test_traceback_keeps_the_chain_and_the_systems_own_words() -> None:
    """What led to an error is told too, and what the operating system said: that is about us, not about callers."""

    def fail() -> None:
        try:
            open("/no/such/file")
        except OSError as error:
            raise ValueError(PAYLOAD) from error
    try:
        fail()
    except ValueError as error:
        record = logging.LogRecord("reportsvc", logging.ERROR, "", 0, "it %s", ("failed",), (
            ValueError, error, error.__traceback__))
    line = orjson.loads(logs.JsonFormatter().format(record))

    assert (line["level"], line["message"]) == ("error", "it failed")
    first, second = line["exception"].split("\n\n")
    assert first.endswith("\nValueError") and "in fail\n" in first
    assert second.endswith("\nFileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'")
