"""Taxi repositioning as a lifted mean-field MDP: Gymnasium environments, finite fleets, real trips, certified bounds.

Importing this package registers ``MFTaxi-v0`` with Gymnasium.
"""

import gymnasium as gym

from mf_taxi_env.bound import Bound, certified_bound, score
from mf_taxi_env.envs import MFTaxiEnv
from mf_taxi_env.fleet import FleetRollout, FleetSimulator
from mf_taxi_env.grid import Grid
from mf_taxi_env.mdp import MeanFieldMDP, Move, ParticleMDP, Trajectory
from mf_taxi_env.motion import CongestedMotion, FreeMotion, Motion
from mf_taxi_env.safety import Constraint, EntropyFloor
from mf_taxi_env.scenarios import Scenario, list_scenarios, load_scenario, scenario_from_trips
from mf_taxi_env.taxi import TaxiMDP

__version__ = "0.1.0"

__all__ = [
    "Bound",
    "CongestedMotion",
    "Constraint",
    "EntropyFloor",
    "FleetRollout",
    "FleetSimulator",
    "FreeMotion",
    "Grid",
    "MFTaxiEnv",
    "MeanFieldMDP",
    "Motion",
    "Move",
    "ParticleMDP",
    "Scenario",
    "TaxiMDP",
    "Trajectory",
    "certified_bound",
    "list_scenarios",
    "load_scenario",
    "scenario_from_trips",
    "score",
]

# No max_episode_steps: the horizon is an argument, and the env truncates itself.
gym.register("MFTaxi-v0", entry_point="mf_taxi_env.envs:MFTaxiEnv")
