"""Prepares torch for a server process: wait policy, threads, quiet libraries."""

import ctypes
import gc
import os
import sys
import threading
from contextlib import suppress

from gateway.core.ledger import UNBOUNDED

ARENAS = 2
_M_ARENA_MAX = -8  # of malloc.h
MACHINE_SHARE = 0.6
GPU_SHARE = 0.9
"""What models may take of a memory when the operator gives no budget."""

_lock = threading.Lock()
building = threading.Lock()
"""Held by the one thread that transformers builds a model in: it replaces functions of the whole
process meanwhile, and two at once put back each other's. Then no model loads any more."""
gpu_recording = threading.Lock()
"""Held by the one thread that records a CUDA graph: torch's allocator frees nothing meanwhile."""


def import_torch() -> None:
    """Import torch and transformers; takes seconds the first time, so call it off the loop.

    OpenMP's threads wait awake between operators, which is good for nothing but harm where others
    want the processor too: how long is read once, when torch's OpenMP runtime starts. 2,000 turns
    cost some 5 % where nobody else does; figures in bench/README.md.
    """
    with _lock:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        is_first = "transformers" not in sys.modules
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        # Lazy modules: the first use of these is what takes the time.
        _ = transformers.AutoModelForCausalLM, transformers.AutoTokenizer, transformers.DynamicCache
        _ = transformers.PreTrainedModel  # what the code of every model imports
        if is_first:
            _share_arenas()
            # For threads that say nothing of it: those that compute say how many they want.
            torch.set_num_threads(1)
            # What the libraries hold stays for ever: later collections, each of which stops
            # every thread, need not look through it.
            gc.collect()
            gc.freeze()


def _share_arenas() -> None:
    """Have glibc's allocator keep one pool for every few threads: each that a load's threads leave
    behind keeps some megabytes for the next of its kind, which comes in another pool."""
    with suppress(OSError, AttributeError):  # another libc, which has no such function
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS)


def give_back_memory() -> None:
    """Let the system have what nobody holds any more. Blocking: tens of milliseconds, in which the
    garbage collector lets no thread run."""
    gc.collect()
    trim_memory()


def trim_memory() -> None:
    """Let the system have what was freed. Blocking: milliseconds.

    glibc keeps freed blocks of less than 32 MB for itself, which are most of a model's weights;
    torch keeps all that it ever had of a GPU's memory.
    """
    # While torch is being imported it has no part `cuda` yet.
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        with gpu_recording:
            cuda.empty_cache()
    with suppress(OSError, AttributeError):  # another libc, which has no such function
        ctypes.CDLL(None).malloc_trim(0)


def default_budget(device: str) -> int:
    """Return the bytes that models may take on a device; on a GPU it imports torch.

    UNBOUNDED for a GPU that torch cannot use: others do, and know its size.
    """
    kind, _, index = device.partition(":")
    if kind == "cuda":
        import torch

        if not torch.cuda.is_available():
            return UNBOUNDED
        return int(torch.cuda.get_device_properties(int(index or 0)).total_memory * GPU_SHARE)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * MACHINE_SHARE)
