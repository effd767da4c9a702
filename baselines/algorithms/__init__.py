"""The built-in algorithms of the benchmark: importing this package registers them."""

from baselines.algorithms import classical, safe_m3

__all__ = ["classical", "safe_m3"]
