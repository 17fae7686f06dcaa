"""What every process answers about itself, described."""

from __future__ import annotations

from typing import Final

from reportsvc.api import native, operations
from reportsvc.api.openapi import handlers
from reportsvc.api.openapi.operation import EVERYWHERE, Answer, Content, Example, Operation, Section
from reportsvc.api.openapi.schemas import closed_object, ref, string, words
from reportsvc.errors import Unauthorized

_CACHED: Final = ("ETag", "Vary", "Cache-Control")
_SHARED: Final = (*_CACHED, "Access-Control-Allow-Origin")
_KNOWN: Final = "The caller has it already: `If-None-Match` names its `ETag`."
HEALTHZ: Final = Operation(
    id="healthz", summary="The process answers", description="No store is asked.",
    answers={200: Answer("It does.", Content(closed_object({"status": words(["ok"])}),
                                             [Example("it does", {"status": "ok"})]))})
READYZ: Final = Operation(
    id="readyz", summary="Every store answers",
    answers={
        200: Answer("All of them do.", Content(ref("Readiness"), [
            Example("ready", {"status": "ok", "stores": {"redis": "ok", "clickhouse": "ok"}})])),
        503: Answer("At least one does not.", Content(ref("Readiness"), [Example("a store is away", {
            "status": "unavailable", "stores": {
                "redis": "ok", "clickhouse": f"no answer within {operations.CHECK_SECONDS:.0f} s"}})]))})
_FIGURES: Final = "".join(f"{line}\n" for line in (
    "# HELP reportsvc_http_requests_total Requests answered.", "# TYPE reportsvc_http_requests_total counter",
    'reportsvc_http_requests_total{method="GET",route="/healthz",status="200"} 3.0'))
METRICS: Final = Operation(
    id="metrics", summary="Everything there is to count, as Prometheus reads it",
    description="A Bearer token is needed if `REPORTSVC_METRICS_TOKEN` is set.",
    security=[{}, {"metricsToken": []}],
    answers={200: Answer("The figures of this process, or of all workers behind this port, and of the stores.",
                         Content(string(), [Example("three lines of it", _FIGURES)],
                                 ("text/plain", "application/openmetrics-text")))},
    errors=(Unauthorized("a Bearer token is needed here, and this is none or another one"),))
DOCUMENT: Final = Operation(
    id="openapiJson", summary="This document",
    answers={200: Answer("OpenAPI 3.1.", Content({
        "type": "object", "required": ["openapi", "info", "paths"],
        "properties": {"openapi": {"const": "3.1.0"}, "info": {"type": "object"}, "paths": {"type": "object"}}}),
        headers=_SHARED), 304: Answer(_KNOWN, headers=_SHARED)})
DOCS: Final = Operation(
    id="docs", summary="This document, to be read",
    answers={200: Answer("A page without scripts.", Content(string(), media=("text/html",)), headers=_CACHED),
             304: Answer(_KNOWN, headers=_CACHED)})

SECTION: Final = Section(
    tag="Operations", description="For load balancers, monitoring and people.", dialect=native.DIALECT,
    operations={operations.healthz: HEALTHZ, operations.readyz: READYZ, operations.metrics: METRICS,
                handlers.openapi_json: DOCUMENT, handlers.docs: DOCS},
    errors=EVERYWHERE,
    schemas={"Readiness": closed_object({
        "status": words(["ok", "unavailable"]),
        "stores": {"type": "object", "additionalProperties": string("`ok`, or what is wrong.")}})})
