"""The pepper of the API keys: given by the operator, or made once and kept in a file."""

from pathlib import Path

from gateway.core.errors import Misconfigured
from gateway.core.keys import Peppers
from gateway.store.secret_file import read_or_make


def load_peppers(given: str, file: Path) -> Peppers:
    """Return the peppers in `given` (between commas), else those in `file` (one a line).

    A file that is not there is made, with one random pepper and for this user only. Raises
    Misconfigured.
    """
    try:
        text = given or read_or_make(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise Misconfigured([f"GATEWAY_KEY_PEPPER_FILE: {file}: {reason}"]) from None
    values = text.replace(",", "\n").split()
    if not values:
        raise Misconfigured([f"GATEWAY_KEY_PEPPER_FILE: {file}: it is empty"])
    return Peppers([value.encode() for value in values])
