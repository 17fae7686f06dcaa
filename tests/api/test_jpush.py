"""JPush Report API v3: ``/v3/received`` and ``/v3/messages``, the requests real SDKs send, and the errors."""

from __future__ import annotations

import base64
from io import BytesIO

import orjson

from tests.api.helpers import NOTHING_RECEIVED, jpush_error, native_error, raw, reached
from tests.support.service import Account, Running

UNAUTHORIZED = jpush_error(3001, "Basic authentication failed")


# ------------------------------------------------------------------------------------------------------------- received
async def test_received_answers_the_published_example(running_service: Running, account: Account) -> None:
    """The vendor's example of ``/v3/received`` comes back to the byte when the events behind its numbers were sent."""

    await running_service.send(
        account,
        *reached(1613113584, "received", 62, "android"), *reached(1613113584, "sent", 11, "ios"),
        *reached(1613113584, "received", 5, "ios"), *reached(1613113584, "received", 3, "ios", kind="message"),
        *reached(1613113584, "sent", 3, "winphone"),
        *reached(1229760629, "received", 56, "android"), *reached(1229760629, "sent", 33, "ios"),
        *reached(1229760629, "received", 17, "ios"), *reached(1229760629, "received", 3, "ios", kind="message"))

    answer = await running_service.call("GET", "/v3/received?msg_ids=1613113584,1229760629", account)

    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.body == (
        b'[{"msg_id":"1613113584","android_received":62,"ios_apns_sent":11,"ios_apns_received":5,"ios_msg_received":3,'
        b'"wp_mpns_sent":3},'
        b'{"msg_id":"1229760629","android_received":56,"ios_apns_sent":33,"ios_apns_received":17,"ios_msg_received":3,'
        b'"wp_mpns_sent":null}]')


async def test_received_counts_devices_not_events(running_service: Running, account: Account) -> None:
    """A device counts once per number, however often it reports and over whichever channel."""

    event = {"msg_id": 7, "stage": "received", "device_id": "a", "platform": "android"}
    await running_service.send(account, event, event, event | {"channel": "xiaomi"}, event | {"kind": "message"})
    await running_service.send(account, event | {"ts": int(running_service.clock()) - 7200})

    answer = await running_service.call("GET", "/v3/received?msg_ids=7", account)

    assert answer.json == [{"msg_id": "7"} | NOTHING_RECEIVED | {"android_received": 1}]


async def test_received_keeps_stages_channels_and_kinds_apart(running_service: Running, account: Account) -> None:
    """Each number takes its own platform, stage, channel and kind, and events of no number's sort leave all null."""

    await running_service.send(
        account,
        *reached("sent", "sent", 2, "android"), *reached("displayed", "display", 2, "android"),
        *reached("message-sent", "sent", 2, "ios", kind="message"),
        *reached("voip-sent", "sent", 2, "ios", channel="voip"),
        *reached("apns-message", "sent", 2, "ios", kind="message", channel="apns"),
        *reached("inapp", "received", 2, "ios", kind="inapp"),
        *reached("web", "received", 2, "web"), *reached("unknown", "received", 2, "unknown"))

    msg_ids = ["sent", "displayed", "message-sent", "voip-sent", "apns-message", "inapp", "web", "unknown"]
    answer = await running_service.call("GET", "/v3/received?msg_ids=" + ",".join(msg_ids), account)

    assert answer.json == [
        {"msg_id": msg_id} | NOTHING_RECEIVED | ({"ios_apns_sent": 2} if msg_id == "apns-message" else {})
        for msg_id in msg_ids]


async def test_msg_ids_come_back_as_asked(running_service: Running, account: Account) -> None:
    """Order and duplicates are the caller's; spaces, empty parts, a trailing comma and encoded commas do not matter."""

    await running_service.send(account, *reached(1, "received", 1, "android"), *reached(2, "received", 2, "android"))
    one = {"msg_id": "1"} | NOTHING_RECEIVED | {"android_received": 1}
    two = {"msg_id": "2"} | NOTHING_RECEIVED | {"android_received": 2}
    none = {"msg_id": "3"} | NOTHING_RECEIVED

    written = {"2,1": [two, one], "1,3,1,2": [one, none, one, two], "1%2C2": [one, two], "%201%20,+2%20,": [one, two],
               "2,,1,": [two, one], "3": [none]}
    answers = {text: (await running_service.call("GET", f"/v3/received?msg_ids={text}", account)).json
               for text in written}

    assert answers == written


