"""Bounds of what a client may ask."""

from pydantic import Field

from gateway.settings.values import Group, Positive


class LimitSettings(Group):
    """Bounds of requests and connections."""

    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="Largest request body.")
    max_image_bytes: int = Field(16 * 2**20, ge=1, description="Largest image, encoded.")
    max_image_pixels: int = Field(50_000_000, ge=1, description="Most pixels of an image.")
    max_peer_connections: int = Field(
        2048,
        ge=0,
        description="Connections that one address may have, but this machine; 0: no limit.",
    )
    head_timeout_s: Positive = Field(
        10.0, description="Seconds for the head of a request to arrive on its connection."
    )
    max_embeds: int = Field(256, ge=1, description="Embedding requests at once; above it: 503.")
    max_embed_inputs: int = Field(2048, ge=1, description="Inputs of one embedding request.")
