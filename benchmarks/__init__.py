"""What it costs: python -m benchmarks."""
