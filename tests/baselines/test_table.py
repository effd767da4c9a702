"""The table: known numbers from hand-made folders, what violates and what is unfinished, and the files that are written."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from baselines.collected import collect
from baselines.curve import Curve, Row
from baselines.figures import learning, profiles
from baselines.learning_curves import POINTS, learning_curve
from baselines.page import INTRODUCTION, commands, page_text
from baselines.plans import Benchmark
from baselines.run_folder import Result, Settings, write_result, write_start
from baselines.standings import aggregate, standings
from baselines.statistics import estimate, performance_profile, score_mean
from baselines.table import markdown
from mf_taxi_env.bound import BoundExceededError
from safe_m3_agent.figures.seeds import summary

Make = Callable[..., Path]
WORLD = {
    "cells": 5,
    "horizon": 12,
    "constraints": [{"kind": "EntropyFloor", "fraction": 0.85}],
    "scenario": {"sha256": "0" * 64},
}
START: dict[str, Any] = {
    "time": "2026-01-01T00:00:00+00:00", "commit": "abc", "at_a_time": 2,
    "machine": {"cpu": "a CPU", "cores": 2, "threads": 1, "device": "cpu", "system": "Linux"},
    "versions": {"python": "3.11", "torch": "2.13", "stable-baselines3": None},
}  # fmt: skip


def row(env_steps: int, score: float, *, seconds: float | None = None, violated: int = 0) -> Row:
    """A record; a score of NaN is one of a policy that violates."""
    episodes = env_steps // 12
    unsafe = 3 * math.isnan(score)
    return Row(
        env_steps, env_steps / 10 if seconds is None else seconds, episodes, violated, score, -5.0, 0.1, 0.4, 0.9, unsafe
    )


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A folder of a run as the benchmark writes it, from its rows; the last one's score is the result's."""

    def write(
        algorithm: str, seed: int, rows: Sequence[Row], *, city: str = "town", out: str = "out", finished: bool = True,
        fleet: dict[str, float] | None = None, oracle: bool = False, error: str | None = None, **settings: Any,
    ) -> Path:  # fmt: skip
        folder = tmp_path / out / f"{city}-k5" / algorithm / f"seed-{seed}"
        folder.mkdir(parents=True)
        runs = 10 if fleet else 0
        facts: dict[str, Any] = {
            "algorithm": algorithm, "source": None, "scenario": city, "world": WORLD | {"city": city}, "seed": seed,
            "env_steps": 1200, "seconds": 60.0, "device": "cpu", "taxis": 100 * runs, "fleet_runs": runs,
        }  # fmt: skip
        asked = {"algorithm": algorithm, "scenario": city, "cells": 5}
        write_start(folder, Settings(**facts | settings), label=algorithm.upper(), oracle=oracle, asked=asked, start=START)
        curve = Curve(folder / "curve.csv")
        curve.keep(0)
        for one in rows:
            curve.append(one)
        if error is not None:
            (folder / "error.txt").write_text(f"Traceback ...\n{error}\n")
        elif finished:
            judged = {
                field: getattr(rows[-1], field) for field in ("score", "reward", "min_margin", "kl", "entropy", "violations")
            }
            last = rows[-1]
            spent = {"env_steps": last.env_steps, "episodes": last.episodes, "violated": last.violated, "seconds": last.seconds}
            write_result(folder, Result(**judged, **spent, bound=-1.0, stay=-9.0, fleet=fleet))
        return folder

    return write


