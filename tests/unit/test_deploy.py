"""The files in ``deploy/`` name settings, commands, ports, paths and figures of the service that really exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

import reportsvc
from reportsvc.__main__ import _parser
from reportsvc.api.common import BODY_SECONDS, MAX_BODY_BYTES
from reportsvc.api.routes import OPERATIONS
from reportsvc.config import VARIABLES, Config
from reportsvc.errors import StoreUnavailable
from reportsvc.server import HEAD_SECONDS, MAX_LINE_BYTES, SEND_SECONDS
from reportsvc.storage.embedded import TUNING, redis_program
from reportsvc.storage.redis import Redis
from tests.support.redis_cluster import free_port
from tests.support.service import eventually

DEPLOY: Final = Path(reportsvc.__file__).parent.parent / "deploy"
FILES: Final = {str(path.relative_to(DEPLOY)): path.read_text("utf-8") for path in sorted(DEPLOY.rglob("*"))
                if path.is_file() and path.suffix not in (".json", ".png")}
NGINX: Final = FILES["nginx/nginx.conf"]


def settings(text: str) -> dict[str, str]:
    """What a file sets: ``REPORTSVC_X: "1"``, ``REPORTSVC_X=1``; what stands in comments and prose left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found = re.findall(r'^\s*(?:Environment=|ENV )?(REPORTSVC_\w+)[:=] ?"?([^"\n\\]*?)"?\s*\\?$', "\n".join(lines),
                       re.MULTILINE)
    return {name: re.sub(r"\$\{CLICKHOUSE_PASSWORD[^}]*\}", "secret", value).replace("%i", "9101")
            for name, value in found}


def test_there_is_something_to_look_at() -> None:
    """The files were found, and settings in them."""
    assert {"Dockerfile", "compose.yaml", "kubernetes/api.yaml", "systemd/reportsvc-api.service", "RUNBOOK.md",
            "SIZING.md"} <= set(FILES)
    assert settings(FILES["compose.yaml"])["REPORTSVC_PARTITIONS"] == "4"
    assert settings(FILES["Dockerfile"])["REPORTSVC_HOST"] == "0.0.0.0"
    assert settings(FILES["kubernetes/config.yaml"])["REPORTSVC_REDIS_REPLICAS"] == "1"


@pytest.mark.parametrize("name", FILES)
def test_every_setting_exists(name: str) -> None:
    """A file names no variable that the service would refuse to start with."""
    assert set(re.findall(r"REPORTSVC_[A-Z_]*[A-Z]", FILES[name])) - set(VARIABLES) == set()


@pytest.mark.parametrize("name", [name for name, text in FILES.items() if settings(text)])
def test_every_value_can_be_read(name: str) -> None:
    """What a file sets, the service takes, on stores of one's own."""
    stores = {"REPORTSVC_REDIS_URL": "redis://redis", "REPORTSVC_CLICKHOUSE_URL": "http://clickhouse:8123"}

    Config.from_env(stores | settings(FILES[name]))


def commands(text: str) -> list[list[str]]:
    """Every command of the service that a file runs, as its words."""
    lists = re.findall(r"^\s*(?:command|args|CMD):? \[((?:serve|\"serve\"|migrate|apps)[^\]]*)\]", text, re.MULTILINE)
    lines = re.findall(r"^ExecStart=\S*/reportsvc (.*)$", text, re.MULTILINE)
    lines += re.findall(r"(?:^|[`\s])(?:\S*/)?reportsvc ((?:serve|migrate|apps|rebuild|ledger|deadletters|status|import"
                        r"|export|demo)\b[^`\n#|]*)", text, re.MULTILINE)
    return [[word.strip(' "') for word in words.split(",")] for words in lists] + [shlex.split(line) for line in lines]


def test_commands_are_found() -> None:
    """In every form in which a file may have one."""
    assert commands("    command: [serve, --role, api]\nCMD [\"serve\"]\n") == [["serve", "--role", "api"], ["serve"]]
    assert commands("ExecStart=/opt/bin/reportsvc serve --workers 4\n")[0] == ["serve", "--workers", "4"]
    assert commands("run `reportsvc rebuild --force`, then\n") == [["rebuild", "--force"]]


@pytest.mark.parametrize("name", [name for name, text in FILES.items() if commands(text)])
def test_every_command_can_be_given(name: str) -> None:
    """A container, a unit or a page of the run book gives no command or option that there is not."""
    for words in commands(FILES[name]):
        try:
            _parser().parse_args([word for word in words if word not in ("…", "...")])
        except SystemExit:
            pytest.fail(f"{name}: reportsvc {' '.join(words)}")


