"""``reportsvc migrate`` on the embedded engine."""

from __future__ import annotations

from pathlib import Path

from reportsvc.storage.schema import load
from tests.cli.program import Done, reportsvc, serving


async def test_migrate_there_and_back(short_dir: Path) -> None:
    """A dry run shows statements and runs none; up and down say what they did, and when there is nothing to do."""
    names = [f"{migration.number:04} {migration.name}" for migration in load()]

    async def migrate(*options: str) -> Done:
        return await reportsvc("migrate", *options, data_dir=short_dir / "data")

    shown = await migrate("--dry-run")
    assert (shown.status, shown.errors) == (0, "")
    assert [line[3:] for line in shown.output.splitlines() if line.startswith("-- ")] == names
    assert shown.output.count("CREATE TABLE IF NOT EXISTS") >= 8

    assert await migrate() == Done(0, "".join(f"applied {name}\n" for name in names), "")
    assert await migrate() == Done(0, "nothing to do\n", "")
    assert await migrate("--dry-run") == Done(0, "nothing to do\n", "")

    undoing = await migrate("--down", "1", "--dry-run")
    assert undoing.output.startswith(f"-- {names[-1]}\n\nDROP ")
    assert await migrate("--down", "1") == Done(0, f"undid {names[-1]}\n", "")
    assert await migrate() == Done(0, f"applied {names[-1]}\n", "")


async def test_wrong_numbers_of_steps_are_refused(short_dir: Path) -> None:
    """``--down`` takes how many to undo, and nothing that could be taken for "all" or for "up"."""
    for steps in ("0", "-1", "all"):
        done = await reportsvc("migrate", "--down", steps, data_dir=short_dir / "data")
        assert (done.status, done.output) == (2, "")
        assert f"argument --down: must be 1 or more, not '{steps}'" in done.errors


async def test_migrating_under_a_running_service_is_refused(short_dir: Path) -> None:
    """The engine is open in the service, which has applied everything; the refusal says so and breaks nothing."""
    async with serving(short_dir) as service:
        done = await reportsvc("migrate", data_dir=short_dir / "data")
        assert await service.stop() == 0

    assert done == Done(1, "", "reportsvc: the service is running on this data directory and has applied every "
                               "migration; stop it to migrate by hand\n")
    assert await reportsvc("migrate", data_dir=short_dir / "data") == Done(0, "nothing to do\n", "")
