"""Files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from mf_taxi_env.atomic import replacing


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """After the block the target holds the new content, and nothing else lies beside it."""
    target = tmp_path / "metrics.json"
    target.write_text("old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


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
