"""The models whose files are on this machine: built in, in the models folder, in the Hub's cache.

Reads only; never follows a name or a link out of its folders. What was read of a folder is kept
until a file in it changes. Downloads and removals belong elsewhere.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from gateway.core.cards import PICKLES, PROCESSOR_FILES, ModelCard, read_card
from gateway.core.library import ModelFile, ShelvedModel
from gateway.core.models import LocalModel
from gateway.core.pooling import has_pooling, read_max_length
from gateway.core.trust import TrustRules
from gateway.hub.disk import FolderFiles, is_inside, look
from gateway.hub.gguf import SUFFIX, GgufModel, GgufScanner, choose_model, name_by_tag
from gateway.hub.health import Health
from gateway.hub.layout import REPOSITORY, folder_name, repository_name

MAX_DEPTH = 3
"""How deep a model may lie below the models folder."""
MAX_KEPT = 4096
"""Folders that are remembered; with more, what was read is forgotten now and then."""


class FileLibrary:
    """A core.ports.ModelLibrary over folders. The same name is found in this order: built in
    models last, the models folder first.

    A model is a folder with a config.json, or a GGUF file: `x.gguf` in the models folder is `x`,
    in a repository of the Hub it is `owner/name:Q4_K_M`, by the quantization in its name.
    """

    def __init__(
        self,
        models_folder: Path,
        hub_cache: Path,
        builtin: Mapping[str, Path] | None = None,
        *,
        health: Health | None = None,
        trust: TrustRules | None = None,
    ) -> None:
        self._models_folder = models_folder
        self._hub_cache = hub_cache
        self._builtin = dict(builtin or {})
        self._health = health or Health()
        self._trust = trust or TrustRules()
        self._gguf = GgufScanner()
        self._known: dict[tuple[str, str], tuple[str, LocalModel]] = {}

    def scan(self) -> Sequence[LocalModel]:
        """Return every model that generates text or embeds, of its default revision, with the fault
        that is known of it; what is of another kind, is not allowed or has no weights is left
        out."""
        found: dict[str, LocalModel] = {}
        for each in self.shelved():
            is_broken = each.model.card.format == "gguf" and each.model.problem is not None
            if each.is_default and (each.is_served or is_broken):
                found.setdefault(each.model.name, each.model)
        return list(found.values())

    def shelved(self) -> Iterator[ShelvedModel]:
        """Yield every model, of any kind and revision, that which a name means first."""
        yield from self._scan_local()
        yield from self._scan_hub()
        for name, folder in self._builtin.items():
            yield self._shelve(name, self._look(folder, folder), "builtin")

    def find(self, name: str, revision: str | None = None) -> LocalModel | None:
        """Return the model `name`; a Hub model may be pinned to a branch, tag or commit.

        Looks into the headers of its files, once for as long as they stay as they are.
        """
        try:
            found = self._find(name, revision)
        except OSError:  # a name longer than the file system takes, a folder that may not be read
            return None
        return None if found is None else self._health.examine(found).model

    def find_shelved(self, name: str) -> ShelvedModel | None:
        """Return the model of a name as `ShelvedModel.name` gives it, which may hold a revision."""
        model, _, revision = name.partition("@")
        try:
            return self._find(model, revision or None)
        except OSError:
            return None

    def repository(self, name: str) -> Path:
        """Return the cache's folder of a repository, which need not be there."""
        return self._hub_cache / folder_name(name)

    def _find(self, name: str, revision: str | None) -> ShelvedModel | None:
        if revision is None:
            folder = self._models_folder / name
            if is_model(folder) and is_inside(folder, self._models_folder):
                return self._shelve(name, self._look(folder, self._models_folder), "local")
            for model in self._gguf.scan(folder.parent, self._models_folder):
                if model.stem == folder.name:
                    return self._shelve_gguf(name, model, "local")
        repository, _, tag = name.partition(":")
        root = self.repository(repository)
        snapshot = self._snapshot(root, revision, read_refs(root))
        if snapshot is not None:
            return self._find_in_snapshot(repository, tag, snapshot, revision is None)
        if revision is None and name in self._builtin:
            folder = self._builtin[name]
            return self._shelve(name, self._look(folder, folder), "builtin")
        return None

    def _find_in_snapshot(
        self, repository: str, tag: str, snapshot: FolderFiles, is_default: bool
    ) -> ShelvedModel | None:
        found = self._shelve_snapshot(repository, snapshot, (), is_default)
        described = next((each for each in found if each.model.card.format != "gguf"), None)
        if not tag and described is not None and described.model.size_bytes > 0:
            return described
        tagged = {each.model.name.rpartition(":")[2]: each for each in found if each != described}
        chosen = choose_model({key: each.model for key, each in tagged.items()}, tag)
        if chosen is not None:
            return tagged[chosen[0]]
        return None if tag else described

    def _scan_local(self) -> Iterator[ShelvedModel]:
        root = self._models_folder
        for folder in _model_folders(root, MAX_DEPTH):
            name = folder.relative_to(root).as_posix()
            yield self._shelve(name, self._look(folder, root), "local")
        for folder in _all_folders(root, MAX_DEPTH - 1):
            for model in self._gguf.scan(folder, root):
                name = (folder / model.stem).relative_to(root).as_posix()
                yield self._shelve_gguf(name, model, "local")

    def _scan_hub(self) -> Iterator[ShelvedModel]:
        for folder in folders(self._hub_cache):
            if folder.name.startswith(REPOSITORY):
                with suppress(OSError):  # it goes away while it is looked at
                    yield from list(self.scan_repository(folder))

    def scan_repository(self, folder: Path) -> Iterator[ShelvedModel]:
        """Yield the models of one repository of the cache: of the default snapshot first."""
        name = repository_name(folder)
        commits = read_refs(folder)
        default = self._snapshot(folder, None, commits)
        if default is not None:
            yield from self._shelve_snapshot(name, default, _refs_to(default, commits), True)
        for snapshot in folders(folder / "snapshots"):
            if default is not None and snapshot == default.path:
                continue
            files = self._look(snapshot, self._hub_cache)
            if has_model(files):
                yield from self._shelve_snapshot(name, files, _refs_to(files, commits), False)

    def _shelve_snapshot(
        self, name: str, snapshot: FolderFiles, refs: tuple[str, ...], is_default: bool
    ) -> list[ShelvedModel]:
        place: dict[str, Any] = {"repository": name, "refs": refs, "is_default": is_default}
        commit = snapshot.path.name
        tagged = self._tagged(snapshot)
        found = [
            self._shelve_gguf(f"{name}:{tag}", model, "hub", commit, **place)
            for tag, model in tagged.items()
        ]
        rest = {file: at for file, at in snapshot.files.items() if not _is_gguf(file)}
        if "config.json" in rest and (not tagged or any(map(_is_weights, rest))):
            folder = FolderFiles(snapshot.path, rest, snapshot.strays)
            found.insert(0, self._shelve(name, folder, "hub", commit, **place))
        return found

    def _snapshot(
        self, repository: Path, revision: str | None, commits: Mapping[str, str]
    ) -> FolderFiles | None:
        """Return the folder of a revision: by default that of the branch main, else the newest."""
        snapshots = repository / "snapshots"
        commit = commits.get(revision or "main") or revision
        if commit is not None:
            folder = snapshots / commit
            if folder.parent != snapshots or commit == "..":
                return None
            files = self._look(folder, self._hub_cache)
            return files if has_model(files) else None
        found = [self._look(folder, self._hub_cache) for folder in folders(snapshots)]
        candidates = [files for files in found if has_model(files)]
        return max(candidates, key=lambda files: files.path.stat().st_mtime, default=None)

    def _tagged(self, snapshot: FolderFiles) -> Mapping[str, GgufModel]:
        """Return the GGUF models of a snapshot, whose files are links into the cache."""
        places = {name.rpartition("/")[0] for name in snapshot.files if _is_gguf(name)}
        return name_by_tag(
            [
                model
                for place in sorted(places)
                for model in self._gguf.scan(snapshot.path / place, self._hub_cache)
            ]
        )

    def _look(self, folder: Path, root: Path) -> FolderFiles:
        try:
            return look(folder, root)
        except OSError:
            return FolderFiles(folder, {}, ())

    def _shelve(
        self,
        name: str,
        files: FolderFiles,
        source: str,
        revision: str | None = None,
        **place: Any,
    ) -> ShelvedModel:
        stamp = files.stamp
        trust = self._trust.of(name, revision)
        key = str(files.path), name
        known = self._known.get(key)
        if known is None or known[0] != stamp:
            if len(self._known) >= MAX_KEPT:
                self._known.clear()
            described = replace(_describe(name, files, source, revision), trust=trust)
            known = self._known[key] = stamp, described
        model = known[1]
        card = model.card
        is_allowed = card.format != "pickle" or trust.pickle
        is_served = (card.generates_text or card.embeds) and model.size_bytes > 0 and is_allowed
        shelved = ShelvedModel(
            model=model,
            stamp=stamp + trust.mark,  # a verdict holds for what is allowed, too
            updated_at=files.changed_ns / 1e9,
            files=tuple(
                ModelFile(name, at.path, at.size_bytes) for name, at in sorted(files.files.items())
            ),
            strays=files.strays,
            is_served=is_served,
            **place,
        )
        return self._health.recall(shelved)

    def _shelve_gguf(
        self, name: str, model: GgufModel, source: str, revision: str | None = None, **place: Any
    ) -> ShelvedModel:
        described = LocalModel(
            name=name,
            path=str(model.path),
            size_bytes=model.size_bytes,
            changed_ns=model.changed_ns,
            revision=revision,
            source=source,
            card=model.card,
            problem=model.problem,
        )
        shelved = ShelvedModel(
            model=described,
            stamp=f"{model.size_bytes}-{model.changed_ns}",
            updated_at=model.changed_ns / 1e9,
            files=model.files,
            is_served=model.card.generates_text,
            **place,
        )
        return self._health.recall(shelved)


