"""Runs of the benchmark: what is recorded, and that neither kills nor crashes nor other machines change a number."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from baselines import algorithm, cli
from baselines.curve import Row
from baselines.plans import Benchmark
from baselines.run_folder import LockedError, RecordedRun, Result, locked, read_result, read_run
from baselines.runner import LIBRARIES, Refused, run_all
from mf_taxi_env import TaxiMDP, load_scenario, score
from mf_taxi_env.fleet_metrics import METRICS
from safe_m3_agent import Config

Run = Callable[..., SimpleNamespace]
DRIFT_FOLDER = Path("synthetic-k5") / "drift"


def without_times(run: RecordedRun) -> list[Row | Result]:
    """A run's numbers but for those of the clock; no two of its policies earn the same, and none of them violates."""
    assert run.result is not None
    assert len({row.score for row in run.rows}) == len(run.rows) and not any(row.violations for row in run.rows)
    return [dataclasses.replace(one, seconds=0.0) for one in (*run.rows, run.result)]


@pytest.fixture
def undisturbed(run: Run, drift: Path, quick: tuple[object, ...], tmp_path: Path) -> Callable[[int], RecordedRun]:
    """Runs of the script that nothing happens to, by seed."""

    def get(seed: int) -> RecordedRun:
        options = ("--algorithms", f"{drift}:drift", *quick, "--first-seed", seed, "--out", tmp_path / "undisturbed")
        assert run("run", *options).status == 0
        return read_run(tmp_path / "undisturbed" / DRIFT_FOLDER / f"seed-{seed}")

    return get


def test_a_run_is_recorded_whole(run: Run, drift: Path, quick: tuple[object, ...], tmp_path: Path) -> None:
    """Settings, provenance, a row per record, the judged policy with and without fleets, its distributions."""
    told = run(
        "run", "--algorithms", "stay", f"{drift}:drift", *quick, "--taxis", 500, "--fleet-runs", 2, "--out", tmp_path / "out"
    )
    assert told.status == 0, told.err
    assert "2 = 2 algorithms x 1 city x 1 seed" in told.out and "0 finished, 0 begun; 2 to go" in told.out
    assert "synthetic-k5/drift/seed-0  score" in told.out and "2 of 6 episodes violated" in told.out
    folder = tmp_path / "out" / DRIFT_FOLDER / "seed-0"
    recorded = read_run(folder)
    assert [row.env_steps for row in recorded.rows] == [12, 24, 36, 48, 60, 72]
    assert [row.violated for row in recorded.rows] == [0, 0, 1, 1, 1, 2]
    seconds = [row.seconds for row in recorded.rows]
    assert seconds == sorted(seconds) and seconds[0] > 0
    facts = recorded.settings
    assert (facts.algorithm, facts.scenario, facts.seed, facts.env_steps, facts.taxis) == ("drift", "synthetic", 0, 72, 500)
    assert facts.world["cells"] == 5 and len(facts.world["scenario"]["sha256"]) == 64 and len(facts.source or "") == 64
    (start,) = recorded.starts
    assert start["machine"]["threads"] == 1 and start["versions"]["torch"] and start["at_a_time"] == 1
    assert 0 < start["reference_seconds"] < 60
    assert start["load"] is None or (len(start["load"]) == 3 and min(start["load"]) >= 0)
    result = recorded.result
    assert result is not None and (result.env_steps, result.episodes, result.violated) == (72, 6, 2)
    assert result.seconds >= seconds[-1]
    world = TaxiMDP(load_scenario("synthetic", 5), reward_timing="next")
    kept = np.load(folder / "distributions.npz")
    assert kept["mean_field"].shape == (13, 25) and kept["fleets"].shape == (2, 13, 25)
    assert score(kept["mean_field"][1:], world) == pytest.approx(result.score) != 0
    assert result.fleet is not None and result.fleet.keys() == {*METRICS, "violated", "corrected"} - {"residents_in_reach"}
    assert not (folder / "error.txt").exists() and (folder / "work" / "episode").read_text() == "6"
    staying = read_run(tmp_path / "out" / "synthetic-k5" / "stay" / "seed-0").result
    assert staying is not None and staying.score == pytest.approx(0.0, abs=1e-6)
    assert staying.stay_margin == staying.min_margin == result.stay_margin != result.min_margin
    assert staying.reward == pytest.approx(staying.stay) and staying.bound == result.bound > result.reward


