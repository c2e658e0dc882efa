"""From files to a model that can answer."""