def test_ports_and_paths_are_those_of_the_service() -> None:
    """Containers open the port that the service listens on, and probes ask a path that every role answers."""
    port = str(Config().port)
    paths = {route.path for route in OPERATIONS}
    probed = [path for text in FILES.values() for path in re.findall(r"(?:httpGet: \{path: |:8080)(/\w+)", text)]

    assert f"EXPOSE {port}\n" in FILES["Dockerfile"]
    assert set(re.findall(r"containerPort: (\d+)", FILES["kubernetes/api.yaml"])) == {port}
    assert set(re.findall(r"server api-\d:(\d+)", NGINX)) == {port}
    assert set(re.findall(r"server api-\d api-\d:(\d+)", FILES["nginx/haproxy.cfg"])) == {port}
    assert len(probed) >= 7
    assert set(probed) <= paths


def test_no_probe_asks_the_stores() -> None:
    """While one store is away the other's half of the service goes on, so nothing may take a process out for that."""
    assert [name for name, text in FILES.items() if name.startswith(("kubernetes/", "nginx/", "Docker", "compose"))
            and re.search(r"(?:path: |GET |8080)/readyz", text)] == []


def test_proxies_keep_to_the_limits_of_the_service() -> None:
    """What the service takes, and what it wants to refuse in its own words, a proxy lets through; and the proxy is the
    one that gives idle connections up."""
    def nginx(name: str) -> str:
        found = re.findall(rf"^\s*{name} (.*);$", NGINX, re.MULTILINE)
        assert len(found) >= 1, name
        return str(found[0])

    keepalive = int(re.findall(r"keepalive 128;\n\s*keepalive_timeout (\d+)s;", NGINX)[0])
    assert keepalive < Config().keepalive < int(settings(FILES["compose.yaml"])["REPORTSVC_KEEPALIVE"])
    assert int(nginx("client_max_body_size").rstrip("m")) << 20 > MAX_BODY_BYTES
    assert nginx("large_client_header_buffers") == f"8 {MAX_LINE_BYTES >> 10}k"
    assert nginx("client_header_timeout") == f"{HEAD_SECONDS:.0f}s"
    assert nginx("client_body_timeout") == f"{BODY_SECONDS:.0f}s"
    assert nginx("send_timeout") == f"{SEND_SECONDS:.0f}s"
    assert (nginx("merge_slashes"), nginx("proxy_pass")) == ("off", "http://reportsvc")
    assert int(re.findall(r"tune.bufsize (\d+)", FILES["nginx/haproxy.cfg"])[0]) > MAX_LINE_BYTES
    assert f"timeout http-request {HEAD_SECONDS:.0f}s" in FILES["nginx/haproxy.cfg"]


def test_there_are_not_more_aggregators_than_partitions() -> None:
    """An aggregator more than there are partitions would have nothing to do."""
    most = int(re.findall(r"maxReplicas: (\d+)", FILES["kubernetes/aggregator.yaml"])[0])

    assert most <= int(settings(FILES["kubernetes/config.yaml"])["REPORTSVC_PARTITIONS"])
    assert FILES["compose.yaml"].count("<<: *aggregator") + 1 <= int(
        settings(FILES["compose.yaml"])["REPORTSVC_PARTITIONS"])


async def test_redis_takes_its_settings(short_dir: Path) -> None:
    """A redis-server starts with the file, also as a node of a cluster, and has what the embedded one has."""
    one = FILES["redis/redis.conf"].replace("dir /data", f"dir {short_dir}")
    (short_dir / "redis.conf").write_text(one)
    (short_dir / "cluster.conf").write_text(
        FILES["redis/cluster.conf"].replace("include /etc/redis.conf", f"include {short_dir}/redis.conf"))
    for name, port in (("redis.conf", 0), ("cluster.conf", free_port())):
        socket = short_dir / "redis.sock"
        process = subprocess.Popen([redis_program(), short_dir / name, "--port", str(port), "--bind", "127.0.0.1",
                                    "--unixsocket", socket, "--logfile", short_dir / "log"])
        redis = Redis(f"unix://{socket}")
        try:
            async def is_up() -> bool:
                with suppress(StoreUnavailable):
                    return bool(await redis.call("PING"))
                return False
            await eventually(is_up)
            for setting, value in {**TUNING, "appendonly": "yes", "appendfsync": "always", "save": ""}.items():
                reply = await redis.call("CONFIG", "GET", setting)
                values = list(reply.values()) if isinstance(reply, dict) else reply[1:]
                assert [one.decode() if isinstance(one, bytes) else one for one in values] == [value]
        finally:
            await redis.close()
            process.kill()
            process.wait()
            socket.unlink(missing_ok=True)
