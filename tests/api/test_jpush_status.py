"""JPush ``/v3/status/message``: what became of a message on given devices, now and on past days."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.api.helpers import at_noon, jpush_error, reached
from tests.support.service import Account, Clock, Running


async def ask(service: Running, account: Account, msg_id: object, *device_ids: object, **more: Any) -> Any:
    """The statuses of *device_ids*, as numbers."""
    body = {"msg_id": msg_id, "registration_ids": list(device_ids)} | more
    answer = await service.call("POST", "/v3/status/message", account, json=body)
    assert answer.status == 200, answer.body
    assert all(list(entry) == ["status"] for entry in answer.json.values())
    return {device_id: entry["status"] for device_id, entry in answer.json.items()}


async def register_push(service: Running, account: Account, msg_id: object, audience: object) -> None:
    """Register a push, and wait until all of it is applied."""
    answer = await service.call("POST", "/v1/pushes", account, json={"msg_id": msg_id, "audience": audience})
    assert answer.status == 201, answer.body
    await service.applied()


async def test_status_answers_the_published_example(running_service: Running, account: Account) -> None:
    """The vendor's example: one device has the message, two ids are of no device of the app; in the order asked."""

    await running_service.send(account, {"msg_id": 327640176, "stage": "received", "device_id": "1507bfd3a7c568d4761"})

    answer = await running_service.call("POST", "/v3/status/message", account, json={
        "msg_id": 327640176, "registration_ids": ["02078f0f1b8", "1507bfd3a7c568d4761", "0207870a9b8"]})

    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.body == (
        b'{"02078f0f1b8":{"status":2},"1507bfd3a7c568d4761":{"status":0},"0207870a9b8":{"status":2}}')


async def test_every_target_stage_makes_a_target(running_service: Running, account: Account) -> None:
    """``target``, ``sent`` and ``online_push`` make a device a target; ``display`` and ``click`` do not."""

    stages = ["target", "sent", "online_push", "received", "display", "click"]
    await running_service.send(account, *({"msg_id": "m", "stage": stage, "device_id": stage} for stage in stages),
                               {"stage": "online", "device_id": "elsewhere"})

    assert await ask(running_service, account, "m", *stages, "elsewhere", "stranger") == {
        "target": 1, "sent": 1, "online_push": 1, "received": 0, "display": 3, "click": 3, "elsewhere": 3,
        "stranger": 2}


async def test_receipt_turns_a_target_into_received(running_service: Running, account: Account) -> None:
    """A registered target is 1 until its receipt arrives, then 0; a receipt of a device that is no target is 0 too."""

    await running_service.send(account, {"stage": "online", "device_id": "other"})
    await register_push(running_service, account, "m", {"device_ids": ["a", "b"]})
    assert await ask(running_service, account, "m", "a", "b", "other") == {"a": 1, "b": 1, "other": 3}

    await running_service.send(account, *({"msg_id": "m", "stage": "received", "device_id": one}
                                          for one in ("b", "other")))

    assert await ask(running_service, account, "m", "a", "b", "other") == {"a": 1, "b": 0, "other": 0}


async def test_message_nobody_mentioned(running_service: Running, account: Account) -> None:
    """Of a message the app does not have, its devices are no targets."""

    await running_service.send(account, {"stage": "online", "device_id": "a"})

    assert await ask(running_service, account, "m", "a", "b") == {"a": 3, "b": 2}


async def test_push_to_everyone_is_for_the_devices_of_that_moment(running_service: Running, account: Account) -> None:
    """Everybody who was a device when the push was registered is a target, and nobody who came later."""

    await running_service.send(account, *({"stage": "online", "device_id": one} for one in ("a", "b", "gone")))
    await running_service.call("DELETE", "/v1/devices/gone", account)
    await register_push(running_service, account, "m", "all")
    await running_service.send(account, {"stage": "online", "device_id": "late"},
                               {"msg_id": "m", "stage": "received", "device_id": "b"})

    assert await ask(running_service, account, "m", "a", "b", "gone", "late") == {"a": 1, "b": 0, "gone": 2, "late": 3}