def read_refs(repository: Path) -> Mapping[str, str]:
    """Return the commits that the branches and tags of a repository mean."""
    try:
        files = look(repository / "refs", repository)
    except OSError:
        return {}
    return {name: commit for name in sorted(files.files) if (commit := files.read_text(name))}


def _refs_to(snapshot: FolderFiles, commits: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(ref for ref, commit in commits.items() if commit == snapshot.path.name)


def has_model(snapshot: FolderFiles) -> bool:
    """Tell whether a snapshot holds a model; large GGUF models have a folder in it."""
    return any(name == "config.json" or _is_gguf(name) for name in snapshot.files)


def _is_gguf(name: str) -> bool:
    return name.endswith(SUFFIX) and name.count("/") <= 1


def _describe(name: str, files: FolderFiles, source: str, revision: str | None) -> LocalModel:
    weights = [at for file, at in files.files.items() if _is_weights(file)]
    pickles = [at for file, at in files.files.items() if _is_pickle(file)]
    is_pickled = bool(pickles) and not weights
    weights = weights or pickles
    return LocalModel(
        name=name,
        path=str(files.path),
        size_bytes=sum(at.size_bytes for at in weights),
        changed_ns=max((at.changed_ns for at in weights), default=0),
        revision=revision,
        source=source,
        card=_read_card(files, is_pickled),
    )


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") and "/" not in name


def _is_pickle(name: str) -> bool:
    return name.startswith(PICKLES) and name.endswith(".bin") and "/" not in name


def _read_card(files: FolderFiles, is_pickled: bool) -> ModelCard:
    return read_card(
        _read_object(files, "config.json"),
        templates=_read_templates(files),
        can_constrain="tokenizer.json" in files.files,
        has_pooling=has_pooling(_read_json(files, "modules.json")),
        has_processor=any(name in files.files for name in PROCESSOR_FILES),
        max_length=read_max_length(_read_object(files, "sentence_bert_config.json")),
        is_pickled=is_pickled,
    )


def _read_templates(files: FolderFiles) -> list[str]:
    """Return the chat templates: of files of their own, or of the tokenizer's configuration."""
    names = [name for name in sorted(files.files) if _is_template(name)]
    found = [text for name in names if (text := files.read_text(name))]
    inline = _read_object(files, "tokenizer_config.json").get("chat_template")
    named = inline if isinstance(inline, list) else [{"template": inline}]
    # Where processors had theirs until 2025.
    earlier = _read_object(files, "chat_template.json").get("chat_template")
    texts = [e.get("template") for e in [*named, {"template": earlier}] if isinstance(e, dict)]
    return found + [text for text in texts if isinstance(text, str)]


def _is_template(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return name == "chat_template.jinja" or (
        folder == "additional_chat_templates" and file.endswith(".jinja")
    )


def _model_folders(root: Path, depth: int) -> Iterator[Path]:
    for folder in folders(root):
        if not is_inside(folder, root):
            continue
        if is_model(folder):
            yield folder
        elif depth > 1:
            yield from _model_folders(folder, depth - 1)


def _all_folders(root: Path, depth: int) -> Iterator[Path]:
    """Yield `root` and the folders below it, `depth` deep."""
    yield root
    if depth > 0:
        for folder in folders(root):
            if is_inside(folder, root):
                yield from _all_folders(folder, depth - 1)


def folders(root: Path) -> list[Path]:
    """Return the folders in `root` whose names can be a model's, sorted; none if it is none."""
    try:
        with os.scandir(root) as entries:
            names = sorted(e.name for e in entries if _is_nameable(e.name) and e.is_dir())
    except OSError:
        return []
    return [root / name for name in names]


def _is_nameable(name: str) -> bool:
    """Tell whether a folder's name can be a model's: visible, and text that can be sent."""
    return not name.startswith(".") and name.isprintable()


def is_model(folder: Path) -> bool:
    """Tell whether a folder is a model by itself."""
    return (folder / "config.json").is_file()


def _read_object(files: FolderFiles, name: str) -> dict[str, Any]:
    value = _read_json(files, name)
    return value if isinstance(value, dict) else {}


def _read_json(files: FolderFiles, name: str) -> Any:
    """Return what a JSON file holds; None for one that is not there or cannot be read."""
    try:
        return json.loads(files.read_text(name) or "")
    except (ValueError, RecursionError):
        return None
