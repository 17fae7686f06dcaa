"""What can go wrong, in the service's own words.

No HTTP status and no vendor code lives here: each dialect in ``reportsvc.api`` owns the table that turns these into
its vendor's answers, so a new dialect never touches the code that raises.
"""

from __future__ import annotations


class ReportError(Exception):
    """Base of every failure a caller may see; ``str(error)`` is safe to show to that caller."""


class BadRequest(ReportError):
    """The request as a whole cannot be understood (not JSON, wrong encoding, wrong content type)."""


class BadParameter(BadRequest):
    """One named parameter is missing or breaks its rule."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name
        self.problem = problem


class TooLarge(ReportError):
    """The request is over a documented size limit."""


class Unauthorized(ReportError):
    """The credentials are missing or wrong."""


class Forbidden(ReportError):
    """The credentials are right, but this app may not use this interface."""


class RateLimited(ReportError):
    """The app has made all the calls it may make in this minute; *retry_after* seconds are left of it."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("Rate limit exceeded")
        self.retry_after = retry_after


class NotFound(ReportError):
    """The thing asked for does not exist in this app."""


class Conflict(ReportError):
    """The same id was registered before with other content."""


class StoreUnavailable(ReportError):
    """A store did not answer, or did not confirm in time.

    A write that ends like this may or may not have happened. Sending it again is safe, because every write of this
    service is a set union or a keyed upsert.
    """

    def __init__(self, store: str, problem: str = "") -> None:
        super().__init__(f"{store} is unavailable" + (f": {problem}" if problem else ""))
        self.store = store


class DataLost(StoreUnavailable):
    """A store answers, but has lost what it was told: going on would count wrong."""

    def __init__(self, store: str, what: str) -> None:
        super().__init__(store, f"it has lost {what}; stop every process of the service, then run `reportsvc rebuild`")


class BadConfig(ReportError):
    """A setting is wrong; the text says which, and what to write instead."""
