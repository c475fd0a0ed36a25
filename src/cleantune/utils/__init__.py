"""Console, number formats, device, memory and processor."""
