"""Marks on a surface in memory: text, cells, arrows and steps. No display is touched. Needs pygame."""

from __future__ import annotations

import functools
import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Some versions of pygame warn of packages that they import. Their greeting Gymnasium has silenced.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pygame
    import pygame.gfxdraw

Colour = tuple[int, int, int]
Point = tuple[float, float]
Anchor = Literal["midleft", "center", "midright"]

PAPER: Colour = (255, 255, 255)
GROUND: Colour = (238, 240, 243)
RULE: Colour = (208, 213, 219)
MUTED: Colour = (98, 106, 117)
INK: Colour = (28, 33, 40)

#: Heights of text in pixels.
SMALL, MEDIUM, LARGE = 18, 21, 27

#: Every 17th colour of viridis (S. van der Walt, N. Smith, E. Firing; CC0): readable with any colour vision and in grey.
_ANCHORS = bytes.fromhex(
    "440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e 1f988b 22a884 35b779 54c568 7ad151 a5db36 d2e21b fde725"
)

#: An arrow of length 1 along x: shares of its length, of the head's length and of its half width make the seven corners.
_ALONG = np.array([[0, 0], [1, -1], [1, -1], [1, 0], [1, -1], [1, -1], [0, 0]], dtype=float)
_ACROSS = np.array([-0.25, -0.25, -1.0, 0.0, 1.0, 0.25, 0.25])


def _interpolated(anchors: bytes) -> NDArray[np.uint8]:
    table = np.frombuffer(anchors, np.uint8).reshape(-1, 3)
    where, known = np.linspace(0, 1, 256), np.linspace(0, 1, len(table))
    return np.stack([np.interp(where, known, channel) for channel in table.T], axis=1).round().astype(np.uint8)


#: Colours of the levels from 0 to 1, ``[256, 3]``.
VIRIDIS = _interpolated(_ANCHORS)


class Canvas:
    """A surface in memory.

    Args:
        size: Width and height in pixels.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.surface = pygame.Surface(size, depth=32)

    def clear(self) -> None:
        """Start a new picture."""
        self.surface.fill(PAPER)

    def pixels(self) -> NDArray[np.uint8]:
        """A copy of the picture, ``[height, width, 3]``."""
        width, height = self.surface.get_size()
        return np.frombuffer(bytearray(pygame.image.tobytes(self.surface, "RGB")), np.uint8).reshape(height, width, 3)

    def text(self, text: str, at: Point, *, size: int = SMALL, colour: Colour = INK, anchor: Anchor = "midleft") -> pygame.Rect:
        """One line of text; returns the area that it takes."""
        image = _words(text, size, colour)
        return self.surface.blit(image, image.get_rect(**{anchor: at}))

    def fill(self, area: pygame.Rect, colour: Colour, *, radius: int = 0) -> None:
        pygame.draw.rect(self.surface, colour, area, border_radius=radius)

    def outline(self, area: pygame.Rect, colour: Colour = RULE) -> None:
        """A line of one pixel around ``area``."""
        pygame.draw.rect(self.surface, colour, area.inflate(2, 2), width=1)

    def line(self, start: Point, end: Point, colour: Colour = RULE, *, width: int = 1) -> None:
        pygame.draw.line(self.surface, colour, start, end, width)

    def polygon(self, points: NDArray[np.floating], colour: Colour, edge: Colour | None = None) -> None:
        """A smooth polygon ``[n, 2]`` in pixels."""
        corners = points.round().astype(int).tolist()
        pygame.gfxdraw.filled_polygon(self.surface, corners, colour)
        pygame.gfxdraw.aapolygon(self.surface, corners, edge or colour)

    def cells(self, area: pygame.Rect, levels: NDArray[np.floating]) -> None:
        """A colour for every cell.

        Args:
            area: Where to.
            levels: ``[n, m]``, x to the right and y up; 0 and 1 are the ends of the colours, what lies beyond is clipped.
        """
        shades = VIRIDIS[(levels[:, ::-1].clip(0, 1) * 255).astype(np.uint8)]
        self.surface.blit(pygame.transform.scale(pygame.surfarray.make_surface(shades), area.size), area)

    def arrows(
        self, area: pygame.Rect, tails: NDArray[np.floating], moves: NDArray[np.floating], colour: Colour = PAPER
    ) -> None:
        """Arrows with a dark contour, hence seen on every colour.

        Args:
            area: Nothing is drawn outside of it.
            tails: Where they start, ``[n, 2]`` in pixels of the surface.
            moves: Where they lead to from there, ``[n, 2]`` in pixels; longer than zero.
            colour: Of what the contour encloses.
        """
        length = np.linalg.norm(moves, axis=1, keepdims=True)
        along = moves / length
        across = np.stack([-along[:, 1], along[:, 0]], axis=1)
        head = np.minimum(0.6 * length, 10.0)
        x = _ALONG[:, 0] * length + _ALONG[:, 1] * head
        y = _ACROSS * 0.5 * head
        corners = tails[:, None] - area.topleft + x[..., None] * along[:, None] + y[..., None] * across[:, None]
        # Drawn at twice the size and averaged: smooth edges, which the transparent black around them darkens to a contour.
        layer = pygame.Surface((2 * area.width, 2 * area.height), pygame.SRCALPHA, 32)
        for arrow in (2 * corners).tolist():
            pygame.draw.polygon(layer, INK, arrow, width=3)
            pygame.draw.polygon(layer, colour, arrow)
        self.surface.blit(pygame.transform.smoothscale(layer, area.size), area)

    def steps(
        self, edges: NDArray[np.floating], heights: NDArray[np.floating], colour: Colour, base: float | None = None
    ) -> None:
        """A piecewise constant curve.

        Args:
            edges: Pixels along x, ``[n + 1]``.
            heights: Pixels along y, ``[n]``.
            colour: Of the line, or of the area between the curve and ``base`` where that is given.
            base: Pixel along y.
        """
        points = np.stack([np.repeat(edges, 2)[1:-1], np.repeat(heights, 2)], axis=1).round()
        if base is None:
            pygame.draw.lines(self.surface, colour, False, points.tolist(), 2)
        else:
            feet = np.array([[points[-1, 0], base], [points[0, 0], base]])
            pygame.draw.polygon(self.surface, colour, np.concatenate([points, feet]).tolist())


@functools.lru_cache(maxsize=512)
def shortened(text: str, width: int, size: int = SMALL) -> str:
    """``text``, cut to at most ``width`` pixels."""
    font = _font(size)
    if font.size(text)[0] <= 2 * width:
        return text
    while text and font.size(text + "…")[0] > 2 * width:
        text = text[:-1]
    return text.rstrip() + "…"


@functools.lru_cache(maxsize=512)
def _words(text: str, size: int, colour: Colour) -> pygame.Surface:
    # Letters of twice the size stand where they should; hinted small ones do not.
    image = _font(size).render(text, True, colour)
    return pygame.transform.smoothscale(image, (image.get_width() // 2, image.get_height() // 2))


def _font(size: int) -> pygame.font.Font:
    """The font that pygame brings along, twice as large. Not to be kept: any pygame.quit() in the process ends it."""
    pygame.font.init()
    return pygame.font.Font(None, 2 * size)
