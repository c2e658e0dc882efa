"""A GGUF model and a context of it in memory, each freed with the last that refers to it.

Who tokenizes with a model keeps it alive, so nothing is used after it was freed.
"""

import re
import weakref
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.core.errors import ModelLoadFailed
from gateway.engine.llama_cpp.library import Library

BATCH_TOKENS = 2048
"""Tokens that one call of llama_decode takes; llama.cpp splits them further by itself."""

_BUFFER = re.compile(r"buffer size = +([\d.]+) MiB")


class ContextConfig(msgspec.Struct, frozen=True):
    """`context_length` is tokens for each of `sequences`: their memory is set aside at once."""

    context_length: int
    sequences: int
    threads: int
    full_precision: bool = False


class LlamaModel:
    """The weights and the vocabulary of one file (or of the files it is split into)."""

    def __init__(self, library: Library, path: Path, *, offload: bool, repack: bool = True) -> None:
        """Map the file into memory; `offload` puts layers on a GPU where llama.cpp has one.

        `repack` lets it copy weights into layouts that its kernels like better. Raises
        ModelLoadFailed with llama.cpp's reason. May abort the process on a hostile file: see
        `trial`.
        """
        api = library.api
        params = api.llama_model_default_params()
        params.n_gpu_layers = -1 if offload else 0
        params.use_extra_bufts = repack
        with library.recorded() as lines:
            self.pointer = api.llama_model_load_from_file(str(path).encode(), params)
        if not self.pointer:
            raise ModelLoadFailed(f"llama.cpp refuses the file: {_reason(lines)}")
        weakref.finalize(self, api.llama_model_free, self.pointer).atexit = False
        self.api = api
        self.vocab = api.llama_model_get_vocab(self.pointer)
        self.vocabulary_size: int = api.llama_vocab_n_tokens(self.vocab)
        self.trained_context: int = api.llama_model_n_ctx_train(self.pointer)
        self.memory_bytes = max(_buffer_bytes(lines), int(api.llama_model_size(self.pointer)))

    @property
    def generates_text(self) -> bool:
        """False for encoders, models that denoise, and files without a vocabulary."""
        api, model = self.api, self.pointer
        return not (
            api.llama_model_has_encoder(model)
            or not api.llama_model_has_decoder(model)
            or api.llama_model_is_diffusion(model)
            or api.llama_vocab_type(self.vocab) == api.LLAMA_VOCAB_TYPE_NONE
        )


class LlamaContext:
    """Room for the keys, values and states of sequences of one model."""

    def __init__(self, library: Library, model: LlamaModel, config: ContextConfig) -> None:
        """Set the memory aside. Raises ModelLoadFailed when there is not enough."""
        api = library.api
        most = api.llama_max_parallel_sequences()
        if config.sequences > most:
            raise ModelLoadFailed(
                f"llama.cpp serves at most {most} streams at once.",
                hint="Lower GATEWAY_HF_MAX_ACTIVE.",
            )
        params = api.llama_context_default_params()
        params.n_ctx = config.context_length * config.sequences
        params.n_seq_max = params.n_outputs_max = config.sequences
        params.n_batch = BATCH_TOKENS
        params.n_threads = params.n_threads_batch = config.threads
        # Each sequence has cells of its own, and attention looks at no others.
        params.kv_unified = False
        if config.full_precision:
            params.type_k = params.type_v = api.GGML_TYPE_F32
            params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        with library.recorded() as lines:
            self.pointer = api.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            raise ModelLoadFailed(
                f"llama.cpp cannot make room for the context: {_reason(lines)}",
                hint="Lower GATEWAY_GGUF_CONTEXT_LENGTH or GATEWAY_HF_MAX_ACTIVE.",
            )
        # Holding the model, which thus goes later, also when the collector finds both at once.
        weakref.finalize(self, _free_context, api.llama_free, self.pointer, model).atexit = False
        self.api = api
        self.model = model
        self.memory = api.llama_get_memory(self.pointer)
        self.memory_bytes = _buffer_bytes(lines)


def _free_context(free: Callable[[int], None], pointer: int, _: LlamaModel) -> None:
    free(pointer)


def _buffer_bytes(lines: list[str]) -> int:
    """Return the sum of the buffers that llama.cpp says it allocated (it tells 0.01 MiB)."""
    sizes = [float(found[1]) for line in lines if (found := _BUFFER.search(line))]
    return int(sum(sizes) * 2**20)


def _reason(lines: list[str]) -> str:
    """Return what llama.cpp said first of its failure, without the names of its functions."""
    told = [line for line in lines if "error" in line or "fail" in line] or lines[-1:]
    return told[0].rpartition(": error loading model: ")[2][:300] if told else "it does not say why"
