"""The document says what the code does: every route, every error, every word, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import jsonschema_rs
import pytest
from aiohttp import web
from aiohttp.web_routedef import RouteDef
from openapi_spec_validator import OpenAPIV31SpecValidator

from reportsvc import model
from reportsvc.api import beams_device, beams_reporting, jpush, limits, native, native_reads, pushy
from reportsvc.api.common import MAX_BODY_BYTES, Dialect
from reportsvc.api.events import MAX_ERRORS, MAX_EVENTS
from reportsvc.api.openapi.document import INCOMPLETE, PAGES, SECTIONS, description_of, handler_of, template
from reportsvc.api.openapi.operation import Section
from reportsvc.api.routes import ROUTES, dialect_of
from reportsvc.errors import BadRequest, Conflict, Forbidden, NotFound, TooLarge
from reportsvc.registry.ratelimit import Quota
from reportsvc.reports.status import Status
from reportsvc.reports.users import MEASURES
from reportsvc.server import MAX_FIELD_BYTES, MAX_LINE_BYTES
from tests.support.openapi import document, validator

PATHS: Final = document()["paths"]
SCHEMAS: Final = document()["components"]["schemas"]
OPERATIONS: Final = {operation["operationId"]: (path, method, operation)
                     for path, methods in PATHS.items() for method, operation in methods.items()}
METHODS: Final = {"get", "post", "put", "delete", "options"}

# dialect -> rows of its table that nothing in it ends with; each would have to come from a handler that it has not
NEVER: Final[list[tuple[Dialect, set[Any]]]] = [
    (jpush.DIALECT, {Conflict, NotFound}),  # nothing is registered or looked up here; a stray path is the framework's
    (pushy.DIALECT, {BadRequest, Forbidden, NotFound, TooLarge}),  # it has no body, and an unknown push is invalid
    (beams_reporting.DIALECT, {NotFound}),
    (beams_device.DIALECT, {Conflict}),
    (beams_device.SERVER_DIALECT, {Conflict}),
    (native.DIALECT, {Forbidden}),  # what an app may not use is not here
]


def test_document_is_valid() -> None:
    """A validator of OpenAPI 3.1 that others wrote finds nothing wrong with it."""

    assert document()["openapi"] == "3.1.0"
    assert [str(error) for error in OpenAPIV31SpecValidator(document()).iter_errors()] == []


def test_every_route_is_described() -> None:
    """A route that is added to the service is missing in the document until somebody describes its handler."""

    routes = {(route.method, template(route.path)) for route in ROUTES
              if isinstance(route, RouteDef) and handler_of(route) not in INCOMPLETE | PAGES}

    assert routes - {(method.upper(), path) for path, methods in PATHS.items() for method in methods} == set()


def test_every_description_has_a_route() -> None:
    """What is described is served: no operation of the document, and no text for one, is left over from a route that
    is gone."""

    routes = [route for route in ROUTES if isinstance(route, RouteDef)]
    described = {(section.tag, operation.id) for route in routes if (found := description_of(route))
                 for section, operation in [found]}

    assert {(method.upper(), path) for path, methods in PATHS.items() for method in methods} <= {
        (route.method, template(route.path)) for route in routes}
    assert {(section.tag, operation.id) for section in SECTIONS
            for operation in section.operations.values()} - described == set()


def test_handlers_that_are_left_out_are_routed() -> None:
    """The handlers that are left out on purpose are still there."""

    assert INCOMPLETE | PAGES <= {handler_of(route) for route in ROUTES if isinstance(route, RouteDef)}


def test_operations_have_names_and_parameters() -> None:
    """Each operation has a name of its own, one tag that is explained, a summary, and every name in its path as a
    described parameter."""

    tags = [tag["name"] for tag in document()["tags"]]
    assert len(OPERATIONS) == sum(len(methods) for methods in PATHS.values())
    assert all(tag["description"] for tag in document()["tags"]) and len(set(tags)) == len(tags)
    for name, (path, method, operation) in OPERATIONS.items():
        in_path = {parameter["name"]: parameter for parameter in operation["parameters"] if parameter["in"] == "path"}
        assert method in METHODS, name
        assert operation["summary"] and not operation["summary"].endswith("."), name
        assert len(operation["tags"]) == 1 and operation["tags"][0] in tags, name
        assert set(re.findall(r"\{(\w+)\}", path)) == set(in_path), name
        assert all(parameter["description"] and len(parameter["schema"]) > 1 for parameter in in_path.values()), name


# -------------------------------------------------------------------------------------------------------------- errors
def statuses_and_codes(section: Section) -> set[tuple[int, Any]]:
    """All errors that the operations of *section* are described with."""
    found: set[tuple[int, Any]] = set()
    for _, _, operation in OPERATIONS.values():
        if operation["tags"] == [section.tag]:
            for status, response in operation["responses"].items():
                for example in response.get("content", {}).get("application/json", {}).get("examples", {}).values():
                    if int(status) >= 400 and isinstance(example["value"], Mapping):
                        found.add((int(status), code_in(section.dialect, example["value"])))
    return found


def code_in(dialect: Dialect, body: Any) -> Any:
    """The vendor's code in the *body* of an error."""
    shape = dialect.body("CODE", "TEXT")
    while shape != "CODE":
        assert isinstance(shape, dict)
        name = next((name for name, part in shape.items() if part == "CODE" or isinstance(part, dict)), "")
        if name not in body:
            return None
        shape, body = shape[name], body[name]
    return body


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.tag)
def test_every_error_of_a_dialect_is_described(section: Section) -> None:
    """Each row of a dialect's table of errors is the answer of one of its operations at least, or is known to belong to
    none; a row that is added has to be described."""

    dialects = [one for one in SECTIONS if one.dialect is section.dialect]
    told = {pair for one in dialects for pair in statuses_and_codes(one)}
    never = next(kinds for dialect, kinds in NEVER if dialect is section.dialect)
    expected = {(section.dialect.forbidden_statuses.get(status, status), code)
                for kind, (status, code) in section.dialect.errors.items() if kind not in never}
    if section.dialect is beams_device.SERVER_DIALECT:  # it shares its table with the devices
        told |= statuses_and_codes(next(one for one in SECTIONS if one.dialect is beams_device.DIALECT))

    assert expected - told == set()
    assert all(kind in section.dialect.errors for kind in never)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.tag)
