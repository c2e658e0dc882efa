"""What the gateway tells of itself: logs, figures, and whether its event loop keeps turning."""

from gateway.telemetry.logs import configure_logging, decision_id, of_no_request, request_id

__all__ = ["configure_logging", "decision_id", "of_no_request", "request_id"]
