"""How the Hub's cache names the folders of model repositories, as huggingface_hub does."""

from pathlib import Path

REPOSITORY = "models--"
"""What the names of the cache's folders of models begin with."""


def folder_name(repository: str) -> str:
    """Return the name of a repository's folder in the cache."""
    return f"{REPOSITORY}{repository.replace('/', '--')}"


def repository_name(folder: Path) -> str:
    """Return the name on the Hub of a folder of its cache.

    Only the first `--` after the prefix parts owner and name: a name may hold more.
    """
    return folder.name.removeprefix(REPOSITORY).replace("--", "/", 1)
