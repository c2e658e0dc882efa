"""The built-in demo model: its grammar of chats, its training script and its trained files.

Owns everything that is needed to rebuild ``huggingface/demo`` from nothing. Does not own how a
model is served: the gateway loads the folder ``model/`` like any other Hugging Face checkpoint.
"""

from pathlib import Path

MODEL_PATH = Path(__file__).parent / "model"
