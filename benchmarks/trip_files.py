"""Seconds and peak memory of building a scenario from a large trip file, on this machine.

Run: python benchmarks/trip_files.py [--rows 25000000] [--cells 25]

A Parquet file of random trips around a few centres is written to a temporary folder, in parts, and removed afterwards. It is
read by a process of its own, whose peak memory (``resource``: Unix only) is set against that of an idle one and against the
file's size in memory. POLARS_MAX_THREADS=1 shows it on one core.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import tyro

from mf_taxi_env import scenario_from_trips

BOX = (114.015, 114.14, 22.5, 22.625)
WINDOW = ("19:00", "22:00")
#: Rows written at a time.
PART = 1_000_000
#: Bytes per row in memory: a time and four coordinates.
ROW_BYTES = 5 * 8


def main(rows: int = 25_000_000, cells: int = 25, steps: int = 1) -> None:
    """Print the table.

    Args:
        rows: Trips in the file.
        cells: Cells per axis, k.
        steps: Slices of the evening window; 1 takes the whole day.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "trips.parquet"
        # In a process of its own: on Linux a child's peak starts at its parent's.
        subprocess.run([sys.executable, __file__, "write", str(whole), str(rows)], check=True)
        threads = os.environ.get("POLARS_MAX_THREADS", str(os.cpu_count()))
        print(f"polars {pl.__version__}, {threads} threads, k = {cells}, steps = {steps}")
        print(f"rows {rows:,}, file {whole.stat().st_size / 1e6:,.0f} MB, in memory {rows * ROW_BYTES / 1e6:,.0f} MB")
        for name, source in (("idle process", ""), ("scenario_from_trips", str(whole))):
            command = [sys.executable, __file__, "measure", source, str(cells), str(steps)]
            seconds, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            print(f"{name:20} {float(seconds):8.1f} s   peak {float(peak):8,.0f} MB")


def measure(source: str, cells: int, steps: int) -> None:
    """Build, where there is a source, and print seconds and the process's peak memory in MB."""
    start = time.perf_counter()
    if source:
        scenario_from_trips(source, box=BOX, cells=cells, window=WINDOW if steps > 1 else None, steps=steps)
    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kilobytes elsewhere
    print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def write(target: Path, rows: int) -> None:
    """Write a Parquet file of random trips, in parts."""
    folder = target.with_name("parts")
    folder.mkdir()
    for part, start in enumerate(range(0, rows, PART)):
        _random_trips(min(PART, rows - start), part).write_parquet(folder / f"{part:04d}.parquet")
    pl.scan_parquet(folder / "*.parquet").sink_parquet(target)


def _random_trips(rows: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    west, east, south, north = BOX
    centres = np.random.default_rng(0).random((2, 30))
    columns: dict[str, np.ndarray] = {}
    for end in ("pickup", "dropoff"):
        places = centres[:, rng.integers(30, size=rows)] + rng.normal(scale=0.08, size=(2, rows))
        columns[f"{end}_lon"], columns[f"{end}_lat"] = west + (east - west) * places[0], south + (north - south) * places[1]
    seconds = pl.Series(rng.integers(86_400, size=rows))
    return pl.DataFrame(columns).with_columns(pickup_time=pl.datetime(2020, 1, 20) + pl.duration(seconds=seconds))


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1:2] == ["write"]:
        write(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        tyro.cli(main)
