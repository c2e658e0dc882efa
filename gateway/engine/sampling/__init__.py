"""Which token is next."""
