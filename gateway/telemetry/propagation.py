"""The trace that a request belongs to, on its way through the tasks that work for it.

Source: W3C, Trace Context. What is in the headers is for `telemetry.traces`, if there are any.
"""

from contextvars import ContextVar

incoming: ContextVar[dict[str, str] | None] = ContextVar("incoming trace", default=None)
"""The caller's headers `traceparent` and `tracestate`; None: he sent none, or nobody traces."""

outgoing: ContextVar[bytes] = ContextVar("outgoing trace", default=b"")
"""The same for the next server, as lines of a head."""
