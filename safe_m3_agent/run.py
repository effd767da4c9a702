"""The folder of a run: settings, checkpoint, history, TensorBoard events and, at the end, figures."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from safe_m3_agent.history import Episode

if TYPE_CHECKING:
    from safe_m3_agent.agent import SafeM3UCRL

HISTORY_FILE, EVENTS_FOLDER, FIGURES_FOLDER = "history.csv", "events", "figures"


class RunFolder:
    """A callback of :meth:`SafeM3UCRL.learn` that records every episode before the next one starts.

    Args:
        folder: The run's folder, made where it is missing.

    Example:
        >>> with RunFolder("runs/mine") as run:  # doctest: +SKIP
        ...     agent.learn(60, callback=run)
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._events = SummaryWriter(str(self.folder / EVENTS_FOLDER))

    def __call__(self, agent: SafeM3UCRL, episode: Episode) -> None:
        """Checkpoint first: a run that is killed while it writes the rest has lost nothing."""
        agent.save(self.folder)
        agent.history.to_csv(self.folder / HISTORY_FILE)
        for name, value in dataclasses.asdict(episode).items():
            if name != "episode" and math.isfinite(value):
                self._events.add_scalar(name, float(value), episode.episode)
        for name, value in agent.planner_metrics.items():
            self._events.add_scalar(f"planner/{name}", value, episode.episode)
        self._events.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._events.close()
