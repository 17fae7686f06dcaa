"""Services that stop at once, as a hundred tests of this folder start one each; and every answer held against the
document."""

from __future__ import annotations

from typing import Any

import pytest

from reportsvc.pipeline import aggregator
from tests.support.openapi import check_answer
from tests.support.service import Account, Answer, Running


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """An aggregator waits for new events in short turns, so that it hears soon that it should stop."""
    monkeypatch.setattr(aggregator, "BLOCK_MILLISECONDS", 20)


@pytest.fixture(autouse=True)
def described_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test of this folder is answered has to stand in ``/openapi.json``: the status for that path, the shape
    of the body, the content type and the headers."""
    call = Running.call

    async def checked(self: Running, method: str, path: str, account: Account | None = None, **options: Any) -> Answer:
        answer = await call(self, method, path, account, **options)
        check_answer(method, path, answer)
        return answer

    monkeypatch.setattr(Running, "call", checked)
