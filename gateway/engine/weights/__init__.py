"""Weights as the processor likes them, and what computes with them."""