async def test_a_hundred_msg_ids_are_allowed(running_service: Running, account: Account) -> None:
    """Exactly 100 ids are answered, of the largest size an id may have."""

    msg_ids = [f"{number:0>256}" for number in range(100)]
    await running_service.send(account, *reached(msg_ids[99], "received", 4, "android"))

    answer = await running_service.call("GET", "/v3/received?msg_ids=" + ",".join(msg_ids), account)

    assert answer.json == ([{"msg_id": msg_id} | NOTHING_RECEIVED for msg_id in msg_ids[:99]]
                           + [{"msg_id": msg_ids[99]} | NOTHING_RECEIVED | {"android_received": 4}])


async def test_ids_of_any_characters_are_found_again(running_service: Running, account: Account) -> None:
    """Quotes, backslashes, control characters and any script in an id reach the stores and come back unchanged."""

    msg_ids = ["it's", '"quoted"', "back\\slash", "\\'", "tab\tinside", "line\nbreak", "nul\0inside", "\u4e2d\u6587",
               "\U0001f600", "100%", "a&b=c", "{curly}", "[1;2]", "--", "\\N", "NULL", "\x7f"]
    events = [{"msg_id": msg_id, "stage": "received", "device_id": msg_id + str(number), "platform": "android"}
              for msg_id in msg_ids for number in range(2)]
    await running_service.send(account, *events)

    counts = await running_service.call("GET", "/v3/received", account, params={"msg_ids": ",".join(msg_ids)})
    statuses = [await running_service.call("POST", "/v3/status/message", account,
                                           json={"msg_id": msg_id, "registration_ids": [msg_id + "0", msg_id]})
                for msg_id in msg_ids]

    assert counts.json == [{"msg_id": msg_id} | NOTHING_RECEIVED | {"android_received": 2} for msg_id in msg_ids]
    assert [answer.json for answer in statuses] == [
        {msg_id + "0": {"status": 0}, msg_id: {"status": 2}} for msg_id in msg_ids]


async def test_numbers_and_strings_are_the_same_id(running_service: Running, account: Account) -> None:
    """An id sent as an integer of any size is the id of the same digits as a string, never rounded."""

    numbers = [327640176, 2**53 + 1, 2**63 + 1, 2**64 + 1, 10**40 + 1, -5, 0]
    await running_service.send(account, *(event for number in numbers for event in reached(
        number, "received", 1, "android")))
    await running_service.send(account, *(event for number in numbers for event in reached(
        str(number), "received", 2, "android")))

    answer = await running_service.call("GET", "/v3/received?msg_ids=" + ",".join(map(str, numbers)), account)
    neighbours = await running_service.call(
        "GET", "/v3/received?msg_ids=" + ",".join(str(number + 1) for number in numbers[1:5]), account)

    assert answer.json == [{"msg_id": str(number)} | NOTHING_RECEIVED | {"android_received": 2} for number in numbers]
    assert neighbours.json == [{"msg_id": str(number + 1)} | NOTHING_RECEIVED for number in numbers[1:5]]


# ------------------------------------------------------------------------------------------------------------- messages
async def test_messages_answers_the_published_example(running_service: Running, account: Account) -> None:
    """The vendor's example of ``/v3/messages`` comes back to the byte (but for its stray comma)."""

    await running_service.send(
        account,
        *reached(269978303, "target", 4, "android"), *reached(269978303, "online_push", 1, "android"),
        *reached(269978303, "received", 1, "android"),
        *reached(269978303, "target", 2, "ios"), *reached(269978303, "sent", 2, "ios"),
        *reached(269978303, "received", 1, "ios"),
        *reached(269978303, "target", 10, "ios", kind="message"),
        *reached(269978303, "received", 8, "ios", kind="message"),
        *reached(269978303, "target", 100, "winphone"), *reached(269978303, "sent", 100, "winphone"),
        *reached(269978303, "click", 100, "winphone"))

    answer = await running_service.call("GET", "/v3/messages?msg_ids=269978303", account)

    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.body == (
        b'[{"android":{"received":1,"target":4,"online_push":1,"click":null,"msg_click":null},'
        b'"ios":{"apns_sent":2,"apns_target":2,"apns_received":1,"click":null,"target":10,"received":8},'
        b'"winphone":{"mpns_target":100,"mpns_sent":100,"click":100},'
        b'"msg_id":"269978303"}]')


