"""Pushy Notification Status API: a push, who does not have it yet, and when it is gone."""

from __future__ import annotations

from typing import Any

from tests.support.service import Account, Answer, Clock, Running

INVALID = (400, {"code": "INVALID_PUSH_ID", "error": "The push notification ID provided is invalid."})
SCHEDULED = (400, {"code": "PUSH_SCHEDULED", "error": "The push notification is scheduled for future delivery, please "
                                                      "try again after the scheduled delivery time elapses."})
UNAUTHORIZED = (401, {"code": "INVALID_API_KEY", "error": "The provided API key is invalid."})
DAY = 86400


async def register(service: Running, account: Account, msg_id: object, audience: object, **more: Any) -> None:
    """Register a push, and wait until all of it is applied."""
    body = {"msg_id": msg_id, "vendor": "pushy", "audience": audience} | more
    answer = await service.call("POST", "/v1/pushes", account, json=body)
    assert answer.status == 201, answer.body
    await service.applied()


async def receive(service: Running, account: Account, msg_id: object, *device_ids: str) -> None:
    """Receipts of these devices."""
    await service.send(account, *({"msg_id": msg_id, "stage": "received", "device_id": one} for one in device_ids))


async def ask(service: Running, account: Account, msg_id: object) -> Answer:
    """The status of a push."""
    return await service.call("GET", f"/pushes/{msg_id}?api_key={account.pushy_api_key}")


async def pending(service: Running, account: Account, msg_id: object) -> list[str]:
    """The pending devices of a push that is there, sorted."""
    answer = await ask(service, account, msg_id)
    assert answer.status == 200, answer.body
    return sorted(answer.json["push"]["pending_devices"])


async def test_status_answers_the_published_example(running_service: Running, account: Account) -> None:
    """The vendor's sample response comes back to the byte, but for its dates, which are long past."""

    date = int(running_service.clock())
    await register(running_service, account, "5ea9b214b47cad768a35f13a", {"device_ids": ["fe8f7b2c102e883e5b41d2"]},
                   payload={"message": "Hello World!"}, created_at=date, time_to_live=1466595935 - 1464003935)

    answer = await ask(running_service, account, "5ea9b214b47cad768a35f13a")

    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.body == (
        b'{"push":{"date":%d,"payload":{"message":"Hello World!"},"expiration":%d,'
        b'"pending_devices":["fe8f7b2c102e883e5b41d2"]}}' % (date, date + 2592000))


async def test_unknown_push_answers_the_published_error(running_service: Running, account: Account) -> None:
    """The vendor's sample error comes back to the byte, for an id nobody registered and for one that is no id."""

    answers = [await ask(running_service, account, msg_id) for msg_id in ("5ea9b214b47cad768a35f13a", "x" * 257)]

    assert [(answer.status, answer.body) for answer in answers] == [
        (400, b'{"code":"INVALID_PUSH_ID","error":"The push notification ID provided is invalid."}')] * 2


async def test_events_alone_make_no_push(running_service: Running, account: Account) -> None:
    """A message that devices mention, but nobody registered, is no push."""

    await receive(running_service, account, "m", "a")

    answer = await ask(running_service, account, "m")

    assert (answer.status, answer.json) == INVALID


async def test_pending_devices_shrink_with_receipts(running_service: Running, account: Account) -> None:
    """A device leaves the list when its receipt arrives, and for good; receipts may come before the push."""

    await receive(running_service, account, "m", "early")
    await register(running_service, account, "m", {"device_ids": ["a", "b", "early"]})
    assert await pending(running_service, account, "m") == ["a", "b"]

    await receive(running_service, account, "m", "a", "a")
    await receive(running_service, account, "another", "b")
    assert await pending(running_service, account, "m") == ["b"]

    # Being sent or shown is not being received, and a device that is no target does not matter.
    await running_service.send(account, *({"msg_id": "m", "stage": stage, "device_id": device_id} for stage, device_id
                                          in (("display", "b"), ("click", "b"), ("received", "stranger"))))
    assert await pending(running_service, account, "m") == ["b"]

    await receive(running_service, account, "m", "b")
    assert await pending(running_service, account, "m") == []


