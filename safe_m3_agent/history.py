"""What happened, episode by episode."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, overload

from mf_taxi_env.atomic import replacing


@dataclass(frozen=True)
class Episode:
    """One executed episode. Two episodes are equal if all but their duration is.

    Attributes:
        episode: Number of the episode, from 0.
        objective: Planner's objective in the learned world; NaN where nothing was planned.
        reward: Return in the true world, the sum of the world's rewards; in a city in nats.
        min_margin: Smallest margin in the true world, over steps and constraints; of an entropy floor in nats.
        violations: Steps of the episode at which a constraint was violated in the true world.
        score: Share of the possible that was reached, see :func:`mf_taxi_env.scoring.episode_score`; NaN after a violation by
            more than rounding, or where it is not known what is possible.
        certified: Whether a new policy was certified and taken into use in this episode.
        worst_margin: Smallest margin that adversaries found for the policy taken into use, or else for the last candidate;
            NaN where there was none.
        epistemic: Fleet's mean epistemic standard deviation per step, in the learned world, of the policy executed.
        beta: Half-width ``beta_n`` of the confidence set in this episode, in epistemic standard deviations.
        held_out: Share of this episode's landing coordinates, away from edges, within the predictive interval of level
            ``1 - delta``, noise and calibrated doubt together, before the model learned from them; NaN where none counts.
        coverage: Share of this episode's transitions whose true destination lay in the set that certificates go by, within
            ``Confidence.radius(members)`` epistemic standard deviations of the model's, before it learned from them. A
            diagnostic: the agent does not see it.
        barrier_weight: Weight ``lambda`` of the barrier.
        seconds: Duration, in s.
    """

    episode: int
    objective: float
    reward: float
    min_margin: float
    violations: int
    score: float
    certified: bool
    worst_margin: float
    epistemic: float
    beta: float
    held_out: float
    coverage: float
    barrier_weight: float
    seconds: float = field(compare=False)

    def __eq__(self, other: object) -> bool:
        # Field by field through repr, so that a NaN equals a NaN: two runs from one seed have equal histories.
        if not isinstance(other, Episode):
            return NotImplemented
        return all(repr(getattr(self, f.name)) == repr(getattr(other, f.name)) for f in fields(self) if f.compare)

    def __hash__(self) -> int:
        return hash((self.episode, repr(self.reward)))


class History(Sequence[Episode]):
    """The executed episodes, in order."""

    def __init__(self, episodes: Sequence[Episode] = ()) -> None:
        self._episodes = list(episodes)

    @overload
    def __getitem__(self, index: int) -> Episode: ...

    @overload
    def __getitem__(self, index: slice) -> History: ...

    def __getitem__(self, index: int | slice) -> Episode | History:
        if isinstance(index, slice):
            return History(self._episodes[index])
        return self._episodes[index]

    def __len__(self) -> int:
        return len(self._episodes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and self._episodes == other._episodes

    def append(self, episode: Episode) -> None:
        """Add the latest episode."""
        self._episodes.append(episode)

    @property
    def violations(self) -> int:
        """Episodes with a violation at some step."""
        return sum(episode.violations > 0 for episode in self._episodes)

    def column(self, name: str) -> list[Any]:
        """One attribute of all episodes."""
        if name not in {f.name for f in fields(Episode)}:
            raise ValueError(f"no column {name!r}; there are {[f.name for f in fields(Episode)]}")
        return [getattr(episode, name) for episode in self._episodes]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one row per episode, whole or not at all."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in fields(Episode)])
        writer.writeheader()
        writer.writerows(asdict(episode) for episode in self._episodes)
        with replacing(Path(path)) as temporary:
            temporary.write_text(text.getvalue())

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> History:
        """The inverse of :meth:`to_csv`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a table of episodes.
        """
        with Path(path).open(newline="") as file:
            reader = csv.DictReader(file)
            missing = [f.name for f in fields(Episode) if f.name not in (reader.fieldnames or [])]
            if missing:
                raise ValueError(f"{path} is not a table of episodes: it lacks the columns {missing}")
            try:
                return cls([Episode(**{f.name: _parsed(f.type, row[f.name]) for f in fields(Episode)}) for row in reader])
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path} is not a table of episodes: {error}") from error

    @classmethod
    def from_records(cls, records: Sequence[dict[str, Any]]) -> History:
        """The inverse of :meth:`records`."""
        return cls([Episode(**record) for record in records])

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per episode."""
        return [asdict(episode) for episode in self._episodes]


def _parsed(kind: Any, text: str) -> Any:
    """A column's value; types are names here, as annotations are not evaluated."""
    if kind == "bool":
        return {"True": True, "False": False}[text]
    return int(text) if kind == "int" else float(text)
