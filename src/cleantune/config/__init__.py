"""Configuration as frozen dataclasses: one declaration gives help, TOML, docs and search space."""
