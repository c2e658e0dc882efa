"""Serves the gateway until a signal says stop."""

import gc
import logging
import socket
import sys
from functools import partial

import anyio
import anyio.to_thread
import uvicorn

from gateway.bootstrap.lifetime import running
from gateway.core.hosts import is_loopback
from gateway.http.app import create_app
from gateway.http.connections import (
    ConnectionGuard,
    ConnectionLimits,
    most_connections,
    raise_file_limit,
)
from gateway.http.express.way import ExpressWay
from gateway.http.protocol import guarded_protocol
from gateway.http.server import VANISHED_S, DrainingServer, listen
from gateway.http.stream import read_stream_values
from gateway.services.gateway import Gateway
from gateway.settings import Settings
from gateway.store.claim import claimed
from gateway.telemetry import configure_logging
from gateway.telemetry.watchdog import LoopWatchdog
from schema import create_graphql
from schema.body import MAX_BODY_BYTES

logger = logging.getLogger(__name__)


COLLECT_AFTER = 10_000
"""How many more objects there are than before when the collector looks among them for cycles."""
CLOSE_S = 2
"""How long it waits for clients to read their terminal events."""


def configure(settings: Settings, gateway: Gateway) -> uvicorn.Config:
    """Return how the whole application is served: every face over one gateway."""
    graphql = create_graphql(gateway, settings, read_stream_values)
    express = ExpressWay(gateway, settings)
    limits = ConnectionLimits(
        most_connections(),
        most_of_peer=settings.max_peer_connections,
        head_s=settings.head_timeout_s,
    )
    return uvicorn.Config(
        create_app(gateway, settings, graphql, learn=express.learn),
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # the application reads them itself, where there are any
        ws="websockets-sansio",
        ws_max_size=MAX_BODY_BYTES,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=CLOSE_S,
        http=guarded_protocol(ConnectionGuard(limits), express),
    )


def serve(settings: Settings) -> None:
    """Serve until a signal says stop; returns when everything is closed.

    Raises Misconfigured, WrongRevision, DatabaseUnavailable before it serves anything. The
    settings must have passed `preflight.find_mistakes`.
    """
    configure_logging(settings.log_level, settings.log_format)
    raise_file_limit()
    if settings.hf_model_path and not settings.hf_model_path.is_dir():
        logger.warning("the models folder %s is not there (yet)", settings.hf_model_path)
    # First of all, so that a second gateway by mistake disturbs nothing of the first.
    with (
        listen(settings.host, settings.port, vanished_s=_choose_vanished_s(settings)) as listener,
        claimed(settings.resolved_node, settings.data_dir),
    ):
        anyio.run(_serve, settings, listener, backend_options={"use_uvloop": True})


async def _serve(settings: Settings, listener: socket.socket) -> None:
    async with running(settings) as gateway:
        # What is here now stays. Looking through it for garbage again and again would hold up the
        # event loop: for 0.1 s with torch imported.
        gc.freeze()
        if not gateway.gatekeeper.needs_keys:
            _say_who_may(settings.host)
        server = DrainingServer(
            configure(settings, gateway),
            drain=gateway.drain,
            grace_s=settings.drain_grace_s,
            started=partial(_say_hello, needs_key=gateway.gatekeeper.needs_keys),
        )
        spare_the_collector()
        # Only now: nobody waited for the loop before.
        async with anyio.create_task_group() as tasks:
            if settings.stall_warn_s:
                watchdog = LoopWatchdog(gateway.metrics.stalls, warn_s=settings.stall_warn_s)
                tasks.start_soon(watchdog.run, name="loop watchdog")
            await server.serve([listener])
            tasks.cancel_scope.cancel()


def _choose_vanished_s(settings: Settings) -> float:
    """Who takes nothing looks to the system as if he had vanished: `send_timeout_s` is first."""
    return max(VANISHED_S, 2 * settings.send_timeout_s)


def spare_the_collector() -> None:
    """Have the garbage collector look at what requests leave, and not at the gateway itself, which
    stays: by default it does so every few hundred requests, and stops all streams meanwhile."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 20)


def _say_who_may(host: str) -> None:
    """Say whom a gateway without keys serves."""
    if is_loopback(host):
        logger.info("there are no API keys: this gateway serves its own machine only")
    else:
        logger.warning(
            "there are no API keys: nobody is served at %s until there is one; "
            "make it with `gateway keys create NAME`",
            host,
        )


def _say_hello(url: str, *, needs_key: bool) -> None:
    key = " -H 'authorization: Bearer YOUR-KEY'" if needs_key else ""
    body = (
        '{"model":"huggingface/demo","messages":[{"role":"user","content":"What is a gateway?"}]}'
    )
    sys.stdout.write(
        f"\nThe gateway serves at {url} . Try it:\n\n"
        f"  curl -N {url}/api/v1/stream -H 'content-type: application/json'{key} -d '{body}'\n\n"
    )
    sys.stdout.flush()
