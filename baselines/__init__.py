"""Baselines: what a policy has to beat."""

from baselines.heuristics import Proportional, RandomField, Stay
from baselines.linear_programs import FluidLP, RollingLP
from baselines.transport import GreedyTransport

__all__ = ["FluidLP", "GreedyTransport", "Proportional", "RandomField", "RollingLP", "Stay"]