def test_no_error_is_described_that_a_dialect_has_not(section: Section) -> None:
    """A status with a code stands in the document only if a table of its dialect has them together."""

    of_errors = {(section.dialect.forbidden_statuses.get(status, status), code)
                 for status, code in section.dialect.errors.values()}
    codes = set(section.dialect.framework.values())

    assert {(status, code) for status, code in statuses_and_codes(section) - of_errors
            if code not in codes and code is not None} == set()


def test_devices_are_never_told_what_their_sdks_break_on() -> None:
    """Reporting an event is answered with nothing but 200, 400, 500 and 503, in the document too."""

    _, _, operation = OPERATIONS["beamsReportEvent"]

    assert set(operation["responses"]) == {"200", "400", "500", "503"}


def test_every_operation_tells_what_may_go_wrong_anywhere() -> None:
    """A bug, a request that is no HTTP and one that is too long are described everywhere; missing credentials and calls
    beyond a limit wherever there are credentials."""

    for name, (path, _, operation) in OPERATIONS.items():
        expected = {"400", "500"} | (set() if dialect_of(path).forbidden_statuses else {"414", "431"})
        if operation["security"]:
            expected |= {"401"}
        if operation["tags"][0] in ("Native", "JPush Report", "Pushy"):
            expected |= {"429", "503"}
        assert expected <= set(operation["responses"]), name


def test_calls_that_are_limited_say_so() -> None:
    """Every answer of JPush's to a caller who is known has the headers that the code writes."""

    told = web.Response()
    limits.tell(told, Quota(10, 1, 60))
    names = {str(name) for name in told.headers if name.startswith("X-")}

    assert len(names) == 4
    for name, (_, _, operation) in OPERATIONS.items():
        if operation["tags"] == ["JPush Report"]:
            for status, response in operation["responses"].items():
                written = {header for header in response.get("headers", {}) if header.startswith("X-")}
                assert written == (set() if status == "401" else names), (name, status)


