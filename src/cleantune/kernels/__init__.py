"""Optional faster CPU convolutions."""
