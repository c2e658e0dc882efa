"""What a model's files are, read without loading it."""
