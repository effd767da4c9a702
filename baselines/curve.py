"""The learning curve of a run: a table that grows by a line per record."""

from __future__ import annotations

import csv
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from mf_taxi_env.atomic import replacing


@dataclass(frozen=True)
class Row:
    """One record of a learning curve: how far the run was, and what its policy then did in the true mean field.

    Attributes:
        env_steps: Steps that the true world had made for the algorithm.
        seconds: Time of learning, over all starts of the run, without evaluation.
        episodes: Episodes executed in the true world.
        violated: Those of them with a violated constraint.
        score: Share of the possible, see :func:`~mf_taxi_env.score`; NaN for a policy that violates.
        reward: Return, nats.
        min_margin: Smallest margin over steps and constraints.
        kl: KL to the demand in nats, mean over steps.
        entropy: Entropy at the worst step, share of ``log K``.
        violations: Steps at which a constraint is violated.
    """

    env_steps: int
    seconds: float
    episodes: int
    violated: int
    score: float
    reward: float
    min_margin: float
    kl: float
    entropy: float
    violations: int


class Curve:
    """``curve.csv`` of a run: a line per record, on disk before the next one; a line cut short by a kill is dropped.

    Args:
        path: The file; it need not be there yet.

    Raises:
        ValueError: If the file is no such table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = _read_rows(path) if path.exists() else []

    def keep(self, count: int) -> None:
        """Drop all rows but the first so many, and write these anew."""
        self.rows = self.rows[:count]
        lines = [_COLUMNS, *(dataclasses.astuple(row) for row in self.rows)]
        text = "".join(_line(values) for values in lines).encode()  # bytes, for a position is remembered
        with replacing(self.path) as temporary:
            temporary.write_bytes(text)
        self._end = len(text)

    def append(self, row: Row) -> None:
        """Add a row; :meth:`keep` has been called before.

        Raises:
            OSError: If the disk refuses; the rows before are what they were.
        """
        line = _line(dataclasses.astuple(row)).encode()
        with self.path.open("rb+") as file:
            file.seek(self._end)  # over what a full disk took of an earlier line
            file.write(line)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        self._end += len(line)
        self.rows.append(row)


_COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


def _line(values: tuple[Any, ...]) -> str:
    return ",".join(map(str, values)) + "\n"


def _read_rows(path: Path) -> list[Row]:
    text = path.read_bytes().decode(errors="replace")
    lines = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))
    if not lines:  # killed before the first line was whole
        return []
    if tuple(lines[0]) != _COLUMNS:
        raise ValueError(f"{path} is no learning curve as this version writes it: its columns are {lines[0]}")
    kinds, rows = get_type_hints(Row), []
    for number, line in enumerate(lines[1:], start=2):
        try:
            rows.append(Row(**{name: kinds[name](value) for name, value in zip(_COLUMNS, line, strict=True)}))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not readable: {error}") from error
    return rows
