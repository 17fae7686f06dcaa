"""Who may know whom, held by reading the source: STYLE's rules about modules, SQL, Redis keys and vendor words."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import reportsvc

PACKAGE: Final = Path(reportsvc.__file__).parent
MODULES: Final = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text("utf-8"))
                  for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"}

NOUNS: Final = {"model", "errors", "localtime"}
EVERYTHING: Final = {"*"}
# layer -> (what of this package it may import, which packages of others); a folder, or a module beside the folders
LAYERS: Final = {
    "model": (set(), set()),
    "errors": (set(), set()),
    "localtime": (set(), set()),
    "config": ({"errors"}, set()),
    "logs": (set(), {"aiohttp", "orjson"}),
    "metrics": (NOUNS, {"orjson", "prometheus_client"}),
    "storage": (NOUNS | {"storage"}, {"hiredis", "redis", "clickhouse_connect", "numpy", "orjson"}),
    "registry": (NOUNS | {"storage", "registry"}, {"numpy", "orjson"}),
    "pipeline": (NOUNS | {"storage", "registry", "pipeline", "metrics"}, {"numpy", "orjson"}),
    "reports": (NOUNS | {"storage", "registry", "reports", "metrics"}, {"numpy", "orjson"}),
    # Of the stores, only the plain data that questions and answers are made of.
    "api": (NOUNS | {"storage.queries", "registry", "pipeline", "reports", "api", "metrics"},
            {"aiohttp", "aiohttp_basicauth", "jwt", "orjson"}),
    "app": (EVERYTHING, {"aiohttp"}),
    "server": (EVERYTHING, {"aiohttp"}),
    "workers": (EVERYTHING, {"aiohttp", "orjson"}),
    "commands": (EVERYTHING, {"aiohttp", "backports", "compression", "orjson", "pyarrow", "rich"}),
    "__main__": (EVERYTHING, {"orjson"}),
}


def imports(tree: ast.Module) -> Iterator[str]:
    """Full names of the modules that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            module = node.module or ""
            # `from reportsvc.pipeline import ledger` imports a module; `from reportsvc.model import App` does not.
            for alias in node.names:
                name = f"{module}.{alias.name}"
                is_module = name.removeprefix("reportsvc.") in MODULES or name == f"reportsvc.{alias.name}"
                yield name if is_module else module


def texts(tree: ast.Module) -> Iterator[str]:
    """Every string in a module, docstrings left out; of one with values in it, the parts between them."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def layer_of(module: str) -> str:
    """The row of LAYERS for a module of this package."""
    return module.partition(".")[0]


def test_there_is_something_to_look_at() -> None:
    """The source was found, and every module belongs to a layer."""
    assert {"app", "model", "api.routes", "storage.redis", "pipeline.apply"} <= set(MODULES)
    assert {layer_of(module) for module in MODULES} <= set(LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_its_layer_may(module: str) -> None:
    """Imports point downwards: nouns, stores, then registry, then pipeline and reports, then dialects, then the app."""
    ours, others = LAYERS[layer_of(module)]
    imported = set(imports(MODULES[module]))
    own = {name.removeprefix("reportsvc.") for name in imported if name.startswith("reportsvc.")}
    foreign = {name.partition(".")[0] for name in imported if name.partition(".")[0] != "reportsvc"}

    assert [name for name in sorted(own) if ours != EVERYTHING and not {name, layer_of(name)} & ours] == []
    assert sorted(foreign - set(sys.stdlib_module_names) - others) == []


SQL: Final = re.compile(
    r"\b(SELECT|INSERT INTO|DELETE FROM|GROUP BY|ORDER BY|(CREATE|DROP|ALTER) (TABLE|DATABASE|VIEW))\b")


@pytest.mark.parametrize("module", [module for module in MODULES if layer_of(module) != "storage"])
def test_sql_is_written_in_storage_alone(module: str) -> None:
    """Whoever changes a table has two folders to read: storage/ and migrations/."""
    assert [text for text in texts(MODULES[module]) if SQL.search(text)] == []


def is_command_word(node: ast.expr) -> bool:
    """Whether this is written like a Redis command: ``"XGROUP"``, ``"CREATE"``; those of HTTP are not."""
    return (isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isupper()
            and node.value not in ("POST", "PUT", "DELETE"))


def literal_keys(tree: ast.Module) -> Iterator[str]:
    """Redis keys that are spelled in place: in commands, by their hash tag, or in Lua."""
    for node in ast.walk(tree):
        words = node.elts if isinstance(node, ast.Tuple) else node.args if isinstance(node, ast.Call) else []
        if words and is_command_word(words[0]):
            key = next((word for word in words if not is_command_word(word)), None)
            if isinstance(key, ast.JoinedStr) or isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield ast.unparse(key)
        if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant) and re.fullmatch(
                r"[a-z?*]?\{", str(node.values[0].value)):
            yield ast.unparse(node)
    for text in texts(tree):
        # A word in capitals is no key but a second part of the command: XINFO STREAM.
        yield from re.findall(r"redis\.call\('\w+', *'(?![A-Z]+')[^']+'", text)


@pytest.mark.parametrize("source", [
    'redis.call("HGET", "apps", "v")', 'commands = [("UNLINK", f"m{{{app_id}:{msg_id}}}")]',
    'redis.call("XGROUP", "CREATE", "j{0}", GROUP)', 'pattern = f"?{{{app_id}:*"',
    'Script("""return redis.call(\'GET\', \'apps\')""")',
])
def test_spelled_keys_are_found(source: str) -> None:
    """The search below finds a key in each of the ways one might be spelled."""
    assert len(list(literal_keys(ast.parse(source)))) >= 1


# What describes the API is full of formats and paths that look like keys, and may not import what talks to Redis.
@pytest.mark.parametrize("module", [module for module in MODULES
                                    if module != "storage.redis" and not module.startswith("api.openapi.")])
def test_redis_keys_are_spelled_in_one_module(module: str) -> None:
    """Keys come from the named functions of storage/redis.py; nobody else knows what they look like."""
    assert list(literal_keys(MODULES[module])) == []


VENDORS: Final = re.compile(r"jpush|pushy|beams|pusher", re.IGNORECASE)
#: An app has a key for each vendor's dialect, and a dialect may have a limit; those have to be kept under some name.
CREDENTIALS: Final = {"pushy_api_key", "pushy_api_key_sha256", "by_pushy_api_key", "_by_pushy_digest",
                      "beams_instance_id", "beams_secret_key", "rate_limit_pushy"}


def identifiers(tree: ast.Module) -> Iterator[str]:
    """Every name that a module defines or uses."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name"):
            name = getattr(node, field, None)
            if isinstance(name, str):
                yield name


@pytest.mark.parametrize("module", [
    module for module in MODULES if layer_of(module) not in ("api", "app", "server", "commands", "__main__")])
def test_vendor_words_stop_at_the_dialects(module: str) -> None:
    """Nothing below the dialects is named after a vendor, but for an app's keys and a dialect's settings."""
    assert {name for name in identifiers(MODULES[module]) if VENDORS.search(name)} <= CREDENTIALS


def test_commands_start_without_what_only_serving_needs() -> None:
    """The command line starts fast: the HTTP server and the engine are imported by who needs them."""
    heavy = ("aiohttp", "clickhouse_connect", "chdb")
    script = f"import reportsvc.__main__, sys; print([name for name in {heavy} if name in sys.modules])"

    assert subprocess.run([sys.executable, "-c", script], cwd=PACKAGE.parent, check=True, capture_output=True,
                          text=True).stdout == "[]\n"
