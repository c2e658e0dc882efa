"""Finds GGUF files in folders and says what each is. Reads headers only, each one once.

The files of a model that is split (`x-00001-of-00003.gguf`) are one model, `x`.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

import msgspec

from gateway.core.cards import ModelCard, read_gguf_card
from gateway.core.gguf import BrokenGguf, read_header, split_parts
from gateway.core.library import ModelFile
from gateway.core.models import LocalModel
from gateway.hub.disk import open_regular

SUFFIX = ".gguf"
MAX_REMEMBERED = 4096
DEFAULT_TAG = "Q4_K_M"
"""What a repository's name without a tag means, where it is there. Source: llama.cpp's -hf."""

# How repositories name the quantization of a file: at the end of its name.
_TAG = re.compile(
    r"(?:^|[-._])((?:UD-)?I?T?Q\d+(?:_[A-Z0-9]+)*|B?F16|F32|MXFP4(?:_MOE)?|NVFP4)$", re.IGNORECASE
)


class GgufModel(msgspec.Struct, frozen=True):
    """One model: `stem` names it, `path` is its first file, `problem` why it cannot be loaded."""

    stem: str
    path: Path
    size_bytes: int
    changed_ns: int
    card: ModelCard
    files: tuple[ModelFile, ...]
    problem: str | None = None


M = TypeVar("M", GgufModel, LocalModel)


class GgufScanner:
    """Looks into folders; remembers what it read of files until they change."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[int, int, ModelCard | str]] = {}

    def scan(self, folder: Path, root: Path) -> list[GgufModel]:
        """Return the models that lie in `folder` itself; no link may lead out of `root`."""
        found: dict[str, GgufModel] = {}
        for file in _files(folder):
            try:
                stem, parts = split_parts(file.stem)
            except BrokenGguf:
                continue
            if stem not in found:
                files = [folder / f"{part}{SUFFIX}" for part in parts]
                found[stem] = self._describe(stem, files, root)
        return [model for model in found.values() if model.size_bytes > 0]

    def _describe(self, stem: str, files: Sequence[Path], root: Path) -> GgufModel:
        stats = {file: at for file in files if (at := _stat(file, root))}
        facts = [self._facts(file, at) for file, at in stats.items()]
        problems = [fact for fact in facts if isinstance(fact, str)]
        if len(stats) < len(files):
            missing = len(files) - len(stats)
            problems.insert(0, f"{missing} of the {len(files)} files of {stem} are missing.")
        cards = [fact for fact in facts if isinstance(fact, ModelCard)]
        return GgufModel(
            stem=stem,
            path=files[0],
            size_bytes=sum(at.st_size for at in stats.values()),
            changed_ns=max((at.st_mtime_ns for at in stats.values()), default=0),
            card=cards[0] if cards else ModelCard(format="gguf"),
            files=tuple(
                ModelFile(file.name, os.path.realpath(file), at.st_size)
                for file, at in stats.items()
            ),
            problem=problems[0] if problems else None,
        )

    def _facts(self, file: Path, at: os.stat_result) -> ModelCard | str:
        """Return the card of a file, or the sentence that says what is wrong with it."""
        size, changed, facts = self._known.get(file, (-1, -1, ""))
        if (size, changed) != (at.st_size, at.st_mtime_ns):
            facts = _read_facts(file, at.st_size)
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            self._known[file] = (at.st_size, at.st_mtime_ns, facts)
        return facts


def name_by_tag(models: Sequence[GgufModel]) -> Mapping[str, GgufModel]:
    """Return the models of one repository by their tags.

    The tag is the quantization at the end of a file's name, as `owner/name:Q4_K_M` at llama.cpp
    and Ollama; the whole stem where there is none or several files share it.
    """
    tags = [_tag(model.stem) for model in models]
    shared = Counter(tags)
    return {
        model.stem if tag is None or shared[tag] > 1 else tag: model
        for model, tag in zip(models, tags, strict=True)
    }


def choose_model(models: Mapping[str, M], tag: str) -> tuple[str, M] | None:
    """Return the model of a tag, in any case; of no tag the usual one, else the first."""
    by_tag = {key.casefold(): (key, model) for key, model in models.items()}
    if tag:
        return by_tag.get(tag.casefold())
    usable = {key: pair for key, pair in by_tag.items() if pair[1].card.generates_text}
    return usable.get(DEFAULT_TAG.casefold()) or next(iter(usable.values()), None)


def _tag(stem: str) -> str | None:
    found = _TAG.search(stem)
    return found[1].upper() if found else None


def _files(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        name = entry.name
        if name.endswith(SUFFIX) and not name.startswith(".") and name.isprintable():
            yield entry


def _stat(file: Path, root: Path) -> os.stat_result | None:
    """Return what is known of a regular file below `root`, links followed."""
    try:
        at = file.stat()
        is_inside = file.resolve().is_relative_to(root.resolve())
    except OSError:
        return None
    return at if S_ISREG(at.st_mode) and is_inside else None


def _read_facts(file: Path, size_bytes: int) -> ModelCard | str:
    try:
        with open_regular(os.path.realpath(file)) as stream:
            return read_gguf_card(read_header(stream, size_bytes))
    except BrokenGguf as error:
        return f"The file {file.name} {error}."
    except OSError as error:
        return f"The file {file.name} cannot be read: {error.strerror}."
