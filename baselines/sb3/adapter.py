"""A batch of lifted episodes as one ``VecEnv`` of Stable-Baselines3: tensors inside, arrays at the door, no process per env."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices
from torch import Tensor

from mf_taxi_env.envs.shell import Observation, Shell
from mf_taxi_env.envs.vector_env import MeanFieldVectorEnv
from mf_taxi_env.mdp import MeanFieldMDP
from mf_taxi_env.parameterization import Parameterization

Array = NDArray[Any]


class LiftedVecEnv(VecEnv):
    """``num_envs`` episodes of one world, stepped together by the native vector env, in the manner of SB3.

    An episode that ends begins anew within the same step, as SB3 has it: the observation is the next episode's first, and the
    info holds the last one as ``terminal_observation``. All episodes begin and end together.

    Infos are a list of one dictionary per env, but there is little to say: in the middle of an episode and within the
    constraints it is empty. ``cost``, the worst violation in nats (or what the constraint measures), is there where it
    is positive. :attr:`margin`, :attr:`episodes` and :attr:`violated` say the rest, for all envs at once.

    Args:
        mdp: The world. With ``reward_timing="next"`` a city pays for the distribution that an action causes.
        num_envs: Episodes, ``N >= 1``.
        parameterization: What an action means, see :func:`mf_taxi_env.parameterization.make_parameterization`.
        observation: ``"density"``, of order one, or ``"mass"``.
        observe_time: Append ``t / T`` to the observation.
        reach: What the action 1 stands for, in (0, 1]; actions are multiplied by it. At 1 a taxi may cross the city in a step.
        after_trips: Show the distribution after trips, which is what a policy of this library acts on, and what
            :class:`~baselines.sb3.policy.LiftedPolicy` therefore needs. ``False`` shows the one before, as ``MFTaxi-v0`` does.
        initial: Where episodes start: ``"uniform"``, ``"gaussian"``, a random one, or a distribution ``[K]`` or ``[N, K]``.
        bootstrap: Whether the last step is a cut (``TimeLimit.truncated``), beyond which SB3 adds the value of what it saw
            last, as with ``MFTaxi-v0``. ``False`` makes it the end, which asks for ``observe_time``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from mf_taxi_env import TaxiMDP, load_scenario
        >>> envs = LiftedVecEnv(TaxiMDP(load_scenario("shenzhen", cells=5)), 4, parameterization="bilinear:3")
        >>> envs.reset().shape
        (4, 25)
        >>> observations, rewards, dones, infos = envs.step(np.zeros((4, 18), np.float32))
        >>> rewards.shape, infos
        ((4,), [{}, {}, {}, {}])
    """

    def __init__(
        self,
        mdp: MeanFieldMDP,
        num_envs: int,
        *,
        parameterization: str | Parameterization = "bilinear:8",
        observation: Observation = "density",
        observe_time: bool = False,
        reach: float = 1.0,
        after_trips: bool = True,
        initial: str | Tensor = "uniform",
        bootstrap: bool = True,
    ) -> None:
        if not 0.0 < reach <= 1.0:
            raise ValueError(f"reach must lie in (0, 1], got {reach!r}")
        if not (bootstrap or observe_time):
            raise ValueError("bootstrap=False makes time matter: it needs observe_time=True")

        def world(scenario: object) -> MeanFieldMDP:
            if scenario is not None:
                raise ValueError("options['scenario']: the world of this env is given by mdp")
            return mdp

        self._shell = Shell(world, parameterization=parameterization, observation=observation, observe_time=observe_time)
        self._envs = MeanFieldVectorEnv(
            num_envs,
            world,
            parameterization=self._shell.parameterization,
            observation="mass",
            observe_time=False,
            backend="torch",
            max_episode_steps=None,
        )
        self.mdp = mdp
        self.reach = reach
        self.after_trips = after_trips
        self.initial = initial
        self.bootstrap = bootstrap
        #: Worst margin ``[N]`` of the distributions that the last step caused; positive is safe.
        self.margin: NDArray[np.float32] = np.full(self._envs.num_envs, np.inf, np.float32)
        #: Episodes that ended so far, over all envs.
        self.episodes = 0
        #: Those of them with a violated constraint at some step.
        self.violated = 0
        self._broken = np.zeros(self._envs.num_envs, np.bool_)
        self._actions: Array | None = None
        self._t = 0
        self.render_mode = None
        super().__init__(self._envs.num_envs, self._shell.observation_space, self._shell.action_space)

    @property
    def parameterization(self) -> Parameterization:
        """What an action means, before ``reach`` shortens it."""
        return self._shell.parameterization

    def observe(self, mu: Tensor, t: int) -> Tensor:
        """What is seen of distributions ``mu`` ``[..., K]`` at step ``t``, ``[..., n]``; after trips, unless told otherwise."""
        return self._shell.observe(mu, t)

    def reset(self) -> Array:
        """Start all episodes; those that were running count for nothing.

        Uses, once, what ``seed`` and ``set_options`` have set; later episodes start from ``initial`` again. Only random starts
        use seeds.

        Raises:
            ValueError: If an option is unknown or malformed, or envs are given different ones.
        """
        options, seeds = self._common_options(), None if self._seeds[0] is None else self._seeds
        observations = self._start(seeds, options)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: Array) -> None:
        """Keep the actions ``[N, n]`` in ``[-1, 1]`` for :meth:`step_wait`."""
        self._actions = np.asarray(actions, np.float32)

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """Move all fleets.

        Returns:
            Observations ``[N, n]`` and rewards ``[N]``, float32, ends ``[N]`` and infos.

        Raises:
            ValueError: If actions have the wrong shape, are not finite or leave ``[-1, 1]``. No episode has changed.
            gymnasium.error.ResetNeeded: Before the first reset.
        """
        actions, self._actions = self._actions, None
        if actions is None:
            raise ValueError("call step_async(actions) before step_wait()")
        if not np.abs(actions).max() <= 1.0:  # the env would only see what reach makes of them; a NaN is not <= 1, either
            raise ValueError(f"actions must be finite and lie in [-1, 1], got up to {np.abs(actions).max()}")
        with self._shell.without_gradients():
            mu, rewards, _, truncated, report = self._envs.step(torch.from_numpy(self.reach * actions))
            self._t += 1
            observations = self._seen(mu)
        self.margin = report["margin"].float().cpu().numpy()
        broken = ~(self.margin >= 0.0)  # a margin that is no number is not kept
        self._broken |= broken
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(broken):
            infos[i] = {"cost": float(-self.margin[i])}
        ended = bool(truncated[0])
        if ended:
            self.episodes += self.num_envs
            self.violated += int(self._broken.sum())
            last = {"TimeLimit.truncated": self.bootstrap}
            infos = [{**info, **last, "terminal_observation": seen} for info, seen in zip(infos, observations, strict=True)]
            observations = self._start()
        return observations, rewards.float().cpu().numpy(), np.full(self.num_envs, ended), infos

    def _start(self, seeds: list[int | None] | None = None, options: Mapping[str, Any] | None = None) -> Array:
        with self._shell.without_gradients():
            mu, _ = self._envs.reset(seed=seeds, options={"initial": self.initial} if options is None else dict(options))
            self._t = 0
            self._broken[:] = False
            return self._seen(mu)

    def _seen(self, mu: Tensor) -> Array:
        """Observations ``[N, n]`` of the distributions ``[N, K]`` before trips, an array of their own."""
        if self.after_trips:
            mu = self.mdp.shift(mu.to(self.mdp.dtype), self._t)
        seen: Array = self.observe(mu, self._t).cpu().numpy()
        return seen

    def _common_options(self) -> dict[str, Any] | None:
        """The options of all envs as the vector env takes them: one dictionary; distributions to start from are stacked."""
        if not any(self._options):
            return None
        names = {name for options in self._options for name in options}
        common: dict[str, Any] = {}
        for name in names:
            values = [options.get(name) for options in self._options]
            arrays = [value for value in values if value is not None and not isinstance(value, str)]
            if arrays and len(arrays) == self.num_envs:
                try:
                    common[name] = torch.stack([torch.as_tensor(value) for value in arrays])
                except (RuntimeError, TypeError, ValueError) as error:
                    raise ValueError(
                        f"set_options: {name!r} must be a name or a distribution [K], got {arrays[0]!r}"
                    ) from error
            elif not arrays and len(set(values)) == 1:
                common[name] = values[0]
            else:
                raise ValueError(f"set_options: {name!r} must be the same for all envs, or a distribution for each")
        return common

    def close(self) -> None:
        """Nothing is open."""
        self._envs.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the batch, once per env asked for."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refused: there are no envs with attributes of their own."""
        raise NotImplementedError(f"set_attr({attr_name!r}): the envs are one batch; give settings when it is made")

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        """Refused: there are no envs with methods of their own."""
        raise NotImplementedError(f"env_method({method_name!r}): the envs are one batch; call its methods")

    def env_is_wrapped(self, wrapper_class: Any, indices: VecEnvIndices = None) -> list[bool]:
        """No env is."""
        return [False for _ in self._get_indices(indices)]
