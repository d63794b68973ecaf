"""``shapes32``: the embedded stand-in for CIFAR-10, drawn by code when no real pictures are at hand.

Each 32x32 RGB picture shows one figure of ten classes. Position, size, rotation, stretch, shear and bend, filled or
outlined, colours, texture and light are drawn without regard to the class, and the amounts of ink overlap widely: what
tells a class is its contour. What makes that hard, the costliest first (found by leaving each out of fresh pictures
and asking a ResNet-8 again):

- bars and dots before and behind the figure, half of them in its own colour or the ground's: they cut it in two, or
  grow it an arm;
- little contrast between a textured figure and a textured ground (gradient, stripes, checks, blobs), and sensor noise;
- small figures, stretched, sheared and bent, so that contours differ by a pixel or two: hexagon and pentagon, pentagon
  and square, hexagon and heart, and a triangle that a bar turns into an arrow.

The pictures for a seed are the same bytes on every machine. Random numbers are raw words of PCG64 and
``SeedSequence``, whose streams NumPy promises to keep (NEP 19; those of ``Generator``'s methods may change). Floats
only meet operations that IEEE 754 rounds exactly (+, -, *, /, square root, floor, comparisons), one NumPy call each:
no sine, no power, no matrix product, no float sum, whose last bit depends on the C library or the vector width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from deploykit.machine import allowed_threads

Floats = NDArray[np.float32]
Pair = tuple[float, float]

SIZE = 32
TRAIN_IMAGES, TEST_IMAGES = 20_000, 4_000
# Pictures drawn at once: a plane of them (200 KiB) stays in a core's cache. Each chunk has its own random stream, so
# this number is part of what the dataset is.
CHUNK = 50

# Difficulty. Lengths are in pixels, colours and noise in units of the full range.
RADIUS = (6.5, 12.0)
CENTRE_SHIFT = 4.5
ASPECT = (0.72, 1.0)
SHEAR = 0.15
BEND = 0.12
OUTLINED = 0.35
EDGE_SOFTNESS = (0.9, 2.0)
CONTRAST = (0.14, 0.5)
GROUND_TEXTURE = (0.05, 0.3)
FIGURE_TEXTURE = (0.0, 0.2)
NOISE = (0.01, 0.07)
BARS_BEHIND, BARS_BEFORE = (0.5, 0.3), (0.5, 0.2)
DOTS_BEHIND, DOTS_BEFORE = (0.6, 0.4), (0.6, 0.4)

_X = np.arange(SIZE, dtype=np.float32)[None, None, :] - np.float32(15.5)
_Y = np.arange(SIZE, dtype=np.float32)[None, :, None] - np.float32(15.5)


class _Stream:
    """Random numbers that depend on nothing but the key: seed, split, chunk."""

    def __init__(self, seed: int, *key: int) -> None:
        self._words = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key))

    def uniform(self, low: float, high: float, *shape: int) -> Floats:
        """Return float32 of ``shape`` in [low, high), in steps of 2**-24 of the range, the finest of float32."""
        words = self._words.random_raw(int(np.prod(shape))) >> np.uint64(40)
        return low + (high - low) * (words.astype(np.float32) * np.float32(2**-24)).reshape(shape)

    def chance(self, probability: float, *shape: int) -> Floats:
        """Return 1 with the given probability, else 0."""
        return (self.uniform(0, 1, *shape) < probability).astype(np.float32)

    def direction(self, *shape: int) -> tuple[Floats, Floats]:
        """Return cosine and sine of angles all round, without a sine.

        With t = tan(a / 2), cos a = (1 - t²) / (1 + t²) and sin a = 2t / (1 + t²). A t of up to tan(22.5°) covers an
        eighth of a turn on either side, nearly evenly; quarter turns do the rest.
        """
        t = self.uniform(-0.41421356, 0.41421356, *shape)
        cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
        quarter = self.chance(0.5, *shape) > 0
        sign = 1 - 2 * self.chance(0.5, *shape)
        return sign * np.where(quarter, -sine, cosine), sign * np.where(quarter, cosine, sine)

    def bell(self, *shape: int) -> Floats:
        """Return numbers of mean 0 and standard deviation 1: the ones among 16 random bits, less 8, over 2."""
        words = self._words.random_raw(int(np.prod(shape)) // 4).astype("<u8").view("<u2")
        return ((np.bitwise_count(words).astype(np.float32) - 8) * np.float32(0.5)).reshape(shape)


# Figures. Each takes coordinates float32 [n, 32, 32] in which the figure has a radius of about 1 and a stream for its
# proportions, if it has any, and returns the signed distance to the contour, negative inside (in the same unit).


def _half_planes(x: Floats, y: Floats, normals: list[tuple[float, float]]) -> tuple[Floats, Floats]:
    """Return the largest and second largest of the projections of a point on the normals."""
    largest = np.full_like(x, -9)
    second = np.full_like(x, -9)
    for a, b in normals:
        projection = a * x + b * y
        second = np.maximum(second, np.minimum(largest, projection))
        largest = np.maximum(largest, projection)
    return largest, second


_THREE = [(0.0, 1.0), (0.8660254, -0.5), (-0.8660254, -0.5)]
_FIVE = [(0.0, 1.0), (0.95105652, 0.30901699), (0.58778525, -0.80901699), (-0.58778525, -0.80901699),
         (-0.95105652, 0.30901699)]  # fmt: skip
_SIX = [*_THREE, *((-a, -b) for a, b in _THREE)]


def _circle(x: Floats, y: Floats, radius: Floats | float) -> Floats:
    return np.subtract(np.sqrt(x * x + y * y), radius, dtype=np.float32)


def _box(x: Floats, y: Floats, half_width: Floats | float, half_height: Floats | float) -> Floats:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _ring(x: Floats, y: Floats, draw: _Stream) -> Floats:
    hole = draw.uniform(0.35, 0.7, len(x), 1, 1)
    middle, half_width = (0.95 + hole) * 0.5, (0.95 - hole) * 0.5
    return np.abs(_circle(x, y, middle)) - half_width


def _crescent(x: Floats, y: Floats, draw: _Stream) -> Floats:
    shift = draw.uniform(0.4, 0.65, len(x), 1, 1)
    return np.maximum(_circle(x + 0.2, y, 1.0), -_circle(x + 0.2 - shift, y, 0.8))


def _triangle(x: Floats, y: Floats, _draw: _Stream) -> Floats:
    return _half_planes(x, y, _THREE)[0] - 0.58


def _square(x: Floats, y: Floats, _draw: _Stream) -> Floats:
    return _box(x, y, 0.8, 0.8)


def _pentagon(x: Floats, y: Floats, _draw: _Stream) -> Floats:
    return _half_planes(x, y, _FIVE)[0] - 0.8


def _hexagon(x: Floats, y: Floats, _draw: _Stream) -> Floats:
    return _half_planes(x, y, _SIX)[0] - 0.84


def _star(x: Floats, y: Floats, _draw: _Stream) -> Floats:
    # A pentagram is where at most one of the pentagon's five half-planes is left: the second largest decides.
    return _half_planes(x, y, _FIVE)[1] - 0.38


def _cross(x: Floats, y: Floats, draw: _Stream) -> Floats:
    half_width = draw.uniform(0.2, 0.36, len(x), 1, 1)
    return np.minimum(_box(x, y, 1.0, half_width), _box(x, y, half_width, 1.0))


def _heart(x: Floats, y: Floats, _draw: _Stream) -> Floats:
    # A square standing on a corner, with a half disc on each of its two upper sides.
    discs = np.minimum(_circle(x - 0.55, y + 0.1, 0.65), _circle(x + 0.1, y - 0.55, 0.65))
    return np.minimum(_box(x + 0.1, y + 0.1, 0.65, 0.65), discs)


def _arrow(x: Floats, y: Floats, draw: _Stream) -> Floats:
    half_width = draw.uniform(0.16, 0.28, len(x), 1, 1)
    head = np.maximum((x + np.abs(y) - 1.05) * 0.70710678, -x)
    return np.minimum(head, _box(x + 0.4, y, 0.65, half_width))


_FIGURES: dict[str, Callable[[Floats, Floats, _Stream], Floats]] = {
    "ring": _ring,
    "crescent": _crescent,
    "triangle": _triangle,
    "square": _square,
    "pentagon": _pentagon,
    "hexagon": _hexagon,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
    "arrow": _arrow,
}
CLASSES: tuple[str, ...] = tuple(_FIGURES)


def _figure(draw: _Stream, n: int, centre: tuple[Floats, Floats], radius: Floats) -> Floats:
    """Coverage in [0, 1], float32 [n, 32, 32]; picture i shows class i % 10."""
    x, y = _X - centre[0], _Y - centre[1]
    # Stretch along one random direction, then turn the figure by another.
    c, s = draw.direction(n, 1, 1)
    stretched = c * y - s * x
    x = (c * x + s * y + draw.uniform(-SHEAR, SHEAR, n, 1, 1) * stretched) / radius
    y = stretched / (radius * draw.uniform(*ASPECT, n, 1, 1))
    c, s = draw.direction(n, 1, 1)
    x, y = c * x + s * y, c * y - s * x
    x = x + draw.uniform(-BEND, BEND, n, 1, 1) * (y * y)
    distance = np.empty_like(x)
    for label, name in enumerate(CLASSES):
        mine = slice(label, n, len(CLASSES))
        distance[mine] = _FIGURES[name](x[mine], y[mine], draw)
    half_line = draw.uniform(1.0, 1.5, n, 1, 1) / radius
    outline = np.abs(distance + half_line) - half_line
    is_outline = draw.chance(OUTLINED, n, 1, 1) > 0
    is_outline[CLASSES.index("ring") :: len(CLASSES)] = False
    return _coverage(np.where(is_outline, outline, distance) * radius, draw.uniform(*EDGE_SOFTNESS, n, 1, 1))


def _coverage(distance: Floats, softness: Floats | float) -> Floats:
    """How much of each pixel lies inside a contour ``distance`` pixels away: anti-aliasing by a linear edge."""
    return np.minimum(np.maximum(0.5 - distance / softness, 0), 1)


def _texture(draw: _Stream, n: int) -> Floats:
    """A pattern in [0, 1], float32 [n, 32, 32]: gradient, stripes, checks or blobs."""
    c, s = draw.direction(n, 1, 1)
    p, q = c * _X + s * _Y, c * _Y - s * _X
    period = draw.uniform(4, 11, n, 1, 1)
    phase = draw.uniform(0, 1, 2, n, 1, 1)

    def wave(along: Floats, start: Floats) -> Floats:
        turns = along / period + start
        return _coverage((np.abs(turns - np.floor(turns) - 0.5) - 0.25) * period, 1.5)

    gradient = np.minimum(np.maximum(0.5 + p / 28, 0), 1)
    stripes, crossing = wave(p, phase[0]), wave(q, phase[1])
    checks = stripes + crossing - 2 * stripes * crossing
    patterns = np.stack([gradient, stripes, checks, _blobs(draw, n)])
    return patterns[draw.uniform(0, 4, n).astype(np.intp), np.arange(n)]


def _blobs(draw: _Stream, n: int, cell: int = 8) -> Floats:
    """Value noise: random values on a lattice, joined smoothly."""
    lattice = draw.uniform(0, 1, n, SIZE // cell + 1, SIZE // cell + 1)
    index = np.arange(SIZE) // cell
    t = (np.arange(SIZE) % cell).astype(np.float32) / cell
    t = t * t * (3 - 2 * t)
    rows = lattice[:, index] + (lattice[:, index + 1] - lattice[:, index]) * t[:, None]
    smooth = rows[:, :, index] + (rows[:, :, index + 1] - rows[:, :, index]) * t
    return np.minimum(np.maximum(smooth * 2.5 - 0.75, 0), 1)


def _colour(hue: Floats, saturation: Floats, brightness: Floats) -> Floats:
    """RGB [n, 3, 1, 1] of the usual hexagonal colour wheel; each argument [n], hue in turns."""
    turns = hue[:, None] + np.array([0, 2 / 3, 1 / 3], np.float32)
    ramp = np.abs((turns - np.floor(turns)) * 6 - 3) - 1
    pure = np.minimum(np.maximum(ramp, 0), 1)
    return (brightness[:, None] * (1 - saturation[:, None] * (1 - pure)))[:, :, None, None]


def _luma(colour: Floats) -> Floats:
    return 0.299 * colour[:, :1] + 0.587 * colour[:, 1:2] + 0.114 * colour[:, 2:]


def _paint(image: Floats, colour: Floats, coverage: Floats) -> Floats:
    return image + coverage * (colour - image)


def _clutter(
    draw: _Stream, image: Floats, colours: list[Floats], centre: tuple[Floats, Floats], *, bars: Pair, dots: Pair
) -> Floats:
    """Bars through the middle half of the figure and dots anywhere, each present with its own probability."""
    n = len(image)

    def colour() -> Floats:
        # Half of them repeat the figure's or the ground's colour, so that colour does not tell what belongs together.
        own = _colour(draw.uniform(0, 1, n), draw.uniform(0.2, 0.9, n), draw.uniform(0.2, 1, n))
        return np.stack([*colours, own, own])[draw.uniform(0, 4, n).astype(np.intp), np.arange(n)]

    for probability in bars:
        c, s = draw.direction(n, 1, 1)
        across = np.abs(c * (_X - centre[0]) + s * (_Y - centre[1]) - draw.uniform(-6, 6, n, 1, 1))
        coverage = _coverage(across - draw.uniform(0.6, 1.6, n, 1, 1), 1.0)
        image = _paint(image, colour(), (coverage * draw.chance(probability, n, 1, 1))[:, None])
    for probability in dots:
        x, y = _X - draw.uniform(-16, 16, n, 1, 1), _Y - draw.uniform(-16, 16, n, 1, 1)
        coverage = _coverage(_circle(x, y, draw.uniform(1.2, 3.2, n, 1, 1)), 1.0)
        image = _paint(image, colour(), (coverage * draw.chance(probability, n, 1, 1))[:, None])
    return image


def _chunk(seed: int, split: int, chunk: int, n: int = CHUNK) -> NDArray[np.uint8]:
    """Return pictures uint8 [n, 32, 32, 3] of classes 0, 1, …, 9, 0, 1, and so on."""
    draw = _Stream(seed, split, chunk)
    hue, brightness = draw.uniform(0, 1, n), draw.uniform(0.2, 0.95, n)
    ground = _colour(hue, draw.uniform(0.05, 0.7, n), brightness)
    figure = _colour(draw.uniform(0, 1, n), draw.uniform(0.1, 0.8, n), draw.uniform(0.2, 0.95, n))
    # Hues alone may be equally bright; the contrast is set in brightness as the eye sees it, towards the roomier side.
    luma = _luma(ground)
    lighter = draw.uniform(0.25, 0.75, n, 1, 1, 1) > luma
    contrast = draw.uniform(*CONTRAST, n, 1, 1, 1) * np.where(lighter, np.float32(1), np.float32(-1))
    figure = figure + (luma + contrast - _luma(figure))

    def tint(amount: Pair) -> Floats:
        return draw.uniform(-1, 1, n, 3, 1, 1) * draw.uniform(*amount, n, 1, 1, 1)

    centre = (draw.uniform(-CENTRE_SHIFT, CENTRE_SHIFT, n, 1, 1), draw.uniform(-CENTRE_SHIFT, CENTRE_SHIFT, n, 1, 1))
    image = ground + tint(GROUND_TEXTURE) * (_texture(draw, n) - 0.5)[:, None]
    image = _clutter(draw, image, [ground, figure], centre, bars=BARS_BEHIND, dots=DOTS_BEHIND)
    surface = figure + tint(FIGURE_TEXTURE) * (_texture(draw, n) - 0.5)[:, None]
    image = _paint(image, surface, _figure(draw, n, centre, draw.uniform(*RADIUS, n, 1, 1))[:, None])
    image = _clutter(draw, image, [ground, figure], centre, bars=BARS_BEFORE, dots=DOTS_BEFORE)
    c, s = draw.direction(n, 1, 1)
    light = 1 + draw.uniform(0, 0.02, n, 1, 1) * (c * _X + s * _Y)
    image = image * light[:, None] + draw.uniform(*NOISE, n, 1, 1, 1) * draw.bell(n, 3, SIZE, SIZE)
    bytes_ = np.minimum(np.maximum(image * 255 + 0.5, 0), 255).astype(np.uint8)
    return np.ascontiguousarray(bytes_.transpose(0, 2, 3, 1))


def generate(
    seed: int = 0,
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Draw the dataset.

    Args:
        seed: 0 is the dataset that the course's figures and checkpoints speak of; any other is a fresh sample.

    Returns:
        train_images uint8 [20000, 32, 32, 3], train_labels int64 [20000], test_images uint8 [4000, 32, 32, 3],
        test_labels int64 [4000]. Labels index `CLASSES` and run 0, 1, …, 9, 0, 1, …, so any block of ten is balanced.
        The two splits come from separate random streams.
    """
    with ThreadPoolExecutor(max_workers=allowed_threads()) as pool:
        train_images, test_images = (
            np.concatenate(list(pool.map(functools.partial(_chunk, seed, split), range(total // CHUNK))))
            for split, total in enumerate((TRAIN_IMAGES, TEST_IMAGES))
        )
    return train_images, _labels(TRAIN_IMAGES), test_images, _labels(TEST_IMAGES)


def _labels(total: int) -> NDArray[np.int64]:
    return np.arange(total, dtype=np.int64) % len(CLASSES)