async def test_targets_named_later_are_pending(running_service: Running, account: Account) -> None:
    """Devices added to the push, by its sender or by a ``sent`` event, are pending as well."""

    await register(running_service, account, "m", {"device_ids": ["a"]})
    await running_service.call("POST", "/v1/pushes/m/targets", account, json=["b"])
    await running_service.send(account, {"msg_id": "m", "stage": "sent", "device_id": "c"})

    assert await pending(running_service, account, "m") == ["a", "b", "c"]


async def test_only_android_and_unknown_devices_are_listed(running_service: Running, account: Account) -> None:
    """Apple, web and the other platforms report no receipt to Pushy, so they are never pending."""

    platforms = ["android", "unknown", "ios", "web", "winphone", "quickapp", "hmos"]
    await running_service.call("POST", "/v1/devices", account, json=[
        {"device_id": platform, "platform": platform} for platform in platforms])
    by_id = ["fcm-7d8f", "apns-7d8f", "web-7d8f", "never-heard-of"]

    await register(running_service, account, "m", {"device_ids": platforms + by_id})

    assert await pending(running_service, account, "m") == ["android", "fcm-7d8f", "never-heard-of", "unknown"]


async def test_at_most_a_thousand_devices_are_listed(running_service: Running, account: Account) -> None:
    """Of more than 1000 pending devices 1000 are listed, each once, and none that cannot be pending takes a place."""

    devices = {f"android{number}" for number in range(1200)}
    apples = [f"apns-{number}" for number in range(1200)]
    await register(running_service, account, "m", {"device_ids": [*apples, *devices]})

    listed = await pending(running_service, account, "m")

    assert len(listed) == len(set(listed)) == 1000
    assert set(listed) <= devices

    await receive(running_service, account, "m", *listed)
    assert await pending(running_service, account, "m") == sorted(devices - set(listed))


async def test_push_to_everyone_is_pending_for_everyone(running_service: Running, account: Account) -> None:
    """A push to all is pending on every device of that moment that has not got it, and on none that came later."""

    await running_service.send(account, *({"stage": "online", "device_id": one} for one in ("a", "b", "gone")))
    await running_service.call("DELETE", "/v1/devices/gone", account)
    await register(running_service, account, "m", "all")
    await running_service.send(account, {"stage": "online", "device_id": "late"})
    assert await pending(running_service, account, "m") == ["a", "b"]

    await receive(running_service, account, "m", "b")
    assert await pending(running_service, account, "m") == ["a"]


async def test_deleted_device_is_not_pending(running_service: Running, account: Account) -> None:
    """A device that is deleted while it was waited for leaves the list, and returns to it when it is registered."""

    await register(running_service, account, "m", {"device_ids": ["a", "b"]})
    await running_service.call("DELETE", "/v1/devices/a", account)
    await running_service.applied()
    assert await pending(running_service, account, "m") == ["b"]

    running_service.clock.ahead += 60
    await running_service.call("POST", "/v1/devices", account, json={"device_id": "a", "platform": "android"})
    await running_service.applied()
    assert await pending(running_service, account, "m") == ["a", "b"]


async def test_keys_open_their_own_app_only(running_service: Running, account: Account) -> None:
    """No, an unknown and a JPush key are 401; another app's key does not find the push."""

    other = await running_service.make_account("other")
    await register(running_service, account, "m", {"device_ids": ["a"]})

    wrong = ["", "?api_key=", "?api_key=nobody", f"?api_key={account.app.app_key}", f"?api_key={account.master_secret}",
             f"?api_key={account.pushy_api_key}0", f"?API_KEY={account.pushy_api_key}"]
    answers = [await running_service.call("GET", "/pushes/m" + query) for query in wrong]
    basic = await running_service.call("GET", "/pushes/m", account)
    foreign = await ask(running_service, other, "m")

    assert [(answer.status, answer.json) for answer in (*answers, basic)] == [UNAUTHORIZED] * (len(wrong) + 1)
    assert (foreign.status, foreign.json) == INVALID


async def test_push_of_the_same_id_in_two_apps(running_service: Running, account: Account) -> None:
    """Two apps may use one id; each sees its own push and its own devices."""

    other = await running_service.make_account("other")
    await register(running_service, account, "m", {"device_ids": ["a", "b"]}, payload=1)
    await register(running_service, other, "m", {"device_ids": ["b", "c"]}, payload=2)
    await receive(running_service, other, "m", "b")

    answers = [(await ask(running_service, one, "m")).json["push"] for one in (account, other)]

    assert [(push["payload"], sorted(push["pending_devices"])) for push in answers] == [(1, ["a", "b"]), (2, ["c"])]


