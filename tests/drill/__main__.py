"""``python -m tests.drill [--quick] [--seed SEED] [--rig embedded|servers]``: run the drills, print the table."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.drill.drill import Embedded, Servers, run

RIGS = {rig.name: rig for rig in (Embedded, Servers)}


def main() -> int:
    """The exit status is 1 when anything was different from what it must be."""
    parser = argparse.ArgumentParser(description="Crash drills against an oracle.")
    parser.add_argument("--quick", action="store_true", help="the short form")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="to repeat a run")
    parser.add_argument("--rig", choices=list(RIGS), help="only this one")
    options = parser.parse_args()
    # A unix socket's path is short.
    directory = Path(tempfile.mkdtemp(prefix="drill-", dir="/tmp"))
    print(f"seed {options.seed}, files in {directory}", flush=True)
    report = asyncio.run(run(directory, options.seed, quick=options.quick,
                             rigs=[RIGS[options.rig]] if options.rig else list(RIGS.values()),
                             tell=lambda line: print(line, flush=True)))
    print(f"\n{report.table()}\nseed {options.seed}")
    if report.faults:
        print(f"FAILED; what is left is in {directory}")
        return 1
    shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
