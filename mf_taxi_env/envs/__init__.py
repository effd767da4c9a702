"""Gymnasium shells of the lifted MDPs."""

from mf_taxi_env.envs.mean_field_env import MFTaxiEnv

__all__ = ["MFTaxiEnv"]
