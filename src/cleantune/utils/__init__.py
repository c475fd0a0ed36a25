"""Console, number formats, device, memory, processor and telemetry."""
