"""The code that the documentation shows does what it says: it runs, in order, as a reader would run it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/callbacks.md"])
def test_snippets_run(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every Python block of a page, one after the other in one namespace; a learning run is shortened to one episode."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        code = re.sub(r"episodes=60", "episodes=1", block)
        exec(compile(code, page, "exec"), names)
