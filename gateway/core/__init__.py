"""Plain data and pure decisions: stdlib and msgspec only, no I/O, no clock, no environment."""
