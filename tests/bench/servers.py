"""The servers that ours is measured against: the limit (a handler that does next to nothing) and the naive way.

``python -m tests.bench.servers NAME PORT [REDIS_URL]``
"""

from __future__ import annotations

import sys
from typing import Any

import orjson
from aiohttp import web
from redis.asyncio import Redis

BEAMS_PATH = "/reporting_api/v2/instances/{instance_id}/events"
REDIS: web.AppKey[Any] = web.AppKey("redis")
CONSTANT = orjson.dumps([
    {"msg_id": str(1613113584 + number), "android_received": 1_000_000, "ios_apns_sent": None,
     "ios_apns_received": None, "ios_msg_received": None, "wp_mpns_sent": None} for number in range(100)])


async def nothing(request: web.Request) -> web.Response:
    """Read the body and answer."""
    await request.read()
    return web.Response()


async def parse(request: web.Request) -> web.Response:
    """Decode every line and answer."""
    lines = [orjson.loads(line) for line in (await request.read()).split(b"\n") if line]
    return web.Response(body=b'{"accepted":%d}' % len(lines), content_type="application/json")


async def constant(request: web.Request) -> web.Response:
    """Answer a report of the usual size."""
    return web.Response(body=CONSTANT, content_type="application/json")


async def one_xadd(request: web.Request) -> web.Response:
    """Durable the naive way: one command an event."""
    await request.app[REDIS].xadd("naive", {"e": await request.read()})
    return web.Response()


async def two_commands(request: web.Request) -> web.Response:
    """Counting the naive way: a status and a counter an event."""
    redis = request.app[REDIS]
    lines = [orjson.loads(line) for line in (await request.read()).split(b"\n") if line]
    for event in lines:
        if await redis.hset(f"status:{event['msg_id']}", event["device_id"], 0):
            await redis.hincrby(f"count:{event['msg_id']}", "android_received", 1)
    return web.Response(body=b'{"accepted":%d}' % len(lines), content_type="application/json")


ROUTES = {
    "nothing": [web.post(BEAMS_PATH, nothing)],
    "xadd": [web.post(BEAMS_PATH, one_xadd)],
    "parse": [web.post("/v1/events", parse)],
    "hset": [web.post("/v1/events", two_commands)],
    "constant": [web.get("/v3/received", constant)],
}


def main(name: str, port: str, redis_url: str = "") -> None:
    """Serve one of them."""
    app = web.Application(client_max_size=1 << 24)
    app.add_routes(ROUTES[name])
    if redis_url:
        async def connect(app: web.Application) -> None:
            app[REDIS] = Redis.from_url(redis_url)
        app.on_startup.append(connect)
    web.run_app(app, host="127.0.0.1", port=int(port), access_log=None, print=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