async def test_messages_keep_clicks_of_each_kind_apart(running_service: Running, account: Account) -> None:
    """On Android ``msg_click`` is of custom messages and ``click`` of the rest; on iOS ``click`` is of all of them."""

    await running_service.send(
        account, *reached(1, "click", 3, "android"), *reached(1, "click", 4, "android", kind="message"),
        *reached(1, "click", 4, "ios"), *reached(1, "click", 5, "ios", kind="message"))

    answer = await running_service.call("GET", "/v3/messages?msg_ids=1,2", account)

    nothing = {"android": {"target": None, "online_push": None, "received": None, "click": None, "msg_click": None},
               "ios": {"apns_target": None, "apns_sent": None, "apns_received": None, "click": None, "target": None,
                       "received": None},
               "winphone": {"mpns_target": None, "mpns_sent": None, "click": None}}
    assert answer.json == [
        {"msg_id": "1"} | nothing | {"android": nothing["android"] | {"click": 3, "msg_click": 4},
                                     "ios": nothing["ios"] | {"click": 5}},
        {"msg_id": "2"} | nothing]


# ----------------------------------------------------------------------------------------------- requests as SDKs send
async def test_paths_with_extra_slashes_are_the_same(running_service: Running, account: Account) -> None:
    """Doubled slashes (Ruby), a slash before the query (PHP) and the Beijing zone's prefix lead to the same report."""

    await running_service.send(account, *reached(1, "received", 1, "android"))
    status = {"json": {"msg_id": 1, "registration_ids": ["android0"]}}
    today = "/users?time_unit=DAY&start=2026-01-01&duration=1"
    calls = [("GET", "/v3/received?msg_ids=1", {}), ("GET", "/v3/messages?msg_ids=1", {}),
             ("GET", "/v3" + today, {}), ("POST", "/v3/status/message", status)]
    variants = [("/v3/", "/v3//"), ("?", "/?"), ("/v3/", "//v3///"), ("/v3/", "/v3/report/"), ("/v3/", "/v3//report/")]

    plain = [await running_service.call(method, path, account, **options) for method, path, options in calls]
    assert [answer.status for answer in plain[:2] + plain[3:]] == [200, 200, 200]
    for old, new in variants:
        answers = [await running_service.call(method, path.replace(old, new, 1), account, **options)
                   for method, path, options in calls]
        assert [(answer.status, answer.body) for answer in answers] == [
            (answer.status, answer.body) for answer in plain], new


async def test_get_with_a_body_is_answered(running_service: Running, account: Account) -> None:
    """A GET may carry a JSON content type and the body ``null``, as the Node and Go SDKs send it."""

    await running_service.send(account, *reached(1, "received", 1, "android"))
    headers = {"Content-Type": "application/json", "Accept": "application/json"}

    answer = await running_service.call("GET", "/v3/received?msg_ids=1", account, data=b"null", headers=headers)

    assert answer.json == [{"msg_id": "1"} | NOTHING_RECEIVED | {"android_received": 1}]


async def test_odd_content_types_are_json_to_status(running_service: Running, account: Account) -> None:
    """The status call reads its body as JSON whatever an SDK calls it, and in however many pieces it comes."""

    await running_service.send(account, *reached(1, "received", 1, "android"))
    types = ["application/json", "application/json; charset=UTF-8", "application/json;charset:utf-8",
             "text/plain; charset=utf-8", "application/x-www-form-urlencoded", "application/vnd.api+json"]
    body = b'{"msg_id":1,"registration_ids":["android0"],"unknown_key":{}}'

    answers = {name: (await running_service.call("POST", "/v3/status/message", account, data=body,
                                                 headers={"Content-Type": name})).json for name in types}

    chunked = await running_service.call("POST", "/v3/status/message", account, data=body, chunked=True)
    assert answers | {"chunked": chunked.json} == dict.fromkeys([*types, "chunked"], {"android0": {"status": 0}})


