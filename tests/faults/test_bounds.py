"""Whatever is too long, too many or too deep is refused in the words of the dialect, and the service goes on."""

from __future__ import annotations

import ast
import asyncio
import gzip
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
from backports import zstd

from reportsvc import server
from reportsvc.api import common
from tests.api.helpers import jpush_error, native_error, raw
from tests.support.service import Account, Running

# dialect -> path, and an error with a text in its words
DIALECTS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "jpush": ("/v3/status/message", lambda text: jpush_error(3002, text)),
    "pushy": ("/pushes/1", lambda text: {"code": "INVALID_REQUEST", "error": text}),
    "beams reporting": ("/reporting_api/v2/instances/i/events", lambda text: {
        "error": "Bad request", "description": text}),
    "beams device": ("/device_api/v1/instances/i/devices/fcm", lambda text: {
        "error": "Bad request", "description": text}),
    "native": ("/v1/events", lambda text: native_error("invalid_request", text)),
}

# what is sent for a path -> status and text; Beams knows no status but 400 for any of them
HEADS: Final[dict[str, tuple[Callable[[str], str], int, str]]] = {
    "long line": (lambda path: f"GET {path}?{'x' * server.MAX_LINE_BYTES} HTTP/1.1\r\nHost: x\r\n\r\n", 414,
                  "the request line is over 131072 bytes"),
    "long header": (lambda path: f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Long: {'x' * 17_000}\r\n\r\n", 431,
                    "a header is over 16384 bytes"),
    "many headers": (lambda path: f"GET {path} HTTP/1.1\r\nHost: x\r\n" + "X-More: x\r\n" * 200 + "\r\n", 431,
                     "there are more than 128 headers"),
    "long head": (lambda path: f"GET {path} HTTP/1.1\r\nHost: x\r\n" + f"X-Some: {'x' * 15_000}\r\n" * 20, 431,
                  "the request line and headers are over 196608 bytes"),
}


@pytest.mark.parametrize("head", HEADS)
async def test_heads_are_bounded(running_service: Running, head: str) -> None:
    """A request line, a header, the headers and all of them together have a limit, which the refusal names."""

    make, status, text = HEADS[head]
    answers = {dialect: await raw(running_service, make(path).encode()) for dialect, (path, _) in DIALECTS.items()}

    assert {dialect: (answer.status, answer.json) for dialect, answer in answers.items()} == {
        dialect: (400 if dialect.startswith("beams") else status, error(text))
        for dialect, (_, error) in DIALECTS.items()}


async def test_head_just_within_the_bounds_is_read(running_service: Running, account: Account) -> None:
    """A hundred ids of 256 bytes, each byte percent-encoded, are a question that is answered."""

    ids = [f"{number:03}" + "%2F" * 253 for number in range(100)]

    answer = await running_service.call("GET", f"/v3/received?msg_ids={'%2C'.join(ids)}", account, headers={
        f"X-{number}": "x" * 300 for number in range(100)})

    assert [item["msg_id"] for item in answer.json] == [f"{number:03}" + "/" * 253 for number in range(100)]


def requests(account: Account) -> dict[str, tuple[str, str, Callable[[str], Any]]]:
    """Every path that reads a body, by an app's own caller: method, path and an error in the dialect's words."""
    instance = account.app.beams_instance_id
    device = f"/device_api/v1/instances/{instance}/devices/fcm"
    jpush, beams, native = DIALECTS["jpush"][1], DIALECTS["beams device"][1], DIALECTS["native"][1]
    return {
        "status": ("POST", "/v3/status/message", jpush),
        "report": ("POST", f"/reporting_api/v2/instances/{instance}/events", beams),
        "register": ("POST", device, beams),
        "metadata": ("PUT", f"{device}/fcm-1/metadata", beams),
        "token": ("PUT", f"{device}/fcm-1/token", beams),
        "interests": ("PUT", f"{device}/fcm-1/interests", beams),
        "events": ("POST", "/v1/events", native),
        "pushes": ("POST", "/v1/pushes", native),
        "targets": ("POST", "/v1/pushes/1/targets", native),
        "devices": ("POST", "/v1/devices", native),
    }


