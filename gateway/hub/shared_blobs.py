"""The files that huggingface_hub keeps once for all repositories of a cache (`blobs/` in its root).

A repository's blob is a link to such a file then. Which links there are is in a list beside it,
which only huggingface_hub writes and reads; so it is huggingface_hub that deletes what has no more.
"""

import os
from collections.abc import Iterable
from pathlib import Path

FOLDER = "blobs"


def find_shared(blobs: Path, cache: Path) -> set[Path]:
    """Return the shared files that the blobs of a repository are links to."""
    root = os.path.realpath(cache / FOLDER)
    found = set()
    try:
        with os.scandir(blobs) as entries:
            for entry in entries:
                target = os.path.realpath(entry.path)
                if entry.is_symlink() and target.startswith(f"{root}/"):
                    found.add(cache / FOLDER / os.path.relpath(target, root))
    except OSError:
        return set()
    return found


def sweep(shared: Iterable[Path], cache: Path) -> int:
    """Delete those that no repository has a link to any more; return the bytes that this freed."""
    try:
        from huggingface_hub.utils._shared_blobs import sweep_shared_blob
    except ImportError:
        # It is none of its public functions. Without it they stay, until `hf cache prune`.
        return 0
    return sum(sweep_shared_blob(path, cache_dir=cache) for path in shared)


def is_store(folder: Path) -> bool:
    """Tell whether a folder of the cache is the one of shared files."""
    return folder.name == FOLDER and (folder / ".huggingface-shared-blobs").is_file()