# --------------------------------------------------------------------------------------------------------------- errors
async def test_wrong_credentials_are_3001(running_service: Running, account: Account) -> None:
    """Every path answers 401 with the vendor's published body to no, malformed, unknown and wrong credentials."""

    key, secret = account.app.app_key, account.master_secret
    other = await running_service.make_account("other")

    def basic(text: bytes) -> str:
        return "Basic " + base64.b64encode(text).decode()

    headers = [{}, {"Authorization": ""}, {"Authorization": "Basic"}, {"Authorization": "Basic !!!"},
               {"Authorization": basic(key.encode())}, {"Authorization": basic(b"\xff:\xff")},
               {"Authorization": basic(f"{key}:".encode())}, {"Authorization": basic(f":{secret}".encode())},
               {"Authorization": basic(f"{key}:{secret}x".encode())},
               {"Authorization": basic(f"nobody:{secret}".encode())},
               {"Authorization": basic(f"{key}:{other.master_secret}".encode())},
               {"Authorization": basic(f"group-{key}:{secret}".encode())},
               {"Authorization": account.auth.replace("Basic", "Bearer")}]
    paths = [("GET", "/v3/received?msg_ids=1"), ("GET", "/v3/messages?msg_ids=1"), ("POST", "/v3/status/message"),
             ("GET", "/v3/users"), ("GET", "/v3/report/received?msg_ids=1")]

    answers = [await running_service.call("GET", "/v3/received?msg_ids=1", headers=header) for header in headers]
    answers += [await running_service.call(method, path, headers=headers[8]) for method, path in paths]

    assert [(answer.status, answer.json) for answer in answers] == [(401, UNAUTHORIZED)] * (len(headers) + len(paths))


async def test_scheme_of_credentials_has_no_letter_case(running_service: Running, account: Account) -> None:
    """``basic`` is ``Basic``, as HTTP has it."""

    answer = await running_service.call("GET", "/v3/received?msg_ids=1",
                                        headers={"Authorization": account.auth.replace("Basic", "bAsIc")})

    assert answer.json == [{"msg_id": "1"} | NOTHING_RECEIVED]


async def test_vip_interfaces_are_2003_for_others(running_service: Running) -> None:
    """An app that is not VIP gets 2003 on messages and users, before its parameters are looked at, and the rest."""

    account = await running_service.make_account("plain", vip=False)
    vip = ["/v3/messages?msg_ids=1", "/v3/messages", "/v3/users?time_unit=DAY&start=2014-06-10&duration=3", "/v3/users"]

    answers = [await running_service.call("GET", path, account) for path in vip]
    received = await running_service.call("GET", "/v3/received?msg_ids=1", account)
    status = await running_service.call("POST", "/v3/status/message", account,
                                        json={"msg_id": 1, "registration_ids": ["a"]})

    assert [(answer.status, answer.json) for answer in answers] == [
        (403, jpush_error(2003, "Not authorized to use this interface"))] * len(vip)
    assert received.json == [{"msg_id": "1"} | NOTHING_RECEIVED]
    assert status.json == {"a": {"status": 2}}


async def test_bad_msg_ids_are_3002(running_service: Running, account: Account) -> None:
    """Missing, empty, too many and too long ids are 400 with code 3002 and a text that names the limit."""

    bad = {
        "": "msg_ids: required: up to 100 ids, separated by commas",
        "?msg_id=1": "msg_ids: required: up to 100 ids, separated by commas",
        "?msg_ids=": "msg_ids: must not be empty",
        "?msg_ids=%20,,+,": "msg_ids: must not be empty",
        "?msg_ids=" + ",".join(map(str, range(101))): "msg_ids: at most 100 ids",
        "?msg_ids=" + "1," * 101: "msg_ids: at most 100 ids",
        "?msg_ids=" + "x" * 257: "msg_ids: at most 256 bytes",
        "?msg_ids=" + "%C3%A9" * 129: "msg_ids: at most 256 bytes",
    }

    answers = {(path, query): await running_service.call("GET", f"/v3/{path}{query}", account)
               for path in ("received", "messages") for query in bad}

    assert {key: (answer.status, answer.json) for key, answer in answers.items()} == {
        (path, query): (400, jpush_error(3002, text)) for path in ("received", "messages")
        for query, text in bad.items()}


