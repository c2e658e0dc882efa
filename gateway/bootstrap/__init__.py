"""Builds the gateway from its settings, serves it and takes it down. The one who knows all."""

from gateway.bootstrap.hub import open_hub
from gateway.bootstrap.lifetime import running
from gateway.bootstrap.server import CLOSE_S, configure, serve

__all__ = ["CLOSE_S", "configure", "open_hub", "running", "serve"]
