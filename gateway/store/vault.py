"""Encrypts what the database keeps for the gateway; the key is never in the database."""

import base64
from collections.abc import Sequence
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.core.errors import Misconfigured, SecretUnreadable
from gateway.store.secret_file import read_or_make


class Vault:
    """Locks with the newest of its keys, opens with any of them (AES-128-CBC and HMAC-SHA256, as
    Fernet has it)."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """`keys` are secrets of any form, 32 bytes or more, the newest first."""
        fernets = [Fernet(_derive(key)) for key in keys]
        self._newest = fernets[0]
        self._all = MultiFernet(fernets)

    def lock(self, text: str) -> str:
        return self._newest.encrypt(text.encode()).decode("ascii")

    def open(self, locked: str) -> str:
        """Return the text; raises SecretUnreadable if it was locked with none of the keys."""
        try:
            return self._all.decrypt(locked.encode()).decode()
        except (InvalidToken, UnicodeError):
            raise SecretUnreadable("A stored secret cannot be read with this key.") from None

    def is_newest(self, locked: str) -> bool:
        """Tell whether it is locked with the newest key."""
        try:
            self._newest.decrypt(locked.encode())
        except InvalidToken:
            return False
        return True


def load_vault(given: str, file: Path) -> Vault:
    """Return the vault of the keys in `given` (between commas), else of those in `file` (one a
    line), which is made when it is not there. Raises Misconfigured."""
    try:
        text = given or read_or_make(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise Misconfigured([f"GATEWAY_SECRET_KEY_FILE: {file}: {reason}"]) from None
    keys = text.replace(",", "\n").split()
    if min(map(len, keys), default=0) < 32:
        raise Misconfigured(
            [f"GATEWAY_SECRET_KEY_FILE: {file}: each key has 32 characters or more"]
        )
    return Vault([key.encode() for key in keys])


def _derive(key: bytes) -> bytes:
    derived = HKDF(SHA256(), length=32, salt=None, info=b"model-gateway secrets").derive(key)
    return base64.urlsafe_b64encode(derived)
