"""``deploy/prometheus`` and ``deploy/grafana`` can be read, and ask for nothing that the service does not tell."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import reportsvc
from reportsvc.api.routes import ROUTES
from reportsvc.metrics import METRICS
from tests.support.service import Account, Clock, Running

DEPLOY: Final = Path(reportsvc.__file__).parent.parent / "deploy"
RULES: Final = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text("utf-8"))
SCRAPES: Final = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text("utf-8"))
ALERTS: Final = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
SERVICE: Final = orjson.loads((DEPLOY / "grafana/service.json").read_bytes())
DELIVERY: Final = orjson.loads((DEPLOY / "grafana/delivery.json").read_bytes())
DASHBOARDS: Final = {"service": SERVICE, "delivery": DELIVERY}

#: What Prometheus itself adds to every series, and the bound of a bucket.
ADDED_LABELS: Final = {"job", "instance", "le"}
#: What Prometheus tells of its scrapes.
OWN_METRICS: Final = {"up": set[str]()}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Its panels, without the headings."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions() -> dict[str, str]:
    """Every PromQL expression there is, by where it stands; Grafana's variables replaced."""
    found = {name: rule["expr"] for name, rule in ALERTS.items()}
    for panel in panels(SERVICE):
        for target in panel["targets"]:
            text = target["expr"].replace("$job", "reportsvc").replace("$__rate_interval", "1m")
            found[f"{panel['title']} {target['refId']}"] = text
    return found


EXPRESSIONS: Final = expressions()


def nodes(expression: Any) -> Iterator[Any]:
    """An expression and all in it."""
    yield expression
    for name in ("lhs", "rhs", "expr", "vector_selector", "args", "param"):
        inner = getattr(expression, name, None)
        for one in inner if isinstance(inner, list) else [inner]:
            if one is not None:
                yield from nodes(one)


def asked(text: str) -> tuple[set[str], set[str]]:
    """The series that an expression asks for, and the labels that it names."""
    series, labels = set[str](), set[str]()
    for node in nodes(promql.parse(text)):
        if isinstance(node, promql.VectorSelector):
            series.add(str(node.name))
            labels |= {matcher.name for matcher in node.matchers.matchers}
        elif isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            labels |= set(node.modifier.labels)
    return series, labels


def labels_of(series: str) -> set[str]:
    """What labels a series of ours has."""
    metric = next(one for one in METRICS if series in (one.name, *(f"{one.name}_{part}" for part in (
        "bucket", "sum", "count"))))
    return set(metric.labels)


# ---------------------------------------------------------------------------------------------------------- Prometheus
async def test_every_series_that_is_asked_for_is_served(running_service: Running, account: Account) -> None:
    """Alerts and dashboard name only what a running service tells, and only labels that it has."""
    await running_service.send(account, {"msg_id": "m", "stage": "received", "device_id": "d"})
    text = (await running_service.call("GET", "/metrics")).body.decode()
    served = {name for family in text_string_to_metric_families(text) for name in (
        [f"{family.name}_{part}" for part in ("bucket", "sum", "count")] if family.type == "histogram"
        else [f"{family.name}_total" if family.type == "counter" else family.name])}

    for place, expression in EXPRESSIONS.items():
        series, labels = asked(expression)
        assert series and series - served - set(OWN_METRICS) == set(), place
        allowed = set().union(*(labels_of(one) for one in series - set(OWN_METRICS))) | ADDED_LABELS
        assert labels <= allowed, place


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_alert_says_what_to_do(name: str) -> None:
    """Each alert has a name of its own, a severity, what is wrong, and what to do about it; it names no label that its
    expression drops."""
    rule = ALERTS[name]

    assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("page", "warn")
    assert set(rule["annotations"]) == {"summary", "action"}
    assert re.fullmatch(r"\d+[ms]", rule.get("for", "0s"))
    outer = promql.parse(rule["expr"])
    assert isinstance(outer, promql.BinaryExpr)  # something over a bound
    shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    kept = asked(rule["expr"])[1] | (ADDED_LABELS if " by " not in rule["expr"] else set())
    assert shown <= kept


