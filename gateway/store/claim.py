"""One gateway for each node: who starts takes the node's lock, and the system gives it back.

At its start a gateway closes the streams that its node left open. Two gateways of one name would
close each other's living ones.
"""

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.core.errors import Misconfigured


@contextmanager
def claimed(node: str, data_dir: Path) -> Iterator[None]:
    """Hold the node's lock; raises Misconfigured when another process on this machine does.

    The lock is the open file's, so it ends with the process, however that ends.
    """
    with (data_dir / f"{file_name(node)}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Misconfigured(
                [
                    f"GATEWAY_NODE: another gateway named '{node}' runs on {data_dir}; "
                    "give this one a name or a folder of its own"
                ]
            ) from None
        yield


def file_name(node: str) -> str:
    """Return a name for what belongs to the node alone, whatever characters its own name has."""
    return f"node-{hashlib.sha256(node.encode()).hexdigest()[:16]}"
