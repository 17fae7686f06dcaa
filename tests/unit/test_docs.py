"""The READMEs name everything there is to set, to call and to meet."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest
from aiohttp.web_routedef import RouteDef

import reportsvc
from reportsvc import errors
from reportsvc.__main__ import _parser
from reportsvc.api import beams, beams_device, beams_reporting, jpush, native, pushy
from reportsvc.api.common import Dialect
from reportsvc.api.routes import ROUTES
from reportsvc.config import VARIABLES, Config, field_of
from reportsvc.metrics import METRICS
from reportsvc.model import CHANNELS, KINDS, PLATFORMS, STAGES
from reportsvc.pipeline import deadletter, ledger

ROOT: Final = Path(reportsvc.__file__).parent.parent
README: Final = (ROOT / "README.md").read_text("utf-8")
INSIDE: Final = (ROOT / "reportsvc" / "README.md").read_text("utf-8")
BOTH: Final = README + INSIDE

#: Handlers that only tell a caller what is wrong with his path, or answer a browser's preflight.
UNNAMED: Final = {beams.preflight, beams_reporting.missing_instance, beams_device.missing_instance,
                  beams_device.missing_device, beams_device.missing_interest}


def quoted(text: str) -> set[str]:
    """The words that stand in backquotes, examples left out."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return {word for quote in re.findall(r"`([^`]+)`", prose) for word in re.split(r"[\s,]+", quote)}


def described(route: RouteDef) -> str:
    """A route as a README writes it: ``GET /pushes/<id>``; the zone's prefix of JPush is described once for all."""
    path = re.sub(r"\{(push_id|instance_id)\}", "<id>", route.path)
    path = re.sub(r"\{(\w+)(:[^}]*)?\}", r"<\1>", path)
    return f"{route.method} {path.replace('/v3/report/', '/v3/')}"


def commands(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    """Each command with its options: ``apps create``, ``{"--json", …}``."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in nested:
        for name, parser_of_name in action.choices.items():
            yield from commands(parser_of_name, f"{prefix}{name} ")
    if not nested:
        options = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
        yield prefix.strip(), options - {"--help"}


COMMANDS: Final = dict(commands(_parser()))


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    """A variable's row in the table of settings says what holds without it."""
    rows = dict(re.findall(r"^\| `(REPORTSVC_\w+)` \| (.*?) \|", README, re.MULTILINE))
    defaults = Config(data_dir=Path(".data"))

    assert set(rows) == set(VARIABLES)
    for name, shown in rows.items():
        value = getattr(defaults, field_of(name))
        plain = shown.strip("`").replace(" ", "").replace("1GiB", str(1 << 30)).replace("256MiB", str(256 << 20))
        text = str(int(value) if isinstance(value, bool) else value)
        assert plain in ((text,) if text else ("embedded", "none")), name


def test_every_metric_is_in_the_readme() -> None:
    """A metric's row says its type, its labels and what it tells; a star, that it is the same from every process."""
    rows = re.findall(r"^\| `((?:reportsvc|process)_\w+)` \| (\w+) \| (.*?) ?\| (.*?)(\*?) \|$", README, re.MULTILINE)

    assert rows == [(metric.name, metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.help,
                     "*" if metric.is_shared else "") for metric in METRICS]


@pytest.mark.parametrize("route", sorted({described(route) for route in ROUTES if route.handler not in UNNAMED}))
def test_every_route_is_in_a_readme(route: str) -> None:
    """Whoever reads the READMEs knows every path that can be called."""
    assert f"`{route}`" in BOTH


def test_prefix_of_the_beijing_zone_is_in_the_readme() -> None:
    """The second prefix of the JPush paths is named where the paths are."""
    assert any(route.path.startswith("/v3/report/") for route in ROUTES)
    assert "`/v3/report/`" in README


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme(command: str) -> None:
    """The synopsis names each command, and what it takes."""
    group, _, action = command.partition(" ")
    lines = [line for line in re.findall(r"^reportsvc (.*)$", README, re.MULTILINE)
             if re.match(rf"{group}\b", line) and re.search(rf"\b{action}\b", line)]

    assert lines
    assert [option for option in sorted(COMMANDS[command]) if option not in "\n".join(lines)] == []


@pytest.mark.parametrize("vocabulary", [STAGES, KINDS, PLATFORMS[1:], CHANNELS[1:]],
                         ids=["stages", "kinds", "platforms", "channels"])
def test_every_word_of_an_event_is_in_the_readme(vocabulary: Sequence[str]) -> None:
    """A sender finds the words that he may use."""
    assert [word for word in vocabulary if word not in quoted(README)] == []


@pytest.mark.parametrize("dialect", [jpush.DIALECT, pushy.DIALECT, beams_reporting.DIALECT, beams_device.DIALECT,
                                     beams_device.SERVER_DIALECT, native.DIALECT],
                         ids=["jpush", "pushy", "beams", "beams device", "beams server", "native"])
def test_every_error_has_an_answer_in_every_dialect(dialect: Dialect) -> None:
    """No error of the service can reach a dialect that has no row for it."""
    kinds = [kind for kind in vars(errors).values()
             if isinstance(kind, type) and issubclass(kind, errors.ReportError) and kind is not errors.BadConfig]

    assert errors.ReportError in dialect.errors
    assert None in dialect.framework
    assert [kind.__name__ for kind in kinds if not set(kind.__mro__) & set(dialect.errors)] == []


@pytest.mark.parametrize("reasons", [deadletter.REASONS, ledger.REASONS], ids=["dead letters", "rejections"])
def test_every_reason_is_in_a_readme(reasons: Sequence[str]) -> None:
    """Whoever meets a reason in the ledger or the dead letters can read which there are."""
    assert [reason for reason in reasons if reason not in quoted(BOTH)] == []
