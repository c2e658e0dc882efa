"""Layers that are computed as one product."""

SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Siblings that transformers' models feed with one and the same tensor, one right after another."""
