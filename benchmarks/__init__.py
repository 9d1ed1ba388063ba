"""What advlib's speed is measured with: `python -m benchmarks peers`, `training` or `scaling`."""
