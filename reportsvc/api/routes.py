"""Every URL on one screen, and the dialect that answers errors on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from aiohttp import web

from reportsvc.api import (beams, beams_device, beams_reporting, dashboard, jpush, native, native_reads, operations,
                           pushy)
from reportsvc.api.auth import basic_auth
from reportsvc.api.common import Dialect
from reportsvc.api.limits import Handler, limited_native, limited_reports
from reportsvc.api.openapi import handlers as openapi

_basic: Final[Callable[[Handler], Handler]] = basic_auth.required


def _reports(handler: Handler) -> Handler:
    """A handler of ``/v3``: for an app, within its limit."""
    return _basic(limited_reports(handler))


def _native(handler: Handler) -> Handler:
    """A handler of ``/v1``: for an app, within its limit if there is one."""
    return _basic(limited_native(handler))


_EVENTS: Final = "/reporting_api/v2/instances/{instance_id}/events"
_INSTANCE: Final = "/device_api/v1/instances/{instance_id}"
_DEVICES: Final = f"{_INSTANCE}/devices/{{platform}}"
# Ids and names of any characters, so that a bad one is told to be bad, and not taken for a path that is not there.
_DEVICE: Final = f"{_DEVICES}/{{device_id:[^/]+}}"
_INTEREST: Final = f"{_DEVICE}/interests/{{interest:[\\s\\S]+}}"

# Pusher Beams Device; browsers ask before each of them.
_DEVICE_ROUTES: Final = [
    web.get(f"{_INSTANCE}/web-vapid-public-key", beams_device.vapid_public_key),
    web.post(_DEVICES, beams_device.register),
    web.get(_DEVICE, beams_device.get_device),
    web.delete(_DEVICE, beams_device.delete_device),
    web.put(f"{_DEVICE}/metadata", beams_device.set_metadata),
    web.put(f"{_DEVICE}/token", beams_device.set_token),
    web.put(f"{_DEVICE}/user", beams_device.set_user),
    web.get(f"{_DEVICE}/interests", beams_device.get_interests),
    web.put(f"{_DEVICE}/interests", beams_device.set_interests),
    web.post(_INTEREST, beams_device.add_interest),
    web.delete(_INTEREST, beams_device.remove_interest),
]
# What is left of such a path when an id in it is empty: doubled slashes have become one.
_INCOMPLETE_ROUTES: Final = [
    web.route("*", "/device_api/v1/instances/devices{rest:(/.*)?}", beams_device.missing_instance),
    web.get("/device_api/v1/instances/web-vapid-public-key", beams_device.missing_instance),
    web.get(_DEVICES, beams_device.missing_device),
    web.delete(_DEVICES, beams_device.missing_device),
    *(web.put(f"{_DEVICES}/{part}", beams_device.missing_device)
      for part in ("metadata", "token", "user", "interests")),
    web.get(f"{_DEVICES}/interests", beams_device.missing_device),
    web.post(f"{_DEVICES}/interests/{{interest}}", beams_device.missing_device),
    web.delete(f"{_DEVICES}/interests/{{interest}}", beams_device.missing_device),
    web.post(f"{_DEVICE}/interests", beams_device.missing_interest),
    web.delete(f"{_DEVICE}/interests", beams_device.missing_interest),
]

# What every process answers, whatever its role.
OPERATIONS: Final = [
    web.get("/healthz", operations.healthz),
    web.get("/readyz", operations.readyz),
    web.get("/metrics", operations.metrics),
]

ROUTES: Final = [
    # JPush Report, also under the prefix of its Beijing zone
    *(route for prefix in ("/v3", "/v3/report") for route in (
        web.get(f"{prefix}/received", _reports(jpush.received)),
        web.post(f"{prefix}/status/message", _reports(jpush.status_message)),
        web.get(f"{prefix}/messages", _reports(jpush.messages)),
        web.get(f"{prefix}/users", _reports(jpush.users)),
    )),
    # Pushy
    web.get("/pushes/{push_id}", pushy.notification_status),
    # Pusher Beams Reporting
    web.post(_EVENTS, beams_reporting.report_event),
    web.options(_EVENTS, beams.preflight),
    web.post("/reporting_api/v2/instances/events", beams_reporting.missing_instance),
    # Pusher Beams Device
    *_INCOMPLETE_ROUTES,
    *_DEVICE_ROUTES,
    *(web.options(path, beams.preflight) for path in dict.fromkeys(route.path for route in _DEVICE_ROUTES)),
    web.delete("/customer_api/v1/instances/{instance_id}/users/{user_id:[\\s\\S]+}", beams_device.delete_user),
    web.delete("/user_api/v1/instances/{instance_id}/users/{user_id:[\\s\\S]+}", beams_device.delete_user),
    # native
    web.post("/v1/events", _native(native.post_events)),
    web.post("/v1/pushes", _native(native.post_push)),
    web.post("/v1/pushes/{msg_id}/targets", _native(native.post_targets)),
    web.post("/v1/devices", _native(native.post_devices)),
    web.delete("/v1/devices/{device_id}", _native(native.delete_device)),
    web.get("/v1/messages", _native(native_reads.get_messages)),
    web.get("/v1/messages/{msg_id:[^/]+}", _native(native_reads.get_message)),
    web.get("/v1/messages/{msg_id:[^/]+}/timeline", _native(native_reads.get_timeline)),
    web.get("/openapi.json", openapi.openapi_json),
    web.get("/docs", openapi.docs),
    # the dashboard
    web.get("/", dashboard.page),
    web.get("/dashboard/{version}/{name:[\\w./-]+}", dashboard.file),
    *OPERATIONS,
]

# first part of a path -> dialect
_DIALECTS: Final = {
    "v3": jpush.DIALECT, "pushes": pushy.DIALECT, "reporting_api": beams_reporting.DIALECT,
    "device_api": beams_device.DIALECT, "customer_api": beams_device.SERVER_DIALECT,
    "user_api": beams_device.SERVER_DIALECT,
}


def dialect_of(path: str) -> Dialect:
    """The dialect that answers errors at *path*."""
    return _DIALECTS.get(path.lstrip("/").partition("/")[0], native.DIALECT)
