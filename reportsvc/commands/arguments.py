"""What the longer commands take on the command line; what they need to run is imported when they do."""

from __future__ import annotations

import argparse
import os
from typing import Any, Final

from reportsvc.config import CLIENT_VARIABLES, Config
from reportsvc.errors import BadConfig

URL, KEY, SECRET = CLIENT_VARIABLES

#: Events older than this would be counted as of now; see reportsvc.api.events.
MAX_DEMO_DAYS: Final = 30
#: A push names its devices, and no push may name more.
MAX_DEMO_DEVICES: Final = 100_000


def add(commands: Any) -> None:
    """Add their parsers."""
    _add_demo(commands)
    _add_import(commands)
    _add_export(commands)
    status = commands.add_parser("status", help="show how the service and its stores are, and what is wrong")
    status.add_argument("--json", action="store_true", help="print one JSON object")
    status.set_defaults(run=_status)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="make an app with some weeks behind it, to look at, and serve")
    demo.add_argument("--app", metavar="NAME", help="of the new app (demo, or demo-2 … if there is one)")
    demo.add_argument("--days", type=_number(1, MAX_DEMO_DAYS), default=14, help="how far back it goes (14)")
    demo.add_argument("--devices", type=_number(1, MAX_DEMO_DEVICES), default=3000, help="how many it has (3000)")
    demo.add_argument("--pushes", type=_number(1, 100), default=3, help="how many a day (3)")
    demo.add_argument("--seed", type=_number(0, 1 << 32), default=1, help="another number makes another app (1)")
    demo.add_argument("--timezone", default="UTC", help="IANA name (UTC)")
    demo.add_argument("--once", action="store_true", help="end when it is made, do not go on serving")
    demo.set_defaults(run=_demo)


def _number(lowest: int, highest: int) -> Any:
    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 19 and lowest <= int(text) <= highest):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {lowest} to {highest}")
        return int(text)
    return number


async def _demo(options: argparse.Namespace, config: Config) -> None:
    from reportsvc.commands import demo
    await demo.run(options, config)


def _add_access(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help=f"of the service ({URL}, or this machine's REPORTSVC_PORT)")
    parser.add_argument("--key", metavar="APP_KEY", help=f"of the app ({KEY})")
    parser.add_argument("--secret", metavar="MASTER_SECRET", help=f"of the app ({SECRET}, which no list of processes "
                                                                  "shows)")


def _add_import(commands: Any) -> None:
    importer = commands.add_parser("import", help="send files of events to a service")
    importer.add_argument("files", nargs="+", metavar="FILE", help="NDJSON or CSV, .gz, .zst; - is standard input")
    _add_access(importer)
    importer.add_argument("--format", choices=("auto", "ndjson", "csv"), default="auto", help="of the files (auto)")
    importer.add_argument("--rejects", metavar="FILE", help="write every refused line there, with its reason")
    importer.add_argument("--accept-skew", action="store_true",
                          help="send events over 31 days old or in the future too; they count as of now")
    importer.add_argument("--no-resume", action="store_true", help="begin anew and keep no FILE.import-state")
    importer.add_argument("--json", action="store_true", help="print the report as one JSON object")
    importer.set_defaults(run=_import)


async def _import(options: argparse.Namespace, config: Config) -> None:
    from reportsvc.commands import importer
    from reportsvc.commands.client import Access
    await importer.run(options, Access(*_access(options, config)), config)


def _add_export(commands: Any) -> None:
    exporter = commands.add_parser("export", help="write reports of a service as a table")
    exporter.add_argument("what", choices=("messages", "timeline", "users"), metavar="messages|timeline|users")
    _add_access(exporter)
    exporter.add_argument("--output", metavar="FILE", default="-", help="(standard output)")
    exporter.add_argument("--format", choices=("csv", "ndjson", "parquet"), help="(that of FILE's name, or csv)")
    exporter.add_argument("--msg-id", metavar="ID", action="append", default=[],
                          help="this message alone, or more of them; for messages and timeline")
    exporter.add_argument("--interval", choices=("hour", "day"), default="hour", help="of a timeline (hour)")
    exporter.add_argument("--days", type=_number(1, 60), default=30, help="of users, until today (30)")
    exporter.set_defaults(run=_export)


async def _status(options: argparse.Namespace, config: Config) -> None:
    from reportsvc.commands import status
    await status.run(options, config)


async def _export(options: argparse.Namespace, config: Config) -> None:
    from reportsvc.commands import exporter
    from reportsvc.commands.client import Access
    await exporter.run(options, Access(*_access(options, config)))


def _access(options: argparse.Namespace, config: Config) -> tuple[str, str, str]:
    """URL, key and secret, from the options or from the environment."""
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
    url = options.url or os.environ.get(URL, "") or f"http://{host}:{config.port}"
    key, secret = options.key or os.environ.get(KEY, ""), options.secret or os.environ.get(SECRET, "")
    if not key or not secret:
        raise BadConfig(f"as which app? Set {KEY} and {SECRET}, or give --key and --secret")
    return url.rstrip("/"), key, secret
