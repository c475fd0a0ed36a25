"""Process groups and sharded training."""
