"""What the tests of the dialects share: many events at once, a clock away from midnight, and bytes on a raw socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.service import Answer, Clock, Running

#: A message nobody ever mentioned, as ``/v3/received`` answers it.
NOTHING_RECEIVED = {"android_received": None, "ios_apns_sent": None, "ios_apns_received": None,
                    "ios_msg_received": None, "wp_mpns_sent": None}


def reached(msg_id: object, stage: str, count: int, platform: str, **more: Any) -> Iterator[dict[str, Any]]:
    """One event for each of *count* devices of *platform*."""
    for number in range(count):
        yield {"msg_id": msg_id, "stage": stage, "device_id": f"{platform}{number}", "platform": platform} | more


def at_noon(clock: Clock) -> datetime:
    """Put the clock forward to the coming noon (UTC), so that no hour and no day ends within the test; that moment."""
    now = datetime.fromtimestamp(clock(), UTC)
    noon = now.replace(hour=12, minute=30, second=0, microsecond=0) + timedelta(days=1)
    clock.ahead += (noon - now).total_seconds()
    return noon


def jpush_error(code: int, message: str) -> dict[str, Any]:
    """An error as JPush says it."""
    return {"error": {"code": code, "message": message}}


def native_error(code: str, message: str) -> dict[str, Any]:
    """An error as the native dialect says it."""
    return {"error": {"code": code, "message": message}}


async def raw(service: Running, request: bytes) -> Answer:
    """The answer to *request*, sent byte for byte; it has to ask for the connection to be closed, or be refused."""
    host, _, port = service.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        await writer.drain()
        async with asyncio.timeout(10):
            reply = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    head, _, body = reply.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return Answer(int(status.split(" ")[1]), headers, body)
