"""The table of a policy's episodes with finite fleets: one line per fleet size and seed, appended as they come."""

from __future__ import annotations

import csv
import os
import typing
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

from mf_taxi_env.atomic import replacing
from mf_taxi_env.fleet import Resolution

FLEET_FILE = "fleet.csv"


class FleetKey(typing.NamedTuple):
    """What an episode of a finite fleet is determined by, on one kind of device."""

    policy: str
    resolution: Resolution
    taxis: int
    seed: int


@dataclass(frozen=True)
class FleetEpisode:
    """One episode of a policy with a finite fleet of ``m`` taxis.

    From ``served_demand`` to ``corrected_violations`` it has what :data:`mf_taxi_env.fleet_metrics.METRICS` names, as
    :func:`~mf_taxi_env.fleet_metrics.episode_metrics` sums it up.

    Attributes:
        policy: Fingerprint of the policy: training goes on in the same folder, and its episodes are not to be mixed.
        resolution: Where a taxi acts and departs from, see :class:`~mf_taxi_env.FleetSimulator`.
        taxis: Fleet size ``m``.
        seed: Seed of the fleet.
        reward: Return, the sum of the world's rewards of the empirical distributions.
        served_demand: Share of requests met, mean over steps.
        occupancy: Share of the taxis that carry a passenger, mean over steps.
        waiting_minutes: Waiting of a request, a proxy, mean over steps.
        repositioning_km: Moves that the policy asks for, kilometres per taxi and episode.
        empty_km: Driven without a passenger, kilometres per taxi and episode.
        carried_km: Driven with one.
        coverage: Share of cells with taxis, mean over steps.
        gini: Gini coefficient over districts, mean over steps.
        entropy: Entropy at its worst step, a share of ``log K``.
        kl: KL of the fleet to the demand in nats, mean over steps.
        margin: Smallest margin over steps and constraints; infinite where there are none.
        violations: Steps at which a constraint was violated.
        corrected_margin: The smallest of the margins corrected for finite samples; NaN where that is not known, and the same
            as ``margin`` where there is no entropy floor.
        corrected_violations: Steps at which one was violated by the corrected margins; NaN where these are.
        gap: Total variation to the mean field, mean over steps.
        seconds: Duration of the simulation.
        step_kl: KL to the demand in nats at every step.
        step_margin: Smallest margin at every step.
    """

    policy: str
    resolution: Resolution
    taxis: int
    seed: int
    reward: float
    served_demand: float
    occupancy: float
    waiting_minutes: float
    repositioning_km: float
    empty_km: float
    carried_km: float
    coverage: float
    gini: float
    entropy: float
    kl: float
    margin: float
    violations: float
    corrected_margin: float
    corrected_violations: float
    gap: float
    seconds: float = field(compare=False)
    step_kl: tuple[float, ...]
    step_margin: tuple[float, ...]

    @property
    def key(self) -> FleetKey:
        """What tells it from all others."""
        return FleetKey(self.policy, self.resolution, self.taxis, self.seed)


#: The columns with one value per episode, and their types.
_SCALARS = {name: kind for name, kind in typing.get_type_hints(FleetEpisode).items() if name not in ("step_kl", "step_margin")}


class FleetTable:
    """The episodes recorded in a folder's ``fleet.csv``.

    A line is written by one call at the end of the file, and reaches the disk before the next one: a kill costs what was under
    way. A line that was cut short is dropped, and one that is there twice counts once. Two processes must not write the same
    table at a time.

    Args:
        folder: The run's folder.
        horizon: Steps per episode, which sets the columns.

    Raises:
        ValueError: If the file is there and is no such table, or one of another horizon.
    """

    def __init__(self, folder: Path, horizon: int) -> None:
        self.path = folder / FLEET_FILE
        self.horizon = horizon
        steps = range(1, horizon + 1)
        self.columns = [*_SCALARS, *(f"kl_{t}" for t in steps), *(f"margin_{t}" for t in steps)]
        self._episodes = {episode.key: episode for episode in self._read()} if self.path.exists() else {}

    def __contains__(self, key: FleetKey) -> bool:
        return key in self._episodes

    def episodes(self, policy: str, resolution: Resolution) -> list[FleetEpisode]:
        """The episodes of one policy, by fleet size and seed."""
        mine = [one for one in self._episodes.values() if (one.policy, one.resolution) == (policy, resolution)]
        return sorted(mine, key=lambda one: one.key)

    def append(self, episode: FleetEpisode) -> None:
        """Add an episode, on disk before this returns; one that is there already changes nothing.

        Raises:
            OSError: If the disk refuses.
        """
        if episode.key in self._episodes:
            return
        if not self.path.exists():
            with replacing(self.path) as temporary:
                temporary.write_bytes(f"{','.join(self.columns)}\n".encode())
        values = [value for one in astuple(episode) for value in (one if isinstance(one, tuple) else (one,))]
        with self.path.open("rb+") as file:
            # Behind the last whole line: what follows it is half a line of a process that was killed.
            file.seek(file.read().rfind(b"\n") + 1)
            file.write((",".join(map(str, values)) + "\n").encode())
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        self._episodes[episode.key] = episode

    def _read(self) -> Iterable[FleetEpisode]:
        text = self.path.read_bytes().decode(errors="replace")
        lines = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))
        if not lines or lines[0] != self.columns:
            raise ValueError(f"{self.path} {self._other(lines[0] if lines else [])}")
        for number, line in enumerate(lines[1:], start=2):
            try:
                yield self._parsed(line)
            except ValueError as error:
                raise ValueError(f"{self.path}, line {number} is not readable: {error}") from error

    def _other(self, columns: Sequence[str]) -> str:
        """What a table with other columns than this one's is."""
        if tuple(columns[: len(FleetKey._fields)]) != FleetKey._fields:
            return "is no table of fleets: move it elsewhere"
        missing = [name for name in self.columns if name not in columns]
        return (
            f"is a table of fleets that an earlier version wrote, or for another horizon than {self.horizon} steps: "
            f"{len(missing)} columns are not there ({', '.join(missing[:8])}). Move it elsewhere; the same command then makes "
            "the same episodes again"
        )

    def _parsed(self, line: Sequence[str]) -> FleetEpisode:
        if len(line) != len(self.columns):
            raise ValueError(f"it has {len(line)} columns in place of {len(self.columns)}")
        parse = [kind if kind in (int, float) else str for kind in _SCALARS.values()]
        scalars: dict[str, typing.Any] = {name: kind(text) for name, kind, text in zip(_SCALARS, parse, line, strict=False)}
        steps = [float(text) for text in line[len(parse) :]]
        return FleetEpisode(**scalars, step_kl=tuple(steps[: self.horizon]), step_margin=tuple(steps[self.horizon :]))


assert [one.name for one in fields(FleetEpisode)] == [*_SCALARS, "step_kl", "step_margin"]
