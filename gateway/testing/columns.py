"""What the columns of the database make of a value, for those that keep it elsewhere."""

from gateway.store.tables import MAX_MESSAGE_LENGTH, clean_text


def clean_message(text: str | None) -> str | None:
    """Return a message as its column keeps it."""
    return None if text is None else clean_text(text, MAX_MESSAGE_LENGTH)


def to_microseconds(seconds: float) -> float:
    """Return a time as its column keeps it."""
    return round(seconds, 6)
