"""The replay of MF-DDPG: the last episodes, each with the fields that were executed in it."""

from __future__ import annotations

import torch
from torch import Tensor

from safe_m3_agent.planners.episodes import Episodes, Script, Stage


class Replay:
    """The last episodes, on the device of the world.

    From plan to plan only starts, worlds and executed fields need to be kept: the model has learned since, and the barrier's
    weight has fallen, so :meth:`refresh` plays them again. No reward or transition is ever out of date.

    Args:
        capacity: Episodes kept, at least 1.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.episodes: Episodes | None = None
        self._scripts: dict[str, Tensor] = {}

    def add(self, new: Episodes) -> None:
        """Append episodes; the oldest beyond the capacity go."""
        if self.episodes is not None:
            new = Episodes(*(torch.cat(pair) for pair in zip(self.episodes, new, strict=True)))
        self.episodes = Episodes(*(part[-self.capacity :] for part in new))
        self._scripts = {"start": self.episodes.mu[:, 0], "z": self.episodes.z[:, 0], "fields": self.episodes.fields}

    def refresh(self, stage: Stage) -> None:
        """Play all episodes again, with the fields executed then, in the world as it is known now."""
        if self._scripts:
            self.episodes = stage.play(Script(self._scripts["fields"]), self._scripts["start"], self._scripts["z"])[0]

    def sample(self, size: int, generator: torch.Generator) -> tuple[Episodes, Episodes]:
        """Transitions, drawn step by step: for every step of the episode ``size`` episodes of their own.

        Args:
            size: Transitions per step, ``M``.
            generator: Source of randomness.

        Returns:
            The transitions ``[M, T, ...]``, and what followed each but those of the last step ``[M, T - 1, ...]``.

        Raises:
            RuntimeError: If there is no episode yet.
        """
        if self.episodes is None:
            raise RuntimeError("the replay is empty: add episodes, or refresh what was loaded, before sampling")
        n, horizon = self.episodes.rewards.shape
        device = self.episodes.rewards.device
        rows = torch.randint(n, (size, horizon), generator=generator, device=device)
        steps = torch.arange(horizon, device=device)
        now = Episodes(*(part[rows, steps] for part in self.episodes))
        return now, Episodes(*(part[rows[:, :-1], steps[1:]] for part in self.episodes))

    def state(self) -> dict[str, Tensor]:
        """Starts ``[N, K]``, worlds ``[N, E]`` and executed fields ``[N, T, K, a]``; nothing before the first episode."""
        return dict(self._scripts)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave; :meth:`refresh` makes episodes of it."""
        self._scripts = dict(state)
        self.episodes = None