async def test_deleted_device_is_not_of_the_app(running_service: Running, account: Account) -> None:
    """A deleted device is 2, whatever it received before or after, until it is registered again."""

    receipt = {"msg_id": "m", "stage": "received", "device_id": "a"}
    await running_service.send(account, receipt)
    await running_service.call("DELETE", "/v1/devices/a", account)
    assert await ask(running_service, account, "m", "a") == {"a": 2}

    # The second tells something new of the device, for which the registry is asked.
    await running_service.send(account, receipt, receipt | {"platform": "android"})
    assert await ask(running_service, account, "m", "a") == {"a": 2}

    await running_service.call("POST", "/v1/devices", account, json={"device_id": "a", "platform": "android"})
    assert await ask(running_service, account, "m", "a") == {"a": 0}


async def test_ids_in_a_status_query(running_service: Running, account: Account) -> None:
    """``msg_id`` and registration ids may be integers of any size; each id is answered once, as a string."""

    for msg_id in (7, 2**53 + 1, 2**64 + 1):
        await running_service.send(account, {"msg_id": str(msg_id), "stage": "received", "device_id": "42"})

        for spelled in (msg_id, str(msg_id)):
            assert await ask(running_service, account, spelled, 42, "42", 43, 2**70) == {
                "42": 0, "43": 2, str(2**70): 2}
        assert await ask(running_service, account, msg_id + 1, 42) == {"42": 3}


async def test_a_thousand_devices_in_one_call(running_service: Running, account: Account) -> None:
    """1000 ids are answered, all of them, in the order asked."""

    device_ids = [f"device{number}" for number in range(1000)]
    await running_service.send(account, *({"msg_id": "m", "stage": "received", "device_id": one}
                                          for one in device_ids[::3]))

    answer = await running_service.call("POST", "/v3/status/message", account,
                                        json={"msg_id": "m", "registration_ids": device_ids[::-1]})

    assert list(answer.json.items()) == [
        (one, {"status": 2 if number % 3 else 0}) for number, one in reversed(list(enumerate(device_ids)))]


async def test_date_answers_as_of_the_end_of_that_day(running_service: Running, account: Account,
                                                      clock: Clock) -> None:
    """With a date, the answer is what it was when that day ended; today's, or none, is live."""

    # day         D-3         D-2         D-1         D (now: noon)
    # target                  a b
    # received                            a           b
    # first seen              a b                     c
    noon = at_noon(clock)
    d0, d1, d2, d3 = (int((noon - timedelta(days=days)).timestamp()) for days in range(4))
    await running_service.send(
        account, {"msg_id": "m", "stage": "target", "device_id": "a", "ts": d2},
        {"msg_id": "m", "stage": "sent", "device_id": "b", "ts": d2},
        {"msg_id": "m", "stage": "received", "device_id": "a", "ts": d1},
        {"msg_id": "m", "stage": "received", "device_id": "b", "ts": d0}, {"stage": "online", "device_id": "c"})

    answers = {}
    for days, moment in enumerate((d0, d1, d2, d3)):
        date = datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")
        answers[days] = await ask(running_service, account, "m", "a", "b", "c", "d", date=date)
        assert await ask(running_service, account, "m", "a", "b", "c", "d", data=date) == answers[days]

    assert answers == {0: {"a": 0, "b": 0, "c": 3, "d": 2}, 1: {"a": 0, "b": 1, "c": 2, "d": 2},
                       2: {"a": 1, "b": 1, "c": 2, "d": 2}, 3: {"a": 2, "b": 2, "c": 2, "d": 2}}
    for nothing in ({}, {"date": None}, {"date": ""}, {"data": None}):
        assert await ask(running_service, account, "m", "a", "b", "c", "d", **nothing) == answers[0]


