"""The paper's figures from run folders: every picture is there, its numbers are those of the runs, and gaps are named."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import trim_mean

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")

from matplotlib import image

from mf_taxi_env import EntropyFloor, FleetSimulator, TaxiMDP, certified_bound, score
from mf_taxi_env.information import entropy_fraction, kl_divergence
from safe_m3_agent import History, SafeM3UCRL
from safe_m3_agent.cli import main
from safe_m3_agent.figures import finite_fleets, paper
from safe_m3_agent.figures.city_maps import busiest, trips_from
from safe_m3_agent.figures.curves import step_axis
from safe_m3_agent.figures.drawing import Drawing
from safe_m3_agent.figures.judged import frontier
from safe_m3_agent.figures.paper import paper_figures
from safe_m3_agent.figures.recorded import Group, RecordedRun, read_groups, with_floor
from safe_m3_agent.figures.seeds import interquartile_mean, summary
from safe_m3_agent.fleet_evaluation import Subject, sufficient_taxis
from safe_m3_agent.fleet_table import FLEET_FILE
from safe_m3_agent.policy import FieldPolicy
from safe_m3_agent.run import HISTORY_FILE, RunFolder

#: Among the settings that a printed command has to repeat are a bool, a tuple and nested numbers.
SMALL = [
    *("--cells", "5", "--horizon", "3", "--noise-std", "0.1", "--no-optimistic", "--bptt.epochs", "4"),
    *("--ensemble.members", "3", "--ensemble.hidden", "4", "4", "--ensemble.steps", "6"),
    *("--certificate.restarts", "2", "--certificate.steps", "1"),
]
OF_LEARNING = ("2", "3a", "3b", "4", "5a", "5b")
OF_FLEETS = ("6a", "6b", "7")
ALL = (*OF_LEARNING, *OF_FLEETS)
EPISODES, HORIZON = 3, 3

Runs = dict[str, Path]


def train(out: Path, *options: str, floor: float = 0.8) -> Path:
    """A run of a second."""
    main(["train", *SMALL, "--entropy-floor", str(floor), "--episodes", str(EPISODES), "--out", str(out), *options])
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All runs that the figures need, two seeds of the first."""
    folder = tmp_path_factory.mktemp("runs")
    found = {
        "safe": train(folder / "safe-0"),
        "safe again": train(folder / "safe-1", "--seed", "1"),
        "known": train(folder / "known", "--model", "known", "--anew", "3"),  # of no meaning there
        "unconstrained": train(folder / "unconstrained", "--no-constrained"),
        "loose": train(folder / "loose", "--model", "known", "--anew", "3", floor=0.3),
        "five": train(folder / "five", "--representative-agents", "5"),
        "ten": train(folder / "ten", "--representative-agents", "10"),
    }
    evaluated = [str(found[name]) for name in ("safe", "safe again", "known")]
    main(["fleet", *evaluated, "--taxis", "10", "100", "1000", "--runs", "3", "--workers", "1"])
    return found