async def test_expired_push_is_gone(running_service: Running, account: Account, clock: Clock) -> None:
    """A push is there until the second it expires, with devices still pending."""

    now = int(clock())
    await register(running_service, account, "m", {"device_ids": ["a"]}, created_at=now, time_to_live=3600)
    await register(running_service, account, "at once", {"device_ids": ["a"]}, created_at=now, time_to_live=0)
    assert (await ask(running_service, account, "m")).json["push"] == {
        "date": now, "payload": None, "expiration": now + 3600, "pending_devices": ["a"]}
    at_once = await ask(running_service, account, "at once")
    assert (at_once.status, at_once.json) == INVALID

    clock.ahead += 3600
    answer = await ask(running_service, account, "m")

    assert (answer.status, answer.json) == INVALID


async def test_scheduled_push_is_announced(running_service: Running, account: Account, clock: Clock) -> None:
    """Before its time a push is PUSH_SCHEDULED to its own app; after it, it lives its time from then on."""

    # clock       now .......... +1 h ................... +2 h
    #             PUSH_SCHEDULED  there, for an hour       gone
    now = int(clock())
    other = await running_service.make_account("other")
    await register(running_service, account, "m", {"device_ids": ["a"]}, created_at=now, scheduled_at=now + 3600,
                   time_to_live=3600)
    before = await ask(running_service, account, "m")
    foreign = await ask(running_service, other, "m")
    assert (before.status, before.json) == SCHEDULED
    assert (foreign.status, foreign.json) == INVALID

    clock.ahead += 3600
    due = await ask(running_service, account, "m")
    assert due.json == {"push": {"date": now, "payload": None, "expiration": now + 7200, "pending_devices": ["a"]}}

    clock.ahead += 3600
    after = await ask(running_service, account, "m")
    assert (after.status, after.json) == INVALID


async def test_delivered_push_is_gone_after_two_days(running_service: Running, account: Account,
                                                     clock: Clock) -> None:
    """Two days after the last device got it a push is gone; a receipt that comes twice does not extend that."""

    # clock       0          1 d              2 d         3 d
    # receipts    a          b (the last)     b again
    # push        there ..................................gone
    await register(running_service, account, "m", {"device_ids": ["a", "b"]})
    await receive(running_service, account, "m", "a")
    clock.ahead += DAY
    await receive(running_service, account, "m", "b")
    clock.ahead += DAY
    await receive(running_service, account, "m", "b", "a")
    clock.ahead += DAY - 60
    assert await pending(running_service, account, "m") == []

    clock.ahead += 120
    answer = await ask(running_service, account, "m")

    assert (answer.status, answer.json) == INVALID


async def test_push_given_more_targets_is_there_again(running_service: Running, account: Account,
                                                      clock: Clock) -> None:
    """A push that every device had is not over once it is meant for one more; the two days begin with that one."""

    # clock       0      1 d                  3 d              5 d
    # targets     a      b
    # receipts    a                           b (the last)
    # push        there ..........................................gone
    await register(running_service, account, "m", {"device_ids": ["a"]})
    await receive(running_service, account, "m", "a")
    clock.ahead += DAY
    await running_service.call("POST", "/v1/pushes/m/targets", account, json=["b"])
    await running_service.applied()
    clock.ahead += 2 * DAY
    assert await pending(running_service, account, "m") == ["b"]

    await receive(running_service, account, "m", "b")
    clock.ahead += 2 * DAY - 60
    assert await pending(running_service, account, "m") == []

    clock.ahead += 120
    answer = await ask(running_service, account, "m")
    assert (answer.status, answer.json) == INVALID


