"""Placeholder while the suite grows."""

from tests.support.service import Account, Running


async def test_event_is_counted(running_service: Running, account: Account) -> None:
    """A received event shows up in /v3/received."""
    await running_service.send(account, {"msg_id": 5, "stage": "received", "device_id": "d1", "platform": "android"})
    answer = await running_service.call("GET", "/v3/received?msg_ids=5", account)
    assert answer.json == [{"msg_id": "5", "android_received": 1, "ios_apns_sent": None, "ios_apns_received": None,
                            "ios_msg_received": None, "wp_mpns_sent": None}]


async def test_again(running_service: Running, account: Account) -> None:
    """A fresh database for each test."""
    answer = await running_service.call("GET", "/v3/received?msg_ids=5", account)
    assert answer.json[0]["android_received"] is None
