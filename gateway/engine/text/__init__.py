"""From messages to tokens, and from tokens to what was meant."""
