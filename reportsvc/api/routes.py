"""Every URL on one screen, and the dialect that answers errors on it."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from reportsvc.api import beams_reporting, jpush, native, operations, pushy
from reportsvc.api.auth import basic_auth
from reportsvc.api.common import Dialect

_basic = basic_auth.required
_EVENTS: Final = "/reporting_api/v2/instances/{instance_id}/events"

ROUTES: Final = [
    # JPush Report, also under the prefix of its Beijing zone
    *(route for prefix in ("/v3", "/v3/report") for route in (
        web.get(f"{prefix}/received", _basic(jpush.received)),
        web.post(f"{prefix}/status/message", _basic(jpush.status_message)),
        web.get(f"{prefix}/messages", _basic(jpush.messages)),
        web.get(f"{prefix}/users", _basic(jpush.users)),
    )),
    # Pushy
    web.get("/pushes/{push_id}", pushy.notification_status),
    # Pusher Beams Reporting
    web.post(_EVENTS, beams_reporting.report_event),
    web.options(_EVENTS, beams_reporting.preflight),
    web.post("/reporting_api/v2/instances/events", beams_reporting.missing_instance),
    # native
    web.post("/v1/events", _basic(native.post_events)),
    web.post("/v1/pushes", _basic(native.post_push)),
    web.post("/v1/pushes/{msg_id}/targets", _basic(native.post_targets)),
    web.post("/v1/devices", _basic(native.post_devices)),
    web.delete("/v1/devices/{device_id}", _basic(native.delete_device)),
    # operations
    web.get("/healthz", operations.healthz),
    web.get("/readyz", operations.readyz),
]

# first part of a path -> dialect
_DIALECTS: Final = {
    "v3": jpush.DIALECT, "pushes": pushy.DIALECT, "reporting_api": beams_reporting.DIALECT,
    "device_api": beams_reporting.DIALECT, "customer_api": beams_reporting.DIALECT,
    "user_api": beams_reporting.DIALECT,
}


def dialect_of(path: str) -> Dialect:
    """The dialect that answers errors at *path*."""
    return _DIALECTS.get(path.lstrip("/").partition("/")[0], native.DIALECT)
