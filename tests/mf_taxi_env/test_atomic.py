"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mf_taxi_env.atomic import ABANDONED, replacing

#: A process that is in the middle of a write to its argument, and says so.
WRITER = """
import sys, time
from pathlib import Path
from mf_taxi_env.atomic import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half a che")
    print("writing", flush=True)
    time.sleep(120)
"""


def write(target: Path, text: str) -> None:
    """Replace a file."""
    with replacing(target) as temporary:
        temporary.write_text(text)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """After the block the target holds the new content, and nothing else lies beside it."""
    target = tmp_path / "metrics.json"
    target.write_text("old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_content_is_flushed_through_a_handle_that_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows others are refused; here the mode of the handle tells."""
    fcntl = pytest.importorskip("fcntl")
    modes = []
    monkeypatch.setattr(os, "fsync", lambda file: modes.append(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE))
    write(tmp_path / "metrics.json", "new")
    assert modes == [os.O_RDWR]
    assert (tmp_path / "metrics.json").read_text() == "new"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """A full disk in the middle of writing: the old content stays, the half file goes."""
    target = tmp_path / "metrics.json"
    target.write_text("old")

    def fill_the_disk() -> None:
        with replacing(target) as temporary:
            temporary.write_text("ne")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fill_the_disk()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(sys.platform == "win32", reason="whether a process lives is not asked there")
def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    """As long as the writer lives its half file is its own; once it is killed, the next write to that target clears it away."""
    target, neighbour = tmp_path / "checkpoint", tmp_path / "checkpoint.json"
    target.write_text("old")
    with subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "writing\n"
            (half,) = set(tmp_path.iterdir()) - {target}
            write(target, "new")
            assert half.read_text() == "half a che", "a living process's"
        finally:
            process.kill()
    assert target.read_text() == "new" and half.exists()
    write(neighbour, "{}")
    assert half.exists(), "another target's"
    write(target, "newer")
    assert set(tmp_path.iterdir()) == {target, neighbour} and target.read_text() == "newer"


def test_another_machines_half_file_is_its_own_for_a_day(tmp_path: Path) -> None:
    """Its process cannot be asked after, whatever lives or died under that number here; what is untouched for long is left."""
    target, half = tmp_path / "checkpoint", tmp_path / ".checkpoint.00000000.999999999.1.tmp"
    half.touch()
    write(target, "new")
    assert half.exists()
    before = time.time() - ABANDONED - 60
    os.utime(half, (before, before))
    write(target, "newer")
    assert list(tmp_path.iterdir()) == [target]


def test_the_content_reaches_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is flushed is the new file, while the name still leads to the old one."""
    target, at = tmp_path / "metrics.json", []
    target.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda file: at.append((target.read_text(), os.pread(file, 9, 0))))
    write(target, "new")
    assert at == [("old", b"new")]


def test_a_disk_that_is_full_only_when_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network disks and quotas refuse late: the old content stays all the same."""
    target = tmp_path / "metrics.json"
    target.write_text("old")

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(target, "new")
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]