def too_large(name: str, error: Callable[[str], Any]) -> tuple[int, Any]:
    """Status and body for a body over the limit."""
    text = "the body is over 16777216 bytes"
    if error is DIALECTS["native"][1]:
        return 413, native_error("too_large", text)
    return (413 if name == "status" else 400), error(text)


async def test_body_that_says_it_is_too_large_is_not_read(running_service: Running, account: Account) -> None:
    """A Content-Length over 16 MiB is refused before a byte of the body is here, on every path, and at once."""

    paths = requests(account)
    answers = dict(zip(paths, await asyncio.gather(*(raw(running_service, (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {account.auth}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {16 * 1024 * 1024 + 1}\r\n\r\n").encode())
        for method, path, _ in paths.values())), strict=True))

    assert {name: (answer.status, answer.json) for name, answer in answers.items()} == {
        name: too_large(name, error) for name, (_, _, error) in paths.items()}


BOMBS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstd.compress}


@pytest.mark.parametrize("encoding", BOMBS)
async def test_bombs_are_refused(running_service: Running, account: Account, encoding: str) -> None:
    """A few kilobytes that unpack to 64 MiB are refused when 16 of them are unpacked, on every path."""

    bomb = BOMBS[encoding](b" " * (64 * 1024 * 1024))
    paths = requests(account)
    headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    answers = {name: await running_service.call(method, path, account, data=bomb, headers=headers)
               for name, (method, path, _) in paths.items()}

    assert len(bomb) < 100_000
    assert {name: (answer.status, answer.json) for name, answer in answers.items()} == {
        name: too_large(name, error) for name, (_, _, error) in paths.items()}


@pytest.mark.parametrize("depth", [1025, 100_000, 5_000_000])
async def test_deep_bodies_are_refused(running_service: Running, account: Account, depth: int) -> None:
    """Brackets in brackets are no JSON beyond 1 024 of them, however many, on every path."""

    deep = b'{"msg_id":123456789012345678901234567890,"payload":' + b"[" * depth + b"]" * depth + b"}"
    paths = requests(account)
    answers = {name: await running_service.call(
        method, path, account, data=BytesIO(deep), headers={"Content-Type": "application/json"})
        for name, (method, path, _) in paths.items()}

    assert {name: answer.status for name, answer in answers.items()} == dict.fromkeys(paths, 400)
    texts = {orjson.dumps(answer.json).decode() for answer in answers.values()}
    assert all("JSON" in text for text in texts), texts
    assert (await running_service.call("GET", "/healthz")).status == 200


@pytest.mark.parametrize("large_id", [False, True], ids=["fast decoder", "exact decoder"])
async def test_deep_payload_is_refused(running_service: Running, account: Account, large_id: bool) -> None:
    """A payload that could be read but never be written again is refused, whichever decoder read it."""

    def push(depth: int) -> bytes:
        msg_id = "123456789012345678901234567890" if large_id else "1"
        return b'{"msg_id":%s,"audience":"all","payload":' % msg_id.encode() + b"[" * depth + b"]" * depth + b"}"

    deep = await running_service.call("POST", "/v1/pushes", account, data=push(300))
    good = await running_service.call("POST", "/v1/pushes", account, data=push(200))

    assert (deep.status, deep.json) == (400, native_error("invalid_request", "payload: nested too deeply"))
    assert good.status == 201


def test_bodies_are_read_in_one_place() -> None:
    """No handler reads a body past the function that has the limits and the deadline."""

    folder = Path(common.__file__).parent
    reads = {f"{path.name}: request.{node.attr}" for path in folder.glob("*.py") if path.name != "common.py"
             for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Attribute)
             and isinstance(node.value, ast.Name) and node.value.id == "request"
             and node.attr in ("read", "json", "text", "post", "multipart", "content")}

    assert reads == set()
    assert "request.content" in Path(common.__file__).read_text("utf-8")


LONG: Final = "x" * 257


