"""Shells of the worlds: Gymnasium's of the lifted MDPs, PettingZoo's of the finite fleet."""

from mf_taxi_env.envs.multiagent import fleet_parallel_env
from mf_taxi_env.envs.swarm_env import MFSwarm1DEnv, MFSwarm1DVectorEnv
from mf_taxi_env.envs.taxi_env import MFTaxiEnv, MFTaxiVectorEnv
from mf_taxi_env.envs.wrappers import CostWrapper

__all__ = ["CostWrapper", "MFSwarm1DEnv", "MFSwarm1DVectorEnv", "MFTaxiEnv", "MFTaxiVectorEnv", "fleet_parallel_env"]