async def test_bad_status_queries_are_3002(running_service: Running, account: Account) -> None:
    """Whatever is wrong with the body of a status call is 400 with code 3002 and a text that names it."""

    ids = {"registration_ids": ["a"]}
    too_long = "x" * 257
    bad: dict[bytes, str] = {
        b"": "the body is not valid JSON", b"{": "the body is not valid JSON", b"\xff": "the body is not valid JSON",
        b"msg_id=1&registration_ids=a": "the body is not valid JSON",
        b"[]": "the body must be a JSON object", b"null": "the body must be a JSON object",
        b"{}": "msg_id: required",
        orjson.dumps(ids): "msg_id: required",
        orjson.dumps(ids | {"msg_id": None}): "msg_id: required",
        orjson.dumps(ids | {"msg_id": ""}): "msg_id: must not be empty",
        orjson.dumps(ids | {"msg_id": 1.5}): "msg_id: must be a string or an integer",
        orjson.dumps(ids | {"msg_id": True}): "msg_id: must be a string or an integer",
        orjson.dumps(ids | {"msg_id": [1]}): "msg_id: must be a string or an integer",
        orjson.dumps(ids | {"msg_id": too_long}): "msg_id: at most 256 bytes",
        b'{"msg_id":1}': "registration_ids: required: an array of 1 to 1000 ids",
        b'{"msg_id":1,"registration_ids":[]}': "registration_ids: required: an array of 1 to 1000 ids",
        b'{"msg_id":1,"registration_ids":"a"}': "registration_ids: required: an array of 1 to 1000 ids",
        b'{"msg_id":1,"registration_ids":[""]}': "registration_ids: must not be empty",
        b'{"msg_id":1,"registration_ids":["a",{}]}': "registration_ids: must be a string or an integer",
        orjson.dumps({"msg_id": 1, "registration_ids": [too_long]}): "registration_ids: at most 256 bytes",
        orjson.dumps({"msg_id": 1, "registration_ids": list(range(1001))}): "registration_ids: at most 1000 ids",
        orjson.dumps(ids | {"msg_id": 1, "date": "20261120"}): "date: must be yyyy-mm-dd",
        orjson.dumps(ids | {"msg_id": 1, "date": "2026-02-30"}): "date: must be yyyy-mm-dd",
        orjson.dumps(ids | {"msg_id": 1, "date": "2026-2-3"}): "date: must be yyyy-mm-dd",
        orjson.dumps(ids | {"msg_id": 1, "date": "2026-02-03 10"}): "date: must be yyyy-mm-dd",
        orjson.dumps(ids | {"msg_id": 1, "date": 20260203}): "date: must be yyyy-mm-dd",
        orjson.dumps(ids | {"msg_id": 1, "date": False}): "date: must be yyyy-mm-dd",
        orjson.dumps(ids | {"msg_id": 1, "data": "yesterday"}): "date: must be yyyy-mm-dd",
        orjson.dumps(ids | {"msg_id": 1, "date": "9999-12-31"}): "date: it is in the future",
    }

    answers = {body: await running_service.call("POST", "/v3/status/message", account, data=body) for body in bad}

    assert {body: (answer.status, answer.json) for body, answer in answers.items()} == {
        body: (400, jpush_error(3002, text)) for body, text in bad.items()}


