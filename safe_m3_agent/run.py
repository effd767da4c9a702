"""The folder of a run: settings, checkpoint, history, TensorBoard events and, at the end, figures."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safe_m3_agent.callbacks import Callback, Learner, finite_numbers
from safe_m3_agent.checkpoint import CHECKPOINT_FILE
from safe_m3_agent.history import Episode, History

HISTORY_FILE, EVENTS_FOLDER, FIGURES_FOLDER = "history.csv", "events", "figures"


class RunFolder(Callback):
    """A callback of :meth:`SafeM3UCRL.learn` that records every episode before the next one starts.

    The checkpoint is written first; table and TensorBoard events follow from it. Where a kill came in between, the next start
    completes them, but for what is not in the history (``planner/...``, ``trips/...``). The policy in use is on disk whenever
    training ends, even by an error in the very first episode.

    Args:
        folder: The run's folder, made where it is missing.

    Example:
        >>> with RunFolder("runs/mine") as run:  # doctest: +SKIP
        ...     agent.learn(60, callback=run)
    """

    saves = True

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._writer: Any = None
        self._recorded: defaultdict[int, set[str]] | None = None
        self._written = 0  # episodes whose scalars are

    def on_training_start(self, agent: Learner) -> None:
        """Complete the record of an agent that goes on.

        Raises:
            ValueError: If the folder holds another run, or one that is further than the agent: to begin it again would
                overwrite what it has learned.
        """
        agent.check_folder(self.folder)
        if len(agent.history):
            self._record(agent.history)

    def on_episode_end(self, agent: Learner, episode: Episode) -> None:
        """Checkpoint first: a run that is killed while it writes the rest has lost nothing."""
        agent.save(self.folder)
        if math.isfinite(episode.objective):  # something was planned
            for name, value in agent.planner_metrics.items():
                self._events().add_scalar(f"planner/{name}", value, episode.episode)
        for name, value in agent.trip_metrics.items():
            self._events().add_scalar(f"trips/{name}", value, episode.episode)
        self._record(agent.history)

    def on_training_end(self, agent: Learner) -> None:
        """Without an episode there is no checkpoint yet; the first policy in use is then the one to keep."""
        if not len(agent.history) and not (self.folder / CHECKPOINT_FILE).exists():
            agent.save(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _record(self, history: History) -> None:
        """Bring table and events up to the history."""
        history.to_csv(self.folder / HISTORY_FILE)
        if self._recorded is None:
            self._recorded = _recorded_scalars(self.folder / EVENTS_FOLDER)
        for episode in history[self._written :]:
            numbers = finite_numbers(episode)
            for name in sorted(numbers.keys() - self._recorded[episode.episode]):
                self._events().add_scalar(name, numbers[name], episode.episode)
            self._recorded[episode.episode] |= numbers.keys()
        self._written = len(history)
        if self._writer is not None:
            self._writer.flush()

    def _events(self) -> Any:
        # Made with the first number to write: an empty file per start would only clutter the folder.
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder / EVENTS_FOLDER))
        return self._writer


def _recorded_scalars(folder: Path) -> defaultdict[int, set[str]]:
    """Names of the scalars in a folder's event files, by step. A file cut short by a kill counts as far as it goes."""
    recorded: defaultdict[int, set[str]] = defaultdict(set)
    if not folder.is_dir():
        return recorded
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for path in sorted(folder.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                recorded[event.step].add(name)
    return recorded
