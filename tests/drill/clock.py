"""Runs ``reportsvc serve`` on a clock that jumps: ``python -m tests.drill.clock FILE``.

FILE holds the seconds that the clock is ahead, or behind; whoever writes it makes the clock jump.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

_REAL = time.time


class _JumpingClock(threading.Thread):
    """``time.time`` for the whole process; looks at the file ten times a second."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path = path
        self.ahead = float(path.read_text())

    def run(self) -> None:
        """Follow the file."""
        while True:
            time.sleep(0.1)
            text = self._path.read_text()
            if text:
                self.ahead = float(text)

    def __call__(self) -> float:
        return _REAL() + self.ahead


def main() -> int:
    """Patch the clock before anything of the service is imported, then be the command line."""
    clock = _JumpingClock(Path(sys.argv[1]))
    clock.start()
    time.time = clock
    from reportsvc.__main__ import main as command_line
    return command_line(["serve"])


if __name__ == "__main__":
    sys.exit(main())
