"""Rendered frames: their format, that they show what they are told, and that no display is touched without being asked."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from numpy.typing import NDArray

from mf_taxi_env.envs.viewer import Frame, Viewer
from mf_taxi_env.grid import Grid

pygame = pytest.importorskip("mf_taxi_env.envs.canvas").pygame

BOX = (114.015, 114.14, 22.5, 22.625)
#: The parts of a frame, rows and columns: map of the demand, map of the fleet, and the readings on the right.
DEMAND, FLEET, SIDE = np.s_[98:426, 24:340], np.s_[98:426, 376:704], np.s_[60:, 720:]


@pytest.fixture(autouse=True)
def _no_display_left() -> Iterator[None]:
    yield
    pygame.display.quit()


def frame(grid: Grid, *, seed: int = 0, **changes: Any) -> Frame:
    rng = np.random.default_rng(seed)
    mu, target = rng.dirichlet(np.ones(grid.size), 2)
    actions = rng.uniform(-0.1, 0.1, (grid.size, grid.dimension))
    values = {"margin": 0.05, "margins": {"entropy": 0.05}, "t": 3, "horizon": 12, "entropy": 0.9, "kl": 0.2} | changes
    return Frame(**({"mu": mu, "target": target, "actions": actions} | values))


def drawn(shown: Frame, grid: Grid, title: str = "MFTaxi-v0") -> NDArray[np.uint8]:
    viewer = Viewer("rgb_array", grid=grid, fps=4, title=title)
    picture = viewer.draw(shown)
    viewer.close()
    assert picture is not None
    return picture


def cell_map(values: NDArray[np.floating], grid: Grid) -> Frame:
    """The frame of a fleet without anything drawn over it."""
    return frame(grid, mu=values.ravel(), target=None, actions=None, kl=None)


@pytest.mark.parametrize("grid", [Grid(1), Grid(5), Grid(25), Grid(100), Grid(1, 1), Grid(100, 1)], ids=str)
@pytest.mark.parametrize(
    "seen", [{}, {"target": None, "kl": None}, {"actions": None}, {"box": BOX}], ids=lambda seen: "+".join(seen)
)
def test_frames_have_one_format(grid: Grid, seen: dict[str, Any]) -> None:
    """[540, 960, 3] of uint8, writable and contiguous, on every grid, with and without each optional part."""
    picture = drawn(frame(grid, **seen), grid)
    assert picture.shape == (540, 960, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.writeable and picture.flags.c_contiguous
    assert len(np.unique(picture[::3, ::3] @ np.array([1, 256, 65536]))) > 10  # colours


@pytest.mark.parametrize("grid", [Grid(25), Grid(100, 1)], ids=str)
def test_frames_are_deterministic(grid: Grid) -> None:
    """Equal frames from two viewers and from one viewer after it drew something else; what was returned is not drawn over."""
    viewer = Viewer("rgb_array", grid=grid, fps=4, title="MFTaxi-v0")
    first = viewer.draw(frame(grid))
    assert first is not None
    kept = first.copy()
    viewer.draw(frame(grid, seed=1))
    np.testing.assert_array_equal(first, kept)
    again = viewer.draw(frame(grid))
    assert again is not None
    np.testing.assert_array_equal(again, kept)
    np.testing.assert_array_equal(drawn(frame(grid), grid), kept)


@pytest.mark.parametrize("grid", [Grid(25), Grid(100, 1)], ids=str)
@pytest.mark.parametrize("name", ["mu", "target", "actions", "margin", "margins", "t", "horizon", "entropy", "kl"])
def test_every_field_is_seen(grid: Grid, name: str) -> None:
    """A change of any field changes the picture."""
    other = frame(grid, seed=1, margin=-0.05, margins={"entropy": -0.05}, t=4, horizon=13, entropy=0.8, kl=0.3)
    changed = dataclasses.replace(frame(grid), **{name: getattr(other, name)})
    assert (drawn(changed, grid) != drawn(frame(grid), grid)).any()


def test_north_is_up_and_east_is_right() -> None:
    """A fleet in the south-eastern cell (largest i, smallest j) is brightest at the lower right, with both axes as in Grid."""
    grid = Grid(5)
    mu = np.full((5, 5), 0.01)
    mu[4, 0] = 0.76
    shown = frame(grid, mu=mu.ravel(), target=np.full(25, 0.04), actions=None)
    bright = drawn(shown, grid)[FLEET].sum(-1)
    row, column = np.unravel_index(bright.reshape(328, 328)[4:-4, 4:-4].argmax(), (320, 320))
    assert row > 4 * 320 / 5 and column > 4 * 320 / 5


def test_arrows_point_where_taxis_go() -> None:
    """Tails stay where they are: what is drawn for a move north lies above what is drawn for one south; no move, no arrow."""
    grid = Grid(25)
    even = np.full(625, 1 / 625)

    def white(east: float, north: float) -> NDArray[np.int_]:
        """Rows and columns of white pixels, ``[2, n]``."""
        picture = drawn(frame(grid, mu=even, actions=np.tile([east, north], (625, 1))), grid)
        return np.array(np.nonzero((picture[FLEET] == 255).all(-1)))

    # Arrows are a few pixels long: their centres lie apart by about that much.
    assert white(0, 0.1)[0].mean() < white(0, -0.1)[0].mean() - 5
    assert white(0.1, 0)[1].mean() > white(-0.1, 0)[1].mean() + 5
    assert white(0, 0).size == 0


def test_longest_arrow_is_bounded_and_few() -> None:
    """Moves across the whole city stay arrows of a block's size, on a fine grid too."""
    grid = Grid(100)
    mu = np.full(10_000, 1e-4)
    moves = np.zeros((100, 100, 2))
    moves[50, 50] = (1.0, 0.0)
    bare = drawn(frame(grid, mu=mu, actions=None), grid)[FLEET]
    arrow = (drawn(frame(grid, mu=mu, actions=moves.reshape(-1, 2)), grid)[FLEET] != bare).any(-1)
    rows, columns = np.nonzero(arrow[4:-4, 4:-4])
    assert 10 < np.ptp(columns) < 50
    assert np.ptp(rows) < 20