async def test_framework_errors_are_3002_with_their_own_status(running_service: Running, account: Account) -> None:
    """413, 404 and 405 carry an ``error`` object with code 3002; 405 says what is allowed."""

    large = b'{"msg_id":1,"registration_ids":["' + b"x" * (16 * 1024 * 1024) + b'"]}'

    too_large = await running_service.call("POST", "/v3/status/message", account, data=BytesIO(large))
    missing = await running_service.call("GET", "/v3/nowhere", account)
    deeper = await running_service.call("GET", "/v3/received/1/2", account)
    wrong = await running_service.call("POST", "/v3/received?msg_ids=1", account)
    wrong_status = await running_service.call("GET", "/v3//status/message/", account)

    not_found = (404, jpush_error(3002, "there is nothing at this path"))
    assert [(answer.status, answer.json) for answer in (missing, deeper)] == [not_found, not_found]
    assert (wrong.status, wrong.json, wrong.headers["Allow"]) == (
        405, jpush_error(3002, "Method Not Allowed"), "GET,HEAD")
    assert (wrong_status.status, wrong_status.json, wrong_status.headers["Allow"]) == (
        405, jpush_error(3002, "Method Not Allowed"), "POST")
    assert (too_large.status, too_large.json) == (413, jpush_error(3002, "the body is over 16777216 bytes"))


# ------------------------------------------------------------------------------------------------------ broken requests
async def test_raw_space_in_the_query_is_forgiven(running_service: Running, account: Account) -> None:
    """The PHP SDK puts a raw space into the request line of an HOUR query; it is read as ``%20``."""

    head = f"Host: x\r\nAuthorization: {account.auth}\r\nConnection: close\r\n\r\n".encode()

    received = await raw(running_service, b"GET /v3/received?msg_ids=1, 2 , HTTP/1.1\r\n" + head)
    users = await raw(
        running_service, b"GET /v3/users/?time_unit=HOUR&start=2014-06-11 09&duration=1 HTTP/1.1\r\n" + head)

    assert (received.status, received.json) == (
        200, [{"msg_id": "1"} | NOTHING_RECEIVED, {"msg_id": "2"} | NOTHING_RECEIVED])
    assert (users.status, users.json) == (400, jpush_error(3005, "start: only the last 60 days can be asked for"))


async def test_what_is_no_http_is_answered_in_json(running_service: Running, account: Account) -> None:
    """Garbage on the socket is 400 in the words of the path, as far as there is one, and the connection ends."""

    garbage = [b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET /v3/received HTTP/9.9\r\n\r\n",
               b"GET / HTTP/1.1\r\nbroken header\r\n\r\n", b"FETCH IT NOW HTTP/1.1\r\n\r\n",
               b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
               b"GET /v3/received?msg_ids=\xff HTTP/1.1\r\nHost: x\r\n\r\n",
               b"POST /v3/status/message and more HTTP/1.1\r\n\r\n",
               b"POST /v3/status/message HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"]

    answers = [await raw(running_service, request) for request in garbage]

    text = "the request is not valid HTTP"
    jpush, native = jpush_error(3002, text), native_error("invalid_request", text)
    assert [(answer.status, answer.headers["Content-Type"], answer.json) for answer in answers] == [
        (400, "application/json", jpush if b" /v3/" in request else native) for request in garbage]


async def test_unknown_expectation_is_answered_in_json(running_service: Running, account: Account) -> None:
    """An ``Expect`` other than 100-continue is refused in the dialect of the path; 100-continue is honoured."""

    await running_service.send(account, *reached(1, "received", 1, "android"))
    head = f"Host: x\r\nAuthorization: {account.auth}\r\nConnection: close\r\n".encode()
    body = b'{"msg_id":1,"registration_ids":["android0"]}'
    post = b"POST /v3/status/message HTTP/1.1\r\nContent-Length: %d\r\n" % len(body)

    get = b"GET /v3/received?msg_ids=1 HTTP/1.1\r\n"
    refused = await raw(running_service, get + b"Expect: miracles\r\n" + head + b"\r\n")
    continued = await raw(running_service, post + b"Expect: 100-continue\r\n" + head + b"\r\n" + body)

    assert (refused.status, refused.json) == (400, jpush_error(3002, "Expect: only 100-continue is supported"))
    assert continued.status == 100
    assert continued.body.endswith(b'{"android0":{"status":0}}')
