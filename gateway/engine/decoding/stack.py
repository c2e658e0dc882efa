"""The forward pass of the usual decoder, written for a flat batch: a dozen operators a layer.

transformers' own forward pass starts some fifty operators in each layer, through as many Python
frames; for a small model and few sequences that costs more than reading the weights. This one
computes the same from the same modules, for the families that share the layout of Llama. Whether it
says the same is found out by `probe.choose_runner` before it is used. Figures: bench/README.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import rms_norm

from gateway.engine.decoding.attention import attend
from gateway.engine.weights.linear import joint_product

if TYPE_CHECKING:
    from torch import Tensor

    from gateway.engine.decoding.kv_cache import SlotCache
    from gateway.engine.decoding.view import View

FAMILIES = frozenset({"llama", "mistral", "phi3", "qwen2", "qwen3"})


class UnknownLayout(Exception):
    """The model is not built as this module expects."""


class Stack:
    """The layers of one model. Shares the weights of `model`, whose own forward still works."""

    def __init__(
        self, model: Any, on_read: Callable[[int], None] = lambda size_bytes: None
    ) -> None:
        """`on_read` is told how many bytes of weights were read to join them. Linear layers with
        stand-ins (`linear.stand_in`) may be packed later.

        Raises UnknownLayout, or TypeError or AttributeError for parts that are not there.
        """
        config, base = model.config, model.model
        if config.model_type not in FAMILIES:
            raise UnknownLayout(config.model_type)
        self.embed = base.embed_tokens
        self._rotary = base.rotary_emb
        self.layers = []
        for layer in base.layers:
            self.layers.append(Layer(layer, config))
            on_read(sum(weight.nbytes for weight in layer.parameters()))
        self.norm = _Norm(base.norm)
        self.head = joint_product([model.lm_head])

    def logits(self, ids: Tensor, view: View, cache: SlotCache, wanted: Tensor) -> Tensor:
        """Return the logits of the `wanted` tokens of a flat batch, of shape [wanted, vocabulary].

        `ids` are the tokens [tokens]; their keys and values go into `cache`, which was told of
        `view`.
        """
        hidden = self.embed(ids)
        cos, sin = self.turns(hidden, view)
        for index, layer in enumerate(self.layers):
            hidden = layer.forward(hidden, cos, sin, view, cache, index)
        return self.head(self.norm(hidden[wanted]))

    def turns(self, hidden: Tensor, view: View) -> tuple[Tensor, Tensor]:
        """Return by what heads are multiplied as they are, and turned by half of their size: two
        tensors of shape [tokens, 1, size]."""
        cos, sin = self._rotary(hidden, view.all_positions()[None])
        if cos.shape[-1] != self.layers[0].size:
            raise UnknownLayout("rotary embedding of a part of a head")
        half = cos.shape[-1] // 2
        # Turned by half, x takes the place of transformers' (-x2, x1), but for a sign.
        sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        return cos[0][:, None], sin[0][:, None]

    def products(self) -> list[Callable[[Tensor], Tensor]]:
        """Return all products of linear layers, in their order."""
        products = [(each.qkv, each.out, each.gate_up, each.down) for each in self.layers]
        return [product for layer in products for product in layer] + [self.head]

    def kept(self) -> tuple[int, Tensor]:
        """Return how many layers there are, and what the cache is given of one token by each: a
        tensor of that shape, [1, heads, size]."""
        first = self.layers[0]
        weight = self.norm.weight
        return len(self.layers), weight.new_empty(1, first.shared_heads, first.size)


class _Norm:
    def __init__(self, module: Any) -> None:
        self.weight = module.weight.detach()
        self.eps = module.variance_epsilon

    def __call__(self, tensor: Tensor) -> Tensor:
        return rms_norm(tensor, self.weight.shape, self.weight, self.eps)


class Layer:
    def __init__(self, layer: Any, config: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.size = attention.head_dim
        self.heads = config.num_attention_heads
        self.shared_heads = config.num_key_value_heads
        self.scaling = attention.scaling
        self.window = _window(attention, config)
        self.before_attention = _Norm(layer.input_layernorm)
        self.before_mlp = _Norm(layer.post_attention_layernorm)
        self.qkv = joint_product(_parts(attention, "qkv_proj", ("q_proj", "k_proj", "v_proj")))
        self.head_norm = _head_norms(attention)
        self._joint_head_norm = self._join_head_norms()
        self.out = joint_product([attention.o_proj])
        self.gate_up = joint_product(_parts(mlp, "gate_up_proj", ("gate_proj", "up_proj")))
        self.activate = mlp.activation_fn if hasattr(mlp, "activation_fn") else mlp.act_fn
        self.inner = mlp.down_proj.in_features
        self.down = joint_product([mlp.down_proj])

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, view: View, cache: SlotCache, index: int
    ) -> Tensor:
        turned = self.heads + self.shared_heads
        joint = self.qkv(self.before_attention(hidden)).view(len(hidden), -1, self.size)
        queries_keys, new_values = joint[:, :turned], joint[:, turned:]
        if self._joint_head_norm is not None:
            weight, eps = self._joint_head_norm
            queries_keys = rms_norm(queries_keys, (self.size,), None, eps) * weight
        rolled = queries_keys.roll(self.size // 2, -1)
        queries_keys = torch.addcmul(queries_keys * cos, rolled, sin)
        keys, values = cache.write(index, queries_keys[:, self.heads :], new_values)
        queries = queries_keys[:, : self.heads]
        found = attend(queries, keys, values, view, self.window, self.scaling)
        hidden = hidden + self.out(found.flatten(1))
        gate, up = self.gate_up(self.before_mlp(hidden)).chunk(2, dim=-1)
        return hidden + self.down(self.activate(gate) * up)

    def _join_head_norms(self) -> tuple[Tensor, float] | None:
        """Return one weight for each head that is turned, [heads, size], where heads are normed."""
        if self.head_norm is None:
            return None
        query, key, eps = self.head_norm
        return torch.stack([query] * self.heads + [key] * self.shared_heads), eps


def _head_norms(attention: Any) -> tuple[Tensor, Tensor, float] | None:
    """Return the weights of the norms of queries and of keys, where heads are normed."""
    if not hasattr(attention, "q_norm"):
        return None
    query, key = attention.q_norm, attention.k_norm
    if query.variance_epsilon != key.variance_epsilon:
        raise UnknownLayout("norms of queries and keys that differ")
    return query.weight.detach(), key.weight.detach(), query.variance_epsilon


def _parts(module: Any, joint: str, apart: tuple[str, ...]) -> list[Any]:
    """Return the linear layers of one product; Phi has it as one layer to begin with."""
    return [getattr(module, name) for name in ((joint,) if hasattr(module, joint) else apart)]


def _window(attention: Any, config: Any) -> int | None:
    if hasattr(attention, "sliding_window"):
        window: int | None = attention.sliding_window
        return window
    # Mistral's layers all look as far back as its config says; Llama's config says nothing.
    return getattr(config, "sliding_window", None)
