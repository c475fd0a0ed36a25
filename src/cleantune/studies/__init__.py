"""Experiments over many runs: comparison, search, transfer, the papers' tables, spectra and pre-training."""
