"""The pages on the benchmark say what the code does, and the tutorial's algorithm runs."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from baselines import cli
from baselines.algorithm import algorithms
from baselines.curve import Row
from baselines.plans import city_world
from baselines.run_folder import Result, read_run
from baselines.standings import COLUMNS
from mf_taxi_env import load_scenario
from safe_m3_agent.worlds import world_facts

DOCS = Path(__file__).resolve().parents[2] / "docs"
#: Lines that a third party's algorithm may take.
LINES = 30


def first_columns(heading: str) -> list[str]:
    """Code spans in the first column of the table with this heading, in their order."""
    text = (DOCS / "benchmark.md").read_text()
    (table,) = re.findall(rf"^\| {re.escape(heading)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [name for line in table.splitlines() for name in re.findall(r"`([^`]+)`", line.split("|")[1])]


def test_every_column_and_key_is_defined() -> None:
    """Of learning curves, results and the table; no more and no fewer, in the files' order."""
    assert first_columns("column of `curve.csv`") == [field.name for field in dataclasses.fields(Row)]
    assert first_columns("key of `result.json`") == [field.name for field in dataclasses.fields(Result)]
    assert first_columns("column of `leaderboard.csv`") == list(COLUMNS)


def test_every_option_is_explained() -> None:
    """Of ``run``; a new one has to be on the page."""
    options = [f"--{name.replace('_', '-')}" for name in inspect.signature(cli.run).parameters]
    assert sorted(first_columns("option of `run`")) == sorted(options)


def test_every_algorithm_is_told(run: Callable[..., SimpleNamespace]) -> None:
    """On the page and by ``list``, oracles marked; no other is."""
    known = algorithms()
    assert sorted(first_columns("built-in algorithm")) == sorted(known)
    rows = (DOCS / "benchmark.md").read_text().splitlines()
    marked = {name for row in rows for name in re.findall(r"`([^`]+)` †", row)}
    assert marked == {name for name, one in known.items() if one.oracle}
    told = run("list")
    assert told.status == 0
    listed = dict(line.split(maxsplit=1) for line in told.out.splitlines())
    assert listed == {name: one.label + " (oracle)" * one.oracle for name, one in known.items()}


def test_every_file_of_a_run_is_listed(run: Callable[..., SimpleNamespace], quick: tuple[object, ...], tmp_path: Path) -> None:
    """And nothing else is left in the folder of a run."""
    assert run("run", "--algorithms", "stay", *quick, "--out", tmp_path).status == 0
    there = {path.name + "/" * path.is_dir() for path in (tmp_path / "synthetic-k5/stay/seed-0").iterdir()}
    assert there - {".lock"} == set(first_columns("file")) - {"error.txt"}


def test_the_leaderboard_is_of_the_recorded_runs(
    run: Callable[..., SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No number on the page was changed by hand, nobody's path is in it: recorded runs and notes make the same page."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    shutil.copy(DOCS / "leaderboard_notes.txt", "docs")
    page, notes = Path("docs/leaderboard.md"), Path("docs/leaderboard_notes.txt")
    told = run("table", DOCS / "leaderboard_runs", "--out", "runs/table", "--page", page, "--notes", notes)
    assert told.status == 0, told.err
    assert page.read_text() == (DOCS / "leaderboard.md").read_text()
    assert {path.name for path in Path("docs/images").iterdir()} == {path.name for path in DOCS.glob("images/leaderboard-*")}


def test_runs_of_the_built_in_city_join_the_recorded_ones() -> None:
    """A third party's run is put into the recorded table only if city and world are the same, on whatever machine."""
    recorded = read_run(DOCS / "leaderboard_runs" / "synthetic-k25" / "stay" / "seed-0")
    world = city_world(load_scenario("synthetic", recorded.settings.world["cells"]), "cpu")
    assert json.loads(json.dumps(world_facts(world))) == recorded.settings.world


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The script of the tutorial."""
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "add_algorithm.md").read_text(), re.DOTALL)
    path = tmp_path / "mine.py"
    path.write_text(block)
    return path


def test_the_tutorial_is_short(mine: Path) -> None:
    """A third party needs no more."""
    assert len(mine.read_text().splitlines()) <= LINES


def test_the_tutorial_learns(
    run: Callable[..., SimpleNamespace], quick: tuple[object, ...], mine: Path, tmp_path: Path
) -> None:
    """It is run and put into a table beside a built-in one; it beats staying put, safely, and ends with the budget."""
    options = ("--env-steps", 4800, "--taxis", 1000, "--fleet-runs", 2, "--out", tmp_path / "out")
    told = run("run", "--algorithms", "stay", f"{mine}:cem", *quick, *options)
    assert told.status == 0, told.out + told.err
    recorded = read_run(tmp_path / "out" / "synthetic-k5" / "cem" / "seed-0")
    assert [row.env_steps for row in recorded.rows] == list(range(0, 4801, 240))
    assert recorded.result is not None and recorded.result.score > 0.1 and recorded.result.violations == 0
    told = run("table", tmp_path / "out", "--out", tmp_path / "table")
    assert told.status == 0, told.err
    with (tmp_path / "table" / "leaderboard.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["label"] for line in lines] == ["Cross-entropy method", "Stay"]
    assert "Cross-entropy method" in told.out and (tmp_path / "table" / "synthetic-k5.png").stat().st_size > 10_000