@pytest.fixture(scope="module")
def drawn(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every figure."""
    out = tmp_path_factory.mktemp("figures")
    main(["figures", *map(str, runs.values()), "--out", str(out), "--judge-floor", "0.8"])
    return out


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def histories(*folders: Path) -> list[History]:
    """What happened, from the folders."""
    return [History.from_csv(folder / HISTORY_FILE) for folder in folders]


def last_fleets(folder: Path) -> torch.Tensor:
    """The distributions that the last policy of a run causes, ``[T + 1, K]``."""
    agent = SafeM3UCRL.load(folder)
    with torch.no_grad():
        return agent.mdp.rollout(agent.policy).mu


def is_a_picture(path: Path) -> bool:
    """A readable image, large enough for a page and not blank."""
    pixels = image.imread(path)
    return min(pixels.shape[:2]) >= 600 and max(pixels.shape[:2]) <= 4000 and float(pixels[..., :3].std()) > 0.02


# -- pictures and numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_every_figure_is_a_picture_with_its_numbers(drawn: Path, name: str) -> None:
    """A PNG of reasonable size that is no white sheet, beside a table with rows."""
    assert is_a_picture(drawn / f"figure_{name}.png")
    assert 10_000 < (drawn / f"figure_{name}.png").stat().st_size < 2_000_000
    assert len(table(drawn / f"figure_{name}.csv")) > 1
    assert not list(drawn.glob("*.tmp"))


def test_learning_is_that_of_the_histories(drawn: Path, runs: Runs) -> None:
    """Figure 3a: the mean return of the two seeds, the known motion's, the bound and staying put."""
    rows = table(drawn / "figure_3a.csv")
    unknown, known = rows[:EPISODES], rows[EPISODES:]
    first, second = histories(runs["safe"], runs["safe again"])
    for episode, row in enumerate(unknown):
        rewards = [first[episode].reward, second[episode].reward]
        assert row["seeds"] == "2" and int(row["episode"]) == episode
        assert float(row["return"]) == pytest.approx(np.mean(rewards))
        assert [float(row["low"]), float(row["high"])] == pytest.approx(sorted(rewards))
        assert int(row["runs_with_violation"]) == (first[episode].violations > 0) + (second[episode].violations > 0)
    (alone,) = histories(runs["known"])
    assert [float(row["return"]) for row in known] == pytest.approx(alone.column("reward"))
    assert {row["curve"] for row in rows} == {"motion unknown, 1 representative taxi", "motion known"}
    world = SafeM3UCRL.load(runs["known"]).mdp
    assert {float(row["bound"]) for row in rows} == {certified_bound(world).reward}
    assert all(float(row["return"]) <= float(row["bound"]) for row in rows if row["runs_with_violation"] == "0")
    # The first episode of an agent that has to learn stays put.
    assert float(rows[0]["staying_put"]) == pytest.approx(first[0].reward)


def test_trade_off_is_that_of_the_histories(drawn: Path, runs: Runs) -> None:
    """Figure 3b: divergence and entropy, as the world itself gives them for the last episode, and violations."""
    rows = table(drawn / "figure_3b.csv")
    free = rows[EPISODES:]
    (history,) = histories(runs["unconstrained"])
    assert {row["curve"] for row in free} == {"M3-UCRL (no constraint)"}
    assert [float(row["kl"]) for row in free] == pytest.approx([-episode.reward / HORIZON for episode in history])
    assert [int(row["runs_with_violation"]) for row in free] == [int(episode.violations > 0) for episode in history]
    mu = last_fleets(runs["unconstrained"])[1:]
    assert float(free[-1]["entropy"]) == pytest.approx(float(entropy_fraction(mu).min()), abs=1e-5)
    demand = SafeM3UCRL.load(runs["unconstrained"]).mdp.demand(0)
    assert float(free[-1]["kl"]) == pytest.approx(float(kl_divergence(demand, mu).mean()), rel=1e-4)


def test_policies_are_judged_at_the_other_floor(drawn: Path, runs: Runs) -> None:
    """Figure 5a: entropy of every step, violations and score at the floor asked for, whatever the policy was trained at."""
    rows = table(drawn / "figure_5a.csv")
    assert [(float(row["trained_floor"]), int(row["seed"])) for row in rows] == [(0.3, 0), (0.8, 0)]
    for row, name in zip(rows, ("loose", "known"), strict=True):
        world, mu = SafeM3UCRL.load(runs[name]).mdp, last_fleets(runs[name])[1:]
        shares = entropy_fraction(mu).tolist()
        assert [float(row[f"entropy_{t}"]) for t in range(1, HORIZON + 1)] == pytest.approx(shares)
        assert int(row["steps_violating"]) == sum(share < 0.8 for share in shares)
        assert float(row["smallest_entropy"]) == pytest.approx(min(shares))
        judged = score(mu, with_floor(world, 0.8))
        assert float(row["score_judged"]) == pytest.approx(judged, nan_ok=True)
    # What is drawn as possible bounds what was reached: no policy lies below it.
    possible = table(drawn / "figure_5a_possible.csv")
    floors, least = ([float(row[name]) for row in possible] for name in ("floor", "least_kl"))
    for row in rows:
        assert float(row["kl"]) >= np.interp(float(row["smallest_entropy"]), floors, least) - 1e-3


def test_representatives_are_compared(drawn: Path, runs: Runs) -> None:
    """Figure 5b: returns and epistemic uncertainty of 1, 5 and 10 representative taxis."""
    rows = table(drawn / "figure_5b.csv")
    assert [row["curve"] for row in rows[::EPISODES]] == [
        "1 representative taxi",
        "5 representative taxis",
        "10 representative taxis",
    ]
    for name, part in (("five", rows[EPISODES : 2 * EPISODES]), ("ten", rows[2 * EPISODES :])):
        (history,) = histories(runs[name])
        assert [float(row["return"]) for row in part] == pytest.approx(history.column("reward"))
        assert [float(row["epistemic"]) for row in part] == pytest.approx(history.column("epistemic"))


def test_maps_hold_the_fleets(drawn: Path, runs: Runs) -> None:
    """Figure 2: demand, the uniform start, the fleet that each policy ends with and the certified optimum, cell by cell."""
    rows = table(drawn / "figure_2.csv")
    world = SafeM3UCRL.load(runs["known"]).mdp
    west, east, south, north = world.scenario.box
    assert len(rows) == world.grid.size
    assert [float(row["demand"]) for row in rows] == pytest.approx(world.demand(0).tolist())
    assert [float(row["start"]) for row in rows] == pytest.approx([1 / 25] * 25)
    (column,) = (name for name in rows[0] if name.startswith("M3-UCRL"))
    assert [float(row[column]) for row in rows] == pytest.approx(last_fleets(runs["unconstrained"])[-1].tolist(), abs=1e-7)
    assert sum(float(row["certified optimum"]) for row in rows) == pytest.approx(1.0)
    # Cell 1 lies north of cell 0.
    assert float(rows[1]["latitude"]) - float(rows[0]["latitude"]) == pytest.approx((north - south) / 5)
    assert float(rows[0]["longitude"]) == pytest.approx(west + (east - west) / 10)


def test_policies_that_are_left_out_are_counted(runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Figure 2 has room for five policies: its caption tells how many more there are."""
    kept: list[Drawing] = []
    monkeypatch.setattr(paper, "save_drawing", lambda drawing, *_: kept.append(drawing) or [])
    paper_figures(list(runs.values()), tmp_path, only=["2"])
    paper_figures([runs["safe"], runs["unconstrained"]], tmp_path, only=["2"])
    six, two = (drawing.figure.get_supxlabel() for drawing in kept)
    assert "Not shown: 1 more policy." in six and "Not shown" not in two


def test_trips_are_those_of_the_world(drawn: Path, runs: Runs) -> None:
    """Figure 4: the rows of the trip matrix at the busiest cells, and the moves of the policy in kilometres."""
    rows = table(drawn / "figure_4.csv")
    agent = SafeM3UCRL.load(runs["safe"])
    world = agent.mdp
    origins = busiest(world, 3)
    assert origins[0] == int(world.demand(0).argmax()) and len(set(origins)) == 3
    for number, origin in enumerate(origins, start=1):
        expected = world.trips(0)[origin].tolist()  # type: ignore[index]
        assert [float(row[f"trips from origin {number}"]) for row in rows] == pytest.approx(expected)
    assert sum(float(row["fleet after trips"]) for row in rows) == pytest.approx(1.0, abs=1e-5)
    shifted = world.shift(last_fleets(runs["safe"])[-2], HORIZON - 1)
    east = (world.motion(world.centers, shifted, agent.policy.field(shifted, HORIZON - 1)) - world.centers)[:, 0]
    kilometres = 12.85 * east.detach().numpy()  # the city is 0.125 degrees wide at 22.56 degrees north
    assert np.allclose([float(row["move east km"]) for row in rows], kilometres, rtol=0.01, atol=1e-6)


def test_sparse_trips_give_the_same_rows(runs: Runs) -> None:
    """Where trips are sparse, the row of an origin is the dense one's."""
    from scipy import sparse

    from mf_taxi_env import Scenario

    dense = SafeM3UCRL.load(runs["safe"]).mdp
    city = dense.scenario
    trips = sparse.csr_array(np.asarray(city.trips))
    world = TaxiMDP(Scenario(city.name, city.demand, trips, city.box), constraints=[EntropyFloor(0.8)])
    for cell in (0, 7, 24):
        assert np.allclose(trips_from(world, cell), trips_from(dense, cell), atol=1e-7)


def test_fleets_are_those_of_the_tables(drawn: Path, runs: Runs) -> None:
    """Figure 6a: mean divergence per size, over two policies and of one, the mean field's, and from where it carries over."""
    rows = table(drawn / "figure_6a.csv")
    assert [(row["curve"], int(row["taxis"])) for row in rows] == [
        (curve, size) for curve in ("motion unknown, 1 representative taxi", "motion known") for size in (10, 100, 1000)
    ]
    known = table(runs["known"] / FLEET_FILE)
    both = [table(runs[name] / FLEET_FILE) for name in ("safe", "safe again")]
    for row in rows:
        tables = [known] if row["curve"] == "motion known" else both
        means = [np.mean([-float(one["reward"]) for one in part if one["taxis"] == row["taxis"]]) / HORIZON for part in tables]
        assert float(row["kl"]) == pytest.approx(np.mean(means))
        assert int(row["policies"]) == len(tables) and int(row["runs"]) == 3 * len(tables)
        kept = [np.mean([float(one["violations"]) == 0 for one in part if one["taxis"] == row["taxis"]]) for part in tables]
        assert float(row["kept"]) == pytest.approx(np.mean(kept))
        assert math.isnan(float(row["kept_corrected"])) == (row["taxis"] == "10")
    agent = SafeM3UCRL.load(runs["known"])
    with torch.no_grad():
        executed = agent.mdp.rollout(agent.policy)
    assert float(rows[-1]["kl_mean_field"]) == pytest.approx(-float(executed.returns) / HORIZON, rel=1e-5)
    assert float(rows[-1]["enough_taxis"]) == sufficient_taxis(Subject.of(agent.mdp, agent.policy)) >= 25


@pytest.mark.parametrize(("enough", "drawn_there"), [(5_000.0, True), (6e8, False), (math.inf, False)])
def test_a_size_that_is_enough_leaves_the_axis_to_the_fleets(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, enough: float, drawn_there: bool
) -> None:
    """Figure 6a: a size near those of the fleets is a vertical line; one far beyond is told and does not stretch the axis."""
    monkeypatch.setattr(finite_fleets, "sufficient_taxis", lambda subject: enough)
    run = RecordedRun.read(runs["known"])
    figure = finite_fleets.fleet_sizes([finite_fleets.FleetCurve("known", [(run.subject, run.fleets)])], "a title").figure
    axes = figure.axes[1]
    assert axes.get_xlim()[1] < 20 * 1000  # the largest fleet has 1,000 taxis
    assert any(list(line.get_xdata()) == [enough, enough] for line in axes.get_lines()) == drawn_there
    (told,) = axes.get_legend().get_texts()
    assert ("are enough" in told.get_text(), "beyond the axis" in told.get_text()) == (enough < math.inf, enough == 6e8)


def test_taxis_on_the_map_are_a_recorded_fleet(drawn: Path, runs: Runs) -> None:
    """Figure 6b: demand, mean field and the largest fleet, cell by cell."""
    rows = table(drawn / "figure_6b.csv")
    group = Group([RecordedRun.read(runs["safe"]), RecordedRun.read(runs["safe again"])])
    agent = group.middle.agent
    rollout = FleetSimulator(agent.mdp, 1000, seed=0).rollout(agent.policy)  # type: ignore[arg-type]
    assert [float(row["1000 taxis"]) for row in rows] == pytest.approx(rollout.distributions[-1].tolist())
    assert [float(row["mean field"]) for row in rows] == pytest.approx(last_fleets(group.middle.folder)[-1].tolist(), abs=1e-7)


def test_finite_episodes_are_those_of_the_tables(drawn: Path, runs: Runs) -> None:
    """Figure 7: every step's divergence, margin and violations, of fleets with at least a taxi per cell."""
    rows = table(drawn / "figure_7.csv")
    middle = Group([RecordedRun.read(runs["safe"]), RecordedRun.read(runs["safe again"])]).middle
    recorded = table(middle.folder / FLEET_FILE)
    assert [(row["taxis"], row["step"]) for row in rows] == [(size, str(t)) for size in ("100", "1000") for t in (1, 2, 3)]
    for row in rows:
        same = [one for one in recorded if one["taxis"] == row["taxis"]]
        margins = [float(one[f"margin_{row['step']}"]) for one in same]
        assert float(row["margin"]) == pytest.approx(np.mean(margins))
        assert float(row["kl"]) == pytest.approx(np.mean([float(one[f"kl_{row['step']}"]) for one in same]))
        assert int(row["runs_violating"]) == sum(margin < 0 for margin in margins)
        shares = entropy_fraction(last_fleets(middle.folder)[int(row["step"])])
        assert float(row["margin_mean_field"]) == pytest.approx((float(shares) - 0.8) * math.log(25), abs=1e-4)


# -- what is missing ----------------------------------------------------------------------------------------------------------


def commands(report: str) -> list[list[str]]:
    """The training commands that a report names, without the program."""
    return [shlex.split(line)[1:] for line in report.splitlines() if line.strip().startswith("safe-m3 train")]


def test_missing_runs_are_named_and_their_commands_make_them(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one run, all but 2 and 4 say what they lack; the very commands they print make the runs that they need."""
    only = tmp_path / "only"
    shutil.copytree(runs["safe"], only)
    (only / FLEET_FILE).unlink()
    report = paper_figures([only], tmp_path / "out")
    for name in ("3a", "3b", "5a", "5b", *OF_FLEETS):
        assert f"figure {name}: not drawn, runs are missing" in report
        assert not list((tmp_path / "out").glob(f"figure_{name}*"))
    for name in ("2", "4"):
        assert is_a_picture(tmp_path / "out" / f"figure_{name}.png")
    made = []
    for command in commands(report):
        folder = Path(command[command.index("--out") + 1])
        if folder not in made:
            main(command)
            made.append(folder)
    capsys.readouterr()
    config = json.loads((only / "run.json").read_text())["config"]
    for folder in made:  # nothing but what was to be changed is changed
        other = json.loads((folder / "run.json").read_text())["config"]
        assert len([name for name in config if config[name] != other[name]]) <= 1
    sizes = "--taxis 10 100 1000 10000 100000 1000000 --runs 100"
    assert report.count(f"safe-m3 fleet {only} {sizes}") == len(OF_FLEETS)
    report = paper_figures([only, *made], tmp_path / "out", only=OF_LEARNING)
    assert "not drawn" not in report
    main(["fleet", str(only), "--taxis", "10", "100", "--runs", "2", "--workers", "1"])
    report = paper_figures([only], tmp_path / "out", only=OF_FLEETS)
    assert "not drawn" not in report and "missing for a fuller picture" in report  # the known motion
    assert all(is_a_picture(tmp_path / "out" / f"figure_{name}.png") for name in ALL)


def test_policies_evaluated_at_sizes_of_their_own_make_no_curve(runs: Runs, tmp_path: Path) -> None:
    """Two seeds without a fleet size in common: what is missing is named, and the other figures are drawn all the same."""
    copies = []
    for name, kept in (("safe", "10"), ("safe again", "100")):
        copies.append(tmp_path / name.replace(" ", "-"))
        shutil.copytree(runs[name], copies[-1])
        with (copies[-1] / FLEET_FILE).open(newline="") as file:
            lines = list(csv.DictReader(file))
        with (copies[-1] / FLEET_FILE).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(line for line in lines if line["taxis"] == kept)
    report = paper_figures(copies, tmp_path / "out", only=["6a", "6b"])
    assert "figure 6a: not drawn, runs are missing" in report and "figure 6b: " in report
    assert f"safe-m3 fleet {copies[0]} {copies[1]} --taxis 10 100" in report
    assert is_a_picture(tmp_path / "out" / "figure_6b.png")


def test_an_axis_tells_how_long_a_step_is(runs: Runs) -> None:
    """A quarter of an hour, unless the city's trips were cut into longer or shorter slices."""
    world = SafeM3UCRL.load(runs["known"]).mdp
    assert isinstance(world, TaxiMDP)
    assert step_axis(world) == "step of the episode, a quarter of an hour each"
    hours = replace(world.scenario, provenance={"window": ("00:00", "24:00"), "steps": 24})
    assert step_axis(TaxiMDP(hours)) == "step of the episode, 60 minutes each"


def test_a_figure_that_lacks_the_learner_asks_for_it(runs: Runs, tmp_path: Path) -> None:
    """Runs of a known motion alone: the missing run is one that learns, with everything else the same."""
    report = paper_figures([runs["known"]], tmp_path, only=["3a"])
    (command,) = commands(report)
    assert "not drawn" in report and "--model" not in command
    assert command[command.index("--bptt.epochs") + 1] == "4" and command[command.index("--cells") + 1] == "5"


def test_seeds_that_are_missing_are_named(runs: Runs, tmp_path: Path) -> None:
    """Where there are several seeds of one curve, the others should have them too."""
    report = paper_figures([runs["safe"], runs["safe again"]], tmp_path, only=["3a"])
    assert "and the same with --seed 1, each with an --out of its own" in report


def test_a_city_of_ones_own_is_named_by_its_file(runs: Runs, tmp_path: Path) -> None:
    """A scenario that is not built in is trained on from the file in the run's folder."""
    from mf_taxi_env import load_scenario

    city = load_scenario("synthetic:3", cells=5)
    path = city.save(tmp_path / "mine.npz")
    run = train(tmp_path / "run", "--scenario", str(path), floor=0.6)
    (command,) = commands(paper_figures([run], tmp_path / "out", only=["3b"]))
    named = command[command.index("--scenario") + 1]
    assert Path(named) == run / "scenario.npz" or named == city.name


def test_a_world_that_no_command_makes_is_said_so(
    make_world: Callable[..., TaxiMDP], tiny: object, runs: Runs, tmp_path: Path
) -> None:
    """Worlds made with the library may have what the command line has not: that is told instead of a wrong command."""
    agent = SafeM3UCRL(make_world(reward_timing="current"), tiny)  # type: ignore[arg-type]
    with RunFolder(tmp_path / "run") as folder:
        agent.learn(2, callback=folder)
    report = paper_figures([tmp_path / "run"], tmp_path / "out", only=["3a", "3b"])
    assert not commands(report) and "no command makes such a run, only the library" in report
    assert "constrained=False" in report and "model='known'" in report


def test_a_floor_of_another_constant_is_another_world(make_world: Callable[..., TaxiMDP], tiny: object, tmp_path: Path) -> None:
    """Of the command line's floors the tightening's constant is the default: its runs would never be what is asked for."""
    world = make_world(constraints=[EntropyFloor(0.8, lipschitz=0.5)])
    assert with_floor(world, 0.7).constraints == (EntropyFloor(0.7, lipschitz=0.5),)
    agent = SafeM3UCRL(world, tiny)  # type: ignore[arg-type]
    with RunFolder(tmp_path / "run") as folder:
        agent.learn(2, callback=folder)
    report = paper_figures([tmp_path / "run"], tmp_path / "out", only=["3a"])
    assert not commands(report) and "no command makes such a run, only the library" in report


def test_runs_from_another_policy_are_no_seeds_of_the_others(
    make_world: Callable[..., TaxiMDP], tiny: object, tmp_path: Path
) -> None:
    """One that was handed a policy began elsewhere: it neither counts as a second seed nor as the same run twice."""
    world = make_world()
    given = FieldPolicy.of_actions(world, 0.01 * torch.ones(25, 2))
    for name, first in (("plain", None), ("handed", given)):
        agent = SafeM3UCRL(world, tiny, first=first)  # type: ignore[arg-type]
        with RunFolder(tmp_path / name) as folder:
            agent.learn(1, callback=folder)
    groups = read_groups([tmp_path / "plain", tmp_path / "handed"])
    assert [group.seeds for group in groups] == [[0], [0]] and {group.first is None for group in groups} == {True, False}
    shutil.copytree(tmp_path / "handed", tmp_path / "again")
    with pytest.raises(ValueError, match="hold the same run"):
        read_groups([tmp_path / "handed", tmp_path / "again"])


# -- grouping -----------------------------------------------------------------------------------------------------------------


def test_runs_group_by_everything_but_the_seed(runs: Runs) -> None:
    """Two seeds are one group; model, constraint, floor and representative agents each make another."""
    groups = read_groups(runs.values())
    assert [group.seeds for group in groups] == [[0, 1], *([[0]] * (len(runs) - 2))]
    assert {run.folder for group in groups for run in group.runs} == set(runs.values())


def test_the_run_that_stands_for_a_group_is_the_median(runs: Runs) -> None:
    """Neither the best nor the worst seed is shown as typical."""
    group = Group([RecordedRun.read(runs["safe"]), RecordedRun.read(runs["safe again"])])
    worse = min(group.runs, key=lambda run: run.history[-1].reward)
    assert group.middle is worse  # the lower of two


def test_curves_end_with_the_shortest_run(runs: Runs, tmp_path: Path) -> None:
    """Of runs of different length the episodes that all have are drawn: no seed drops out on the way."""
    short = tmp_path / "short"
    shutil.copytree(runs["safe again"], short)
    lines = (short / HISTORY_FILE).read_text().splitlines(keepends=True)
    (short / HISTORY_FILE).write_text("".join(lines[:-1]))
    paper_figures([runs["safe"], short, runs["known"]], tmp_path / "out", only=["3a"])
    rows = table(tmp_path / "out" / "figure_3a.csv")
    assert [row["seeds"] for row in rows] == ["2"] * (EPISODES - 1) + ["1"] * EPISODES


# -- options and mistakes -----------------------------------------------------------------------------------------------------


def test_only_and_format(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only what is asked for is drawn, in every format asked for; what was drawn is told with its runs."""
    folders = [str(runs[name]) for name in ("safe", "known")]
    main(["figures", *folders, "--out", str(tmp_path / "new" / "out"), "--only", "3a", "4", "--format", "pdf", "svg"])
    shown = capsys.readouterr().out
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == {
        *("figure_3a.pdf", "figure_3a.svg", "figure_3a.csv"),
        *("figure_4.pdf", "figure_4.svg", "figure_4.csv"),
    }
    assert (tmp_path / "new" / "out" / "figure_3a.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in (tmp_path / "new" / "out" / "figure_4.svg").read_text()
    assert re.findall(r"^figure (\w+):", shown, re.MULTILINE) == ["3a", "4"]
    assert f"motion known: {runs['known']}" in shown


def test_the_same_runs_give_the_same_numbers(runs: Runs, drawn: Path, tmp_path: Path) -> None:
    """Bands are resampled from a fixed seed, and the order of the folders does not matter."""
    main(["figures", *map(str, reversed(runs.values())), "--out", str(tmp_path), "--judge-floor", "0.8"])
    for path in drawn.glob("*.csv"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the command refuses."""
    with pytest.raises(SystemExit) as caught:
        main(["figures", *arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("safe-m3: error: ") and "\n" not in error
    return error


def test_mistakes_are_explained(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No run, half a run, the same run twice, a floor out of range: one line each, naming the folder or the argument."""
    out = ("--out", str(tmp_path / "out"))
    safe = str(runs["safe"])
    assert f"no run at {tmp_path}" in refusal(capsys, str(tmp_path), *out)
    assert "judge_floor must lie between 0 and 1" in refusal(capsys, safe, *out, "--judge-floor", "85")
    copy = tmp_path / "copy"
    shutil.copytree(runs["safe"], copy)
    error = refusal(capsys, safe, str(copy), *out)
    assert "hold the same run, seed 0" in error and safe in error and str(copy) in error
    (copy / HISTORY_FILE).unlink()
    assert f"{copy} holds no whole run: it has no history.csv" in refusal(capsys, str(copy), *out)
    (copy / HISTORY_FILE).write_text("a,b\n")
    assert "not a table of episodes" in refusal(capsys, str(copy), *out)
    assert "runs must name at least one folder" in refusal(capsys, *out)
    assert not (tmp_path / "out").exists()


# -- statistics ---------------------------------------------------------------------------------------------------------------


def seeds(least: int = 1) -> st.SearchStrategy[NDArray[np.float64]]:
    """Some numbers of some seeds."""
    shape = st.tuples(st.integers(least, 12), st.integers(1, 4))
    return shape.flatmap(lambda size: arrays(np.float64, size, elements=st.floats(-100, 100)))


@settings(max_examples=30, deadline=None)
@given(values=seeds())
def test_interquartile_mean_is_the_trimmed_mean(values: NDArray[np.float64]) -> None:
    """A quarter is cut off at either end, as SciPy does it."""
    assert np.allclose(interquartile_mean(values), trim_mean(values, 0.25, axis=0))


@settings(max_examples=30, deadline=None)
@given(values=seeds(), shift=st.floats(-10, 10))
def test_intervals_hold_the_mean_and_move_with_the_data(values: NDArray[np.float64], shift: float) -> None:
    """The band lies within the seeds' range; a shift of the data shifts it; one seed is a point."""
    result, moved = summary(values), summary(values + shift)
    assert (result.low >= values.min(0) - 1e-9).all() and (result.high <= values.max(0) + 1e-9).all()
    assert np.allclose(moved.low, result.low + shift) and np.allclose(moved.high, result.high + shift)
    if len(values) == 1:
        assert np.array_equal(result.low, values[0]) and np.array_equal(result.high, values[0])


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Ten Gaussian seeds: nominal 95 % bands hold the true centre in most of 300 repetitions (a bootstrap of ten is narrow)."""
    values = np.random.default_rng(0).normal(size=(10, 300))
    result = summary(values)
    covered = ((result.low <= 0) & (result.high >= 0)).mean()
    assert 0.85 <= covered <= 0.98


def test_the_frontier_rises_with_the_floor(make_world: Callable[..., TaxiMDP]) -> None:
    """More spread costs more divergence; below the demand's own entropy it costs nothing."""
    world = make_world(floor=0.8)
    floors, least = frontier(world, world.scenario.demand_entropy - 0.05)
    assert (np.diff(floors) > 0).all() and (np.diff(least) >= -1e-6).all() and floors[-1] < 1.0
    assert least[0] == pytest.approx(0.0, abs=1e-5) and least[-1] > 0.1


def test_a_violation_is_drawn(runs: Runs, tmp_path: Path) -> None:
    """An episode with a violation carries its mark: the count is in the numbers of figure 3a."""
    changed: Sequence[Path] = [tmp_path / "violating", runs["known"]]
    shutil.copytree(runs["safe"], changed[0])
    rows = table(changed[0] / HISTORY_FILE)
    rows[1] |= {"violations": "2", "score": "nan", "min_margin": "-0.1"}
    with (changed[0] / HISTORY_FILE).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    paper_figures(changed, tmp_path / "out", only=["3a"])
    drawn = table(tmp_path / "out" / "figure_3a.csv")
    assert [row["runs_with_violation"] for row in drawn[:EPISODES]] == ["0", "1", "0"]
    assert not math.isnan(float(drawn[1]["return"]))
