"""Log lines as JSON objects, one a line; never a secret, never a payload."""

from __future__ import annotations

import logging
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
            "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class AccessLogger(AbstractAccessLogger):
    """A line a request; the query is left out, because Pushy's holds the secret key."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Write the line."""
        _ACCESS.info("%s %s", request.method, request.path, extra={"fields": {
            "status": response.status, "milliseconds": round(time * 1000, 1), "bytes": response.body_length,
            "remote": request.remote}})


def configure(level: str) -> None:
    """Write log lines of *level* and above to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
