"""Builds the gateway from its settings, serves it and takes it down. The one who knows all."""
