"""``make fuzz``: many calls of all sorts; a quarter of an hour, or as long as asked for."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from reportsvc.config import Config
from tests.fuzz.run import fuzz
from tests.support.service import running


async def main() -> int:
    """Start a service on stores of its own, and run against it with ids that are known and with any."""
    parser = argparse.ArgumentParser(prog="make fuzz")
    parser.add_argument("--examples", type=int, default=1000, help="calls of each operation in each run")
    parser.add_argument("--seed", help="that of a run to repeat")
    given = parser.parse_args()
    options = ["--max-examples", str(given.examples)] + (["--seed", given.seed] if given.seed else [])
    worst = 0
    with tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp") as directory:
        async with running(Config(host="127.0.0.1", port=0, data_dir=Path(directory), rate_limit=0)) as service:
            for known in (True, False):
                account = await service.make_account(f"fuzz {known}")
                outcome = await fuzz(service, account, Path(directory), *options, known=known)
                print(outcome.output, flush=True)
                worst = max(worst, outcome.code)
    return worst


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
