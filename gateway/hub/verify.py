"""Looks whether the files of a model are whole: headers, indexes, checksums. Loads nothing.

A verdict is a sentence on what is wrong, or None. Whatever the files hold, nothing here raises.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from gateway.core.cards import PICKLES
from gateway.core.gguf import BrokenGguf, read_header
from gateway.core.library import ModelFile, ShelvedModel
from gateway.core.safetensors import BrokenSafetensors, read_tensors
from gateway.core.trust import ALLOW_PICKLE, TRUST_REPOSITORY
from gateway.hub.disk import MAX_TEXT_BYTES, open_regular

INDEX = "model.safetensors.index.json"
PICKLE_INDEX = f"{PICKLES}.bin.index.json"
CHUNK_BYTES = 4 * 2**20
_PICKLE_ENDS = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# How the Hub's cache names a file: by its SHA-256, or by Git's name where it is small.
_SHA256, _GIT_SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


def find_fault(shelved: ShelvedModel) -> str | None:
    """Return what is wrong with the headers of the files, and with what leads to them. Blocking;
    reads no weights."""
    if shelved.model.problem:
        return shelved.model.problem
    if shelved.strays:
        return (
            f"{shelved.strays[0]!r} is no file of the model: it is no regular file, or leads out."
        )
    if shelved.model.card.format == "gguf":
        return _first_fault(shelved.files, _gguf_fault)
    if not isinstance(_read_json(shelved, "config.json"), dict):
        return "The file config.json is not what it must be: a JSON object."
    tensors: dict[str, frozenset[str] | None] = {}
    for file in shelved.files:
        if is_weights(file):
            try:
                with open_regular(file.path) as stream:
                    tensors[file.name] = read_tensors(stream, file.size_bytes)
            except BrokenSafetensors as error:
                return f"The file {file.name} {error}."
            except OSError as error:
                return f"The file {file.name} cannot be read: {error.strerror or error}."
    if shelved.model.card.format == "pickle":
        return _index_fault(shelved, PICKLE_INDEX, {file.name: None for file in shelved.files})
    return _index_fault(shelved, INDEX, tensors)


def find_refusal(shelved: ShelvedModel) -> str | None:
    """Return why a sound model is none that is loaded here."""
    model = shelved.model
    if model.card.format == "gguf" or any(map(is_weights, shelved.files)):
        return None
    pickles = [file.name for file in shelved.files if file.name.endswith(_PICKLE_ENDS)]
    if not pickles:
        return "It has no weights."
    if model.card.format != "pickle":
        return f"{pickles[0]} is a pickle, and not one of those that are ever read."
    if not model.trust.pickle:
        return f"{pickles[0]} is a pickle, which {ALLOW_PICKLE} does not allow to this model."
    return None


def find_warnings(shelved: ShelvedModel) -> list[str]:
    """Return what an operator should know of a model that can be loaded."""
    card, trust = shelved.model.card, shelved.model.trust
    warnings = []
    if card.brings_code and trust.code:
        warnings.append(f"It brings code of its own, which is run: {TRUST_REPOSITORY} allows it.")
    elif card.brings_code:
        warnings.append(
            f"It brings code of its own, which is not run: {TRUST_REPOSITORY} does not allow it."
        )
    if any(file.name.endswith(_PICKLE_ENDS) for file in shelved.files):
        is_read = card.format == "pickle" and trust.pickle
        how = (
            f"are read, for their tensors only: {ALLOW_PICKLE} allows it"
            if is_read
            else ("are not read")
        )
        warnings.append(f"It has pickle files, which {how}.")
    return warnings


def find_damage(shelved: ShelvedModel, go_on: Callable[[], None]) -> str | None:
    """Return which file does not have the checksum that the Hub's cache names it by; files outside
    that cache have none to compare. Blocking; reads everything. `go_on` may raise to end it."""
    for file in shelved.files:
        try:
            if not _is_as_named(file, _blob_path(shelved, file), go_on):
                return f"The file {file.name} is damaged: its checksum is not what it must be."
        except OSError as error:
            return f"The file {file.name} cannot be read: {error.strerror or error}."
    return None


def is_weights(file: ModelFile) -> bool:
    return file.name.endswith(".safetensors") and "/" not in file.name


def _blob_path(shelved: ShelvedModel, file: ModelFile) -> str:
    """Return the blob that the file's link in a snapshot leads to; the blob may be a link itself,
    to what several repositories share, and that has another name."""
    folder = shelved.model.path
    if shelved.model.card.format == "gguf":
        folder = os.path.dirname(folder)
    link = os.path.join(folder, file.name)
    try:
        target = os.path.join(os.path.dirname(link), os.readlink(link))
    except OSError:
        return file.path
    return os.path.normpath(target)


def _is_as_named(file: ModelFile, blob: str, go_on: Callable[[], None]) -> bool:
    folder, _, name = blob.rpartition("/")
    if not folder.endswith("/blobs"):
        return True
    if _SHA256.fullmatch(name):
        digest = hashlib.sha256()
    elif _GIT_SHA1.fullmatch(name):
        # Source: Git's object format: a blob is named by a header and its content.
        digest = hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
    else:
        return True
    with open_regular(file.path) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            go_on()
            digest.update(chunk)
    return digest.hexdigest() == name


def _first_fault(
    files: tuple[ModelFile, ...], fault: Callable[[ModelFile], str | None]
) -> str | None:
    return next((found for file in files if (found := fault(file))), None)


def _gguf_fault(file: ModelFile) -> str | None:
    try:
        with open_regular(file.path) as stream:
            read_header(stream, file.size_bytes)
    except BrokenGguf as error:
        return f"The file {file.name} {error}."
    except OSError as error:
        return f"The file {file.name} cannot be read: {error.strerror or error}."
    return None


def _index_fault(
    shelved: ShelvedModel, name: str, tensors: Mapping[str, frozenset[str] | None]
) -> str | None:
    """Return what is wrong with the index of weights in several files; `tensors` are those of each
    file, None where the headers do not tell.

    What is named there is opened by who loads the model: a path must lead nowhere else.
    """
    if not any(file.name == name for file in shelved.files):
        return None
    index = _read_json(shelved, name)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        return f"The file {name} names no weights."
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or file not in tensors:
            return f"The file {name} names {file!r}, which is not there."
        known = tensors[file]
        if known is not None and tensor not in known:
            return f"The file {file} lacks the tensor {tensor!r}, which {name} says is in it."
    return None


def _read_json(shelved: ShelvedModel, name: str) -> Any:
    """Return what a JSON file holds; None for one that is not there or cannot be read."""
    file = next((file for file in shelved.files if file.name == name), None)
    if file is None or file.size_bytes > MAX_TEXT_BYTES:
        return None
    try:
        with open_regular(file.path) as stream:
            return json.loads(stream.read(MAX_TEXT_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
