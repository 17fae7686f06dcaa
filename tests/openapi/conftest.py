"""Services that stop at once."""

from __future__ import annotations

import pytest

from reportsvc.pipeline import aggregator


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """An aggregator waits for new events in short turns, so that it hears soon that it should stop."""
    monkeypatch.setattr(aggregator, "BLOCK_MILLISECONDS", 20)