def test_finished_runs_are_not_run_again(run: Run, drift: Path, quick: tuple[object, ...], tmp_path: Path) -> None:
    """More seeds are added to what is there, and nothing of that is touched."""
    options = ("--algorithms", f"{drift}:drift", *quick, "--out", tmp_path / "out")
    assert run("run", *options).status == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    told = run("run", *options, "--seeds", 2)
    assert told.status == 0 and "1 finished, 0 begun; 1 to go" in told.out and "1/1  synthetic-k5/drift/seed-1" in told.out
    assert all(path.read_bytes() == content for path, content in before.items())
    assert run("run", *options, "--seeds", 2).out.count("seed-") == 0


def test_a_crash_ends_its_own_run_alone(
    run: Run, drift: Path, quick: tuple[object, ...], tmp_path: Path, undisturbed: Callable[[int], RecordedRun]
) -> None:
    """The traceback is in the folder and in the summary, the exit status says so, and the same command mends it."""
    drift.with_name("plan").write_text("0 3 crash")
    options = ("run", "--algorithms", f"{drift}:drift", "stay", *quick, "--seeds", 2, "--out", tmp_path / "out")
    told = run(*options)
    folder = tmp_path / "out" / DRIFT_FOLDER / "seed-0"
    assert told.status == 1 and "1 failed" in told.out and str(folder / "error.txt") in told.out
    assert "ArithmeticError: as planned" in (folder / "error.txt").read_text()
    assert "3 of 4 runs are finished" in told.out and not (folder / "result.json").exists()
    told = run(*options)
    assert told.status == 0 and "3 finished, 1 begun; 1 to go" in told.out
    assert not (folder / "error.txt").exists()
    assert without_times(read_run(folder)) == without_times(undisturbed(0))


def test_a_lost_worker_loses_nothing(
    run: Run, drift: Path, quick: tuple[object, ...], tmp_path: Path, undisturbed: Callable[[int], RecordedRun]
) -> None:
    """A worker that the kernel kills is replaced, and its run goes on to the result it would have had."""
    drift.with_name("plan").write_text("1 4 kill")
    told = run("run", "--algorithms", f"{drift}:drift", *quick, "--seeds", 2, "--workers", 3, "--out", tmp_path / "out")
    assert told.status == 0 and "2 at a time" in told.out, told.out
    for seed in (0, 1):
        recorded = read_run(tmp_path / "out" / DRIFT_FOLDER / f"seed-{seed}")
        assert [start["at_a_time"] for start in recorded.starts] == [2] * (1 + seed), "two runs take two workers of three"
        assert without_times(recorded) == without_times(undisturbed(seed))


