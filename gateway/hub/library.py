"""All that lies in the library's folders: what is a model and what is not, disk use, removal."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gateway.core.errors import Forbidden, GatewayError, Internal, ModelNotFound
from gateway.core.library import DiskUse, Inventory, Oddity, ShelvedModel
from gateway.hub import verify
from gateway.hub.cache import FileLibrary, folders, read_refs
from gateway.hub.disk import empty_trash, is_inside, remove
from gateway.hub.health import Health
from gateway.hub.layout import REPOSITORY, repository_name
from gateway.hub.leftovers import shown_blobs
from gateway.hub.shared_blobs import find_shared, is_store, sweep

_OTHER_KINDS = {"datasets--": "a data set", "spaces--": "a Space", "kernels--": "kernels"}
_OWN_FILES = ("version.txt", "CACHEDIR.TAG")


class DiskShelf:
    """A core.ports.ModelShelf over the folders of a FileLibrary. It alone removes files."""

    def __init__(
        self, library: FileLibrary, health: Health, models_folder: Path, hub_cache: Path
    ) -> None:
        self._library = library
        self._health = health
        self._models_folder = models_folder
        self._hub_cache = hub_cache

    def inventory(self) -> Inventory:
        found: dict[str, ShelvedModel] = {}
        for model in self._library.shelved():
            found.setdefault(model.name, model)
        models = tuple(found.values())
        oddities = (*self._odd_local(models), *self._odd_cached(models))
        roots = dict.fromkeys((self._models_folder, self._hub_cache))
        return Inventory(models, oddities, tuple(_disk_use(root, models) for root in roots))

    def find(self, name: str) -> ShelvedModel | None:
        return self._library.find_shelved(name)

    def find_fault(self, model: ShelvedModel, go_on: Callable[[], None] | None) -> str | None:
        fault = verify.find_fault(model)
        return fault if fault or go_on is None else verify.find_damage(model, go_on)

    def find_refusal(self, model: ShelvedModel) -> str | None:
        return verify.find_refusal(model)

    def find_warnings(self, model: ShelvedModel) -> Sequence[str]:
        return verify.find_warnings(model)

    def judge(self, model: ShelvedModel, reason: str | None) -> None:
        self._health.judge(model, reason)

    def remove(self, name: str) -> int:
        try:
            return self._remove(name)
        except GatewayError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise Internal(f"The files of {name} could not be removed: {reason}.") from error

    def empty_trash(self) -> int:
        """Finish removals that were cut off; return the bytes that this freed."""
        return empty_trash(self._models_folder) + empty_trash(self._hub_cache)

    def _remove(self, name: str) -> int:
        model = self._library.find_shelved(name)
        if model is not None and model.model.source == "builtin":
            raise Forbidden(f"{name} is built in.")
        if model is not None and model.model.source == "local":
            return self._remove_local(model)
        repository = self._library.repository(name)
        is_whole = not any(mark in name for mark in "@:")
        if is_whole and repository.is_dir() and repository.parent == self._hub_cache:
            return self._remove_repository(repository)
        if model is None or model.repository is None:
            raise ModelNotFound(name)
        return self._remove_cached(model, self._library.repository(model.repository))

    def _remove_repository(self, repository: Path) -> int:
        shared = find_shared(repository / "blobs", self._hub_cache)
        return remove([repository], self._hub_cache) + sweep(shared, self._hub_cache)

    def _remove_local(self, model: ShelvedModel) -> int:
        path = Path(model.model.path)
        is_folder = model.model.card.format != "gguf"
        paths = [path] if is_folder else [path.parent / file.name for file in model.files]
        freed = remove(paths, self._models_folder)
        while (path := path.parent) != self._models_folder and not any(path.iterdir()):
            path.rmdir()
        return freed

    def _remove_cached(self, model: ShelvedModel, repository: Path) -> int:
        """Remove one model of a repository, and what nothing else of it needs then."""
        others = [
            other
            for other in self._library.scan_repository(repository)
            if other.model.path != model.model.path
        ]
        if not others:
            return self._remove_repository(repository)
        shown = shown_blobs(repository)
        shared = find_shared(repository / "blobs", self._hub_cache)
        snapshot = repository / "snapshots" / str(model.model.revision)
        beside = [other for other in others if other.model.revision == model.model.revision]
        if beside:
            base = Path(model.model.path)
            base = base.parent if model.model.card.format == "gguf" else base
            freed = remove([base / file.name for file in model.files], self._hub_cache)
        else:
            freed = remove([snapshot], self._hub_cache)
            commits = read_refs(repository).items()
            names = [name for name, commit in commits if commit == snapshot.name]
            remove([repository / "refs" / name for name in names], self._hub_cache)
        # What no snapshot leads to any more; what none led to before is somebody's who downloads.
        orphans = [repository / "blobs" / blob for blob in shown - shown_blobs(repository)]
        freed += remove([path for path in orphans if os.path.lexists(path)], self._hub_cache)
        return freed + sweep(shared, self._hub_cache)

    def _odd_local(self, models: Sequence[ShelvedModel]) -> Iterator[Oddity]:
        paths = [Path(model.model.path) for model in models]
        for folder in folders(self._models_folder):
            if not is_inside(folder, self._models_folder):
                yield Oddity(str(folder), "It is a link that leads out of the models folder.")
            elif not any(path.is_relative_to(folder) for path in paths):
                yield Oddity(str(folder), "It holds no config.json and no GGUF file.")

    def _odd_cached(self, models: Sequence[ShelvedModel]) -> Iterator[Oddity]:
        known = {model.repository for model in models}
        for entry in _entries(self._hub_cache):
            reason = self._why_odd(Path(entry.path), known)
            if reason is not None:
                yield Oddity(os.fsencode(entry.path).decode(errors="replace"), reason)

    def _why_odd(self, path: Path, known: set[str | None]) -> str | None:
        name = path.name
        if name.startswith(".") or name in _OWN_FILES:
            return None
        if is_store(path):
            return None
        if not path.is_dir():
            return "It is no folder of a repository."
        if not is_inside(path, self._hub_cache):
            return "It is a link that leads out of the cache."
        if not name.startswith(REPOSITORY):
            kinds = (kind for prefix, kind in _OTHER_KINDS.items() if name.startswith(prefix))
            return f"It is {next(kinds, 'no folder of the Hub')}, which is no model."
        if repository_name(path) in known:
            return None
        if not folders(path / "snapshots"):
            return "It has no snapshot: its download was not finished."
        return "Its snapshots hold no config.json and no GGUF file."


def _disk_use(root: Path, models: Sequence[ShelvedModel]) -> DiskUse:
    sizes: dict[str, int] = {}
    for model in models:
        if Path(model.model.path).is_relative_to(root):
            sizes.update(model.sizes)
    try:
        disk = shutil.disk_usage(root)
    except OSError:
        return DiskUse(str(root), sum(sizes.values()), None, None)
    return DiskUse(str(root), sum(sizes.values()), disk.free, disk.total)


def _entries(root: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []
