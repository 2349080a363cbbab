"""Both sides compared, or many parameter sets: comparisons, rates, sweeps, fits."""