def test_a_killed_benchmark_goes_on(
    run: Run, drift: Path, quick: tuple[object, ...], tmp_path: Path, undisturbed: Callable[[int], RecordedRun]
) -> None:
    """The whole process is killed in the middle of a run; the same command then comes to the same numbers and adds up time."""
    drift.with_name("plan").write_text("0 4 wait")
    options = ["run", "--algorithms", f"{drift}:drift", *map(str, quick), "--out", str(tmp_path / "out")]
    process = subprocess.Popen([sys.executable, "-m", "baselines", *options], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not drift.with_name("waiting").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    folder = tmp_path / "out" / DRIFT_FOLDER / "seed-0"
    while True:  # its worker ends by itself
        with contextlib.suppress(LockedError), locked(folder):
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed = read_run(folder)
    assert killed.result is None and killed.error is None and [row.env_steps for row in killed.rows] == [12, 24, 36, 48]
    with (folder / "curve.csv").open("a") as file:
        file.write("60,0.1,5,")  # a kill in the middle of a line
    told = run(*options)
    assert told.status == 0 and "0 finished, 1 begun; 1 to go" in told.out
    recorded = read_run(folder)
    assert without_times(recorded) == without_times(undisturbed(0))
    assert recorded.rows[:4] == killed.rows, "time goes on from the last row kept"
    assert recorded.rows[4].seconds > killed.rows[3].seconds and len(recorded.starts) == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"budget": None}, "env_steps (72 there, 84 now)"),
        ({"taxis": 10, "fleet_runs": 1}, "taxis (0 there, 10 now), fleet_runs (0 there, 1 now)"),
    ],
)
def test_other_settings_are_refused(benchmark_of: Callable[..., Benchmark], changes: dict[str, Any], named: str) -> None:
    """Before anything runs, naming what differs: a table must not mix them."""
    first = benchmark_of("stay")
    cities = first.cities()
    assert [result is not None for _, result in run_all(first.plans(cities), cities, "cpu", workers=1, isolated=False)] == [
        True
    ]
    if "budget" in changes:
        changes = {"budget": dataclasses.replace(first.budget, env_steps=84)}
    other = benchmark_of("stay", **changes)
    with pytest.raises(ValueError, match="a run of other settings") as caught:
        other.plans(cities)
    assert named in str(caught.value) and "seed-0" in str(caught.value)


def test_a_changed_script_is_another_algorithm(run: Run, drift: Path, quick: tuple[object, ...], tmp_path: Path) -> None:
    """A result is of the script as it was: it is not taken for that of another version."""
    options = ("run", "--algorithms", f"{drift}:drift", *quick, "--out", tmp_path / "out")
    assert run(*options).status == 0
    drift.write_text(drift.read_text() + "\n# better\n")
    told = run(*options)
    assert told.status == 2 and "source (" in told.err and "--out" in told.err


def test_a_script_that_changes_meanwhile_is_refused(benchmark_of: Callable[..., Benchmark], drift: Path) -> None:
    """After the runs were planned it is another algorithm, and its numbers are not those of the version that was asked for."""
    benchmark = benchmark_of(f"{drift}:drift", seeds=[0, 1])
    cities = benchmark.cities()
    plans = benchmark.plans(cities)
    outcomes = run_all(plans, cities, "cpu", workers=1, isolated=False)
    assert next(outcomes)[1] is not None
    drift.write_text(drift.read_text() + "\n# better\n")
    [(_, refusal)] = outcomes
    assert isinstance(refusal, Refused) and "drift is not what it was when the benchmark was started" in refusal.reason
    assert not (plans[1].folder / "error.txt").exists() and not (plans[1].folder / "run.json").exists()


#: The first seed ends its process, others write down what they find in theirs.
RUDE = """
import os, sys
from baselines import Stay
from baselines.algorithm import register

@register("rude")
def rude(task, record):
    if task.seed == 0:
        os._exit(7)
    (task.folder / "found").write_text(f"{os.getpid()} {' '.join(sys.modules)}")
    record(Stay(task.mdp), env_steps=0, episodes=0, violated=0)
    return Stay(task.mdp)
"""


def test_each_run_has_a_process_of_its_own(benchmark_of: Callable[..., Benchmark], tmp_path: Path) -> None:
    """Also with one worker: one that ends it ends no other. What learning imports is there before its clock starts."""
    (tmp_path / "rude.py").write_text(RUDE)
    benchmark = benchmark_of(f"{tmp_path / 'rude.py'}:rude", seeds=[0, 1])
    cities = benchmark.cities()
    first, second = benchmark.plans(cities)
    results = {plan.settings.seed: result for plan, result in run_all([first, second], cities, "cpu", workers=1, retries=0)}
    assert results[0] is None and isinstance(results[1], Result)
    assert "its worker was lost 1 times, last with exit code 7" in (first.folder / "error.txt").read_text()
    process, *modules = (second.folder / "work" / "found").read_text().split()
    assert int(process) != os.getpid()
    assert {name for name in LIBRARIES if importlib.util.find_spec(name)} <= set(modules)


