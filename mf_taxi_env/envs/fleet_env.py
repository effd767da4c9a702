"""A finite fleet as a PettingZoo ``ParallelEnv``: one agent per taxi, in the world of :class:`~mf_taxi_env.FleetSimulator`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pettingzoo import ParallelEnv
from torch import Tensor

from mf_taxi_env.envs.shell import Report, constraint_names, is_ours, without_gradients
from mf_taxi_env.fleet import FleetSimulator, Resolution
from mf_taxi_env.taxi import TaxiMDP

Array = NDArray[np.float32]


class Observation(TypedDict):
    """What taxis see. Arrays are read-only, and shared by all who see them."""

    position: Array
    """Where the taxi is, ``[2]`` in ``[0, 1]``; of a whole fleet ``[m, 2]``."""
    mu: Array
    """Where the fleet is: its empirical distribution, ``[K]``."""


class FleetParallelEnv(ParallelEnv[str, Observation, Array]):  # type: ignore[misc] # PettingZoo ships no types
    """Taxis of a finite fleet, each an agent, with one reward for all. Made by :func:`mf_taxi_env.fleet_parallel_env`.

    ## Description
    The world of :class:`~mf_taxi_env.FleetSimulator`, of which it is a shell: ``reset(seed=s)`` is
    ``FleetSimulator(mdp, n_taxis, seed=s)``, and a step is a step of that fleet, number for number. What taxis see is the
    fleet after it has carried the passengers of the step, as every policy of this package does; only the last
    observation of an episode comes before passengers, for no step follows.

    ## Agents
    ``taxi_0`` to ``taxi_{m-1}``, all from the start of an episode to its end.

    ## Action Space
    ``Box(-1, 1, (2,), float32)``, the move ``(dx, dy)``; 1 crosses the city.

    ## Observation Space
    ``Dict`` of ``position`` ``[2]`` and ``mu`` ``[K]``, see :class:`Observation`. Both spaces are one object for all agents.

    ## Rewards
    That of ``MFTaxi-v0``, of the empirical distribution: ``-KL(rho || mu)`` in nats, the same for every agent.

    ## Infos
    Each agent's: ``occupied`` (whether it has just carried a passenger to where it is seen) and, of the fleet before
    passengers, ``cost``, ``margin``, ``margins``, ``entropy`` and ``kl`` as in ``MFTaxi-v0``.

    ## Episode End
    Truncation of all agents after ``horizon`` steps.

    ## Arrays
    A dictionary with an entry per agent takes time to build. ``reset_array`` and ``step_array`` do the same with arrays.

    >>> from mf_taxi_env import fleet_parallel_env
    >>> env = fleet_parallel_env(n_taxis=50, cells=5)
    >>> observations, infos = env.reset(seed=0)
    >>> env.step({agent: env.action_space(agent).sample() for agent in env.agents})[1]["taxi_7"] <= 0
    True
    >>> seen, info = env.reset_array(seed=0)
    >>> seen, reward, terminated, truncated, info = env.step_array(np.zeros((50, 2), np.float32))
    >>> seen["position"].shape, info["occupied"].shape
    ((50, 2), (50,))

    Args:
        mdp: The city.
        n_taxis: Fleet size, at least 1.
        resolution: See :class:`~mf_taxi_env.FleetSimulator`.

    Raises:
        ValueError: If an argument is out of range.
    """

    metadata: dict[str, Any] = {"name": "mf_taxi_fleet_v0", "render_modes": [], "is_parallelizable": True}  # noqa: RUF012
    render_mode = None

    def __init__(self, mdp: TaxiMDP, n_taxis: int, *, resolution: Resolution = "cell") -> None:
        self.mdp = mdp
        self.resolution: Resolution = resolution
        self._fleet = FleetSimulator(mdp, n_taxis, resolution=resolution)  # refuses bad arguments; reset brings another
        self.n_taxis = self._fleet.n_taxis
        self._seeded = False
        self.possible_agents = [f"taxi_{i}" for i in range(self.n_taxis)]
        self.agents: list[str] = []
        size = mdp.grid.size
        self._observation_space = gym.spaces.Dict(
            {
                "position": gym.spaces.Box(0.0, 1.0, (2,), np.float32),
                "mu": gym.spaces.Box(0.0, 1.0, (size,), np.float32),
            }
        )
        self._action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._names = constraint_names(mdp)
        self._ours = is_ours(mdp)
        self._roll = dict.fromkeys(self.possible_agents)
        self._seen: Observation | None = None

    def observation_space(self, agent: str) -> gym.spaces.Space[Any]:
        """That of every agent: one object."""
        return self._observation_space

    def action_space(self, agent: str) -> gym.spaces.Space[Any]:
        """That of every agent: one object, and so one source of samples."""
        return self._action_space

    @property
    def fleet(self) -> FleetSimulator:
        """The simulator of the running episode, to look at. Its tensors may be of inference mode, which no gradient is to pass
        through: clone them for that."""
        return self._fleet

    def state(self) -> Array:
        """The distribution that all agents see, ``[K]``, read-only.

        Raises:
            gymnasium.error.ResetNeeded: Before the first reset.
        """
        if self._seen is None:
            raise gym.error.ResetNeeded("call reset() before state(): there is no fleet yet")
        return self._seen["mu"]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Observation], dict[str, dict[str, Any]]]:
        """Start an episode.

        Args:
            seed: Seed of the fleet; ``None`` goes on drawing, and at the first reset takes one of the operating system's.
            options: Ignored; there are none.
        """
        seen, info = self.reset_array(seed)
        return self._apart(seen), self._infos(info)

    def reset_array(self, seed: int | None = None) -> tuple[Observation, dict[str, Any]]:
        """:meth:`reset` for arrays: what the whole fleet sees, and its info with ``occupied`` ``[m]``."""
        if seed is None and not self._seeded:
            seed = int(np.random.default_rng().integers(2**63))
        if seed is None:
            self._fleet.reset()
        else:
            self._fleet, self._seeded = FleetSimulator(self.mdp, self.n_taxis, seed=seed, resolution=self.resolution), True
        self.agents = self.possible_agents.copy()
        with without_gradients(self._ours):
            return self._look(self._fleet.distribution)

    def step(
        self, actions: Mapping[str, ArrayLike]
    ) -> tuple[dict[str, Observation], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Move every taxi.

        Args:
            actions: ``[2]`` in ``[-1, 1]`` for each agent.

        Raises:
            ValueError: If an agent has no action or one that is not allowed, or if there are others. The state is unchanged.
            gymnasium.error.ResetNeeded: If the episode is over or has not begun.
        """
        agents = self.agents
        seen, reward, _, truncated, info = self.step_array(self._stacked(actions))
        return (
            self._apart(seen),
            dict.fromkeys(agents, reward),
            dict.fromkeys(agents, False),
            dict.fromkeys(agents, truncated),
            self._infos(info),
        )

    def step_array(self, actions: ArrayLike | Tensor) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """:meth:`step` for arrays.

        Args:
            actions: ``[m, 2]`` in ``[-1, 1]``, in the order of ``possible_agents``.

        Returns:
            What the fleet sees, the reward of every agent, whether the episode is terminated (never) and truncated, and the
            info with ``occupied`` ``[m]``.

        Raises:
            ValueError: If the actions have the wrong shape, are not finite, or leave ``[-1, 1]``. The state is unchanged.
            gymnasium.error.ResetNeeded: If the episode is over or has not begun.
        """
        if not self.agents:
            raise gym.error.ResetNeeded("call reset() before step(): no episode is running")
        given = actions if isinstance(actions, Tensor) else torch.from_numpy(np.require(actions, np.float32, ["C", "W"]))
        with without_gradients(self._ours):  # a client gets arrays, never these tensors
            before, t = self._before, self._fleet.t
            after = self._fleet.step(given.to(self.mdp.device, self.mdp.dtype))
            reward = float(self.mdp.reward(before, given, after, t))
            truncated = self._fleet.t >= self.mdp.horizon
            if truncated:
                self.agents = []
            seen, info = self._look(after)
        return seen, reward, False, truncated, info

    def _look(self, mu: Tensor) -> tuple[Observation, dict[str, Any]]:
        """What is seen of a fleet at ``mu`` before passengers, once it has carried those of the step that follows, if any."""
        self._before = mu
        info = Report.of(self.mdp, mu, max(self._fleet.t - 1, 0)).info(self._names)
        if self.agents:
            mu = self._fleet.serve()
            occupied = self._fleet.occupied.cpu().numpy()
        else:
            occupied = np.zeros(self.n_taxis, bool)
        self._seen = {"position": _read_only(self._fleet.positions), "mu": _read_only(mu)}
        return self._seen, {**info, "occupied": occupied}

    def _apart(self, seen: Observation) -> dict[str, Observation]:
        mu = seen["mu"]
        return {
            agent: {"position": place, "mu": mu} for agent, place in zip(self.possible_agents, seen["position"], strict=True)
        }

    def _infos(self, info: dict[str, Any]) -> dict[str, dict[str, Any]]:
        occupied = info["occupied"].tolist()
        return {agent: {**info, "occupied": one} for agent, one in zip(self.possible_agents, occupied, strict=True)}

    def _stacked(self, actions: Mapping[str, ArrayLike]) -> Array:
        """The agents' actions, ``[m, 2]``."""
        if not self.agents:
            raise gym.error.ResetNeeded("call reset() before step(): no episode is running")
        if actions.keys() != self._roll.keys():
            odd = sorted(actions.keys() ^ self._roll.keys(), key=str)
            raise ValueError(f"actions must have an entry for each of the {self.n_taxis} agents alone, amiss are {odd[:5]}")
        values: list[Any] = [actions[agent] for agent in self.possible_agents]
        try:
            flat = np.concatenate(values, dtype=np.float32, casting="same_kind")
        except (ValueError, TypeError):
            flat = np.empty(0, np.float32)
        if flat.shape != (2 * self.n_taxis,) or set(map(len, values)) != {2}:
            for agent, value in actions.items():
                if np.shape(value) != (2,):
                    raise ValueError(f"actions must have shape (2,), got {np.shape(value)} for {agent}")
                if not np.can_cast(kind := np.asarray(value).dtype, np.float32, "same_kind"):
                    raise ValueError(f"actions must be real numbers, got {value!r} of type {kind} for {agent}")
        return flat.reshape(-1, 2)


def _read_only(values: Tensor) -> Array:
    """A view of a tensor for clients, or a copy from another device."""
    array: Array = values.float().cpu().numpy()
    array.setflags(write=False)
    return array
