"""How much memory there is, and who has it."""
