"""Log lines as JSON objects, one a line; never a secret, never a payload.

The text of an exception often repeats what it stumbled over, and that may be a key or what somebody sent to a phone. So
tracebacks tell the place and the kind of each exception, and the text only where it comes from the operating system.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

import orjson
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

_ACCESS: Final = logging.getLogger("reportsvc.access")


class JsonFormatter(logging.Formatter):
    """time, level, logger and message of a record, and its ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(), "logger": record.name, "message": _message(record),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1]:
            line["exception"] = "\n\n".join(_descriptions(record.exc_info[1]))
        return orjson.dumps(line, default=str).decode()


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    # What follows the first line of asyncio's are the parts of a task, its exception among them.
    return message.partition("\n")[0] if record.name == "asyncio" else message


def _descriptions(error: BaseException | None) -> Iterator[str]:
    """Traceback and kind of *error*, and of what led to it, the last first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = f": {error}" if isinstance(error, OSError) else ""
        yield "".join(traceback.format_tb(error.__traceback__)) + f"{type(error).__qualname__}{text}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


class AccessLogger(AbstractAccessLogger):
    """A line a request; the query is left out, because Pushy's holds the secret key."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Write the line."""
        _ACCESS.info("%s %s", request.method, request.path, extra={"fields": {
            "status": response.status, "milliseconds": round(time * 1000, 1), "bytes": response.body_length,
            "remote": request.remote}})


def configure(level: str) -> None:
    """Write log lines of *level* and above to standard error; those of libraries from ``info`` on.

    What libraries tell of their work below that is about single requests, with what is in them.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=max(logging.getLevelNamesMapping()[level.upper()], logging.INFO), handlers=[handler],
                        force=True)
    logging.getLogger("reportsvc").setLevel(level.upper())