def test_safety_shows_without_colour() -> None:
    """Safe and violated differ in shades of grey, not in hue alone; no constraint looks like neither; NaN is not safe."""
    grid = Grid(5)

    def badge(margin: float) -> NDArray[np.float64]:
        margins = {} if margin == math.inf else {"entropy": margin}
        return drawn(frame(grid, margin=margin, margins=margins), grid)[SIDE].mean(-1)

    safe, violated, free = (badge(margin) for margin in (0.05, -0.05, math.inf))
    for one, other in ((safe, violated), (safe, free), (violated, free)):
        assert (np.abs(one - other) > 100).sum() > 50
    colours = drawn(frame(grid, margin=math.nan, margins={"entropy": math.nan}), grid)[SIDE].reshape(-1, 3)
    assert ((colours == (213, 94, 0)).all(-1)).sum() > 1000


@pytest.mark.parametrize("margin", [0.0, -math.inf, 1e9, -1e-12])
def test_extreme_margins_are_drawn(margin: float) -> None:
    """The gauge ends where its scale ends, and exactly zero is safe."""
    picture = drawn(frame(Grid(5), margin=margin, margins={"a" * 200: margin}), Grid(5))[SIDE].reshape(-1, 3)
    blue = (picture == (0, 114, 178)).all(-1).sum() > 1000
    assert blue == (margin >= 0)


def test_long_texts_stay_in_their_place() -> None:
    """A title of any length and a hundred constraints leave the borders of the frame blank."""
    grid = Grid(5)
    margins = {f"a constraint with a long name {i}": 0.01 * i for i in range(100)}
    picture = drawn(frame(grid, margin=0.0, margins=margins, t=10**6, horizon=10**6), grid, "title " * 100)
    inner = np.zeros(picture.shape[:2], bool)
    inner[10:-10, 20:-20] = True
    assert (picture[~inner] == 255).all()


