"""Baselines: what a policy has to beat."""

from baselines.heuristics import Stay

__all__ = ["Stay"]