#: Learns without a step, and saves how far it is; the first time it crashes.
PLANNER = """
import time
from baselines import Stay
from baselines.algorithm import register

@register("planner")
def planner(task, record):
    saved, crashed = task.folder / "saved", task.folder.parent / "crashed"
    left = True
    while left and len(saved.read_text() if saved.exists() else "") < 4:
        time.sleep(0.02)
        left = record(Stay(task.mdp), env_steps=0, episodes=0, violated=0)
        with saved.open("a") as file:
            file.write(".")
        if not crashed.exists() and len(saved.read_text()) == 3:
            crashed.touch()
            raise ArithmeticError("as planned")
    return Stay(task.mdp)
"""


def test_a_planner_has_its_time_once(run: Run, quick: tuple[object, ...], tmp_path: Path) -> None:
    """It makes no steps: what it saved tells that it goes on, and curve and time with it."""
    (tmp_path / "planner.py").write_text(PLANNER)
    options = ("run", "--algorithms", f"{tmp_path / 'planner.py'}:planner", *quick, "--out", tmp_path / "out")
    assert [run(*options).status for _ in range(2)] == [1, 0]
    seconds = [row.seconds for row in read_run(tmp_path / "out/synthetic-k5/planner/seed-0").rows]
    assert len(seconds) == 3 and seconds == sorted(seconds) and seconds[-1] >= 3 * 0.02


