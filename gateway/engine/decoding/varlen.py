"""Attention of sequences of unlike lengths in one call, over a SlotCache whose heads lie together.

On a GPU in half precision torch has it as FlashAttention (`torch.nn.attention.varlen`). A cache is
to it one row of tokens, in which each sequence begins where its row does and is as long as it is:
no mask is made, nothing is padded, and the heads of a group share their keys. Pages are not needed
for that; they came to torch with FlashAttention 3 only (pytorch#175924).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_HEAD = 256
"""What FlashAttention's kernels are built for; heads are also a multiple of 8 wide."""


class Kernel(Protocol):
    """`torch.nn.attention.varlen.varlen_attn`, or what does the same."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float,
        window_size: tuple[int, int],
        enable_gqa: bool,
        seqused_k: Tensor,
    ) -> Any: ...


class Slots(NamedTuple):
    """Which tokens ask, and what each sees of a cache: all are int32, for `n` sequences.

    Sequence i asks with its tokens `queries[i]:queries[i + 1]`, which are its last ones, and looks
    at `lengths[i]` tokens from `places[i]` on. `places[i + 1]` is no less than their end.
    """

    queries: Tensor
    places: Tensor
    lengths: Tensor
    most_queries: int
    most_keys: int


def attend_varlen(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Slots,
    window: int | None,
    scale: float,
    kernel: Kernel,
) -> Tensor:
    """Return the output for each token of `query`, of shape [tokens, heads, size].

    `keys` and `values` are a layer's [rows, heads, capacity, size], a token's heads side by side.
    """
    # Not more than the window, oneself included. One token is the last: it may look anywhere, and
    # only a call that says so is split over the keys and packs the heads of a group.
    left = -1 if window is None else window - 1
    right = -1 if window is None and slots.most_queries == 1 else 0
    output: Tensor = kernel(
        query,
        keys.transpose(1, 2).flatten(0, 1),
        values.transpose(1, 2).flatten(0, 1),
        slots.queries,
        slots.places,
        slots.most_queries,
        slots.most_keys,
        scale=scale,
        window_size=(left, right),
        enable_gqa=True,
        seqused_k=slots.lengths,
    )
    return output


def fits(key_size: int, value_size: int, softcap: float | None) -> bool:
    """Tell whether a layer with heads of these sizes can be attended to by the kernel."""
    return (
        softcap is None
        and key_size == value_size
        and key_size % 8 == 0
        and key_size <= LARGEST_HEAD
    )
