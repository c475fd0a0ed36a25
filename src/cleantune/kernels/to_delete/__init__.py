"""Kernels that are about to go."""
