"""What the gateway does: routing, streams, records. Sees the world through core.ports."""
