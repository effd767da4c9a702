"""The command mf-taxi: it does what its help says, and bad input ends in one line."""

from __future__ import annotations

import gzip
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

import mf_taxi_env.cli as cli
from mf_taxi_env.scenarios import Scenario, list_scenarios, load_scenario
from mf_taxi_env.scenarios.city import box_km

BOX = ("--box", "-74.0", "-73.9", "40.7", "40.8")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trips() -> str:
    """A small file of trips with column names of its own, times, one row outside the box, and one unreadable row."""
    rng = np.random.default_rng(0)
    points = np.round(np.array([-74.0, 40.7, -74.0, 40.7]) + 0.1 * rng.random((400, 4)), 6)
    rows = [f"2020-01-20 {6 + 6 * (n % 3):02d}:30:00,{','.join(map(str, row))}" for n, row in enumerate(points)]
    rows += ["2020-01-20 18:30:00,-75.0,40.75,-73.95,40.75"]
    with gzip.open("trips.csv.gz", "wt") as file:
        file.write("\n".join(["pickup_time,start_lng,start_lat,dropoff_lon,dropoff_lat", *rows]) + "\n")
    with gzip.open("bad.csv.gz", "wt") as file:
        file.write(
            "\n".join(["pickup_time,start_lng,start_lat,dropoff_lon,dropoff_lat", *rows, "x,y,40.75,-73.95,40.75"]) + "\n"
        )
    return "trips.csv.gz"


COLUMNS = ("--columns", "pickup_lon=start_lng", "--columns", "pickup_lat=start_lat")


def build(source: str, *extra: str) -> int:
    return cli.main(["build", source, *BOX, *COLUMNS, "--cells", "5", "--smoothing", "1", "--out", "city.npz", *extra])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The error, which must be a single line on stderr."""
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("mf-taxi: error: ")
    assert "Traceback" not in captured.err
    return lines[0]


def printed_kl(out: str) -> list[float]:
    """The divergences that `show` prints: of the uniform fleet, and the bound."""
    return [float(line.split("KL ")[1].split()[0]) for line in out.splitlines() if "KL " in line]


def test_scenarios_lists_every_built_in(capsys: pytest.CaptureFixture[str]) -> None:
    """The table has a row per built-in with entropy of demand, floor and area."""
    assert cli.main(["scenarios"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    for name in list_scenarios():
        assert f"{load_scenario(name).demand_entropy:.1%}" in rows[name]
        assert "km" in rows[name]


def test_build_writes_the_scenario_and_reports_rows(trips: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option reaches the scenario; the report says what became of the rows and where the file is."""
    assert build(trips, "--window", "18:00", "19:00", "--entropy-floor", "0.9", "--name", "evening") == 0
    city = Scenario.load("city.npz")
    assert (city.name, city.cells, city.entropy_floor, city.box) == ("evening", 5, 0.9, (-74.0, -73.9, 40.7, 40.8))
    assert city.provenance["rows_outside_window"] == 267
    assert city.provenance["window"] == ["18:00", "19:00"]
    out = capsys.readouterr().out
    assert "401 rows in trips.csv.gz" in out
    assert f"{city.demand_entropy:.1%}" in out
    assert "city.npz" in out


def test_build_spreads_source_cells(trips: str) -> None:
    """--source-cell is two numbers and reaches the scenario."""
    assert build(trips, "--source-cell", "0.02", "0.01") == 0
    assert Scenario.load("city.npz").provenance["source_cell"] == [0.02, 0.01]


def test_build_cuts_the_window_into_steps(trips: str) -> None:
    """--steps reaches the scenario: demand and trips of each slice."""
    assert build(trips, "--window", "06:00", "18:00", "--steps", "2", "--smoothing", "1") == 0
    assert Scenario.load("city.npz").demand.shape == (2, 25)


def test_trips_are_found_in_traces_and_built(capsys: pytest.CaptureFixture[str]) -> None:
    """The report tells the counts, the file feeds build, and an existing file stays unless --overwrite is given."""
    rows = [f"a,19:{n:02d}:00,{-73.99 + n / 1000},40.75,{flag}" for n, flag in enumerate("0110010")]
    Path("gps.csv").write_text("\n".join(["vehicle,time,lon,lat,occupied", *rows]) + "\n")
    command = ("trips", "gps.csv", "--columns", "taxi=vehicle", "--out", "found.csv")
    assert cli.main([*command, "--max-gap", "60"]) == 0
    out = capsys.readouterr().out
    assert "7 rows of 1 taxis" in out and "2 trips" in out and "found.csv" in out
    assert cli.main(["build", "found.csv", *BOX, "--cells", "4", "--smoothing", "1", "--out", "city.npz"]) == 0
    assert Scenario.load("city.npz").provenance["trips"] == 2
    capsys.readouterr()
    assert cli.main(command) == 2
    assert "found.csv exists; replace it with --overwrite" in error_of(capsys)
    assert cli.main([*command, "--overwrite"]) == 0


def test_build_does_not_overwrite_unasked(trips: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An existing file stays as it is unless --overwrite is given, also when .npz was left out."""
    Path("city.npz").write_bytes(b"precious")
    assert build(trips) == 2
    assert "city.npz exists; replace it with --overwrite" in error_of(capsys)
    assert build(trips, "--out", "city") == 2
    assert Path("city.npz").read_bytes() == b"precious"
    assert build(trips, "--overwrite") == 0
    assert Scenario.load("city.npz").cells == 5


def test_bad_rows_are_refused_or_dropped(trips: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Unreadable rows stop the build, with the flag that leaves them out in the message; with it they are counted."""
    assert build("bad.csv.gz") == 2
    message = error_of(capsys)
    assert "1 of 402 rows" in message and "--bad-rows drop" in message
    assert not Path("city.npz").exists()
    assert build("bad.csv.gz", "--bad-rows", "drop") == 0
    assert Scenario.load("city.npz").provenance["bad_rows"] == 1


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--columns", "pickup_lon"), "--columns must be NAME=COLUMN.*'pickup_lon'"),
        (("--columns", "from=start"), "unknown names.*'from'.*allowed.*pickup_lon"),
        (("--columns", "dropoff_lon=end_lng"), "no column 'end_lng' .for dropoff_lon.*Map our names.*--columns NAME=COLUMN"),
        (("--window", "7pm", "10pm"), "window must be two times of day.*7pm"),
        (("--smoothing", "2"), "smoothing must be an odd integer.*2"),
        (("--cells", "0"), "cells must be an integer >= 1, got 0"),
        (("--entropy-floor", "95"), r"entropy_floor must lie in \[0, 1\].*95"),
        (("--box", "-73.9", "-74.0", "40.7", "40.8"), "west < east"),
        (("--box", "0", "1", "0", "1"), "no trip starts in the box"),
        (("--out", "missing/city.npz"), "no folder missing"),
    ],
)
def test_bad_arguments_end_in_one_line(
    trips: str, extra: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was wrong, what was given and what is allowed: one line, status 2, no file."""
    assert build(trips, *extra) == 2
    assert re.search(message, error_of(capsys))
    assert not Path("city.npz").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("build", "none.csv", *BOX, "--out", "a.npz"), "no trip file at none.csv"),
        (("build", "trips.txt", *BOX, "--out", "a.npz"), "trips.txt"),
        (("show", "atlantis"), "unknown scenario 'atlantis'.*shenzhen"),
        (("trips", "none.csv", "--out", "a.csv"), "no trace file at none.csv"),
        (("trips", "none.csv", "--out", "missing/a.csv"), "no folder missing"),
        (("show", "none.npz"), "no scenario file at none.npz"),
        (("show", "shenzhen", "--cells", "0"), "cells must be an integer >= 1, got 0"),
        (("show", "shenzhen", "--cells", "5", "--out", "a.jpg"), ".png, .pdf, .svg, got 'a.jpg'"),
        (("show", "shenzhen", "--out", "missing/a.png"), "no folder missing"),
    ],
)
def test_expected_errors_end_in_one_line(args: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Missing files, unknown names and formats are told without a traceback, and leave no file."""
    assert cli.main(args) == 2
    assert re.search(message, error_of(capsys))
    assert not [path for path in Path().iterdir() if path.suffix in (".npz", ".png", ".jpg", ".tmp")]


def test_show_draws_a_built_in_and_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    """The picture is written where asked, and the path and key figures are printed."""
    pytest.importorskip("cvxpy")
    assert cli.main(["show", "shenzhen", "--cells", "6", "--out", "sheet.png"]) == 0
    assert Path("sheet.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "6 x 6 cells" in out and "sheet.png" in out
    uniform, best = printed_kl(out)
    assert 0 < best < uniform


def test_show_keeps_a_scenario_files_own_grid(trips: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A file is drawn on its own cells unless others are asked for, into a picture of its name in this folder."""
    assert build(trips) == 0
    assert cli.main(["show", "city.npz"]) == 0
    assert "5 x 5 cells" in capsys.readouterr().out
    assert Path("city.png").is_file()
    assert cli.main(["show", "city.npz", "--cells", "3"]) == 0
    assert "3 x 3 cells" in capsys.readouterr().out


def test_show_takes_demand_that_varies_over_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Both divergences are means over steps, not those of the mean demand, whose entropy is called by its name."""
    pytest.importorskip("cvxpy")
    city = load_scenario("shenzhen", cells=4)
    demand = np.stack([city.demand, np.roll(city.demand[::-1], 3) ** 2 / (city.demand**2).sum()])
    day = Scenario("day", demand, city.trips, city.box)
    day.save("day.npz")
    assert cli.main(["show", "day.npz"]) == 0
    out = capsys.readouterr().out
    assert "4 x 4 cells" in out
    uniform, best = printed_kl(out)
    assert uniform == pytest.approx(np.mean([(step * np.log(16 * step)).sum() for step in demand]), abs=1e-4)
    assert uniform > (1 - day.demand_entropy) * np.log(16) + 0.01
    bounds = []
    for step in demand:
        Scenario("step", step, city.trips, city.box).save("step.npz")
        assert cli.main(["show", "step.npz"]) == 0
        bounds.append(printed_kl(capsys.readouterr().out)[1])
    assert best == pytest.approx(np.mean(bounds), abs=3e-4)
    assert f"{day.demand_entropy:.1%} of the largest possible (mean demand of all steps)" in out


def test_show_draws_sparse_trips_with_the_same_figures(capsys: pytest.CaptureFixture[str]) -> None:
    """Dense or sparse, constant or per step: the printed figures are those of the same city."""
    base = load_scenario("shenzhen", cells=4)
    flow = np.where(base.trips > 0.05, base.trips, 0.0) + 1e-3 * np.eye(16)
    flow[3] = np.eye(16)[3]
    rows = flow / flow.sum(1, keepdims=True)
    thin = sparse.csr_array(rows)
    printed = []
    for trips in (rows, thin, np.stack([rows, rows]), (thin, thin)):
        Scenario("city", base.demand, trips, base.box).save("city.npz")
        assert cli.main(["show", "city.npz"]) == 0
        printed.append(capsys.readouterr().out)
    assert len(set(printed)) == 1
    width, height = (side / 4 for side in box_km(base.box))
    x, y = np.divmod(np.arange(16), 4)
    km = np.hypot((x[:, None] - x) * width, (y[:, None] - y) * height)
    some = np.arange(16) != 3
    mean = (base.demand[some] @ (rows * km).sum(1)[some]) / base.demand[some].sum()
    uniform = (base.demand * np.log(16 * base.demand)).sum()
    for figure in (f"{base.demand_entropy:.1%} of the largest possible\n", f"{mean:.2f} km\n", f"KL {uniform:.4f} nats"):
        assert figure in printed[0]


def test_show_draws_a_generated_city_of_a_seed(capsys: pytest.CaptureFixture[str]) -> None:
    """The seed is part of the name; the picture's name has no colon, which is not allowed everywhere."""
    assert cli.main(["show", "synthetic:7", "--cells", "5"]) == 0
    assert "synthetic:7: 5 x 5 cells" in capsys.readouterr().out
    assert Path("synthetic-7.png").is_file()


def test_show_works_without_the_bounds_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without CVXPY everything but the bound is shown, with the way to install it."""
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    assert cli.main(["show", "shenzhen", "--cells", "4"]) == 0
    out = capsys.readouterr().out
    assert "not computed" in out and "safe-m3-taxi[bounds]" in out
    assert Path("shenzhen.png").is_file()


def test_a_missing_extra_is_a_hint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without tyro or matplotlib the user reads how to install them, not a traceback."""
    with monkeypatch.context() as without:
        without.setattr(cli, "_MISSING", ImportError("No module named 'tyro'"))
        assert cli.main(["scenarios"]) == 2
    assert "pip install 'safe-m3-taxi[cli]'" in error_of(capsys)
    monkeypatch.delitem(sys.modules, "mf_taxi_env.render", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    assert cli.main(["show", "shenzhen", "--cells", "4"]) == 2
    assert "pip install 'safe-m3-taxi[cli]'" in error_of(capsys)


@pytest.mark.parametrize("args", [(), ("build",), ("trips",), ("show",), ("scenarios",)])
def test_help_explains_every_command(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Help exits with 0 and explains each argument from the docstring."""
    with pytest.raises(SystemExit) as stop:
        cli.main([*args, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    wanted = {
        (): ("scenarios", "build", "trips", "show"),
        ("trips",): ("--out FILE", "--max-gap SECONDS", "--columns NAME=COLUMN", "Trip file to write"),
        ("build",): ("--box W E S N", "--columns NAME=COLUMN", "Study area in degrees"),
        ("show",): ("SCENARIO", "--out FILE.png", "Picture to write"),
        ("scenarios",): ("--cells",),
    }
    for part in wanted[args]:
        assert part in out


@pytest.mark.parametrize(
    "args", [(), ("paint",), ("show", "shenzhen", "--cells", "ten"), ("build", "trips.csv", "--box", "1", "2")]
)
def test_malformed_command_lines_exit_with_two(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be parsed ends with status 2 and points to the help."""
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert stop.value.code == 2
    assert "--help" in capsys.readouterr().err