async def test_date_is_of_the_apps_timezone(running_service: Running, clock: Clock) -> None:
    """A day ends when it ends for the app, not in Greenwich."""

    # UTC        D-1 12:30 ... 15:30   16:30 ...        D 12:30 (now)
    # Shanghai   D-1 20:30     23:30 | D 00:30          D 20:30
    # received                 early   late
    account = await running_service.make_account("shanghai", timezone="Asia/Shanghai")
    noon = at_noon(clock)
    early, late = noon - timedelta(hours=21), noon - timedelta(hours=20)
    await running_service.send(account, *(
        event for device_id, moment in (("early", early), ("late", late)) for event in (
            {"msg_id": "m", "stage": "target", "device_id": device_id, "ts": int(early.timestamp()) - 60},
            {"msg_id": "m", "stage": "received", "device_id": device_id, "ts": int(moment.timestamp())})))

    yesterday = await ask(running_service, account, "m", "early", "late", date=early.strftime("%Y-%m-%d"))
    today = await ask(running_service, account, "m", "early", "late", date=noon.strftime("%Y-%m-%d"))
    tomorrow = await running_service.call("POST", "/v3/status/message", account, json={
        "msg_id": "m", "registration_ids": ["early"], "date": (noon + timedelta(days=1)).strftime("%Y-%m-%d")})

    assert (yesterday, today) == ({"early": 0, "late": 1}, {"early": 0, "late": 0})
    assert (tomorrow.status, tomorrow.json) == (400, jpush_error(3002, "date: it is in the future"))


async def test_push_to_everyone_on_past_days(running_service: Running, account: Account, clock: Clock) -> None:
    """The targets of a push to everyone are remembered by day as well."""

    # day          D-1                 D (now)
    # devices      a b  push           late
    # received          a              b
    at_noon(clock)
    await running_service.send(account, *({"stage": "online", "device_id": one} for one in ("a", "b")))
    await register_push(running_service, account, "m", "all")
    await running_service.send(account, {"msg_id": "m", "stage": "received", "device_id": "a"})
    yesterday = datetime.fromtimestamp(clock(), UTC).strftime("%Y-%m-%d")
    clock.ahead += 86400
    await running_service.send(account, {"msg_id": "m", "stage": "received", "device_id": "b"},
                               {"stage": "online", "device_id": "late"})

    assert await ask(running_service, account, "m", "a", "b", "late", date=yesterday) == {"a": 0, "b": 1, "late": 2}
    assert await ask(running_service, account, "m", "a", "b", "late") == {"a": 0, "b": 0, "late": 3}


async def test_deletion_on_past_days(running_service: Running, account: Account, clock: Clock) -> None:
    """A device that was deleted later was a device of the app on the days before, and is again after its return."""

    # day          D            D+1          D+2
    # a            received     deleted      registered again (now)
    noon = at_noon(clock)
    days = [noon + timedelta(days=number) for number in range(3)]
    await running_service.send(account, {"msg_id": "m", "stage": "received", "device_id": "a"})
    clock.ahead += 86400
    await running_service.call("DELETE", "/v1/devices/a", account)
    clock.ahead += 86400
    await running_service.call("POST", "/v1/devices", account, json={"device_id": "a"})
    await running_service.applied()

    answers = [await ask(running_service, account, "m", "a", date=day.strftime("%Y-%m-%d")) for day in days]

    assert answers == [{"a": 0}, {"a": 2}, {"a": 0}]


async def test_status_is_forgotten_with_the_statistics(running_service: Running, account: Account,
                                                       clock: Clock) -> None:
    """A month after the last delivery nobody is a target of the message any more, live or by date."""

    noon = at_noon(clock)
    await running_service.send(account, *reached("m", "target", 1, "android"), *reached("m", "received", 1, "ios"))
    assert await ask(running_service, account, "m", "android0", "ios0") == {"android0": 1, "ios0": 0}

    clock.ahead += 31 * 86400

    assert await ask(running_service, account, "m", "android0", "ios0") == {"android0": 3, "ios0": 3}
    assert await ask(running_service, account, "m", "android0", "ios0", date=noon.strftime("%Y-%m-%d")) == {
        "android0": 3, "ios0": 3}