def test_a_built_in_algorithm_with_other_settings_is_another(
    benchmark_of: Callable[..., Benchmark], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that changes an algorithm's settings does not take an old result for its own; two algorithms differ, too."""
    cities = benchmark_of("stay").cities()
    (plan,) = benchmark_of("safe-m3").plans(cities)
    (other,) = benchmark_of("safe-m3-ddpg").plans(cities)
    assert plan.settings.source is not None and plan.settings.source != other.settings.source
    before = algorithm.algorithms()["safe-m3"]
    changed = dataclasses.replace(before, settings=Config(model="gp", beta=4.0))
    monkeypatch.setitem(algorithm._ALGORITHMS, "safe-m3", changed)
    (again,) = benchmark_of("safe-m3").plans(cities)
    assert again.settings.source not in (None, plan.settings.source)


def test_cities_of_the_same_name_are_told_apart(benchmark_of: Callable[..., Benchmark], tmp_path: Path) -> None:
    """A file is resampled to the cells asked for; another city under a name that is taken is refused by its fingerprint."""
    load_scenario("synthetic", 10).save(tmp_path / "same.npz")
    built_in = benchmark_of("stay")
    cities = built_in.cities()
    list(run_all(built_in.plans(cities), cities, "cpu", workers=1, isolated=False))
    file = benchmark_of("stay", scenarios=[str(tmp_path / "same.npz")])
    (city,) = file.cities().values()
    assert city.cells == 5
    with pytest.raises(ValueError, match=r"world\.scenario\.sha256"):
        file.plans(file.cities())
    both = benchmark_of("stay", scenarios=["synthetic", str(tmp_path / "same.npz")])
    with pytest.raises(ValueError, match="two of these runs would be recorded in"):
        both.plans(both.cities())


def test_a_run_belongs_to_one_process(benchmark_of: Callable[..., Benchmark], run: Run, quick: tuple[object, ...]) -> None:
    """A worker that outlived its benchmark must not meet its successor in one folder; a process that ends lets go."""
    benchmark = benchmark_of("stay")
    cities = benchmark.cities()
    (plan,) = benchmark.plans(cities)
    plan.folder.mkdir(parents=True)
    hold = f"import fcntl; f = open({str(plan.folder / '.lock')!r}, 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print('held'); input()"
    command = [sys.executable, "-u", "-c", hold]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        ((_, result),) = run_all([plan], cities, "cpu", workers=1, isolated=False)
        told = run("run", "--algorithms", "stay", *quick, "--out", benchmark.out)
        holder.kill()
    assert isinstance(result, Refused) and "another process" in result.reason
    assert {path.name for path in plan.folder.iterdir()} == {".lock", "work"}, "the folder is the other's"
    assert told.status == 1 and "0 of 1 runs are finished" in told.out and f"1 refused:\n  {result.reason}" in told.out
    with locked(plan.folder):
        pass


def full(*arguments: object, **named: object) -> None:
    """The disk takes nothing more."""
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("file", ["result.json", "distributions.npz", "run.json"])
def test_a_full_disk_leaves_no_half_result(
    run: Run, drift: Path, quick: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """A run is finished with a whole result or not at all, and is once there is room."""
    options = ("run", "--algorithms", f"{drift}:drift", *quick, "--out", tmp_path / "out")
    folder = tmp_path / "out" / DRIFT_FOLDER / "seed-0"
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        return full() if Path(target).name == file else replace(self, target)  # type: ignore[func-returns-value]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        told = run(*options)
    assert told.status == 1 and "No space left" in (folder / "error.txt").read_text()
    assert not (folder / "result.json").exists() and not list(folder.glob(".*tmp"))
    assert run(*options).status == 0
    assert read_run(folder).result is not None


def test_a_disk_without_room_for_a_traceback_ends_no_other_run(
    run: Run, drift: Path, quick: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traceback is told at the shell instead, and nothing is left of it; an earlier one stays whole."""
    drift.with_name("plan").write_text("0 3 crash")
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        return full() if Path(target).name == "error.txt" else replace(self, target)  # type: ignore[func-returns-value]

    monkeypatch.setattr(Path, "replace", failing)
    told = run("run", "--algorithms", f"{drift}:drift", *quick, "--seeds", 2, "--out", tmp_path / "out")
    assert told.status == 1 and "1 of 2 runs are finished" in told.out and "drift/seed-1  score" in told.out
    assert "seed-0 failed, and error.txt cannot be written" in told.err and "ArithmeticError: as planned" in told.err
    assert not [path for path in (tmp_path / "out" / DRIFT_FOLDER / "seed-0").iterdir() if "error" in path.name]


def test_ray_and_processes_make_the_same_table(run: Run, drift: Path, quick: tuple[object, ...], tmp_path: Path) -> None:
    """Where runs are carried out changes nothing but times."""
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    tables = {}
    for name, where in {"local": (), "ray": ("--ray", "local")}.items():
        out = tmp_path / name
        options = ("--algorithms", f"{drift}:drift", "stay", *quick, "--seeds", 2, "--taxis", 200, "--fleet-runs", 2)
        told = run("run", *options, "--workers", 2, *where, "--out", out)
        assert told.status == 0, told.out + told.err
        assert run("table", out, "--out", out / "table").status == 0
        lines = list(csv.reader((out / "table" / "leaderboard.csv").read_text().splitlines()))
        timed = [i for i, column in enumerate(lines[0]) if column.startswith(("seconds", "machines"))]
        tables[name] = [[cell for i, cell in enumerate(line) if i not in timed] for line in lines]
    assert len(tables["local"]) == 3 and tables["local"] == tables["ray"]
    starts = read_run(tmp_path / "ray" / DRIFT_FOLDER / "seed-1").starts
    assert starts[0]["at_a_time"] == "ray"


def test_mistakes_are_told_before_anything_runs(run: Run, quick: tuple[object, ...], tmp_path: Path) -> None:
    """Each names the argument, what was given and what is allowed."""
    cases = {
        "algorithm must be one of": ("--algorithms", "no-such"),
        "there is no file": ("--algorithms", "no/such.py:mine"),
        "algorithms must name at least one, and none twice": ("--algorithms", "stay", "stay"),
        "unknown scenario 'atlantis'": ("--algorithms", "stay", "--scenarios", "atlantis"),
        "no scenario file at": ("--algorithms", "stay", "--scenarios", "no.npz"),
        "--seeds must be an integer >= 1": ("--algorithms", "stay", "--seeds", 0),
        "env_steps must be an integer >= 1": ("--algorithms", "stay", "--env-steps", 0),
        "seconds must be a positive number": ("--algorithms", "stay", "--seconds", -1),
        "seconds must be finite": ("--algorithms", "stay", "--seconds", "inf"),
        "taxis must be an integer >= 0": ("--algorithms", "stay", "--taxis", -1),
        "device 'nowhere' is not usable here": ("--algorithms", "stay", "--device", "nowhere"),
        "--ray carries out runs on CPUs": ("--algorithms", "stay", "--device", "cuda", "--ray", "local"),
        "workers must be an integer >= 1": ("--algorithms", "stay", "--workers", 0),
    }
    for message, options in cases.items():
        told = run("run", *quick, "--out", tmp_path / "out", *options)
        assert told.status == 2 and message in told.err, (message, told)
        assert not (tmp_path / "out").exists()
    # A CPU by its number is one as well: what is refused is the number of workers.
    told = run("run", *quick, "--algorithms", "stay", "--device", "cpu:0", "--ray", "local", "--workers", 0)
    assert told.status == 2 and "workers must be an integer >= 1" in told.err
    told = run("table", Path(__file__).parents[2] / "docs" / "leaderboard_runs", "--out", tmp_path / "out", "--format")
    assert told.status == 2 and "formats must name at least one of png, pdf, svg" in told.err
    assert not (tmp_path / "out").exists()


def test_paths_hold_in_any_working_directory(
    benchmark_of: Callable[..., Benchmark], drift: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers of a cluster start elsewhere; commands that are shown to others tell of no folder of this machine."""
    monkeypatch.chdir(drift.parent)
    benchmark = benchmark_of("drift.py:drift", out=Path("runs"))
    (plan,) = benchmark.plans(benchmark.cities())
    assert plan.folder == drift.parent / "runs" / DRIFT_FOLDER / "seed-0" and plan.algorithm == f"{drift}:drift"
    assert plan.asked["algorithm"] == "drift.py:drift"
    elsewhere = benchmark_of(f"{drift}:drift")
    assert elsewhere.plans(elsewhere.cities())[0].asked["algorithm"] == "drift.py:drift"


def test_ctrl_c_says_how_to_go_on(run: Run, quick: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no failure of any run."""

    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("baselines.runner.find_algorithm", interrupted)
        with pytest.raises(SystemExit, match="the same command goes on with what is missing"):
            cli.main(["run", "--algorithms", "stay", *map(str, quick), "--out", str(tmp_path / "out")])
    assert run("run", "--algorithms", "stay", *quick, "--out", tmp_path / "out").status == 0


def test_an_unsafe_zero_is_told(run: Run, quick: tuple[object, ...], tmp_path: Path) -> None:
    """Where staying put violates, a score of 0 is no refuge: before the runs, and on the page of their table."""
    options = ("--algorithms", "stay", *quick, "--out", tmp_path / "out")
    told = run("run", *options)
    assert "margin 0.27" in told.out and "warning" not in told.err
    told = run("run", *options, "--scenarios", "shenzhen")
    assert told.status == 0 and "margin -0.0152 in shenzhen-k5" in told.out
    assert "warning: in shenzhen-k5 staying put violates a constraint" in told.err
    for city, unsafe in (("shenzhen", True), ("synthetic", False)):
        (tmp_path / city).mkdir()
        (tmp_path / "out" / f"{city}-k5").rename(tmp_path / city / f"{city}-k5")
        assert run("table", tmp_path / city, "--out", tmp_path / "table").status == 0
        assert ("Staying put violates" in (tmp_path / "table" / "leaderboard.md").read_text()) is unsafe


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than a traceback."""
    monkeypatch.setattr(cli, "_MISSING", ImportError("No module named 'tyro'"))
    with pytest.raises(SystemExit, match=r"No module named 'tyro'.*pip install 'safe-m3-taxi\[baselines\]'"):
        cli.main(["run"])


def test_an_algorithm_that_records_nothing_fails(run: Run, quick: tuple[object, ...], tmp_path: Path) -> None:
    """There would be no number of steps and no curve."""
    script = tmp_path / "silent.py"
    script.write_text(
        "from baselines import Stay\nfrom baselines.algorithm import register\n"
        "@register('silent')\ndef silent(task, record):\n    return Stay(task.mdp)\n"
    )
    told = run("run", "--algorithms", f"{script}:silent", *quick, "--out", tmp_path / "out")
    assert told.status == 1
    assert "returned without a record" in (tmp_path / "out/synthetic-k5/silent/seed-0/error.txt").read_text()


def test_an_algorithm_that_returns_nothing_fails(run: Run, quick: tuple[object, ...], tmp_path: Path) -> None:
    """What it recorded last need not be what it would return."""
    script = tmp_path / "forgetful.py"
    script.write_text(
        "from baselines import Stay\nfrom baselines.algorithm import register\n"
        "@register('forgetful')\ndef forgetful(task, record):\n"
        "    record(Stay(task.mdp), env_steps=0, episodes=0, violated=0)\n"
    )
    told = run("run", "--algorithms", f"{script}:forgetful", *quick, "--out", tmp_path / "out")
    assert told.status == 1
    error = (tmp_path / "out/synthetic-k5/forgetful/seed-0/error.txt").read_text()
    assert "must have a method field(mu, t), got None; an algorithm records and returns one" in error


def test_damaged_folders_are_named(benchmark_of: Callable[..., Benchmark]) -> None:
    """A file of a run that cannot be read is told by its name, wherever it is read."""
    benchmark = benchmark_of("stay")
    cities = benchmark.cities()
    (plan,) = benchmark.plans(cities)
    list(run_all([plan], cities, "cpu", workers=1, isolated=False))
    for name, damage in {
        "run.json": "{",
        "result.json": '{"score": 1}',
        "curve.csv": "time\n1\n",
    }.items():
        path = plan.folder / name
        whole = path.read_text()
        path.write_text(damage)
        with pytest.raises(ValueError, match=name):
            read_run(plan.folder)
        path.write_text(whole)
    facts = json.loads((plan.folder / "run.json").read_text())
    (plan.folder / "run.json").write_text(json.dumps({**facts, "version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        benchmark.plans(cities)


def test_numbers_survive_the_files(benchmark_of: Callable[..., Benchmark]) -> None:
    """NaN is null in strict JSON and NaN again when read; every digit of a row comes back."""
    benchmark = benchmark_of("stay", scenarios=["shenzhen"])  # on so few cells staying put violates
    cities = benchmark.cities()
    ((plan, result),) = run_all(benchmark.plans(cities), cities, "cpu", workers=1, isolated=False)
    assert result is not None and math.isnan(result.score) and result.violations > 0 and result.min_margin < 0
    assert result.stay_margin == result.min_margin
    assert result.gap is not None and 0 <= result.gap < 0.01, "of the bound that every score goes by"
    facts = json.loads((plan.folder / "result.json").read_text(), parse_constant=pytest.fail)
    assert facts["score"] is None and facts["fleet"] is None
    (row,) = read_run(plan.folder).rows
    assert row.reward == result.reward and row.min_margin == result.min_margin and math.isnan(row.score)
    assert os.listdir(plan.folder / "work") == []
    del facts["stay_margin"], facts["gap"]  # as earlier versions wrote it
    (plan.folder / "result.json").write_text(json.dumps(facts))
    older = read_result(plan.folder)
    assert older is not None and older.stay_margin is older.gap is None and older.stay == result.stay
