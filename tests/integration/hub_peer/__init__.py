"""A scripted Hugging Face Hub on loopback, as huggingface_hub uses it; records what it saw."""
