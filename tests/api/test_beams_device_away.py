"""The Beams Device API while Redis is away: whoever asks is told to come back, and nobody that he is unknown."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from reportsvc.config import Config
from reportsvc.storage.embedded import EmbeddedRedis
from tests.api.test_beams_device import OPERATIONS, delete_user, operate
from tests.support.beams import NOBODY, error, register
from tests.support.service import Running, eventually, running


@pytest.fixture
async def own_redis(short_dir: Path) -> AsyncIterator[EmbeddedRedis]:
    """A redis-server of the test's own, which nobody starts again when it dies."""
    server = EmbeddedRedis(short_dir / "redis", "everysec")
    await server.start(supervise=False)
    yield server
    await server.stop()


async def test_redis_is_dead(config: Config, database: str, own_redis: EmbeddedRedis) -> None:
    """Every operation is a 503 that says when to come back, which every SDK does; never a 404, which would make a phone
    register anew, nor a 200 for a deletion that nobody can know to be needless."""

    async with running(replace(config, redis_url=own_redis.url), database=database) as service:
        account = await service.make_account()
        phone = await register(service, account)
        os.kill(own_redis.pid, signal.SIGKILL)
        await eventually(lambda: _refuses(service, phone.path))

        answers = {name: await operate(service, account, name, device=f"fcm/{phone.id}")
                   for name in OPERATIONS if name != "vapid"}
        answers["delete in an unknown instance"] = await operate(service, account, "delete", NOBODY, "fcm/fcm-1")
        answers["delete user"] = await delete_user(service, account, "alice")
        vapid = await operate(service, account, "vapid")

    expected = (503, error("Service unavailable", "redis is unavailable"), "2")
    assert {name: (answer.status, answer.json, answer.headers["Retry-After"]) for name, answer in answers.items()} == (
        dict.fromkeys(answers, expected))
    assert vapid.status == 200  # what an app's key is, every process knows


async def _refuses(service: Running, path: str) -> bool:
    return (await service.call("GET", path)).status == 503
