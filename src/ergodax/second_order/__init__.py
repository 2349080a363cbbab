"""What remains at finite N: fluctuations of order 1 / sqrt(N) and bias of order 1 / N."""
