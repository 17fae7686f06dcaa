"""Processes that a benchmark starts: the service on embedded stores of its own, and the servers beside it."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis as redis_py

from reportsvc.storage.embedded import redis_directory
from reportsvc.storage.redis import ledger_key

#: One connection a thread, kept open as SDKs keep theirs.
_LOCAL = threading.local()


@dataclass(frozen=True)
class Target:
    """A running service, and the app that its first start made."""

    url: str
    credentials: dict[str, str]
    data_dir: Path
    process: subprocess.Popen[str]

    @property
    def auth(self) -> dict[str, str]:
        """The Authorization header."""
        pair = f"{self.credentials['app_key']}:{self.credentials['master_secret']}"
        return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}

    @property
    def redis_url(self) -> str:
        """Its Redis."""
        return f"unix://{redis_directory(self.data_dir)}/redis.sock"

    def call(self, method: str, path: str, body: bytes | None = None, content_type: str = "application/json") -> Any:
        """One request; the decoded answer."""
        connection = getattr(_LOCAL, "connection", None)
        # One that was idle for longer than the service keeps it is of no use.
        if connection is None or _LOCAL.url != self.url or time.monotonic() - _LOCAL.used > 10:
            connection = _LOCAL.connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=120)
            _LOCAL.url = self.url
        _LOCAL.used = time.monotonic()
        connection.request(method, path, body, self.auth | {"Content-Type": content_type})
        response = connection.getresponse()
        text = response.read()
        assert response.status < 300, text
        return json.loads(text) if text else None

    def ledger(self) -> dict[str, int]:
        """The counters of the journal, from Redis: a command of the service would take a second of the machine."""
        with redis_py.Redis.from_url(self.redis_url) as client:
            return {name: int(client.hget(ledger_key(0), name) or 0) for name in ("accepted", "applied", "dead")}

    def settle(self, seconds: float = 600.0) -> None:
        """Wait until everything accepted is applied."""
        deadline = time.monotonic() + seconds
        while (ledger := self.ledger())["accepted"] != ledger["applied"] + ledger["dead"]:
            assert time.monotonic() < deadline, ledger
            time.sleep(0.2)

    def settle_files(self, seconds: float = 600.0) -> None:
        """Wait until Redis does not write its file anew, which takes a core."""
        deadline = time.monotonic() + seconds
        with redis_py.Redis.from_url(self.redis_url) as client:
            while client.info("persistence")["aof_rewrite_in_progress"]:
                assert time.monotonic() < deadline
                time.sleep(0.2)


def _environment(data_dir: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REPORTSVC_")}
    return kept | {"REPORTSVC_DATA_DIR": str(data_dir), "REPORTSVC_PORT": "0",
                   "REPORTSVC_DEVICE_CACHE": "25000000", "REPORTSVC_RATE_LIMIT": "0"}


@contextmanager
def service() -> Iterator[Target]:
    """The service on an empty data directory."""
    data_dir = Path(tempfile.mkdtemp(prefix="rsb-", dir="/tmp"))
    process = subprocess.Popen([sys.executable, "-m", "reportsvc", "serve"], stdout=subprocess.PIPE, text=True,
                               env=_environment(data_dir))
    try:
        url, credentials = _read_greeting(process)
        yield Target(url, credentials, data_dir, process)
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(data_dir, ignore_errors=True)


def _read_greeting(process: subprocess.Popen[str]) -> tuple[str, dict[str, str]]:
    assert process.stdout
    url, credentials = "", {}
    for line in process.stdout:
        words = line.split()
        if line.startswith("reportsvc is ready on "):
            url = words[-1]
        elif line.startswith("  ") and len(words) == 2:
            credentials[words[0]] = words[1]
        elif line.startswith("Paste"):
            return url, credentials
    raise AssertionError("the service did not start")


@contextmanager
def beside(name: str, redis_url: str = "") -> Iterator[str]:
    """One of the servers of ``servers.py``; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.servers", name, str(port), redis_url])
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, f"{name} did not start"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