def test_there_is_an_alert_for_each_danger() -> None:
    """What the run book promises to tell of is told of."""
    assert sum(len(group["rules"]) for group in RULES["groups"]) == len(ALERTS)
    assert set(ALERTS) >= {
        "ReportsvcStoreDown", "ReportsvcAggregatorStopped", "ReportsvcEventsWait", "ReportsvcJournalFills",
        "ReportsvcDeadLetters", "ReportsvcServerErrors", "ReportsvcSlowIngest", "ReportsvcSlowReports"}


def test_routes_that_alerts_name_exist() -> None:
    """A pattern of routes in an alert finds the routes that it means."""
    paths = {re.sub(r"\{(\w+):[^{}]*\}", r"{\1}", route.path) for route in ROUTES}
    for expression in EXPRESSIONS.values():
        for node in nodes(promql.parse(expression)):
            for matcher in node.matchers.matchers if isinstance(node, promql.VectorSelector) else ():
                if matcher.name == "route":
                    for part in matcher.value.split("|"):
                        assert any(re.fullmatch(part, path) for path in paths), part


def test_scrape_example() -> None:
    """The example asks at a path that there is, and loads the rules that lie beside it."""
    [job] = SCRAPES["scrape_configs"]

    assert ("GET", job["metrics_path"]) in {(route.method, route.path) for route in ROUTES}
    assert [(DEPLOY / "prometheus" / name).is_file() for name in SCRAPES["rule_files"]] == [True]
    assert f'job="{job["job_name"]}"' in ALERTS["ReportsvcProcessDown"]["expr"]


@pytest.mark.parametrize("expression", ["sum(rate(reportsvc_http_requests_total[5m])", "rate(up)", "up{job=reportsvc}"])
def test_wrong_syntax_is_found(expression: str) -> None:
    """The parser that reads them all refuses what Prometheus would refuse."""
    with pytest.raises(ValueError):
        promql.parse(expression)


