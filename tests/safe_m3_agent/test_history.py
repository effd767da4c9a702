"""The record of what happened."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest

from safe_m3_agent import Episode, History

FIRST = Episode(0, math.nan, -5.25, 0.4, 0, 0.0, False, math.nan, 0.43, 3.5, 0.9, 1.0, 0.3, 1.5)
SECOND = Episode(1, -1.1, -2.0, -0.01, 2, math.nan, True, 0.1 + 0.2, 0.02, 4.25, math.nan, 0.96, 0.3, 0.5)


@pytest.fixture
def history() -> History:
    """Two episodes, the second with a violation."""
    return History([FIRST, SECOND])


def test_is_a_sequence(history: History) -> None:
    """Indices, slices, iteration and length work as on any sequence."""
    assert len(history) == 2 and list(history) == [FIRST, SECOND]
    assert history[-1] is SECOND
    assert isinstance(history[:1], History) and list(history[:1]) == [FIRST]


def test_equality_sees_everything_but_the_duration(history: History) -> None:
    """A NaN equals a NaN, a duration does not matter, and any other difference counts."""
    assert replace(FIRST, seconds=99.0) == FIRST and hash(replace(FIRST, seconds=99.0)) == hash(FIRST)
    for field in fields(Episode):
        if field.name != "seconds":
            assert replace(FIRST, **{field.name: 7}) != FIRST, field.name
    assert replace(FIRST, reward=math.nextafter(FIRST.reward, 0.0)) != FIRST
    assert history == History([FIRST, SECOND]) != History([FIRST])
    assert FIRST != "episode"


def test_violations_count_episodes(history: History) -> None:
    """Two bad steps in one episode are one episode with a violation."""
    assert history.violations == 1
    assert History([FIRST]).violations == 0


def test_columns(history: History) -> None:
    """One attribute over all episodes; a typo lists the names."""
    assert history.column("reward") == [-5.25, -2.0]
    with pytest.raises(ValueError, match=r"no column 'rewards'.*'reward'"):
        history.column("rewards")


def test_csv_holds_every_number_exactly(history: History, tmp_path: Path) -> None:
    """One row per episode, no digit lost, nothing left over beside the file."""
    history.to_csv(tmp_path / "history.csv")
    with (tmp_path / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [field.name for field in fields(Episode)]
    for row, episode in zip(rows, history, strict=True):
        assert all(value == str(getattr(episode, name)) for name, value in row.items())
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


def test_a_failed_csv_leaves_the_old_one(history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle of writing costs the new table, not the old one."""
    target = tmp_path / "history.csv"
    history[:1].to_csv(target)
    before = target.read_text()

    def full(self: Path, text: str, *args: object) -> int:
        self.write_bytes(text[:20].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        history.to_csv(target)
    assert target.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


def test_records_survive_json(history: History) -> None:
    """What a checkpoint keeps gives back an equal history, NaN and all digits included."""
    again = History.from_records(json.loads(json.dumps(history.records())))
    assert again == history
    assert again[1].seconds == 0.5
    assert again[1].worst_margin == 0.1 + 0.2


def test_a_table_gives_back_the_history(history: History, tmp_path: Path) -> None:
    """What was written is what is read: numbers to the last bit, NaN, truth values."""
    history.to_csv(tmp_path / "h.csv")
    loaded = History.from_csv(tmp_path / "h.csv")
    assert loaded == history and loaded[1].certified is True and loaded[0].seconds == FIRST.seconds
    assert isinstance(loaded[0].episode, int)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("reward", "award", "lacks the columns \\['reward'\\]"),
        ("-5.25", "much", "could not convert"),
        ("True", "maybe", "maybe"),
    ],
)
def test_a_damaged_table_is_refused(history: History, tmp_path: Path, before: str, after: str, message: str) -> None:
    """A column that is gone and a value that is none are told with the file's name."""
    path = tmp_path / "h.csv"
    history.to_csv(path)
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(ValueError, match=message) as caught:
        History.from_csv(path)
    assert str(path) in str(caught.value)
