"""The short form of the drills; ``make drill`` runs the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.drill.drill import Embedded, Rig, Servers, run

#: Events, values compared, and acts that each rig must have had at the least, so that nothing passes by doing nothing.
LEAST = {Embedded: (3_000, 30_000, 4), Servers: (8_000, 60_000, 9)}


@pytest.mark.parametrize("rig", LEAST)
async def test_nothing_is_lost_or_counted_twice(short_dir: Path, rig: type[Rig]) -> None:
    """Whatever is killed, away, full or wiped under the load: in the end every answer is that of the oracle."""
    report = await run(short_dir, "test", quick=True, rigs=[rig])

    assert report.faults == []
    assert [row for row in report.rows if row.different] == []
    done = (report.events, sum(report.values.values()), len(report.rows))
    assert all(have >= least for have, least in zip(done, LEAST[rig], strict=True)), done
