"""Plain NumPy, numba and SciPy baselines that ergodax is measured against."""