async def test_ids_are_bounded_by_bytes(running_service: Running, account: Account) -> None:
    """Ids of 257 bytes are refused at every place where one may stand; 256 are taken, whatever they are made of."""

    now, instance = int(running_service.clock()), account.app.beams_instance_id
    reported = {"event": "open", "publishId": "1", "deviceId": "fcm-1", "timestampSecs": now}
    report, text = f"/reporting_api/v2/instances/{instance}/events", "at most 256 bytes"
    event = {"msg_id": "1", "stage": "received", "device_id": "d"}
    calls: list[tuple[str, str, Any, int, Any]] = [
        ("GET", f"/v3/received?msg_ids={LONG}", None, 400, jpush_error(3002, f"msg_ids: {text}")),
        ("GET", f"/v3/messages?msg_ids=1,{LONG}", None, 400, jpush_error(3002, f"msg_ids: {text}")),
        ("POST", "/v3/status/message", {"msg_id": LONG, "registration_ids": ["d"]}, 400,
         jpush_error(3002, f"msg_id: {text}")),
        ("POST", "/v3/status/message", {"msg_id": "1", "registration_ids": [LONG]}, 400,
         jpush_error(3002, f"registration_ids: {text}")),
        ("GET", f"/pushes/{LONG}?api_key={account.pushy_api_key}", None, 400,
         {"code": "INVALID_PUSH_ID", "error": "The push notification ID provided is invalid."}),
        ("POST", report, reported | {"publishId": LONG}, 400,
         {"error": "Bad request", "description": "`publishId` is longer than 256 bytes"}),
        ("POST", report, reported | {"deviceId": "ü" * 129}, 400,
         {"error": "Bad request", "description": "`deviceId` is longer than 256 bytes"}),
        ("POST", "/v1/pushes", {"msg_id": LONG, "audience": "all"}, 400,
         native_error("invalid_request", f"msg_id: {text}")),
        ("POST", "/v1/pushes", {"audience": {"device_ids": [LONG]}}, 400,
         native_error("invalid_request", f"audience.device_ids: {text}")),
        ("POST", "/v1/pushes/1/targets", [LONG], 400, native_error("invalid_request", f"device_ids: {text}")),
        ("POST", f"/v1/pushes/{LONG}/targets", ["d"], 400, native_error("invalid_request", f"msg_id: {text}")),
        ("DELETE", f"/v1/devices/{LONG}", None, 400, native_error("invalid_request", f"device_id: {text}")),
        *(("POST", path, body | {name: value}, 400, native_error("invalid_request", f"{name}: {text}"))
          for path, body, name, value in (
              ("/v1/events", event, "msg_id", LONG), ("/v1/events", event, "device_id", "ü" * 129),
              ("/v1/events", event, "user_id", LONG), ("/v1/devices", {"device_id": "d"}, "device_id", LONG),
              ("/v1/devices", {"device_id": "d"}, "user_id", LONG))),
    ]

    answers = await asyncio.gather(*(running_service.call(method, path, account, json=body)
                                     for method, path, body, _, _ in calls))
    longest = await running_service.call("POST", "/v1/events", account, json=event | {"device_id": "ü" * 128})

    for (_, path, _, status, body), answer in zip(calls, answers, strict=True):
        document = answer.json
        if path in ("/v1/events", "/v1/devices"):
            document = native_error(document["error"]["code"], document["error"]["message"])
        assert (path[:40], answer.status, document) == (path[:40], status, body)
    assert longest.json == {"accepted": 1, "rejected": 0, "errors": []}


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])  # zstd sees it at the end of a block
async def test_body_that_goes_wrong_half_way_is_refused_at_once(running_service: Running, account: Account,
                                                                encoding: str) -> None:
    """What cannot be unpacked is told when that is seen, also in a later packet, and not when a deadline has passed."""

    body = BOMBS[encoding](orjson.dumps([{"n": number} for number in range(3000)]))
    address = running_service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(address[0], int(address[1]))
    head = (f"POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: {account.auth}\r\nContent-Type: text/json\r\n"
            f"Content-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n")
    writer.write(head.encode() + body[:200])
    await writer.drain()
    await asyncio.sleep(0.2)
    writer.write(b"\xff" * 50)  # and more of it is still to come
    async with asyncio.timeout(common.BODY_SECONDS / 2):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert orjson.loads(answer.rpartition(b"\r\n\r\n")[2]) == native_error(
        "invalid_request", "the body cannot be read; check Content-Encoding and Content-Length")
