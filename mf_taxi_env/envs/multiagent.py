"""The finite fleet for multi-agent algorithms. Needs the extra ``multiagent`` (PettingZoo) where it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from mf_taxi_env.envs.shell import check_arguments
from mf_taxi_env.envs.taxi_env import CitySettings, cities
from mf_taxi_env.fleet import Resolution

if TYPE_CHECKING:
    from mf_taxi_env.envs.fleet_env import FleetParallelEnv


class FleetSettings(CitySettings, total=False):
    """Arguments of :func:`fleet_parallel_env` beside the number of taxis."""

    resolution: Resolution
    render_mode: None


def fleet_parallel_env(n_taxis: int = 100, **settings: Unpack[FleetSettings]) -> FleetParallelEnv:
    """A finite fleet as a PettingZoo ``ParallelEnv``, one agent per taxi; see
    :class:`~mf_taxi_env.envs.fleet_env.FleetParallelEnv`.

    Args:
        n_taxis: Fleet size, at least 1.
        settings: ``scenario``, ``cells``, ``horizon``, ``constraints``, ``motion``, ``noise_std``, ``reward_timing`` and
            ``device`` as those of ``MFTaxi-v0``, with the same defaults; ``resolution`` as that of
            :class:`~mf_taxi_env.FleetSimulator`; ``render_mode``, which can only be None. Observation and
            parameterization of the lifted env do not apply.

    Raises:
        ImportError: If PettingZoo is not installed.
        TypeError: If an argument is unknown.
        ValueError: If an argument is out of range.
    """
    check_arguments("fleet_parallel_env", settings, FleetSettings, "n_taxis")
    try:
        from mf_taxi_env.envs.fleet_env import FleetParallelEnv
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "pettingzoo":
            raise
        raise ImportError("fleet_parallel_env needs PettingZoo: pip install 'safe-m3-taxi[multiagent]'") from error
    if (render_mode := settings.pop("render_mode", None)) is not None:
        raise ValueError(f"render_mode must be None, got {render_mode!r}: a fleet env draws nothing")
    resolution = settings.pop("resolution", "cell")
    return FleetParallelEnv(cities(**settings)(None), n_taxis, resolution=resolution)  # type: ignore[misc] # no resolution left
