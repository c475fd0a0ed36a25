"""The other side of each ratio, written as users write it."""
