"""Taxi repositioning as a lifted mean-field MDP: Gymnasium environments, finite fleets, real trips, certified bounds.

Importing this package registers ``MFTaxi-v0`` and ``MFSwarm1D-v0`` with Gymnasium.
"""

import gymnasium as gym

from mf_taxi_env.bound import Bound, certified_bound
from mf_taxi_env.envs import CostWrapper, MFSwarm1DEnv, MFSwarm1DVectorEnv, MFTaxiEnv, MFTaxiVectorEnv, fleet_parallel_env
from mf_taxi_env.fleet import FleetRollout, FleetSimulator
from mf_taxi_env.grid import Grid
from mf_taxi_env.mdp import MeanFieldMDP, Move, ParticleMDP, Trajectory
from mf_taxi_env.motion import CongestedMotion, FreeMotion, Motion, TorusMotion
from mf_taxi_env.safety import (
    Constraint,
    DistanceCap,
    EntropyFloor,
    KeepAway,
    RegionCapacity,
    RegionCoverage,
    SmoothedEntropyFloor,
    WeightedEntropyFloor,
)
from mf_taxi_env.scenarios import (
    Scenario,
    list_scenarios,
    load_scenario,
    scenario_family,
    scenario_from_trips,
    synthetic_scenario,
    trips_from_traces,
)
from mf_taxi_env.scoring import score
from mf_taxi_env.swarm import SwarmMDP
from mf_taxi_env.taxi import TaxiMDP

__version__ = "0.1.0"

__all__ = [
    "Bound",
    "CongestedMotion",
    "Constraint",
    "CostWrapper",
    "DistanceCap",
    "EntropyFloor",
    "FleetRollout",
    "FleetSimulator",
    "FreeMotion",
    "Grid",
    "KeepAway",
    "MFSwarm1DEnv",
    "MFSwarm1DVectorEnv",
    "MFTaxiEnv",
    "MFTaxiVectorEnv",
    "MeanFieldMDP",
    "Motion",
    "Move",
    "ParticleMDP",
    "RegionCapacity",
    "RegionCoverage",
    "Scenario",
    "SmoothedEntropyFloor",
    "SwarmMDP",
    "TaxiMDP",
    "TorusMotion",
    "Trajectory",
    "WeightedEntropyFloor",
    "certified_bound",
    "fleet_parallel_env",
    "list_scenarios",
    "load_scenario",
    "scenario_family",
    "scenario_from_trips",
    "score",
    "synthetic_scenario",
    "trips_from_traces",
]

# No max_episode_steps: the horizon is an argument, and the env truncates itself.
gym.register("MFTaxi-v0", entry_point="mf_taxi_env.envs:MFTaxiEnv", vector_entry_point="mf_taxi_env.envs:MFTaxiVectorEnv")
gym.register(
    "MFSwarm1D-v0", entry_point="mf_taxi_env.envs:MFSwarm1DEnv", vector_entry_point="mf_taxi_env.envs:MFSwarm1DVectorEnv"
)
