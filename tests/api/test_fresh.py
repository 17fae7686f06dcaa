"""Answers that are shared and kept: made once for all who ask the same, never older than what was applied."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from reportsvc.errors import BadParameter, StoreUnavailable
from reportsvc.reports import fresh as fresh_module
from reportsvc.reports.fresh import FreshAnswers
from reportsvc.storage.redis import Redis, epoch_key
from tests.api.helpers import jpush_error
from tests.support.service import Account, Running

APP = 7


@dataclass
class Report:
    """A report that takes until it is let go; each making has an answer of its own."""

    answers: FreshAnswers
    redis: Redis
    now: float = 0.0
    makings: list[asyncio.Future[bytes]] = field(default_factory=list)

    async def ask(self, question: str = "q") -> bytes:
        """One caller."""
        return await self.answers.get(APP, question, self._make)

    async def _make(self) -> bytes:
        self.makings.append(asyncio.get_running_loop().create_future())
        return await self.makings[-1]

    async def begin(self, callers: int = 1) -> list[asyncio.Task[bytes]]:
        """So many callers, all of them waiting."""
        tasks = [asyncio.create_task(self.ask()) for _ in range(callers)]
        await asyncio.sleep(0.05)
        return tasks


@pytest.fixture
async def report(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Report]:
    """A report on an empty Redis, with a clock that stands."""
    redis = Redis(redis_url)
    await redis.call("FLUSHALL")
    monkeypatch.setattr(fresh_module, "_EPOCH_SECONDS", 10.0)
    one = Report(FreshAnswers(redis, lambda: one.now), redis)
    yield one
    await redis.close()


async def test_one_making_for_all_who_ask(report: Report) -> None:
    """Callers of one question at one epoch share one making, those who come later too; another question has its own."""
    callers = await report.begin(50)
    assert len(report.makings) == 1
    other = asyncio.create_task(report.ask("another"))
    await asyncio.sleep(0.05)
    assert len(report.makings) == 2
    report.makings[0].set_result(b"one")
    report.makings[1].set_result(b"two")

    assert await asyncio.gather(*callers) == [b"one"] * 50
    assert (await other, await report.ask(), await report.ask("another")) == (b"two", b"one", b"two")
    assert len(report.makings) == 2


@pytest.mark.parametrize("error", [StoreUnavailable("clickhouse"), BadParameter("msg_ids", "wrong"), ValueError()],
                         ids=["away", "wrong", "bug"])
async def test_failures_reach_everybody_and_are_not_kept(report: Report, error: Exception) -> None:
    """A making that fails fails for all who wait for it, and the next caller begins anew."""
    callers = await report.begin(10)
    report.makings[0].set_exception(error)
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert results == [error] * 10

    again = await report.begin()
    assert len(report.makings) == 2
    report.makings[1].set_result(b"well")
    assert await again[0] == b"well"


async def test_a_caller_who_goes_away_takes_nothing_along(report: Report) -> None:
    """The caller who began a making may go away, and any other; those who stay are answered by the same making."""
    callers = await report.begin(4)
    callers[0].cancel()
    callers[2].cancel()
    await asyncio.sleep(0.05)
    report.makings[0].set_result(b"one")
    results = await asyncio.gather(*callers, return_exceptions=True)

    assert [results[1], results[3]] == [b"one", b"one"]
    assert [type(results[0]), type(results[2])] == [asyncio.CancelledError] * 2
    assert await report.ask() == b"one"
    assert len(report.makings) == 1


# epoch    1                2
# making   |---- old --------------------|
#                           |-- new --|
# asked    first            second     third   fourth
async def test_a_new_epoch_is_never_answered_with_an_older_answer(report: Report) -> None:
    """Who asks after something was applied waits for a making that began after it, whichever ends first."""
    first = await report.begin()
    await report.redis.call("INCR", epoch_key(APP))
    second = await report.begin()
    assert len(report.makings) == 2
    report.makings[1].set_result(b"new")
    third = await report.ask()
    report.makings[0].set_result(b"old")
    answers = await first[0], await second[0], third, await report.ask()

    assert answers == (b"old", b"new", b"new", b"new")
    assert len(report.makings) == 2


async def test_an_old_making_that_fails_takes_no_newer_answer_along(report: Report) -> None:
    """When a making of an older epoch fails, the newer answer to the same question stays."""
    first = await report.begin()
    await report.redis.call("INCR", epoch_key(APP))
    second = await report.begin()
    report.makings[1].set_result(b"new")
    report.makings[0].set_exception(StoreUnavailable("clickhouse"))
    results = await asyncio.gather(*first, *second, return_exceptions=True)

    assert [type(results[0]), results[1], await report.ask()] == [StoreUnavailable, b"new", b"new"]
    assert len(report.makings) == 2


async def test_answers_age(report: Report) -> None:
    """Without a change of epoch an answer is kept for a moment only, counted from when its making began."""
    for number, ahead in enumerate((0.0, fresh_module._LONGEST_SECONDS, 0.01 - fresh_module._LONGEST_SECONDS)):
        report.now += ahead
        callers = await report.begin()
        if number < 2:
            report.makings[number].set_result(b"%d" % number)
        assert await callers[0] == (b"0", b"1", b"1")[number]
    assert len(report.makings) == 2


async def test_wrong_parameters_are_refused_each_time(running_service: Running, account: Account) -> None:
    """Questions that cannot be answered get the same 400, alone and many at once, and a good one beside them its
    answer; what differs in the query only by how it is written has the same answer."""

    for path in ("/v3/received", "/v3/messages"):
        for query, message in (("", "msg_ids: required"), ("?msg_ids=", "msg_ids: required")):
            answers = await asyncio.gather(*(running_service.call("GET", path + query, account) for _ in range(10)))
            assert {answer.status for answer in answers} == {400}
            assert {answer.body for answer in answers} == {answers[0].body}
            assert answers[0].json["error"]["code"] == 3002, message
        many = ",".join(map(str, range(101)))
        wrong, good, same = await asyncio.gather(*(running_service.call(
            "GET", f"{path}?msg_ids={ids}", account) for ids in (many, "1,2", "1%2C2")))
        assert (wrong.status, wrong.json["error"]["code"]) == (400, 3002)
        assert good.status == same.status == 200
        assert good.json == same.json
        assert [item["msg_id"] for item in good.json] == ["1", "2"]
    assert (await running_service.call("GET", "/v3/received?msg_ids=1")).json == jpush_error(
        3001, "Basic authentication failed")