# ------------------------------------------------------------------------------------------------------------- Grafana
@pytest.mark.parametrize("name", DASHBOARDS)
def test_dashboard_is_whole(name: str) -> None:
    """Panels have ids of their own and lie side by side; each asks the chosen source for something, and every variable
    that is used is defined."""
    dashboard = DASHBOARDS[name]
    ids = [panel["id"] for panel in dashboard["panels"]]
    places = [(x, y) for panel in dashboard["panels"] for at in [panel["gridPos"]]
              for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
    defined = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", orjson.dumps(dashboard).decode()))

    assert dashboard["uid"] == f"reportsvc-{name}"
    assert len(set(ids)) == len(ids)
    assert len(set(places)) == len(places)
    assert all(0 <= x < 24 for x, _ in places)
    assert used == defined
    for panel in panels(dashboard):
        assert panel["title"] and panel["targets"]
        for part in (panel, *panel["targets"]):
            assert part["datasource"]["uid"] == "${datasource}", panel["title"]


def statements() -> dict[str, str]:
    """The SQL of the dashboard of deliveries, by panel or variable."""
    variables = [variable for variable in DELIVERY["templating"]["list"] if variable["type"] == "query"]
    return {panel["title"]: target["rawSql"] for panel in panels(DELIVERY) for target in panel["targets"]} | {
        variable["name"]: variable["query"] for variable in variables}


async def ask(service: Running, name: str, app_id: int, message: str = "m") -> list[tuple[Any, ...]]:
    """The rows of a panel, with the variables as a user would have chosen them."""
    now = int(service.clock())
    sql = statements()[name].replace("${app}", str(app_id)).replace("${message:sqlstring}", f"'{message}'")
    sql = sql.replace("${timezone}", "UTC").replace("now()", f"toDateTime({now}, 'UTC')")
    sql = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 >= toDateTime({now - 7 * 86400}) AND \1 <= toDateTime({now})", sql)
    assert "$" not in sql
    return [tuple(row) for row in await service.service.clickhouse.query(sql, {}, label="test")]


def event(message: str, stage: str, number: int, **more: Any) -> dict[str, Any]:
    """An event of a device; an odd one is of ios, an even one of android."""
    return {"msg_id": message, "stage": stage, "device_id": f"d{number}", **more}


PLATFORMS: Final = [{"device_id": f"d{number}", "platform": ("android", "ios")[number % 2]} for number in range(6)]


async def fill(service: Running, account: Account) -> None:
    """Some devices and events, half of which name no platform; some happened two hours earlier."""
    earlier = int(service.clock()) - 7200
    await service.call("POST", "/v1/devices", account, json=PLATFORMS)
    await service.send(
        account, *(event("m", "target", n) for n in range(6)), *(event("m", "received", n) for n in range(5)),
        event("m", "received", 0, ts=earlier, platform="android"), event("m", "click", 1, platform="ios"),
        event("m", "received", 99), event("m", "received", 4, channel="xiaomi"), event("other", "sent", 2))


async def test_dashboard_of_deliveries_says_what_the_reports_say(running_service: Running, account: Account) -> None:
    """Its SQL counts distinct devices, once over all hours, and gives a device's platform to events that name none."""
    await running_service.make_account("another")
    await fill(running_service, account)
    app = account.app.id
    report = (await running_service.call("GET", "/v1/messages/m", account)).json["message"]

    [funnel] = await ask(running_service, "Funnel", app)
    assert funnel == (6, None, None, 6, None, 1) == tuple(report["totals"][stage] for stage in (
        "target", "sent", "online_push", "received", "display", "click"))
    recent = await ask(running_service, "Recent messages", app)
    assert {row[0]: row[2:] for row in recent} == {
        "m": (6, None, 6, None, 1, 1.0, 1 / 6), "other": (None, 1, None, None, None, None, None)}
    by_platform = {row[0]: row[1:] for row in await ask(running_service, "By platform", app)}
    assert by_platform == {"android": (None, 3, None), "ios": (None, 2, 1), "unknown": (None, 1, None)}
    assert {name: (counts.get("received"), counts.get("click")) for name, counts in report["platforms"].items()
            if counts.get("received")} == {name: row[1:] for name, row in by_platform.items()}
    assert dict(row[:1] + row[2:3] for row in await ask(running_service, "By channel", app)) == {
        "of the platform": 6, "jg_android": 1, "apns": None, "xiaomi": 1}
    hours = await ask(running_service, "Devices each hour, by stage", app)
    assert sorted((stage, devices) for _, stage, devices in hours) == [
        ("click", 1), ("received", 1), ("received", 6), ("target", 6)]


async def test_dashboard_of_deliveries_knows_who_is_there(running_service: Running, account: Account) -> None:
    """Devices by day and by platform are those of ``/v3/users`` and of the registry; a deleted one is none."""
    await fill(running_service, account)
    await running_service.call("DELETE", "/v1/devices/d3", account)
    await running_service.applied()
    app = account.app.id

    assert sorted(await ask(running_service, "Known devices", app)) == [("android", 3), ("ios", 2), ("unknown", 1)]
    by_day = await ask(running_service, "Online and active, by day", app)
    assert sum(devices for _, measure, devices in by_day if measure == "active") == 1
    assert max(devices for _, measure, devices in by_day if measure == "online") == 7
    assert sum(devices for _, devices in await ask(running_service, "New, by day", app)) == 7


async def test_variables_offer_what_there_is(running_service: Running, account: Account) -> None:
    """One chooses among the apps by name, and among the messages that are alive."""
    elsewhere = await running_service.make_account("another", timezone="Asia/Shanghai")
    await fill(running_service, account)
    for app, version in ((account.app, 1), (elsewhere.app, 2)):
        await store_app(running_service, app.id, app.name, app.timezone, version)

    assert await ask(running_service, "app", 0) == [("another", "2"), ("test", "1")]
    assert await ask(running_service, "timezone", elsewhere.app.id) == [("Asia/Shanghai",)]
    assert sorted(await ask(running_service, "message", account.app.id)) == [("m",), ("other",)]


async def store_app(service: Running, app_id: int, name: str, timezone: str, version: int) -> None:
    """What the aggregator stores of an app that the command line makes."""
    record = orjson.dumps({"id": app_id, "name": name, "timezone": timezone}).decode()
    await service.service.clickhouse.command(
        "INSERT INTO apps VALUES ({app:UInt32}, {record:String}, {version:UInt64})",
        {"app": app_id, "record": record, "version": version})


async def test_message_whose_month_is_over_is_not_shown(running_service: Running, account: Account,
                                                        clock: Clock) -> None:
    """As in every report, a message without a delivery for a month is gone from all panels."""
    await fill(running_service, account)
    clock.ahead += 40 * 86400
    empty: Sequence[tuple[Any, ...]] = []

    for panel in ("Recent messages", "Funnel", "By platform", "By channel", "Devices each hour, by stage", "message"):
        assert await ask(running_service, panel, account.app.id) == empty, panel
