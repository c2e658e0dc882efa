"""Opens what sends traces, where the operator named a collector for them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from gateway.core.ports import Tracer
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.telemetry.traces import OtlpTracer


@asynccontextmanager
async def open_tracer(settings: Settings) -> AsyncIterator[Tracer | None]:
    """Give what begins traces; None without a collector. At the exit the last ones are sent."""
    if not settings.traces_endpoint:
        yield None
        return
    tracer = await anyio.to_thread.run_sync(_build, settings)
    try:
        yield tracer
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(tracer.close)


def _build(settings: Settings) -> "OtlpTracer":
    # Here, because it is an extra, and takes a while.
    from gateway.telemetry.traces import OtlpTracer

    pairs = filter(None, settings.traces_headers.get_secret_value().split(","))
    headers = (pair.partition("=") for pair in pairs)
    return OtlpTracer(
        settings.traces_endpoint,
        headers={name.strip(): value.strip() for name, _, value in headers},
        sample=settings.traces_sample,
        node=settings.resolved_node,
    )
