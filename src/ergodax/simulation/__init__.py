"""The rescaled stochastic process itself, in batches of runs; knows no average."""

from . import until as until
