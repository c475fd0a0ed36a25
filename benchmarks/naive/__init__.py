"""Naive side of each ratio, written as users write it."""
