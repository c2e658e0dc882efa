"""From prompts to tokens: one loop for all sequences of a model."""
