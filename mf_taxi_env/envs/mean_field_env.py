"""A lifted mean-field MDP as a Gymnasium env."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import gymnasium as gym
from torch import Tensor

from mf_taxi_env.envs.shell import Array, Observation, Shell
from mf_taxi_env.envs.viewer import Frame, RenderMode, Viewer
from mf_taxi_env.mdp import MeanFieldMDP
from mf_taxi_env.parameterization import Parameterization


class MeanFieldEnv(gym.Env[Array, Array]):
    """One world, one episode at a time. A concrete env says which world; see ``mf_taxi_env.MFTaxiEnv``.

    Args:
        world: Builds the lifted MDP; its argument is ``options["scenario"]`` of :meth:`reset`, or ``None``.
        parameterization: What an action means.
        observation: ``"mass"`` or ``"density"``.
        observe_time: Append ``t / T`` to the observation.
        render_mode: ``None``, ``"rgb_array"`` or ``"human"``.
    """

    metadata: dict[str, Any] = {"render_modes": list(get_args(RenderMode)), "render_fps": 4}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self,
        world: Callable[[Any], MeanFieldMDP],
        *,
        parameterization: str | Parameterization,
        observation: Observation,
        observe_time: bool,
        render_mode: RenderMode | None,
    ) -> None:
        if render_mode not in (None, *get_args(RenderMode)):
            raise ValueError(f"render_mode must be None or one of {get_args(RenderMode)}, got {render_mode!r}")
        self._shell = Shell(world, parameterization=parameterization, observation=observation, observe_time=observe_time)
        self.observation_space = self._shell.observation_space
        self.action_space = self._shell.action_space
        self.render_mode: RenderMode | None = render_mode
        self._viewer: Viewer | None = None
        self._mu: Tensor | None = None
        self._actions: Tensor | None = None
        self._t = 0

    @property
    def mdp(self) -> MeanFieldMDP:
        """The lifted MDP of the running episode."""
        return self._shell.mdp

    @property
    def parameterization(self) -> Parameterization:
        """What an action means."""
        return self._shell.parameterization

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seeds ``np_random``. Only random starts use it: the transition itself is deterministic.
            options: ``"initial"``: ``"uniform"`` (default), ``"gaussian"`` (random centre and widths, halved towards the
                uniform distribution until it is safe) or a distribution ``[K]``. ``"scenario"``: the world of this episode
                alone, where the env has scenarios.

        Raises:
            ValueError: If an option is unknown or malformed. The running episode, if any, goes on.
        """
        day = self._shell.day(options, ())  # checked before anything changes
        super().reset(seed=seed)
        self._t, self._actions = 0, None
        with self._shell.without_gradients():
            self._mu = self._shell.start(day, (), lambda: [self.np_random])
            seen = self._observation(self._mu), self._info(self._mu)
        if self.render_mode == "human":
            self.render()
        return seen

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Move the fleet.

        Args:
            action: ``[n]`` in ``[-1, 1]``.

        Raises:
            ValueError: If the action has the wrong shape, is not finite, or leaves ``[-1, 1]``. The state is unchanged.
            gymnasium.error.ResetNeeded: If the episode is over or has not begun.
        """
        if self._mu is None or self._t >= self.mdp.horizon:
            raise gym.error.ResetNeeded("call reset() before step(): no episode is running")
        parameters = self._shell.parameters(action)
        with self._shell.without_gradients():  # a client gets arrays, never these tensors
            actions = self.parameterization.field(parameters)
            next_mu = self.mdp.transition(self._mu, actions, self._t)
            reward = float(self.mdp.reward(self._mu, actions, next_mu, self._t))
            self._mu, self._actions, self._t = next_mu, actions, self._t + 1
            observation, info = self._observation(next_mu), self._info(next_mu)
        if self.render_mode == "human":
            self.render()
        return observation, reward, False, self._t >= self.mdp.horizon, info

    def render(self) -> Any:
        """The present distribution beside what the world wants, the last moves, the margins: ``[H, W, 3]`` uint8, or a window.

        Raises:
            gymnasium.error.DependencyNotInstalled: If pygame is missing.
            gymnasium.error.ResetNeeded: Before the first reset.
        """
        if self.render_mode is None:
            gym.logger.warn(f"render() of {self._title} without a render mode; make it with render_mode='rgb_array'")
            return None
        if self._mu is None:
            raise gym.error.ResetNeeded("call reset() before render(): there is nothing to show")
        if self._viewer is None:
            self._viewer = Viewer(self.render_mode, grid=self.mdp.grid, fps=self.metadata["render_fps"], title=self._title)
        info, target = self._info(self._mu), self.mdp.target(max(self._t - 1, 0))
        return self._viewer.draw(
            Frame(
                mu=self._mu.cpu().numpy(),
                target=None if target is None else target.cpu().numpy(),
                actions=None if self._actions is None else self._actions.cpu().numpy(),
                margin=info["margin"],
                margins=info["margins"],
                t=self._t,
                horizon=self.mdp.horizon,
                entropy=info["entropy"],
                kl=None if target is None else info["kl"],
                box=self._box,
            )
        )

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._viewer is not None:
            self._viewer.close()
            self._viewer = None

    @property
    def _title(self) -> str:
        return "mean field" if self.spec is None else self.spec.id

    @property
    def _box(self) -> tuple[float, float, float, float] | None:
        return None

    def _observation(self, mu: Tensor) -> Array:
        observation: Array = self._shell.observe(mu, self._t).cpu().numpy()
        return observation

    def _info(self, mu: Tensor) -> dict[str, Any]:
        return self._shell.report(mu, max(self._t - 1, 0)).info(self._shell.constraint_names)

    def __getstate__(self) -> dict[str, Any]:
        # A window cannot travel to another process or copy; it is opened again where it is needed.
        return {**self.__dict__, "_viewer": None}
