"""The built-in algorithms of the benchmark: importing this package registers them."""

from baselines.algorithms import classical

__all__ = ["classical"]
