"""Lets schemathesis loose on a running service.

It reads ``/openapi.json`` as anybody would, makes calls that fit it and calls that do not, and holds every answer
against it: no 500, no status, content type, header or shape that the document does not have, no method answered that it
does not name.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
import orjson

from tests.support.service import Account, Running

HOOKS: Final = Path(__file__).with_name("hooks.py")
#: What is held against the document. Not here: that everything which does not fit is refused, and everything which fits
#: is taken. Unknown keys do not matter to this service, and an id that fits may still be that of nothing.
CHECKS: Final = ("not_a_server_error", "status_code_conformance", "content_type_conformance",
                 "response_headers_conformance", "response_schema_conformance", "unsupported_method",
                 "allow_header_conformance", "ignored_auth")
#: operation -> what is not checked there.
EXCEPT: Final = {
    # Pusher's SDKs are told in its own words that they sent no secret: a 400.
    "beamsDeleteUser": ("ignored_auth",), "beamsDeleteUserUserApi": ("ignored_auth",),
    # At these paths other methods have a route too: they are paths of another operation, with an id missing.
    "beamsRegisterDevice": ("unsupported_method", "allow_header_conformance"),
    "beamsGetInterests": ("unsupported_method", "allow_header_conformance"),
    "beamsSetInterests": ("unsupported_method", "allow_header_conformance"),
}
#: Used by whatever calls for a device, a message, a user or an interest, beside what is made up.
DEVICE_TOKEN: Final = "token-of-a-device"
MESSAGE: Final = "1613113584"


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and what it said."""

    code: int
    output: str


async def prepare(service: Running, account: Account) -> str:
    """Something to find: a push, events of it, and a device with interests, whose id is returned."""
    instance = f"/device_api/v1/instances/{account.app.beams_instance_id}/devices/fcm"
    device = (await service.call("POST", instance, json={"token": DEVICE_TOKEN})).json["id"]
    await service.call("PUT", f"{instance}/{device}/interests", json={"interests": ["donuts", "news"]})
    await service.call("POST", "/v1/pushes", account, json={
        "msg_id": MESSAGE, "payload": {"title": "Hello"}, "audience": {"device_ids": [device, "a", "b"]}})
    await service.send(account, {"msg_id": MESSAGE, "stage": "received", "device_id": "a", "platform": "android"},
                       {"msg_id": MESSAGE, "stage": "click", "device_id": "b", "platform": "ios"})
    return str(device)


def settings(service: Running, account: Account, device: str, *, known: bool) -> dict[str, Any]:
    """The configuration of a run; *known*: with ids of things that are there in most calls."""
    app = account.app
    token = jwt.encode({
        "iss": f"https://{app.beams_instance_id}.pushnotifications.pusher.com", "sub": "alice",
        "exp": int(service.clock()) + 86400}, app.beams_secret_key, "HS256")
    ids = {"path.instance_id": app.beams_instance_id, "path.device_id": device, "path.msg_id": MESSAGE,
           "path.push_id": MESSAGE}
    return {
        "hooks": str(HOOKS), "color": False, "continue-on-failure": True, "suppress-health-check": ["all"],
        "request-timeout": 30, "workers": 1, "warnings": False,
        "output": {"sanitization": {"enabled": False}},
        "checks": {"enabled": False} | {check: {"enabled": True} for check in CHECKS},
        "generation": {"database": "none"}, "operations": [
            {"include-operation-id": name, "checks": {check: {"enabled": False} for check in checks}}
            for name, checks in EXCEPT.items()],
        "auth": {"openapi": {
            "basic": {"username": app.app_key, "password": account.master_secret},
            "pushyKey": {"api_key": account.pushy_api_key}, "beamsUserToken": {"bearer": token},
            "beamsSecretKey": {"bearer": app.beams_secret_key}}},
    } | ({"parameters": ids} if known else {})


async def fuzz(service: Running, account: Account, directory: Path, *options: str, known: bool) -> Outcome:
    """Run schemathesis with *options* of its command line."""
    device = await prepare(service, account)
    path = directory / f"schemathesis-{'known' if known else 'any'}.toml"
    path.write_text(toml(settings(service, account, device, known=known)), "utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(path), "run", *options,
        service.url + "/openapi.json", cwd=directory,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    return Outcome(process.returncode or 0, output.decode("utf-8", "replace"))


def toml(document: dict[str, Any]) -> str:
    """*document* as TOML, with tables written in line; JSON is close enough to that."""
    return "".join(f"{name} = {_inline(value)}\n" for name, value in document.items())


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{name}" = {_inline(part)}' for name, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return orjson.dumps(value).decode()
