"""Names a cache of the Hub, so that whoever has it mounted may go on with a download to it."""

import logging
import os
import re
import secrets
import socket
from pathlib import Path

logger = logging.getLogger(__name__)

FILE = ".locks/gateway-place"
"""Not beside the repositories: huggingface_hub tells of every file there that is none."""
_NAME = re.compile(r"[0-9a-f]{32}")


def name_place(cache: Path) -> str:
    """Return what is written in the cache itself, written now if it is not there yet.

    Not the host: a container made anew has another name and the same cache. Where nothing can be
    written it is the host and the path after all. Blocking.
    """
    try:
        file = cache / FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        return _read(file) or _write(file)
    except (OSError, ValueError) as error:
        logger.warning("the Hub's cache %s cannot be named: %s", cache, error)
        return f"{socket.gethostname()}:{cache.resolve()}"


def _read(file: Path) -> str | None:
    try:
        name = file.read_text("ascii").strip()
    except FileNotFoundError:
        return None
    if not _NAME.fullmatch(name):
        raise ValueError(f"{file} does not hold what it should")
    return name


def _write(file: Path) -> str:
    """Write a new name, unless another gateway is quicker; return the one that holds."""
    own = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    own.write_text(secrets.token_hex(16) + "\n", "ascii")
    try:
        # A link, as a rename would replace the other's; the file is never seen half written.
        os.link(own, file)
    except FileExistsError:
        pass
    finally:
        own.unlink()
    return file.read_text("ascii").strip()
