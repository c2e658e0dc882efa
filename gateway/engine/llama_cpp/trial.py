"""Loads a GGUF file in a child process first: what makes llama.cpp abort kills the child only.

llama.cpp asserts much of what it reads, and an exception in its C++ code ends the process as well.
A header that is well-formed (core.gguf) may still say impossible things.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from gateway.core.errors import GatewayError, ModelLoadFailed

TIMEOUT_S = 120.0
BYTES_PER_S = 20 * 2**20
"""The slowest disk that a file is waited for."""
SPARE_BYTES = 4 * 2**30
"""What the child may allocate beside the file, which it maps."""
CONTEXT_TOKENS = 64
SAMPLES = (*range(0, 0x10000, 256), 0x1F600, 0x40000, 0x80000, 0xC0000, 0x10FF00)
"""Where blocks of 256 characters begin that need every byte which UTF-8 has, in many companies."""


def try_load(path: Path, size_bytes: int) -> None:
    """Return if llama.cpp can load the file and compute with it. Blocking.

    Raises ModelLoadFailed with its last words.
    """
    # The child finds the gateway where this process found it, however it was started.
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
    command = [sys.executable, "-c", code, str(path), str(size_bytes)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=TIMEOUT_S + size_bytes / BYTES_PER_S,
        )
    except subprocess.TimeoutExpired:
        raise ModelLoadFailed("it takes too long.") from None
    if done.returncode != 0:
        raise ModelLoadFailed(_last_words(done))


def _last_words(done: "subprocess.CompletedProcess[bytes]") -> str:
    if done.returncode < 0:
        return f"llama.cpp died of it (signal {-done.returncode})."
    try:
        return str(json.loads(done.stdout)["reason"])
    except (ValueError, KeyError, TypeError):
        return "the trial of the file failed."


def main() -> None:
    """Try the file of the command line; exit with 1 and the reason as JSON if it cannot be."""
    path, size_bytes = sys.argv[1:]
    _restrict(int(size_bytes))
    try:
        _try(Path(path))
    except (GatewayError, RuntimeError, MemoryError) as error:
        sys.stdout.write(json.dumps({"reason": str(error) or "it takes too much memory."}))
        sys.exit(1)


def _restrict(size_bytes: int) -> None:
    """Leave no core file and no debugger behind, and take no memory without end."""
    os.environ["GGML_NO_BACKTRACE"] = "1"
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (size_bytes + SPARE_BYTES,) * 2)


def _try(path: Path) -> None:
    from gateway.engine.llama_cpp.library import load_library
    from gateway.engine.llama_cpp.model import ContextConfig, LlamaContext, LlamaModel
    from gateway.engine.llama_cpp.runner import decode
    from gateway.engine.llama_cpp.tokenizer import LlamaTokenizer

    library = load_library()
    model = LlamaModel(library, path, offload=False, repack=False)
    if not model.generates_text:
        raise ModelLoadFailed("it is no model that generates text.")
    tokenizer = LlamaTokenizer(model, None)
    for start in SAMPLES:
        # Surrogates are no characters, and the block that they fill is empty.
        text = "".join(map(chr, range(start, start + 256))).encode(errors="ignore").decode()
        tokenizer(text, add_special_tokens=True)
    context = LlamaContext(library, model, ContextConfig(CONTEXT_TOKENS, 2, threads=1))
    last = model.vocabulary_size - 1
    # A prompt beside a single token, then two single tokens.
    decode(context, [(0, 0, 0, False), (last, 1, 0, True), (last, 0, 1, True)])
    decode(context, [(0, 2, 0, True), (0, 1, 1, True)])