def test_aspect_is_true_to_distances() -> None:
    """A box twice as wide as high in kilometres gives a map twice as wide as high."""
    grid = Grid(4)
    shown = dataclasses.replace(cell_map(np.full((4, 4), 1 / 16), grid), box=(0.0, 2.0, -0.5, 0.5))
    picture = drawn(shown, grid)
    stage = picture[60:455, 20:710].astype(int)
    rows, columns = np.nonzero((stage == stage[395 // 2, 345]).all(-1))
    assert (np.ptp(columns) + 1) / (np.ptp(rows) + 1) == pytest.approx(2.0, rel=0.02)


def test_rgb_array_touches_no_display() -> None:
    """No display is initialised, os.environ stays, nothing is printed or warned of, pygame's greeting included."""
    code = """
import os, sys
import numpy as np
from mf_taxi_env.envs.viewer import Frame, Viewer
from mf_taxi_env.grid import Grid
assert "pygame" not in sys.modules
before = dict(os.environ)
viewer = Viewer("rgb_array", grid=Grid(5), fps=4, title="city")
even = np.full(25, 0.04)
assert viewer.draw(Frame(even, even, None, 0.1, {"entropy": 0.1}, 0, 12, 1.0, 0.0)).shape == (540, 960, 3)
import pygame
assert not pygame.display.get_init()
assert dict(os.environ) == before
viewer.close()
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "PYGAME_HIDE_SUPPORT_PROMPT")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_frames_survive_that_another_environment_quits_pygame() -> None:
    """Gymnasium's own environments call pygame.quit() when they are closed."""
    grid = Grid(5)
    viewer = Viewer("rgb_array", grid=grid, fps=4, title="city")
    first = viewer.draw(frame(grid))
    pygame.quit()
    np.testing.assert_array_equal(viewer.draw(frame(grid)), first)
    np.testing.assert_array_equal(viewer.draw(frame(grid, t=7)), drawn(frame(grid, t=7), grid, "city"))


def test_human_shows_the_frame_in_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window shows what rgb_array returns, with the title; closing, twice, takes it away; drawing opens it anew."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    grid = Grid(5)
    viewer = Viewer("human", grid=grid, fps=100, title="city")
    for _ in range(2):
        assert viewer.draw(frame(grid)) is None
        window = pygame.display.get_surface()
        shown = pygame.surfarray.array3d(window).swapaxes(0, 1)
        np.testing.assert_array_equal(shown, drawn(frame(grid), grid, "city"))
        assert pygame.display.get_caption()[0] == "city"
        viewer.close()
        viewer.close()
        assert not pygame.display.get_init()


def test_human_survives_a_lost_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another environment closed the display: the next frame opens a window again."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    viewer = Viewer("human", grid=Grid(5), fps=100, title="city")
    viewer.draw(frame(Grid(5)))
    pygame.quit()
    viewer.draw(frame(Grid(5)))
    assert pygame.display.get_surface().get_size() == (960, 540)
    viewer.close()


def test_human_keeps_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is asked to hold the frames per second."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    viewer = Viewer("human", grid=Grid(5), fps=20, title="city")
    viewer.draw(frame(Grid(5)))
    start = pygame.time.get_ticks()
    for _ in range(4):
        viewer.draw(frame(Grid(5)))
    assert pygame.time.get_ticks() - start >= 4 * 50 - 60  # a tick may come early by what the previous one was late
    viewer.close()


@pytest.mark.parametrize("mode", ["rgb_array", "human"])
def test_closing_without_a_frame_is_fine(mode: Any) -> None:
    """close() before the first draw, twice."""
    viewer = Viewer(mode, grid=Grid(5), fps=4, title="city")
    viewer.close()
    viewer.close()
    assert not pygame.display.get_init()


def test_closing_an_array_viewer_leaves_a_window_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only who opened the window closes it."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    window = Viewer("human", grid=Grid(5), fps=100, title="city")
    window.draw(frame(Grid(5)))
    drawn(frame(Grid(5)), Grid(5))
    assert pygame.display.get_surface() is not None
    window.close()


def test_missing_pygame_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gymnasium's own error with the command that helps, at the first frame and not before."""
    for name in [name for name in sys.modules if name.split(".")[0] == "pygame"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("canvas", "scene"):
        monkeypatch.delitem(sys.modules, f"mf_taxi_env.envs.{name}", raising=False)
    viewer = Viewer("rgb_array", grid=Grid(5), fps=4, title="city")
    with pytest.raises(DependencyNotInstalled, match=r"pip install 'safe-m3-taxi\[render\]'"):
        viewer.draw(frame(Grid(5)))
    viewer.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": np.full(24, 1 / 24)}, r"mu must have shape \(25,\), got \(24,\)"),
        ({"mu": None}, r"mu must have shape"),
        ({"mu": np.full(25, math.nan)}, r"mu must be finite, got 25 entries"),
        ({"target": np.full((5, 5), 0.04)}, r"target must have shape \(25,\), got \(5, 5\)"),
        ({"actions": np.zeros((25, 1))}, r"actions must have shape \(25, 2\), got \(25, 1\)"),
        ({"actions": np.full((25, 2), math.inf)}, r"actions must be finite"),
    ],
)
def test_bad_frames_are_refused(changes: dict[str, Any], message: str) -> None:
    """By name, with what was given and what is allowed."""
    with pytest.raises(ValueError, match=message):
        drawn(frame(Grid(5), **changes), Grid(5))


@pytest.mark.parametrize(("arguments", "message"), [({"mode": "ansi"}, "mode .*'ansi'"), ({"fps": 0}, "fps .*got 0")])
def test_bad_viewers_are_refused(arguments: dict[str, Any], message: str) -> None:
    """An unknown mode or no frames per second."""
    with pytest.raises(ValueError, match=message):
        Viewer(**({"mode": "rgb_array", "grid": Grid(5), "fps": 4, "title": "city"} | arguments))
