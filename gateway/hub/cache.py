"""The models whose files are on this machine: built in, in the models folder, in the Hub's cache.

Reads only; never follows a name or a link out of its folders. Downloads belong elsewhere.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.core.cards import PROCESSOR_FILES, ModelCard, read_card
from gateway.core.models import LocalModel
from gateway.core.pooling import has_pooling, read_max_length
from gateway.hub.gguf import SUFFIX, GgufModel, GgufScanner, choose_model, name_by_tag

MAX_DEPTH = 3
"""How deep a model may lie below the models folder."""


class FileLibrary:
    """A core.ports.ModelLibrary over folders. The same name is found in this order: built in
    models last, the models folder first.

    A model is a folder with a config.json, or a GGUF file: `x.gguf` in the models folder is `x`,
    in a repository of the Hub it is `owner/name:Q4_K_M`, by the quantization in its name.
    """

    def __init__(
        self, models_folder: Path, hub_cache: Path, builtin: Mapping[str, Path] | None = None
    ) -> None:
        self._models_folder = models_folder
        self._hub_cache = hub_cache
        self._builtin = dict(builtin or {})
        self._gguf = GgufScanner()

    def scan(self) -> Sequence[LocalModel]:
        """Return every model that generates text or embeds; what is of another kind is left out,
        and so is what is broken, but for GGUF files, which say what is wrong with them."""
        found: dict[str, LocalModel] = {}
        for model in (*self._scan_local(), *self._scan_hub(), *self._scan_builtin()):
            is_served = model.card.generates_text or model.card.embeds
            if (is_served and model.size_bytes > 0) or model.problem:
                found.setdefault(model.name, model)
        return list(found.values())

    def find(self, name: str, revision: str | None = None) -> LocalModel | None:
        """Return the model `name`; a Hub model may be pinned to a branch, tag or commit."""
        try:
            return self._find(name, revision)
        except OSError:  # a name longer than the file system takes, a folder that may not be read
            return None

    def _find(self, name: str, revision: str | None) -> LocalModel | None:
        if revision is None:
            folder = self._models_folder / name
            if _is_model(folder) and _is_inside(folder, self._models_folder):
                return _describe(name, folder, "local")
            for model in self._gguf.scan(folder.parent, self._models_folder):
                if model.stem == folder.name:
                    return _describe_gguf(name, model, "local")
        repository, _, tag = name.partition(":")
        snapshot = self._snapshot(self._repository(repository), revision)
        if snapshot is not None:
            return self._find_in_snapshot(repository, tag, snapshot)
        if revision is None and name in self._builtin:
            return _describe(name, self._builtin[name], "builtin")
        return None

    def _find_in_snapshot(self, repository: str, tag: str, snapshot: Path) -> LocalModel | None:
        described = _describe(repository, snapshot, "hub", snapshot.name)
        if not tag and described.size_bytes > 0:
            return described
        chosen = choose_model(self._tagged(snapshot), tag)
        if chosen is not None:
            name = f"{repository}:{chosen[0]}"
            return _describe_gguf(name, chosen[1], "hub", snapshot.name)
        return None if tag else described

    def _scan_local(self) -> Iterator[LocalModel]:
        root = self._models_folder
        for folder in _model_folders(root, MAX_DEPTH):
            yield _describe(folder.relative_to(root).as_posix(), folder, "local")
        for folder in _all_folders(root, MAX_DEPTH - 1):
            for model in self._gguf.scan(folder, root):
                name = (folder / model.stem).relative_to(root).as_posix()
                yield _describe_gguf(name, model, "local")

    def _scan_hub(self) -> Iterator[LocalModel]:
        for repository in sorted(self._hub_cache.glob("models--*")):
            snapshot = self._snapshot(repository, None)
            if snapshot is not None:
                # Only the first `--` after the prefix parts owner and name: a name may hold more.
                name = repository.name.removeprefix("models--").replace("--", "/", 1)
                yield _describe(name, snapshot, "hub", snapshot.name)
                for tag, model in self._tagged(snapshot).items():
                    yield _describe_gguf(f"{name}:{tag}", model, "hub", snapshot.name)

    def _scan_builtin(self) -> Iterator[LocalModel]:
        for name, folder in self._builtin.items():
            yield _describe(name, folder, "builtin")

    def _repository(self, name: str) -> Path:
        return self._hub_cache / f"models--{name.replace('/', '--')}"

    def _snapshot(self, repository: Path, revision: str | None) -> Path | None:
        """Return the folder of a revision: by default that of the branch main, else the newest."""
        snapshots = repository / "snapshots"
        commit = _read_text(repository / "refs" / (revision or "main")) or revision
        if commit is not None:
            folder = snapshots / commit
            is_there = _is_inside(folder, snapshots) and _has_model(folder)
            return folder if is_there else None
        folders = [folder for folder in _folders(snapshots) if _has_model(folder)]
        return max(folders, key=lambda folder: folder.stat().st_mtime, default=None)

    def _tagged(self, snapshot: Path) -> Mapping[str, GgufModel]:
        """Return the GGUF models of a snapshot, whose files are links into the cache."""
        folders = _all_folders(snapshot, 1)
        return name_by_tag(
            [model for folder in folders for model in self._gguf.scan(folder, self._hub_cache)]
        )


def _describe(name: str, folder: Path, source: str, revision: str | None = None) -> LocalModel:
    weights = [stat for file in folder.glob("*.safetensors") if (stat := _stat(file))]
    return LocalModel(
        name=name,
        path=str(folder),
        size_bytes=sum(stat.st_size for stat in weights),
        changed_ns=max((stat.st_mtime_ns for stat in weights), default=0),
        revision=revision,
        source=source,
        card=_read_card(folder),
    )


def _describe_gguf(
    name: str, model: GgufModel, source: str, revision: str | None = None
) -> LocalModel:
    return LocalModel(
        name=name,
        path=str(model.path),
        size_bytes=model.size_bytes,
        changed_ns=model.changed_ns,
        revision=revision,
        source=source,
        card=model.card,
        problem=model.problem,
    )


def _read_card(folder: Path) -> ModelCard:
    has_processor = any((folder / name).exists() for name in PROCESSOR_FILES)
    return read_card(
        _read_object(folder / "config.json"),
        templates=_read_templates(folder),
        can_constrain=(folder / "tokenizer.json").is_file(),
        has_pooling=has_pooling(_read_json(folder / "modules.json")),
        has_processor=has_processor,
        max_length=read_max_length(_read_object(folder / "sentence_bert_config.json")),
    )


def _read_templates(folder: Path) -> list[str]:
    """Return the chat templates: of files of their own, or of the tokenizer's configuration."""
    files = [folder / "chat_template.jinja", *folder.glob("additional_chat_templates/*.jinja")]
    found = [text for file in files if (text := _read_text(file))]
    inline = _read_object(folder / "tokenizer_config.json").get("chat_template")
    named = inline if isinstance(inline, list) else [{"template": inline}]
    # Where processors had theirs until 2025.
    named = [*named, {"template": _read_object(folder / "chat_template.json").get("chat_template")}]
    texts = [entry.get("template") for entry in named if isinstance(entry, dict)]
    return found + [text for text in texts if isinstance(text, str)]


