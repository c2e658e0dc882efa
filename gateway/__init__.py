"""The Model Gateway: one service in front of unlike model providers."""

__version__ = "0.1.0"
