"""Frozen features: extraction, the cache on disk and the inference backends."""
