"""A finished picture with the numbers drawn in it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from mf_taxi_env.atomic import replacing
from mf_taxi_env.render import save_figure


class Table(NamedTuple):
    """Numbers, one row per thing drawn."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


class Drawing(NamedTuple):
    """A picture and its numbers; a table's name is appended to the file's, the main one has none."""

    figure: Figure
    tables: dict[str, Table]


def save_drawing(drawing: Drawing, folder: Path, name: str, formats: Sequence[str]) -> list[Path]:
    """Write ``name.png`` (or other formats) and ``name.csv``, each whole or not at all.

    Args:
        drawing: What to write.
        folder: Where; must exist.
        name: File name without suffix.
        formats: Among ``png``, ``pdf``, ``svg``.

    Returns:
        The files written.
    """
    paths = [save_figure(drawing.figure, folder / f"{name}.{kind}") for kind in formats]
    for part, table in drawing.tables.items():
        paths.append(save_table(table, folder / (f"{name}_{part}.csv" if part else f"{name}.csv")))
    return paths


def save_table(table: Table, target: Path) -> Path:
    """Write a table as CSV, whole or not at all, and return its path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    with replacing(target) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return target
