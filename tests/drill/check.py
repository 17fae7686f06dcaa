"""Asks a service for everything it can say, and compares that with what the oracles say."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tests.drill.client import Client
from tests.drill.load import DAY, FIRST_DAY, LAST_DAY, Tenant

#: Differences that are kept to be shown.
SHOWN: Final = 20


@dataclass
class Comparison:
    """How many values were compared, by kind, and what was different."""

    values: Counter[str] = field(default_factory=Counter)
    different: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def compare(self, kind: str, what: str, expected: Any, actual: Any) -> None:
        """Count the values in *expected*, and those that *actual* does not have so."""
        wanted, got = dict(_leaves(expected)), dict(_leaves(actual))
        self.values[kind] += len(wanted)
        for path in sorted({*wanted, *got}):
            if path not in wanted or path not in got or wanted[path] != got[path]:
                self.different[kind] += 1
                if len(self.examples) < SHOWN:
                    self.examples.append(f"{what}{path}: {got.get(path, 'missing')!r}, "
                                         f"but should be {wanted.get(path, 'absent')!r}")


def _leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, part in value.items() for leaf in _leaves(part, f"{path}/{key}")]
    if isinstance(value, list) and value:
        return [leaf for index, part in enumerate(value) for leaf in _leaves(part, f"{path}/{index}")]
    return [(path, value)]


async def compare(client: Client, tenants: Sequence[Tenant]) -> Comparison:
    """Every counter, status, pending list and user figure of every app."""
    comparison = Comparison()
    for tenant in tenants:
        await _compare_tenant(client, tenant, comparison)
    return comparison


async def _compare_tenant(client: Client, tenant: Tenant, comparison: Comparison) -> None:
    oracle, name, headers = tenant.oracle, f"app {tenant.index} ", tenant.headers
    messages = [*tenant.messages, "nobody-heard-of-it"]
    for start in range(0, len(messages), 100):
        part = messages[start:start + 100]
        for path, render in (("received", oracle.received), ("messages", oracle.message)):
            answer = await client.insist("GET", f"/v3/{path}?msg_ids={','.join(part)}", headers=headers)
            comparison.compare("counters", f"{name}{path} from {start}", [render(msg_id) for msg_id in part], answer)
    await asyncio.gather(*(_statuses(client, tenant, messages[worker::4], comparison) for worker in range(4)))
    key = tenant.credentials["pushy_api_key"]
    for msg_id, push in oracle.pushes.items():
        answer = await client.insist("GET", f"/pushes/{msg_id}?api_key={key}")
        _compare_push(comparison, f"{name}push {msg_id} ", push, oracle.pending(msg_id), answer["push"])
    await _users(client, tenant, comparison)


async def _statuses(client: Client, tenant: Tenant, messages: Sequence[str], comparison: Comparison) -> None:
    oracle = tenant.oracle
    devices = [*sorted(oracle.known | set(tenant.devices)), "never-seen"]
    for number, msg_id in enumerate(messages):
        for start in range(0, len(devices), 1000):
            part = devices[start:start + 1000]
            question = {"msg_id": msg_id, "registration_ids": part}
            answer = await client.insist("POST", "/v3/status/message", headers=tenant.headers, body=question)
            comparison.compare("statuses", f"app {tenant.index} status of {msg_id} ", oracle.statuses(msg_id, part),
                               answer)
        if number % 4 == 0:
            date = _date(tenant, LAST_DAY + number // 4 % (FIRST_DAY - LAST_DAY))
            part = devices[number % 500:][:1000]
            answer = await client.insist("POST", "/v3/status/message", headers=tenant.headers, body={
                "msg_id": msg_id, "registration_ids": part, "date": date})
            comparison.compare("past statuses", f"app {tenant.index} status of {msg_id} on {date} ",
                               oracle.past_statuses(msg_id, part, date), answer)


def _compare_push(comparison: Comparison, what: str, push: Any, pending: set[str], answer: Any) -> None:
    listed = answer.pop("pending_devices")
    comparison.compare("pending lists", what, push, answer)
    if len(pending) > 1000:  # as many as are ever listed
        comparison.compare("pending lists", what, [1000, []], [len(listed), sorted(set(listed) - pending)])
    else:
        comparison.compare("pending lists", what, sorted(pending), sorted(listed))


async def _users(client: Client, tenant: Tenant, comparison: Comparison) -> None:
    days = [_date(tenant, ago) for ago in range(FIRST_DAY + 1, LAST_DAY - 1, -1)]
    hours = [f"{days[3]} {hour:02}" for hour in range(24)]
    for unit, form, periods in (("DAY", "%Y-%m-%d", days), ("HOUR", "%Y-%m-%d %H", hours)):
        start = periods[0].replace(" ", "%20")
        answer = await client.insist(
            "GET", f"/v3/users?time_unit={unit}&start={start}&duration={len(periods)}", headers=tenant.headers)
        comparison.compare("user figures", f"app {tenant.index} {unit} ", tenant.oracle.users(form, periods),
                           answer["items"])


def _date(tenant: Tenant, ago: int) -> str:
    return (datetime.fromtimestamp(tenant.midnight + DAY // 2, UTC) - timedelta(days=ago)).strftime("%Y-%m-%d")
