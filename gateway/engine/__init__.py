"""The in-process engine: loading, batching and sampling of transformers models, and who is loaded.

Knows nothing of HTTP, of providers or of the database. torch is imported when first needed.
"""
