"""How far a long command is: a bar where somebody looks on, a line now and then where it goes to a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol, TextIO

from rich.console import Console
from rich.progress import (BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskProgressColumn, TextColumn,
                           TimeElapsedColumn, TimeRemainingColumn)
from rich.text import Text

#: Between two lines where nobody looks on.
_LINE_SECONDS: Final = 5.0


class Meter(Protocol):
    """Is told how far the work is."""

    def update(self, done: int, items: int, note: str = "") -> None:
        """*done* of the total given at the start (bytes, say), in which there were *items*; *note*: what it waits for.
        """

    def say(self, line: str) -> None:
        """Something to be read, which stays."""


class _Rate(ProgressColumn):
    """Items so far, and how many a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """The column."""
        items = int(task.fields["items"])
        rate = f"{items / task.elapsed:,.0f}/s" if task.elapsed else ""
        return Text(f"{items:,} {self._unit} {rate}")


class _Bar:
    """On a terminal."""

    def __init__(self, progress: Progress, label: str, total: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task(label, total=total, items=0, note="")

    def update(self, done: int, items: int, note: str = "") -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=done, items=items, note=note)

    def say(self, line: str) -> None:
        """A line above the bar."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Lines:
    """Anywhere else."""

    def __init__(self, stream: TextIO, label: str, unit: str, total: int | None) -> None:
        self._stream = stream
        self._label = label
        self._unit = unit
        self._total = total
        self._started = self._told = time.monotonic()
        self._note = ""

    def update(self, done: int, items: int, note: str = "") -> None:
        """A line, if the last one is old or there is something to wait for."""
        now = time.monotonic()
        if now - self._told < _LINE_SECONDS and (note == self._note or not note):
            self._note = note
            return
        self._told, self._note = now, note
        seconds = now - self._started
        parts = [f"{items:,} {self._unit}", f"{items / seconds:,.0f}/s" if seconds else ""]
        if self._total:
            left = seconds * (self._total - done) / done if done else 0.0
            parts += [f"{100 * done / self._total:.0f} %", f"{left:.0f} s left" if done else ""]
        self.say(f"{self._label}: " + ", ".join(filter(None, (*parts, note and f"waiting: {note}"))))

    def say(self, line: str) -> None:
        """A line."""
        print(line, file=self._stream, flush=True)


@contextmanager
def progress(label: str, unit: str, total: int | None, *, quiet: bool = False) -> Iterator[Meter]:
    """Show progress on standard error while the block runs; *total* None where nobody can tell, 0 for nothing to do."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield _Quiet() if quiet else _Lines(sys.stderr, label, unit, total)
        return
    left = TimeRemainingColumn() if total is not None else TimeElapsedColumn()
    bar = [BarColumn(), TaskProgressColumn()] if total is not None else [SpinnerColumn()]
    with Progress(TextColumn("{task.description}"), *bar, _Rate(unit), left, TextColumn("{task.fields[note]}"),
                  console=console) as shown:
        yield _Bar(shown, label, total)


class _Quiet:
    """For who does not want to be told."""

    def update(self, done: int, items: int, note: str = "") -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""