async def test_deletion_of_the_last_pending_device_delivers_a_push(running_service: Running, account: Account,
                                                                   clock: Clock) -> None:
    """Two days after the last device that lacked it was deleted, a push is gone, whoever asked or not."""

    # clock       0      1 d                3 d
    # receipts    a
    # deleted            b
    # push        there ....................gone
    await register(running_service, account, "m", {"device_ids": ["a", "b"]})
    await receive(running_service, account, "m", "a")
    clock.ahead += DAY
    await running_service.call("DELETE", "/v1/devices/b", account)
    await running_service.applied()
    clock.ahead += 2 * DAY - 60
    assert await pending(running_service, account, "m") == []

    clock.ahead += 120
    answer = await ask(running_service, account, "m")
    assert (answer.status, answer.json) == INVALID


async def test_undelivered_push_stays_until_it_expires(running_service: Running, account: Account,
                                                       clock: Clock) -> None:
    """While one device lacks it, a push is there for the whole of its time."""

    await register(running_service, account, "m", {"device_ids": ["a", "b"]}, time_to_live=20 * DAY)
    await receive(running_service, account, "m", "a")

    clock.ahead += 20 * DAY - 60
    assert await pending(running_service, account, "m") == ["b"]

    clock.ahead += 120
    answer = await ask(running_service, account, "m")
    assert (answer.status, answer.json) == INVALID


async def test_delivered_push_to_everyone_is_gone_after_two_days(running_service: Running, account: Account,
                                                                 clock: Clock) -> None:
    """A push to all is delivered when every device has it that still exists."""

    await running_service.send(account, *({"stage": "online", "device_id": one} for one in ("a", "b", "gone")))
    await register(running_service, account, "m", "all")
    await receive(running_service, account, "m", "a")
    await running_service.call("DELETE", "/v1/devices/gone", account)
    await running_service.applied()
    clock.ahead += 3 * DAY
    assert await pending(running_service, account, "m") == ["b"]

    await receive(running_service, account, "m", "b")
    clock.ahead += 2 * DAY - 60
    assert await pending(running_service, account, "m") == []

    clock.ahead += 120
    answer = await ask(running_service, account, "m")
    assert (answer.status, answer.json) == INVALID


async def test_payload_comes_back_as_it_was_sent(running_service: Running, account: Account) -> None:
    """Any JSON value may be the payload, and none is invented where there is none."""

    payloads = [{"message": "caf\u00e9 \u4e2d\u6587 \U0001f600", "nested": {"list": [1, 2.5, None, True]}}, "text", 7,
                2.5, [], {}, False, 0, "", None]
    for number, payload in enumerate(payloads):
        await register(running_service, account, number, {"device_ids": ["a"]}, payload=payload)
    # An id beyond 64 bits is read with care; the rest of the body must not suffer from it.
    for number, payload in enumerate(payloads, 10**30):
        await register(running_service, account, number, {"device_ids": ["a"]}, payload=payload)

    answers = [(await ask(running_service, account, number)).json["push"]["payload"]
               for start in (0, 10**30) for number in range(start, start + len(payloads))]

    assert answers == payloads * 2


async def test_extra_slashes_and_unknown_parameters_do_not_matter(running_service: Running, account: Account) -> None:
    """``/pushes//ID/?api_key=…&x=y`` is ``/pushes/ID?api_key=…``."""

    await register(running_service, account, "m", {"device_ids": ["a"]})
    plain = await ask(running_service, account, "m")

    odd = await running_service.call("GET", f"//pushes//m/?x=y&api_key={account.pushy_api_key}&api_key=second")

    assert plain.status == 200
    assert (odd.status, odd.body) == (plain.status, plain.body)


async def test_framework_errors_have_the_vendors_shape(running_service: Running, account: Account) -> None:
    """Paths and methods there are not answer ``code`` and ``error`` too, which is all the vendor's SDKs read."""

    key = f"?api_key={account.pushy_api_key}"
    await register(running_service, account, "m", {"device_ids": ["a"]})

    missing = [await running_service.call("GET", path + key) for path in ("/pushes", "/pushes/", "/pushes/m/devices")]
    deleted = await running_service.call("DELETE", "/pushes/m" + key)

    assert [(answer.status, answer.json) for answer in missing] == [
        (404, {"code": "NOT_FOUND", "error": "there is nothing at this path"})] * 3
    assert (deleted.status, deleted.json, deleted.headers["Allow"]) == (
        405, {"code": "METHOD_NOT_ALLOWED", "error": "Method Not Allowed"}, "GET,HEAD")
    assert await pending(running_service, account, "m") == ["a"]
