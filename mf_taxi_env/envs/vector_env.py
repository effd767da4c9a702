"""A lifted mean-field MDP as a native vector env: all episodes in one batch of tensors, on any device."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from gymnasium import error
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from mf_taxi_env.checks import whole_number
from mf_taxi_env.envs.shell import Day, Observation, Shell
from mf_taxi_env.mdp import MeanFieldMDP
from mf_taxi_env.parameterization import Parameterization

Backend = Literal["numpy", "torch"]

#: Numbers in the largest block, 31 MiB, that glibc learns from when it is freed.
LESSON = 31 * 2**18


class MeanFieldVectorEnv(VectorEnv[Any, Any, Any]):
    """``num_envs`` episodes of one world, stepped together; each is what the single env does with the same seed and actions.

    All episodes have the same length and start together, so they also end together. Autoreset is of the kind ``NEXT_STEP``: the
    step after the last ignores its actions, starts all episodes anew and returns their first observations with reward 0.

    Args:
        num_envs: Episodes, ``N >= 1``.
        world: See :class:`~mf_taxi_env.envs.mean_field_env.MeanFieldEnv`.
        parameterization: What an action means.
        observation: ``"mass"`` or ``"density"``.
        observe_time: Append ``t / T`` to the observation.
        backend: What a client sees: ``"numpy"`` arrays, or ``"torch"`` tensors that never leave the device.
        max_episode_steps: Truncate earlier than the world's horizon.
        render_mode: None: a batch is not rendered.

    Raises:
        ValueError: If an argument is out of range.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self,
        num_envs: int,
        world: Callable[[Any], MeanFieldMDP],
        *,
        parameterization: str | Parameterization,
        observation: Observation,
        observe_time: bool,
        backend: Backend,
        max_episode_steps: int | None,
        render_mode: None = None,
    ) -> None:
        if render_mode is not None:
            raise ValueError(f"render_mode must be None, a batch is not rendered, got {render_mode!r}")
        if backend not in get_args(Backend):
            raise ValueError(f"backend must be one of {get_args(Backend)}, got {backend!r}")
        self._shell = Shell(world, parameterization=parameterization, observation=observation, observe_time=observe_time)
        self.num_envs = num_envs = whole_number("num_envs", num_envs, least=1)
        self.backend: Backend = backend
        self.render_mode = None
        self.single_observation_space = self._shell.observation_space
        self.single_action_space = self._shell.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        horizon = self.mdp.horizon
        self._length = min(
            horizon, whole_number("max_episode_steps", horizon if max_episode_steps is None else max_episode_steps, 1)
        )
        # glibc hands freed memory beyond twice the largest block ever freed back to the system. Every step would then take its
        # temporaries from there anew, page by page, for up to half of its time. This block is freed at once, untouched.
        torch.empty(LESSON)
        self._generators: list[np.random.Generator | None] = []
        self._day = Day(self.mdp, "uniform")
        self._mu: Tensor | None = None
        self._t = 0

    @property
    def mdp(self) -> MeanFieldMDP:
        """The lifted MDP of the running episodes."""
        return self._shell.mdp

    @property
    def parameterization(self) -> Parameterization:
        """What an action means."""
        return self._shell.parameterization

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start all episodes.

        Args:
            seed: Episode ``i`` is seeded with ``seed + i``, or with ``seed[i]``. Only random starts use it.
            options: As for the single env; ``"initial"`` may also be one distribution per episode, ``[N, K]``. They hold until
                the next call: an autoreset starts as this call did.

        Raises:
            ValueError: If an option or the seeds are malformed. The running episodes go on.
        """
        day, seeds = self._shell.day(options, (self.num_envs,)), self._seeds(seed)  # checked before anything changes
        self._reseed(seeds)
        self._day, self._t = day, 0
        self._mu = self._shell.start(day, (self.num_envs,), self._randomness)
        return self._seen(self._shell.observe(self._mu, 0)), self._infos(self._mu)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Move all fleets.

        Args:
            actions: ``[N, n]`` in ``[-1, 1]``, array or tensor.

        Returns:
            Observations ``[N, n]``, rewards ``[N]``, terminations ``[N]`` (never), truncations ``[N]`` and infos, as arrays or
            tensors.

        Raises:
            ValueError: If the actions have the wrong shape, or some are not finite or leave ``[-1, 1]``; the message names the
                episodes. No episode has changed.
            gymnasium.error.ResetNeeded: Before the first reset.
        """
        if self._mu is None:
            raise error.ResetNeeded("call reset() before step(): no episode is running")
        if self._t >= self._length:
            self._mu, self._t = self._shell.start(self._day, (self.num_envs,), self._randomness), 0
            rewards = self._mu.new_zeros(self.num_envs)
        else:
            parameters = self._shell.parameters(actions, (self.num_envs,))
            with self._without_gradients():
                fields = self._shell.parameterization.field(parameters)
                next_mu = self.mdp.transition(self._mu, fields, self._t)
                rewards = self.mdp.reward(self._mu, fields, next_mu, self._t)
            self._mu, self._t = next_mu, self._t + 1
        observation = self._seen(self._shell.observe(self._mu, self._t))
        ended = self._t >= self._length
        if self.backend == "torch":
            flags = torch.zeros(2, self.num_envs, dtype=torch.bool, device=self._mu.device)
            flags[1] = ended
            return observation, rewards, flags[0], flags[1], self._infos(self._mu)
        terminated, truncated = np.zeros(self.num_envs, np.bool_), np.full(self.num_envs, ended)
        return observation, rewards.cpu().double().numpy(), terminated, truncated, self._infos(self._mu)

    def _seeds(self, seed: Any) -> list[int | None]:
        """A seed per episode; ``None`` leaves its generator as it is."""
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, numbers.Integral):
            return [int(seed) + i for i in range(self.num_envs)]
        seeds = [None if one is None else int(one) for one in seed]
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must be one number or {self.num_envs}, one per env; got {len(seeds)}")
        return seeds

    def _reseed(self, seeds: list[int | None]) -> None:
        # As the single env seeds its own generator, so that episode i is what that env gives for seeds[i].
        generators = self._generators or [None] * self.num_envs
        self._generators = [
            generator if seed is None else seeding.np_random(seed)[0] for generator, seed in zip(generators, seeds, strict=True)
        ]
        if seeds[0] is not None:
            self._np_random, self._np_random_seed = seeding.np_random(seeds[0])

    def _randomness(self) -> list[np.random.Generator]:
        """A generator per episode; from fresh entropy where none was seeded."""
        generators = [generator or seeding.np_random()[0] for generator in self._generators]
        self._generators = list(generators)
        return generators

    def _without_gradients(self) -> torch.inference_mode | torch.no_grad:
        """No inference mode for a client that is handed its tensors: it could not learn from them."""
        return torch.no_grad() if self.backend == "torch" else self._shell.without_gradients()

    def _seen(self, values: Tensor) -> Any:
        return values if self.backend == "torch" else values.cpu().numpy()

    def _infos(self, mu: Tensor) -> dict[str, Any]:
        """Every entry beside a mask ``_entry`` of the episodes that have it, as Gymnasium's vector envs do it: here, all."""
        with self._without_gradients():
            report = self._shell.report(mu, max(self._t - 1, 0))
            cost = torch.where(report.margin >= 0.0, 0.0, -report.margin)  # NaN where the state is no distribution
        every = self._seen(torch.ones(self.num_envs, dtype=torch.bool, device=mu.device))

        def masked(values: dict[str, Tensor]) -> dict[str, Any]:
            entries: dict[str, Any] = {}
            for name, value in values.items():
                entries[name] = value if self.backend == "torch" else value.cpu().double().numpy()
                entries[f"_{name}"] = every
            return entries

        infos = masked({"cost": cost, "margin": report.margin, "entropy": report.entropy, "kl": report.kl})
        margins = masked(dict(zip(self._shell.constraint_names, report.margins.unbind(-1), strict=True)))
        return {**infos, "margins": margins, "_margins": every}