def _model_folders(root: Path, depth: int) -> Iterator[Path]:
    for folder in _folders(root):
        if not _is_inside(folder, root):
            continue
        if _is_model(folder):
            yield folder
        elif depth > 1:
            yield from _model_folders(folder, depth - 1)


def _all_folders(root: Path, depth: int) -> Iterator[Path]:
    """Yield `root` and the folders below it, `depth` deep."""
    yield root
    if depth > 0:
        for folder in _folders(root):
            if _is_inside(folder, root):
                yield from _all_folders(folder, depth - 1)


def _folders(root: Path) -> list[Path]:
    try:
        entries = sorted(root.iterdir())
        return [entry for entry in entries if _is_nameable(entry.name) and entry.is_dir()]
    except OSError:
        return []


def _is_nameable(name: str) -> bool:
    """Tell whether a folder's name can be a model's: visible, and text that can be sent."""
    return not name.startswith(".") and name.isprintable()


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _has_model(folder: Path) -> bool:
    """Tell whether a snapshot holds a model; large GGUF models have a folder in it."""
    names = (f"*{SUFFIX}", f"*/*{SUFFIX}")
    return _is_model(folder) or any(found for name in names for found in folder.glob(name))


def _is_inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None


def _read_text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None


def _read_object(file: Path) -> dict[str, Any]:
    value = _read_json(file)
    return value if isinstance(value, dict) else {}


def _read_json(file: Path) -> Any:
    """Return what a JSON file holds; None for one that is not there or cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
