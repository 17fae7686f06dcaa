"""The short form of ``make fuzz``: the document's examples, the edges of its schemas, and a few calls made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reportsvc.config import Config
from tests.fuzz.hooks import LINES
from tests.fuzz.run import fuzz
from tests.support.openapi import document
from tests.support.service import Clock, running


async def test_answers_are_as_described(config: Config, clock: Clock, database: str, tmp_path: Path) -> None:
    """Whatever a program makes of the document, good calls and bad ones, is answered as the document says: no 500, no
    status, body, content type or header that it does not have. The calls are the same each time; ``make fuzz`` makes
    others."""

    async with running(replace(config, rate_limit=0), clock, database) as service:
        account = await service.make_account()
        outcome = await fuzz(service, account, tmp_path, "--phases", "examples,coverage,fuzzing", "--max-examples", "3",
                             "--seed", "1", known=True)

    # It does not call the path that it had the document from.
    operations = sum(len(methods) for methods in document()["paths"].values()) - 1
    assert outcome.code == 0, outcome.output
    assert f"Tested: {operations}" in outcome.output, outcome.output


def test_lines_are_sent_as_they_are() -> None:
    """The media types of lines that schemathesis is told of are those that the document has."""

    content = document()["paths"]["/v1/events"]["post"]["requestBody"]["content"]

    assert set(LINES) == set(content) - {"application/json"}