def test_limits_of_the_server_are_those_of_the_document() -> None:
    """What is said of too long lines and headers is what the server holds to."""

    texts = [example["value"]["error"]["message"] for status in ("414", "431", "413")
             for example in OPERATIONS["postEvents"][2]["responses"][status]["content"]["application/json"][
                 "examples"].values()]

    assert texts == [f"the request line is over {MAX_LINE_BYTES} bytes", f"a header is over {MAX_FIELD_BYTES} bytes",
                     f"at most {MAX_EVENTS} items a request, not {MAX_EVENTS + 1}",
                     f"the body is over {MAX_BODY_BYTES} bytes"]


# ------------------------------------------------------------------------------------------------------------ examples
def with_examples(node: Any, *at: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Everything in the document that has a schema and examples, with its place."""
    if isinstance(node, dict):
        if "schema" in node and ({"example", "examples"} & set(node)):
            yield at, node
        for name, part in node.items():
            yield from with_examples(part, *at, str(name))
    elif isinstance(node, list):
        for place, part in enumerate(node):
            yield from with_examples(part, *at, str(place))


def test_every_example_is_valid() -> None:
    """Each example fits the schema beside it."""

    found = 0
    for at, node in with_examples(PATHS, "paths"):
        values = [example["value"] for example in node.get("examples", {}).values()]
        for value in [*values, *([node["example"]] if "example" in node else [])]:
            found += 1
            assert [str(error) for error in validator(*at, "schema").iter_errors(value)] == [], (at, value)
    assert found > 500


def test_schemas_refuse_what_is_wrong() -> None:
    """The schemas say something: no example of an answer is left valid when a key of it is missing or added."""

    for at, node in with_examples(PATHS, "paths"):
        if "responses" in at:
            for example in node.get("examples", {}).values():
                if isinstance(example["value"], dict) and "registration_ids" not in at and at[-1] == "application/json":
                    check = validator(*at, "schema")
                    if "jpushStatusMessage" in str(PATHS[at[1]][at[2]]["operationId"]) and "200" in at:
                        continue  # its keys are devices
                    assert not check.is_valid(example["value"] | {"more": 1}), at
                    first = next(iter(example["value"]))
                    assert not check.is_valid({
                        name: value for name, value in example["value"].items() if name != first}), at


def test_every_body_and_answer_has_an_example() -> None:
    """Whoever reads the document sees what is sent and what comes back."""

    for name, (_, _, operation) in OPERATIONS.items():
        contents = [*operation.get("requestBody", {}).get("content", {}).values(),
                    *(content for response in operation["responses"].values()
                      for media, content in response.get("content", {}).items()
                      if operation["tags"] != ["Operations"] or media == "application/json")]
        missing = [content for content in contents if not content.get("examples")]
        assert missing == [] or name in ("openapiJson", "docs"), name


@pytest.mark.parametrize("operation, example, key", [
    ("jpushReceived", "the-vendor-s-example", "200"), ("jpushMessages", "the-vendor-s-example", "200"),
    ("jpushStatusMessage", "the-vendor-s-example", "200"), ("jpushUsers", "the-vendor-s-example", "200"),
    ("pushyNotificationStatus", "the-vendor-s-example", "200")])
def test_vendors_examples_come_first(operation: str, example: str, key: str) -> None:
    """What a vendor published is the first example of its path."""

    content = OPERATIONS[operation][2]["responses"][key]["content"]["application/json"]

    assert next(iter(content["examples"])) == example


# ---------------------------------------------------------------------------------------------------------- vocabulary
def enums(name: str, schema: str) -> list[Any]:
    """The words that the property *name* of *schema* may be, null left out."""
    return [word for word in SCHEMAS[schema]["properties"][name]["enum"] if word is not None]


def test_vocabulary_is_the_codes() -> None:
    """Stages, platforms, channels and kinds of the document are those of the code, all of them."""

    assert {*enums("stage", "MessageEvent"), *enums("stage", "PresenceEvent")} == set(model.STAGES)
    assert set(enums("stage", "PresenceEvent")) == model.PRESENCE_STAGES
    for schema in ("MessageEvent", "PresenceEvent", "Device"):
        assert enums("platform", schema) == [*model.PLATFORMS[1:], "unknown"]
    for schema in ("MessageEvent", "Push"):
        assert enums("channel", schema) == list(model.CHANNELS[1:])
        assert enums("kind", schema) == list(model.KINDS)
    assert all(f"`{channel}`" in OPERATIONS["postEvents"][2]["description"] for channel in model.CHANNELS[1:])


def test_words_of_answers_are_the_codes() -> None:
    """Fields of the reports, statuses, measures and gateways are read off the tables that answers are made of."""

    assert list(SCHEMAS["JPushReceived"]["properties"]) == ["msg_id", *jpush.RECEIVED, *jpush.WEB_RECEIVED]
    assert {platform: list(SCHEMAS["JPushMessage"]["properties"][platform]["properties"])
            for platform in jpush.MESSAGES | jpush.WEB_MESSAGES} == {
        platform: list(fields) for platform, fields in (jpush.MESSAGES | jpush.WEB_MESSAGES).items()}
    assert SCHEMAS["JPushStatus"]["properties"]["status"]["enum"] == [status.value for status in Status]
    assert list(SCHEMAS["JPushFigures"]["properties"]) == list(MEASURES)
    gateways = [parameter["schema"]["enum"] for _, _, operation in OPERATIONS.values()
                for parameter in operation["parameters"] if parameter["name"] == "platform" and parameter["required"]]
    assert gateways and all(words == list(model.PLATFORM_OF_GATEWAY) for words in gateways)


def test_limits_are_the_codes() -> None:
    """Numbers in the document are the constants that the parsers hold to."""

    events = OPERATIONS["postEvents"][2]["requestBody"]["content"]["application/json"]["schema"]["anyOf"][1]
    targets = OPERATIONS["postTargets"][2]["requestBody"]["content"]["application/json"]["schema"]["anyOf"][1]
    lists = {name: part["maxItems"] for one in SCHEMAS["Audience"]["anyOf"][1:]
             for name, part in one["properties"].items()}

    assert (events["maxItems"], targets["maxItems"]) == (MAX_EVENTS, native.MAX_AUDIENCE_DEVICES)
    assert SCHEMAS["NativeOutcome"]["properties"]["errors"]["maxItems"] == MAX_ERRORS
    assert lists == {"device_ids": native.MAX_AUDIENCE_DEVICES, "interests": native.MAX_AUDIENCE_INTERESTS,
                     "users": native.MAX_AUDIENCE_USERS}
    assert SCHEMAS["Id"]["maxLength"] == model.MAX_ID_BYTES
    assert SCHEMAS["JPushStatusQuery"]["properties"]["registration_ids"]["maxItems"] == jpush.MAX_REGISTRATION_IDS
    assert SCHEMAS["BeamsInterestSet"]["properties"]["interests"]["maxItems"] == model.MAX_INTERESTS
    assert set(OPERATIONS["postEvents"][2]["requestBody"]["content"]) == {"application/json"} | native.LINES
    assert parameter("jpushReceived", "msg_ids")["schema"]["maxItems"] == jpush.MAX_MSG_IDS
    assert parameter("getMessages", "limit")["schema"] == {
        "type": "integer", "minimum": 1, "maximum": native_reads.MAX_LIMIT, "default": native_reads.DEFAULT_LIMIT}
    assert parameter("beamsGetInterests", "limit")["schema"]["maximum"] == beams_device.MAX_PAGE


def parameter(operation: str, name: str) -> Any:
    """A parameter of an operation."""
    return next(one for one in OPERATIONS[operation][2]["parameters"] if one["name"] == name)


@pytest.mark.parametrize("schema, good, bad", [
    ("BeamsInterest", ["a", "donuts;a,b", "A-Z_0@=.", "i" * 164], ["", "a b", "i" * 165, "ä", "a\n"]),
    ("Id", ["a", 7, 10**40, "i" * 256], ["", None, True, "i" * 257, 1.5]),
])
def test_patterns_are_for_whole_strings(schema: str, good: list[Any], bad: list[Any]) -> None:
    """A pattern of the code that is for a whole string stays one in JSON Schema."""

    check = validator("components", "schemas", schema)

    assert [value for value in good if not check.is_valid(value)] == []
    assert [value for value in bad if check.is_valid(value)] == []


def test_instance_ids_of_any_letter_case_fit() -> None:
    """The pattern of an instance id has lost its flag, not what the flag allowed."""

    schema = parameter("beamsReportEvent", "instance_id")["schema"]

    assert jsonschema_rs.is_valid(schema, "426ABFC7-41fe-492f-bcf1-27586fa9bd3f")
    assert not jsonschema_rs.is_valid(schema, "426abfc7-41fe-492f-bcf1-27586fa9bd3g")
