"""Rendering of the Gymnasium shells: what a picture shows, and where it goes. Drawing needs the extra ``render`` (pygame).

``viewer.py`` owns the window and the frames, ``scene.py`` arranges a picture, ``canvas.py`` puts marks on a surface.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from gymnasium.error import DependencyNotInstalled
from numpy.typing import NDArray

from mf_taxi_env.grid import Grid
from mf_taxi_env.scenarios.scenario import Box

if TYPE_CHECKING:
    import pygame

    from mf_taxi_env.envs.canvas import Canvas

RenderMode = Literal["rgb_array", "human"]

#: Width and height of a frame in pixels.
SIZE = (960, 540)


@dataclass(frozen=True, eq=False)
class Frame:
    """What one picture shows: the state of an episode and what led to it."""

    mu: NDArray[np.floating]
    """Distribution, ``[K]``."""
    target: NDArray[np.floating] | None
    """Distribution to be reached, such as the demand, ``[K]``; ``None`` in worlds without one."""
    actions: NDArray[np.floating] | None
    """The last action of every cell, ``[K, d]``, in two dimensions in sides of the square; ``None`` right after a reset."""
    margin: float
    """Worst margin, safe at zero and above; ``inf`` without constraints."""
    margins: Mapping[str, float]
    """Margin of every constraint by its name."""
    t: int
    """Steps taken."""
    horizon: int
    """Steps of an episode."""
    entropy: float
    """Entropy of ``mu`` as a share of ``log K``."""
    kl: float | None
    """Divergence of ``mu`` from the target in nats; ``None`` without a target."""
    box: Box | None = None
    """Study area ``(west, east, south, north)`` in degrees; ``None`` draws a square."""


class Viewer:
    """Draws the frames of an episode, as an array or in a window.

    With ``"rgb_array"`` no display is touched: frames are drawn in memory with the font that pygame brings along, hence the
    same on every machine. A frame depends on nothing but its arguments.

    Args:
        mode: ``"rgb_array"`` or ``"human"``.
        grid: Grid of the distributions; in two dimensions the frame shows maps, in one dimension curves.
        fps: Frames per second that ``"human"`` holds, at least 1.
        title: Heading of the frame and of the window.

    Raises:
        ValueError: If ``mode`` or ``fps`` is out of range.

    Example:
        >>> viewer = Viewer("rgb_array", grid=Grid(5), fps=4, title="A city")
        >>> even = np.full(25, 1 / 25)
        >>> frame = Frame(even, None, None, 0.3, {"entropy": 0.3}, t=0, horizon=12, entropy=1.0, kl=None)
        >>> viewer.draw(frame).shape
        (540, 960, 3)
        >>> viewer.close()
    """

    def __init__(self, mode: RenderMode, *, grid: Grid, fps: int, title: str) -> None:
        if mode not in get_args(RenderMode):
            raise ValueError(f"mode must be one of {get_args(RenderMode)}, got {mode!r}")
        if fps < 1:
            raise ValueError(f"fps must be at least 1, got {fps!r}")
        self.mode: RenderMode = mode
        self.grid = grid
        self.fps = fps
        self.title = title
        self._canvas: Canvas | None = None
        self._clock: pygame.time.Clock | None = None

    def draw(self, frame: Frame) -> NDArray[np.uint8] | None:
        """Draw one frame.

        Args:
            frame: What to show.

        Returns:
            ``[540, 960, 3]`` with ``"rgb_array"``, a fresh array; ``None`` with ``"human"``, once it is on the screen.

        Raises:
            gymnasium.error.DependencyNotInstalled: If pygame is not installed.
            ValueError: If an array of the frame does not fit the grid or is not finite.
        """
        _check(frame, self.grid)
        try:
            from mf_taxi_env.envs.canvas import Canvas
            from mf_taxi_env.envs.scene import paint
        except ImportError as error:
            raise DependencyNotInstalled("Rendering needs pygame: pip install 'safe-m3-taxi[render]'") from error
        if self._canvas is None:
            self._canvas = Canvas(SIZE)
        paint(self._canvas, frame, self.grid, self.title)
        if self.mode == "rgb_array":
            return self._canvas.pixels()
        self._show(self._canvas.surface)
        return None

    def close(self) -> None:
        """Close the window, if there is one. Closing twice is fine; drawing again starts anew."""
        self._canvas = None
        if self._clock is not None:
            import pygame

            self._clock = None
            pygame.display.quit()

    def _show(self, picture: pygame.Surface) -> None:
        import pygame

        # A process has one window. Whoever closes another environment may have taken it away.
        window = pygame.display.get_surface() if pygame.display.get_init() else None
        if window is None or window.get_size() != SIZE:
            pygame.display.init()
            window = pygame.display.set_mode(SIZE)
        if self._clock is None:
            self._clock = pygame.time.Clock()
        pygame.display.set_caption(self.title)
        window.blit(picture, (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self.fps)


def _check(frame: Frame, grid: Grid) -> None:
    shapes = {"mu": (grid.size,), "target": (grid.size,), "actions": (grid.size, grid.dimension)}
    for name, shape in shapes.items():
        values = getattr(frame, name)
        if values is None and name != "mu":
            continue
        if np.shape(values) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {np.shape(values)}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite, got {int((~np.isfinite(values)).sum())} entries that are not")
