"""The optional engine for GGUF files: llama.cpp computes logits, everything else is shared.

Needs the extra `gguf` (llama-cpp-python), which is imported only when a file is loaded.
"""

from importlib.util import find_spec

INSTALL_HINT = "Install the gateway with its extra: pip install 'model-gateway[gguf]'."


def is_installed() -> bool:
    """Tell whether GGUF files can be loaded here. Imports nothing."""
    return find_spec("llama_cpp") is not None