def test_interquartile_mean_and_interval_are_the_known_ones(make: Make, tmp_path: Path) -> None:
    """Eight seeds: the mean of the middle four. Three seeds: every bootstrap sample is known, and so is the interval."""
    scores = [0.9, 0.1, 0.5, 0.6, 0.55, 0.45, 0.0, 1.0]
    for seed, score in enumerate(scores):
        make("eight", seed, [row(0, 0.0), row(120, score)])
    for seed, score in enumerate([0.2, 0.3, 0.4]):
        make("three", seed, [row(120, score)])
    for seed, score in enumerate([0.2, 0.3]):
        make("two", seed, [row(120, score)])
    (section,) = collect([tmp_path / "out"])
    eight, three, two = standings(section)
    assert [eight.algorithm, three.algorithm, two.algorithm] == ["eight", "three", "two"], "the best first"
    assert eight.score == pytest.approx((0.45 + 0.5 + 0.55 + 0.6) / 4) == stats.trim_mean(scores, 0.25)
    reference = stats.bootstrap(
        (scores,), lambda values, axis: stats.trim_mean(values, 0.25, axis), n_resamples=9999, method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert (eight.score_low, eight.score_high) == pytest.approx(tuple(reference), abs=0.03)
    assert (three.score, three.score_low, three.score_high) == pytest.approx((0.3, 0.2, 0.4))
    assert two.score == 0.25 and math.isnan(two.score_low) and math.isnan(two.score_high)
    assert (eight.seeds, three.seeds, two.seeds) == (8, 3, 2)


def test_one_task_is_the_estimate_of_the_figures() -> None:
    """The same estimator as everywhere in this library; and a stratified bootstrap never mixes tasks."""
    values = np.random.default_rng(0).random(9)
    assert tuple(map(float, estimate([values.tolist()]))) == tuple(map(float, summary(values)))
    apart = estimate([[0.0] * 4, [1.0] * 4])
    assert (float(apart.low), float(apart.mean), float(apart.high)) == (0.5, 0.5, 0.5), "no sample has other shares of tasks"
    assert all(math.isnan(float(number)) for number in estimate([[], []]))


def test_every_city_has_the_same_weight() -> None:
    """Five seeds of an easy city and three of a hard one are no easier than three of each; and the hard one is not cut off."""
    hard, easy = [0.1, 0.2, 0.3], [0.9] * 5
    assert float(estimate([hard, easy]).mean) == float(estimate([hard, easy[:3]]).mean) == pytest.approx(0.55)
    assert performance_profile([hard, easy], np.array([0.5])).mean.tolist() == [0.5]


@given(
    st.lists(st.none() | st.floats(0.0, 1.0, width=32), min_size=1, max_size=12),
    st.integers(0, 11),
)
def test_a_violation_never_pays(scores: list[float | None], place: int) -> None:
    """Whatever the seeds: to lose a score lowers the mean, or leaves it; and with none lost it is the interquartile mean."""
    values = np.array([math.nan if score is None else score for score in scores])
    before = float(score_mean(values))
    worse = values.copy()
    worse[place % len(values)] = math.nan
    assert float(score_mean(worse)) <= before + 1e-9
    assert before <= float(score_mean(np.nan_to_num(values, nan=0.0))) + 1e-9, "a zero that is earned may be cut off"
    if not np.isnan(values).any():
        assert before == pytest.approx(float(stats.trim_mean(values, 0.25)))


@given(st.lists(st.none() | st.floats(-1.0, 1.0, width=32), min_size=1, max_size=12))
def test_a_zero_for_nothing_is_worth_no_more_than_one_that_is_earned(scores: list[float | None]) -> None:
    """Whatever the sign of the other scores: who is worse than staying put does not rise by failing more than by stopping."""
    values = np.array([math.nan if score is None else score for score in scores])
    assert float(score_mean(values)) <= float(stats.trim_mean(np.nan_to_num(values, nan=0.0), 0.25)) + 1e-9


def test_what_has_no_score_is_not_cut_off() -> None:
    """Of five seeds trimming would forgive one for nothing; and a violation in the place of a bad score is no improvement."""
    assert float(score_mean(np.array([math.nan, 0.8, 0.8, 0.8, 0.8]))) == pytest.approx(0.6)
    bad, worse = np.array([0.1, 0.1, 0.9, 0.9, 0.9]), np.array([math.nan, 0.1, 0.9, 0.9, 0.9])
    assert float(score_mean(bad)) == pytest.approx(1.9 / 3) and float(score_mean(worse)) == pytest.approx(1.9 / 4)
    eight = np.array([math.nan, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])  # of the lowest two one has a score, and is cut off
    assert float(score_mean(eight)) == pytest.approx((0.0 + 0.2 + 0.3 + 0.4 + 0.5) / 5)
    below = np.array([math.nan, math.nan, -0.5, -0.5, -0.5])  # one of the zeros is the highest quarter
    assert float(score_mean(below)) == pytest.approx((0.0 - 3 * 0.5) / 4)
    assert float(score_mean(np.full(5, math.nan))) == 0.0
    found = estimate([[math.nan, 0.8, 0.8, 0.8, 0.8]], scores=True)
    assert found.low < found.mean < found.high and float(found.mean) == pytest.approx(0.6)
    two = estimate([[math.nan, 0.8, 0.8], [0.4, 0.4, 0.4]], scores=True)
    assert float(two.mean) == pytest.approx((1.6 / 3 + 0.4) / 2), "the mean of the cities' own"
    assert performance_profile([[math.nan, 0.8]], np.array([-0.1, 0.0, 0.5])).mean.tolist() == [1.0, 0.5, 0.5]
    with pytest.raises(ValueError, match="values must be numbers"):  # of steps or seconds every run has some
        estimate([[math.nan, 0.1, 0.2, 0.3]])


def test_a_policy_that_violates_counts_as_nothing(make: Make, tmp_path: Path) -> None:
    """Not as a missing seed: an algorithm is not rewarded for its failures. What is behind the number is told beside it."""
    for seed, score in enumerate([0.8, math.nan, 0.8, 0.8]):
        make("bold", seed, [row(120, score, violated=seed)])
    make("worse", 0, [row(120, -2.0)])
    (section,) = collect([tmp_path / "out"])
    bold, worse = standings(section)
    assert bold.score == pytest.approx(1.6 / 3) and bold.safe_score == pytest.approx(0.8) and bold.violated_at_end == 1
    assert (bold.violated, bold.episodes) == (0 + 1 + 2 + 3, 40), "safety is counted over all seeds, untrimmed"
    assert bold.reward == -5.0
    assert worse.score == -2.0, "a safe policy keeps its score, even where nothing would have been better"


def test_when_most_was_learned(make: Make, tmp_path: Path) -> None:
    """The first record of 80 % of the run's own final score, over the runs that end above staying put."""
    rows = [row(0, 0.0), row(60, math.nan), row(120, 0.5), row(180, 0.41), row(240, 0.3), row(600, 0.5)]
    make("a", 0, [rows[0], row(60, 0.3), *rows[2:]])
    make("a", 1, [row(0, 0.0), row(240, 0.39), row(360, 0.4), row(600, 0.5)])
    make("a", 2, [row(0, 0.9), row(600, math.nan)])
    make("a", 3, [row(0, 0.9), row(600, 0.0)])
    make("b", 0, [row(0, 0.0)])
    (section,) = collect([tmp_path / "out"])
    a, b = standings(section)
    assert (a.env_steps_learned, a.seconds_learned, a.learned, a.env_steps) == (240.0, 24.0, 2, 600.0)
    assert math.isnan(b.env_steps_learned) and b.learned == 0
    assert re.search(r"\| +240 \(2 of 4\) \| +24\.0 \(2 of 4\) \|", markdown([a])), "a time that hides who never got there"
    assert " - | " in markdown([b]) and "0 of 1)" not in markdown([b])


def test_the_best_record_is_told(make: Make, tmp_path: Path) -> None:
    """What keeping the best safe policy would give; nothing where all violate, and a bad one where there is no better."""
    make("wanders", 0, [row(0, 0.0), row(60, 0.7), row(120, math.nan)])
    make("wanders", 1, [row(0, math.nan), row(60, math.nan)])
    make("worse", 0, [row(60, -2.0), row(120, -1.0), row(180, math.nan)])
    (section,) = collect([tmp_path / "out"])
    wanders, worse = sorted(standings(section), key=lambda one: one.algorithm)
    assert (wanders.score, wanders.best_recorded, worse.best_recorded) == (0.0, pytest.approx(0.35), -1.0)
    heading, _, *lines = ([cell.strip() for cell in line.split("|")] for line in markdown([wanders]).splitlines()[:3])
    assert lines[0][heading.index("best safe record")] == "0.350"


def test_unfinished_runs_are_listed_and_not_counted(make: Make, tmp_path: Path, run: Callable[..., SimpleNamespace]) -> None:
    """A run that was killed enters no number; the table says that it exists, and why."""
    make("a", 0, [row(120, 0.4)])
    make("a", 1, [row(60, 0.9)], finished=False)
    (section,) = collect([tmp_path / "out"])
    (a,) = standings(section)
    assert (a.score, a.seeds, a.failed) == (0.4, 1, 0)
    told = run("table", tmp_path / "out", "--out", tmp_path / "table")
    assert told.status == 0, told.err
    for text in (told.out, (tmp_path / "table" / "leaderboard.md").read_text()):
        assert "town-k5, A, seed 1 (60 steps) does not count, killed or still running" in text
    assert "1 of 1 runs" in text  # machines are those of runs that count


def test_a_run_that_failed_counts_as_nothing(make: Make, tmp_path: Path, run: Callable[..., SimpleNamespace]) -> None:
    """As one that violates: an algorithm that crashes on its worst seeds is not rewarded, nor hidden if it always does."""
    make("a", 0, [row(0, 0.0), row(120, 0.8, violated=2)])
    make("a", 1, [row(0, 0.0), row(60, 0.6, violated=1)], error="MemoryError")
    make("b", 0, [], error="ZeroDivisionError: division by zero")
    (section,) = collect([tmp_path / "out"])
    a, b = standings(section)
    assert (a.score, a.safe_score, a.seeds, a.failed, a.violated_at_end) == (0.4, 0.8, 2, 1, 0)
    assert (a.episodes, a.violated) == (15, 3), "what it did to the true world before it failed is not forgotten"
    assert (a.env_steps, a.learned, a.best_recorded) == (120.0, 1, pytest.approx(0.7))
    assert (b.score, b.seeds, b.failed, b.best_recorded, b.episodes) == (0.0, 1, 1, 0.0, 0) and math.isnan(b.reward)
    curve = learning_curve(section.ended["a"])
    assert curve.env_steps.tolist() == [0, 60, 120] and curve.score.mean.tolist() == [0.0, 0.0, 0.4], "it ends where scores do"
    told = run("table", tmp_path / "out", "--out", tmp_path / "table")
    assert told.status == 0, told.err
    for text in (told.out, (tmp_path / "table" / "leaderboard.md").read_text()):
        assert "town-k5, A, seed 1 (60 steps) counts as 0, failed: MemoryError" in text
        assert "town-k5, B, seed 0 (no record) counts as 0, failed: ZeroDivisionError: division by zero" in text
        assert re.search(r"\| A +\| 2 \(1 failed\) \| 0\.400 \| +0 of 1 \|", text)
        assert re.search(r"\| B +\| 1 \(1 failed\) \| +0\.000 \| +- \|", text)
    assert "3 of 3 runs" in text and " --algorithms a --scenarios town --cells 5 --seeds 2 " in text
    shares = [line for line in csv.reader((tmp_path / "table" / "profiles.csv").read_text().splitlines()) if line[1] == "0.0"]
    assert [line[:3] for line in shares] == [["a", "0.0", "0.5"], ["b", "0.0", "0.0"]]


def test_only_what_compares_is_compared(make: Make, tmp_path: Path) -> None:
    """Another budget, city, device or fleet is another table; the same run twice, or two versions of a script, are refused."""
    make("a", 0, [row(120, 0.4)])
    make("a", 0, [row(120, 0.4)], out="longer", env_steps=2400)
    make("a", 0, [row(120, 0.4)], out="gpu", device="cuda")
    make("a", 0, [row(120, 0.4)], city="other")
    folders = [tmp_path / name for name in ("out", "longer", "gpu")]
    assert sorted(section.name for section in collect(folders)) == ["other-k5", "town-k5", "town-k5-2", "town-k5-3"]
    make("a", 0, [row(120, 0.4)], out="again")
    with pytest.raises(ValueError, match="hold the same run"):
        collect([tmp_path / "out", tmp_path / "again"])
    make("a", 1, [row(120, 0.4)], out="edited", source="f" * 64)
    with pytest.raises(ValueError, match="different versions of its script or settings"):
        collect([tmp_path / "out", tmp_path / "edited"])
    with pytest.raises(ValueError, match=r"no runs of the benchmark .* in .*nowhere"):
        collect([tmp_path / "nowhere"])


def test_the_algorithms_own_files_are_no_runs(make: Make, tmp_path: Path) -> None:
    """Agents write run files too, in the folder that is theirs."""
    own = make("a", 0, [row(120, 0.4)]) / "work" / "x" / "seed-9"
    own.mkdir(parents=True)
    (own / "run.json").write_text("{}")
    assert len(collect([tmp_path / "out"])[0].runs) == 1


def test_the_aggregate_is_of_what_ran_everywhere(make: Make, tmp_path: Path) -> None:
    """Over cities, for the algorithms that have met them all."""
    for seed in range(3):
        make("a", seed, [row(120, 0.2)])
        make("a", seed, [row(120, 0.8)], city="other")
    make("b", 0, [row(120, 0.9)])
    sections = collect([tmp_path / "out"])
    whole = aggregate(sections)
    (overall,) = whole.standings
    assert (overall.scenario, overall.algorithm, overall.seeds, overall.episodes) == ("all", "a", 6, 60)
    assert (overall.score, overall.score_low, overall.score_high) == pytest.approx((0.5, 0.5, 0.5))
    assert whole.reason == "" and aggregate(sections[:1]) == (sections[:1], [], "")


def test_a_city_without_a_finished_run_takes_nothing_away(
    make: Make, tmp_path: Path, run: Callable[..., SimpleNamespace]
) -> None:
    """Neither the aggregate over the others nor the profiles: its first run may still be under way."""
    for city in ("town", "other"):
        make("a", 0, [row(120, 0.4)], city=city)
    make("a", 0, [row(60, 0.1)], city="new", finished=False)
    whole = aggregate(collect([tmp_path / "out"]))
    assert [one.seeds for one in whole.standings] == [2] and [one.name for one in whole.sections] == ["other-k5", "town-k5"]
    told = run("table", tmp_path / "out", "--out", tmp_path / "table")
    assert told.status == 0 and "all cities" in told.out and (tmp_path / "table" / "profiles.csv").exists(), told.err


@pytest.mark.parametrize(
    ("city", "settings", "reason"),
    [
        ("town", {"env_steps": 2400}, "town-k5 and town-k5-2 are of one city, town"),
        ("other", {"env_steps": 2400}, "env_steps differs (other-k5 2400, town-k5 1200)"),
        ("other", {"device": "cuda"}, "device differs (other-k5 cuda, town-k5 cpu)"),
    ],
)
def test_what_cannot_be_pooled_is_not(
    make: Make, tmp_path: Path, run: Callable[..., SimpleNamespace], city: str, settings: dict[str, Any], reason: str
) -> None:
    """Two budgets of one city are not two cities; the page says why there is no table of all of them."""
    make("a", 0, [row(120, 0.4)])
    make("a", 0, [row(120, 0.8)], city=city, out="second", **settings)
    folders = [tmp_path / "out", tmp_path / "second"]
    assert aggregate(collect(folders))[1:] == ([], reason)
    told = run("table", *folders, "--out", tmp_path / "table")
    assert told.status == 0 and f"No table of all cities: {reason}" in told.out, told.err
    assert f"There is no table of all cities: {reason}." in (tmp_path / "table" / "leaderboard.md").read_text()
    assert not (tmp_path / "table" / "profiles.csv").exists()


def test_a_performance_profile_counts_runs() -> None:
    """The share strictly above each level; nobody is above their own score."""
    cities = [[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]
    profile = performance_profile(cities, np.array([-0.1, 0.0, 0.49, 0.5, 1.0]))
    assert profile.mean.tolist() == [1.0, 0.75, 0.75, 0.25, 0.0]
    assert (profile.low <= profile.mean).all() and (profile.mean <= profile.high).all()
    assert profile.low[2] >= 0.5, "in the second city no sample is below"


def test_learning_curves_hold_the_latest_record(make: Make, tmp_path: Path) -> None:
    """From where all seeds have begun; one that ended early keeps its policy; a violation counts as 0; shares are pooled."""
    make("a", 0, [row(0, 0.0), row(120, 0.4, violated=2), row(240, 0.6, violated=2)])
    make("a", 1, [row(60, 0.2, violated=5), row(180, math.nan, violated=15)])
    (section,) = collect([tmp_path / "out"])
    curve = learning_curve(section.ended["a"])
    assert curve.env_steps.tolist() == [60, 120, 180, 240]
    assert curve.score.mean.tolist() == pytest.approx([0.1, 0.3, 0.2, 0.3])
    assert curve.violated.tolist() == pytest.approx([5 / 5, 7 / 15, 17 / 25, 17 / 35])
    make("still", 0, [row(0, 0.3)])
    assert math.isnan(learning_curve(collect([tmp_path / "out"])[0].ended["still"]).violated[0])


def test_a_learning_curve_ends_at_the_final_score(make: Make, tmp_path: Path) -> None:
    """Mean and band at its end are those of the table, with violations and without."""
    for seed, score in enumerate([0.2, math.nan, 0.9, 0.7, 0.6]):
        make("a", seed, [row(0, 0.0), row(120, score)])
    (section,) = collect([tmp_path / "out"])
    (one,) = standings(section)
    ends = [float(numbers[-1]) for numbers in learning_curve(section.ended["a"]).score]
    assert ends == pytest.approx([one.score, one.score_low, one.score_high]) and one.score_low < one.score < one.score_high


def test_long_learning_curves_are_thinned_out(make: Make, tmp_path: Path) -> None:
    """Few enough points to draw, the first and the last among them."""
    make("a", 0, [row(12 * i, i / 1000) for i in range(1000)])
    curve = learning_curve(collect([tmp_path / "out"])[0].ended["a"])
    assert len(curve.env_steps) <= POINTS + 1 and curve.env_steps[[0, -1]].tolist() == [0, 12 * 999]
    assert curve.score.mean[-1] == pytest.approx(0.999)


FLEET = {"served_demand": 0.625, "violated": 0.3, "corrected": 0.1}


def test_the_files_of_a_leaderboard(make: Make, tmp_path: Path, run: Callable[..., SimpleNamespace]) -> None:
    """Markdown with marks and counts, every number as CSV, pictures with theirs, and a page whose links lead somewhere."""
    for city in ("town", "other"):
        for seed in (0, 1, 3):
            make("fast", seed, [row(0, 0.0), row(120, 0.5 + 0.1 * seed)], city=city, fleet=FLEET)
            make("given", seed, [row(0, 0.95)], city=city, fleet=FLEET, oracle=True)
    out, page = tmp_path / "table", tmp_path / "docs" / "leaderboard.md"
    told = run("table", tmp_path / "out", "--out", out, "--page", page, "--format", "svg")
    assert told.status == 0, told.err
    text = page.read_text()
    cells = [cell.strip() for cell in next(line for line in text.splitlines() if "GIVEN" in line).strip("|").split("|")]
    assert cells == [
        "GIVEN †", "6", "0.950", "0 of 6", "0.950", "0.950", "-", "0", "0", "0.0", "0.0", "62.5", "18 of 60", "6 of 60",
    ]  # fmt: skip
    assert re.search(r"FAST +\| +6 \| +0\.6\d\d \[0\.5\d\d, 0\.[678]\d\d\]", text)  # those that differ have an interval
    assert "## All cities" in text and "Staying put earns -9.000 nats, the certified bound is -1.000." in text
    for image in re.findall(r"\]\((images/[^)]+)\)", text):
        assert (page.parent / image).stat().st_size > 10_000
    assert len(re.findall(r"!\[", text)) == 3 and "[Benchmark](benchmark.md)" in text
    names = {path.name for path in out.iterdir()}
    assert names == {
        "leaderboard.md", "leaderboard.csv",
        *(f"{name}.{kind}" for name in ("town-k5", "other-k5", "profiles") for kind in ("svg", "csv")),
    }  # fmt: skip
    with (out / "leaderboard.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["scenario"] for line in lines] == ["other-k5"] * 2 + ["town-k5"] * 2 + ["all"] * 2
    assert lines[-1]["fleets"] == "60" and lines[-1]["fleets_violated"] == "18" and lines[-1]["fleets_corrected"] == "6"


def test_commands_and_machines_are_told(
    make: Make, tmp_path: Path, run: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command is understood, and together they name every finished run."""
    for seed in (0, 1, 4):
        make("a", seed, [row(120, 0.5)])
    make("b", 0, [row(120, 0.5)])
    make("b", 0, [row(120, 0.5)], out="longer", env_steps=2400)
    make("my own.py:c", 0, [row(120, 0.5)], out="longer", env_steps=2400)
    folders = [tmp_path / "out", tmp_path / "longer"]
    assert run("table", *folders, "--out", tmp_path / "table").status == 0
    text = (tmp_path / "table" / "leaderboard.md").read_text()
    assert "a CPU, 2 cores, Linux; 1 thread(s) per run, 2 run(s) at a time, device cpu (6 of 6 runs)" in text
    assert "- Commit: abc (6 of 6 runs)" in text and "python 3.11, torch 2.13 (6 of 6 runs)" in text
    asked: list[Benchmark] = []

    def parsed(benchmark: Benchmark) -> Any:
        asked.append(benchmark)
        raise ValueError("not carried out")

    monkeypatch.setattr(Benchmark, "cities", parsed)
    assert text.count(" --workers 2 ") == 4
    for line in re.findall(r"^python -m baselines (run .*)$", text, re.MULTILINE):
        assert run(*shlex.split(line)).err.strip().endswith("not carried out")
    runs = [(name, seed) for one in asked for name in one.algorithms for seed in one.seeds]
    assert sorted(runs) == [("a", 0), ("a", 1), ("a", 4), ("b", 0), ("b", 0), ("my own.py:c", 0)]
    assert {(one.budget.seconds, one.cells, *one.scenarios) for one in asked} == {(60.0, 5, "town")}
    assert {(one.budget.env_steps, str(one.out)) for one in asked} == {(1200, "runs/town-k5"), (2400, "runs/town-k5-2")}


def test_who_used_more_is_marked(make: Make, tmp_path: Path, run: Callable[..., SimpleNamespace]) -> None:
    """A fifth more, in steps or seconds, is what ending takes; the rest had another budget than the others. It still counts."""
    make("a", 0, [row(1440, 0.5, seconds=72.0)])
    make("a", 1, [row(1441, 0.5, seconds=1.0)])
    make("a", 2, [row(12, 0.5, seconds=72.1)])
    (a,) = standings(collect([tmp_path / "out"])[0])
    assert (a.over_budget, a.seeds) == (2, 3)
    assert "3 (2 over budget)" in run("table", tmp_path / "out", "--out", tmp_path / "table").out


def test_every_start_is_told(make: Make, tmp_path: Path) -> None:
    """A run that went on elsewhere has both machines to its account."""
    folder = make("a", 0, [row(120, 0.5)])
    make("a", 1, [row(120, 0.5)])
    facts = json.loads((folder / "run.json").read_text())
    again = {**START, "commit": "def", "machine": {**START["machine"], "cpu": "another CPU"}}
    (folder / "run.json").write_text(json.dumps({**facts, "starts": [*facts["starts"], again]}))
    sections = collect([tmp_path / "out"])
    text = page_text(sections, {one.name: standings(one) for one in sections}, aggregate(sections), {})
    assert "- Commit: abc (2 of 2 runs)\n- Commit: def (1 of 2 runs: 1 of a)" in text
    assert "a CPU, 2 cores" in text and "another CPU, 2 cores" in text and "- Started more than once: 1 of 2 runs" in text
    assert "reference computation" not in text  # of runs before it was recorded
    for number, seconds in enumerate((0.25, 0.5)):
        starts = [{**START, "reference_seconds": seconds}]
        path = tmp_path / "out" / "town-k5" / "a" / f"seed-{number}" / "run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "starts": starts}))
    sections = collect([tmp_path / "out"])
    text = page_text(sections, {one.name: standings(one) for one in sections}, aggregate(sections), {})
    assert "- A reference computation took 250 to 500 ms when runs started (2 starts): times compare no better" in text


def test_a_correction_that_is_not_known_has_no_count(make: Make, tmp_path: Path) -> None:
    """A share that is no number, of fleets with fewer taxis than cells, is neither none nor all of them."""
    make("a", 0, [row(120, 0.5)], fleet=FLEET)
    make("a", 1, [row(120, 0.5)], fleet=FLEET | {"corrected": math.nan})
    (one,) = standings(collect([tmp_path / "out"])[0])
    assert one.fleets_violated == 6 and math.isnan(one.fleets_corrected)
    assert [cell.strip() for cell in markdown([one]).splitlines()[2].split("|")[-3:-1]] == ["6 of 20", "-"]


def test_every_column_is_in_the_rows(make: Make, tmp_path: Path) -> None:
    """A standing is made of all its fields, none of them an accident of order."""
    for seed in (0, 1, 2):
        make("a", seed, [row(120, 0.5, seconds=7.0)], fleet=FLEET)
    (one,) = standings(collect([tmp_path / "out"])[0])
    assert dataclasses.asdict(one) == {
        "scenario": "town-k5", "algorithm": "a", "label": "A", "oracle": False, "seeds": 3, "failed": 0,
        "commits": "abc", "machines": "a CPU, 2 cores, Linux; 1 thread(s) per run, 2 run(s) at a time, device cpu",
        "over_budget": 0, "score": 0.5, "score_low": 0.5, "score_high": 0.5, "violated_at_end": 0, "safe_score": 0.5,
        "best_recorded": 0.5, "reward": -5.0, "episodes": 30, "violated": 0, "env_steps": 120.0, "env_steps_learned": 120.0,
        "seconds_learned": 7.0, "learned": 3, "seconds": 7.0, "served_demand": 0.625, "fleets": 30,
        "fleets_violated": 9, "fleets_corrected": 3,
    }  # fmt: skip


def test_runs_of_several_commits_are_marked(make: Make, tmp_path: Path) -> None:
    """Also one run that was started at two; a checkout with changes is another than one without."""
    for seed, commit in enumerate([None, "1234567890abcdef", "1234567890abcdef with changes"]):
        facts = json.loads((path := make("mixed", seed, [row(120, 0.5)]) / "run.json").read_text())
        path.write_text(json.dumps({**facts, "starts": [{**START, "commit": commit}]}))
        make("alike", seed, [row(120, 0.4)])
    mixed, alike = standings(collect([tmp_path / "out"])[0])
    assert (mixed.commits, alike.commits) == ("- 123456789 123456789+", "abc")
    text = markdown([mixed, alike])
    assert " 3 ‡ |" in text and text.count("‡") == 2 and text.endswith("\n\n‡ The runs are of more than one commit.")
    assert "‡" not in markdown([alike])


def test_runs_of_several_machines_are_marked(make: Make, tmp_path: Path) -> None:
    """Also of one with another number of runs at a time, which share it; seconds in a row are then not of one kind."""
    machine = START["machine"]
    others = [
        {"machine": {**machine, name: value}}
        for name, value in (("cpu", "B"), ("cores", 9), ("threads", 2), ("device", "cuda"))
    ]
    for seed, other in enumerate([{"at_a_time": 1}, *others]):
        make(f"mixed-{seed}", 0, [row(120, 0.5)])
        facts = json.loads((path := make(f"mixed-{seed}", 1, [row(120, 0.5)]) / "run.json").read_text())
        path.write_text(json.dumps({**facts, "starts": [{**START, **other, "commit": "abc"}]}))
    make("alike", 0, [row(120, 0.4)])
    *mixed, alike = standings(collect([tmp_path / "out"])[0])
    assert len(mixed) == 5
    for one in mixed:
        assert one.machines.count(" | ") == 1 and " 2 § |" in markdown([one])
        assert "\n\n§ The runs differ in machine, threads or runs at a time: their seconds do not compare." in markdown([one])
    assert "§" not in markdown([alike]) and "differ in this table" not in markdown([alike])
    make("elsewhere", 0, [row(120, 0.3)])
    facts = json.loads((path := tmp_path / "out" / "town-k5" / "elsewhere" / "seed-0" / "run.json").read_text())
    path.write_text(json.dumps({**facts, "starts": [{**START, **others[0], "commit": "abc"}]}))
    both = standings(collect([tmp_path / "out"])[0])[-2:]
    text = markdown(both)
    assert "§" not in text and "\n\nMachines, threads or runs at a time differ in this table: what a budget" in text


def test_an_unsafe_zero_is_told(make: Make, tmp_path: Path) -> None:
    """By the city's own margin, whoever was run in it: no algorithm needs to stay put for that."""
    path = make("a", 0, [row(120, 0.5)]) / "result.json"

    def page(margin: float | None) -> str:
        path.write_text(json.dumps({**json.loads(path.read_text()), "stay_margin": margin}))
        sections = collect([tmp_path / "out"])
        return page_text(sections, {"town-k5": standings(sections[0])}, aggregate(sections), {})

    assert "the zero of the scores is unsafe" in page(-0.01)
    assert "unsafe" not in page(0.01).split("## town-k5")[1] and "unsafe" not in page(None).split("## town-k5")[1]


def test_a_result_beyond_the_bound_is_refused(make: Make, tmp_path: Path, run: Callable[..., SimpleNamespace]) -> None:
    """No table is made of one, whoever wrote it; what the bound's gap allows, and what violates, is another matter."""
    path = make("a", 0, [row(120, 0.5)]) / "result.json"
    facts = json.loads(path.read_text())

    def changed(**facts_of: float | None) -> None:
        path.write_text(json.dumps(facts | facts_of))

    changed(reward=-0.9)  # the bound is -1
    with pytest.raises(BoundExceededError, match=r"result\.json has a reward of -0\.900000 nats without a violation"):
        collect([tmp_path / "out"])
    told = run("table", tmp_path / "out", "--out", tmp_path / "table")
    assert told.status == 2 and "is possible" in told.err and not (tmp_path / "table").exists()
    changed(reward=-0.9, violations=3, score=None)
    assert len(collect([tmp_path / "out"])) == 1
    changed(reward=-0.9, gap=0.11)
    sections = collect([tmp_path / "out"])
    text = page_text(sections, {"town-k5": standings(sections[0])}, aggregate(sections), {})
    assert "the certified bound is -1.000 (gap of its certificate: 0.1 nats)" in text


def test_families_have_colours_of_their_own(make: Make, tmp_path: Path) -> None:
    """All six of the benchmark, and black for who has no relatives; none takes that of another family."""
    names = ["fluid-lp", "greedy-transport", "proportional", "rolling-lp", "safe-m3", "sb3-ppo"]
    for name in (*names, *(f"{name}-2" for name in names), "stay", "m3-ucrl"):
        make(name, 0, [row(0, 0.0), row(120, 0.5)])
    (section,) = collect([tmp_path / "out"])
    order = standings(section)
    figure = learning(section, order).figure
    colours: dict[str, set[str]] = {}
    for one, axes in zip(order, figure.axes, strict=False):
        (drawn,) = {str(line.get_color()) for line in axes.get_lines() if line.get_linewidth() == 2}
        colours.setdefault(one.algorithm.partition("-")[0], set()).add(drawn)
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == 7 and colours["stay"] == colours["m3"] == {"#000000"}


def test_few_seeds_have_no_interval(make: Make, tmp_path: Path, run: Callable[..., SimpleNamespace]) -> None:
    """Nobody knows what seeds differ by: no brackets, no band, no numbers; in one of several cities is enough for that."""
    three = [0.1, 0.2, 0.3]
    assert np.isnan(estimate([three, [0.3, 0.4]])[1:]).all() and not np.isnan(estimate([three, three])).any()
    assert np.isnan(performance_profile([three, [0.3, 0.4]], np.array([0.0, 0.2])).low).all()
    for seed in (0, 1):
        make("few", seed, [row(0, 0.0), row(120, 0.5)])
    (section,) = collect([tmp_path / "out"])
    order = standings(section)
    for drawing in (learning(section, order), profiles([section], order)):
        assert not drawing.figure.axes[0].collections, "a band"
        assert {cell for line in drawing.tables[""].rows for cell in line[3:5]} == {""}
        assert "no interval where a city has fewer than 3 seeds." in drawing.figure.get_supxlabel().replace("\n", " ")
    told = run("table", tmp_path / "out", "--out", tmp_path / "table")
    assert re.search(r"\| +0\.500 \|.*\n\nThere is no interval where a city has fewer than 3 seeds\.\n", told.out), told.out
    (line,) = csv.DictReader((tmp_path / "table" / "leaderboard.csv").read_text().splitlines())
    assert (line["score"], line["score_low"], line["score_high"], line["served_demand"]) == ("0.5", "", "", "")
    make("few", 2, [row(0, 0.0), row(120, 0.5)])
    (section,) = collect([tmp_path / "out"])
    drawing = learning(section, standings(section))
    assert drawing.figure.axes[0].collections and "no interval" not in drawing.figure.get_supxlabel()
    assert "no interval" not in markdown(standings(section))


def test_the_page_says_how_it_is_made(
    make: Make, tmp_path: Path, run: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own command, of the folders that the others fill; how files of cities are built; and remarks, which stay."""
    monkeypatch.chdir(tmp_path)
    Path("notes.md").write_text("By hand: **read this**.\n")
    for seed in (0, 1):
        folder = make("a", seed, [row(120, 0.5)])
        facts = json.loads((folder / "run.json").read_text())
        facts["asked"]["scenario"] = "town.npz"
        facts["starts"][0]["at_a_time"] = "ray" if seed else 3
        (folder / "run.json").write_text(json.dumps(facts))
    make("b", 0, [row(120, 0.5)], finished=False, city="other")
    for _ in range(2):
        told = run("table", "out", "--out", tmp_path / "table", "--page", "docs/board.md", "--notes", "notes.md")
        assert told.status == 0, told.err
        text = Path("docs/board.md").read_text()
        assert re.search(r"All columns: .*\n\nBy hand: \*\*read this\*\*\.\n\n!\[Performance", text)
    assert "python -m baselines table runs/town-k5 --out runs/table --page docs/board.md --notes notes.md\n" in text
    assert "--workers 3 --out runs/town-k5\n" in text
    assert "`town.npz` is built: [Results](results.md) for the real city, else [Your own city](own_city.md)." in text
    assert "docs/results.md" in (tmp_path / "table" / "leaderboard.md").read_text()
    for term in (
        "score of the others",
        "best safe record",
        "demand served",
        "fleets that violate",
        "corrected",
        "Config.fleet",
    ):
        assert term in INTRODUCTION
    (tmp_path / "out" / "town-k5" / "a" / "seed-0" / "result.json").unlink()
    sections = collect([Path("out")])
    assert any(" --ray auto " in command for command in commands(sections))
    told = run("table", "out", "--out", "never", "--notes", "missing.md")
    assert told.status == 2 and "missing.md" in told.err and not Path("never").exists()
