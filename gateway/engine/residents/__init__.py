"""The models in memory: who may have one, who waits for one, who goes."""
