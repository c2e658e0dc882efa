"""A model in a process of its own, and the two ends of the pipe between."""
