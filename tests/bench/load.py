"""Load generators: ``wrk`` where it is installed, else a loop over raw sockets, in a process of its own.

Both send the same prepared requests, each connection one after the other, and wait for each answer.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_LUA = Path(__file__).with_name("requests.lua")


@dataclass(frozen=True)
class Request:
    """One kind of request: what differs from one to the next is the body."""

    method: str
    url: str
    headers: dict[str, str]
    bodies: Sequence[bytes] = (b"",)


@dataclass(frozen=True)
class Load:
    """What a run measured; latencies in milliseconds."""

    requests_per_second: float
    p50: float
    p99: float
    errors: int


def generator() -> str:
    """The name of the generator that :func:`run` uses."""
    return "wrk" if shutil.which("wrk") else "raw sockets"


def run(request: Request, connections: int, seconds: float) -> Load:
    """Send *request* over *connections* for *seconds*."""
    with tempfile.TemporaryDirectory() as directory:
        bodies = Path(directory, "bodies")
        # wrk's script reads lines, so line breaks inside a body travel as a byte that JSON never has.
        bodies.write_bytes(b"\n".join(body.replace(b"\n", b"\x01") for body in request.bodies))
        return (_wrk if shutil.which("wrk") else _raw)(request, bodies, connections, seconds)


def _wrk(request: Request, bodies: Path, connections: int, seconds: float) -> Load:
    environment = dict(os.environ, BENCH_METHOD=request.method, BENCH_BODIES=str(bodies),
                       BENCH_HEADERS="\n".join(f"{name}: {value}" for name, value in request.headers.items()))
    output = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s", "--latency", "-s",
         str(_LUA), request.url],
        env=environment, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert rate, output
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    errors = int(bad[1]) if bad else 0
    errors += sum(map(int, sockets.groups())) if sockets else 0
    return Load(float(rate[1]), _milliseconds(output, "50%"), _milliseconds(output, "99%"), errors)


def _milliseconds(output: str, percentile: str) -> float:
    found = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s)\b", output)
    assert found, output
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]


def _raw(request: Request, bodies: Path, connections: int, seconds: float) -> Load:
    arguments = {"method": request.method, "url": request.url, "headers": request.headers, "bodies": str(bodies),
                 "connections": connections, "seconds": seconds}
    output = subprocess.run([sys.executable, "-m", "tests.bench.load", json.dumps(arguments)],
                            capture_output=True, text=True, check=True).stdout
    return Load(**json.loads(output))


class _Connection:
    """One socket that always has one request under way."""

    def __init__(self, address: tuple[str, int], requests: Sequence[bytes], first: int) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._requests = requests
        self._next = first
        self._received = b""
        self._sent_at = 0.0

    def send(self) -> None:
        """Send the next request."""
        self._received = b""
        self._sent_at = time.perf_counter()
        self.socket.sendall(self._requests[self._next % len(self._requests)])
        self._next += 1

    def receive(self) -> tuple[float, bool] | None:
        """Latency and success of the answer, once it is whole."""
        self._received += self.socket.recv(1 << 20)
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return None
        length = re.search(rb"content-length: (\d+)", head, re.I)
        if len(body) < (int(length[1]) if length else 0):
            return None
        return time.perf_counter() - self._sent_at, head[9:10] == b"2"


def _wire(method: str, url: str, headers: dict[str, str], body: bytes) -> bytes:
    """A request as it is sent."""
    parts = urlsplit(url)
    head = f"{method} {parts.path}{'?' + parts.query if parts.query else ''} HTTP/1.1\r\nHost: bench\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def exchanger(request: Request) -> Callable[[], None]:
    """What sends the first body of *request* on a connection of its own and waits for the whole answer."""
    url = urlsplit(request.url)
    assert url.hostname and url.port
    connection = _Connection((url.hostname, url.port), [
        _wire(request.method, request.url, request.headers, request.bodies[0])], 0)

    def exchange() -> None:
        connection.send()
        while (answer := connection.receive()) is None:
            pass
        assert answer[1], "the answer was an error"
    return exchange


def _main(arguments: dict[str, Any]) -> Load:
    url = urlsplit(arguments["url"])
    requests = [_wire(arguments["method"], arguments["url"], arguments["headers"], body.replace(b"\x01", b"\n"))
                for body in Path(arguments["bodies"]).read_bytes().split(b"\n")]
    assert url.hostname and url.port
    selector = selectors.DefaultSelector()
    for number in range(arguments["connections"]):
        connection = _Connection((url.hostname, url.port), requests, number * len(requests) // arguments["connections"])
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.send()
    latencies, errors, start = [], 0, time.perf_counter()
    while time.perf_counter() - start < arguments["seconds"]:
        for key, _ in selector.select(1):
            answer = key.data.receive()
            if answer is not None:
                latencies.append(answer[0])
                errors += not answer[1]
                key.data.send()
    elapsed = time.perf_counter() - start
    latencies.sort()
    return Load(len(latencies) / elapsed, 1000 * latencies[len(latencies) // 2],
                1000 * latencies[len(latencies) * 99 // 100], errors)


if __name__ == "__main__":
    print(json.dumps(_main(json.loads(sys.argv[1])).__dict__))
