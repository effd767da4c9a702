"""The built-in algorithms of the benchmark: importing this package registers them."""

from baselines.algorithms import classical, stable_baselines

__all__ = ["classical", "stable_baselines"]
