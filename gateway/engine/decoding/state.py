"""How much memory the state of a sequence holds, whatever a model keeps it in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def held_bytes(*roots: Any) -> int:
    """Return the bytes of the storages of all tensors that can be reached from `roots`.

    A storage counts once and whole: a tensor that shows a part of one keeps all of it. Modules
    are passed over: their weights are no sequence's.
    """
    storages = {}
    for tensor in _tensors(roots):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _tensors(roots: Any) -> Iterator[Any]:
    import torch

    seen: set[int] = set()
    left = list(roots)
    while left:
        each = left.pop()
        if each is None or isinstance(each, str | int | torch.nn.Module) or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, torch.Tensor):
            yield each
        elif isinstance(each, Mapping):
            left += each.values()
        elif isinstance(each, list | tuple):
            left += each
        else:
            left += getattr(each, "__dict__", {}).values()
