"""A drawn stand-in for CIFAR-10: ten shapes on clutter, so the pipeline runs with no download.

Each 32x32 image is built in layers: a smooth random background, a blob and a line of random
colours, one shape at a random place, size and angle, sometimes a strip across it, pixel noise.
Two things are there to set a deep teacher apart from a small student:

- Shapes look like each other. Every shape is morphed part of the way towards another class (its
  outline is a blend, at most a fifth of it the other's), as some of the 2s in MNIST look like 3s
  and some like 7s (Hinton, Vinyals and Dean 2015, section 1). Which class an image could also
  have been is what soft targets can carry and the label does not.
- Colour hints at the class. The hue of a shape is drawn around a hue of its class with a spread
  wider than the gap between neighbouring classes, as ships tend to blue and frogs to green. A
  small network gets by mostly on that; the outline takes a deeper one.

Nothing else depends on the label: size, place, angle, clutter, strip and noise do not.
"""

from collections.abc import Callable

import numpy as np

SIZE = 32  # pixels a side, as in CIFAR
CHUNK = 250  # images drawn together: bounds memory, and is the unit that owns a random stream

RADIUS = (8.0, 12.0)  # pixels, centre to furthest point of the shape, smallest and largest
SHIFT = 2.0  # pixels, how far the centre strays from the image's on each axis
MORPH = 0.10  # largest share of the other class in an outline
HUE_SPREAD = 0.12  # standard deviation around the class's hue; neighbouring classes are 0.1 apart
BLOBS, LINES = 1, 1  # clutter behind the shape
STRIP = 0.2  # how often a strip crosses the shape
NOISE = 0.03  # standard deviation, of a full range of 1

# --- outlines: signed distance, negative inside, for a shape of radius about 1 at the origin ---


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    third = np.pi / 3
    angle = np.arctan2(v, u) % (2 * third) - third  # all three sides fold onto one
    return np.hypot(u, v) * np.cos(angle) - 0.5


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    fifth = np.pi / 5
    angle = np.abs((np.arctan2(v, u) + fifth) % (2 * fifth) - fifth)  # all ten edges fold onto one
    r = np.hypot(u, v)
    # The edge runs from the tip (1, 0) to the notch, at radius 0.45 and angle pi / 5.
    du, dv = 0.45 * np.cos(fifth) - 1, 0.45 * np.sin(fifth)
    return ((r * np.cos(angle) - 1) * dv - r * np.sin(angle) * du) / np.hypot(du, dv)


def _bar(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u) - 0.95, np.abs(v) - 0.3)


OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda u, v: np.hypot(u, v) - 0.85,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.7) - 0.22,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.75,
    "frame": lambda u, v: np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.58) - 0.18,
    "triangle": _triangle,
    "star": _star,
    "bar": _bar,
    "cross": lambda u, v: np.minimum(_bar(u, v), _bar(v, u)),
    "crescent": lambda u, v: np.maximum(np.hypot(u, v) - 0.9, 0.75 - np.hypot(u - 0.5, v)),
    "half": lambda u, v: np.maximum(np.hypot(u + 0.35, v) - 0.95, -0.35 - u),
}
CLASSES: tuple[str, ...] = tuple(OUTLINES)

# --- layers ---


def _distance(kind: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The signed distance to outline kind[i] in image i; u, v and the result are [n, 32, 32]."""
    out = np.empty_like(u)
    for c, outline in enumerate(OUTLINES.values()):
        rows = kind == c
        out[rows] = outline(u[rows], v[rows])
    return out


def _colour(hue: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """RGB [n, 3, 1, 1] in 0 to 1 of the hues [n] (1 is a full turn), not too pale or dark."""
    saturation, value = rng.uniform(0.5, 1, (2, *hue.shape, 1))
    k = (np.array([5, 3, 1]) + 6 * hue[:, None]) % 6  # the usual HSV to RGB
    rgb = value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))
    return rgb[:, :, None, None].astype(np.float32)


def _paint(image: np.ndarray, distance: np.ndarray, colour: np.ndarray) -> None:
    """Paint where distance [n, 32, 32], in pixels, is negative; edges fade over one pixel."""
    cover = np.clip(0.5 - distance, 0, 1)[:, None]  # [n, 1, 32, 32]
    image += cover * (colour - image)


def _background(n: int, rng: np.random.Generator) -> np.ndarray:
    """A smooth field [n, 3, 32, 32]: a random 4 x 4 grid of colours, interpolated linearly."""
    at = np.linspace(0, 3, SIZE)[:, None]
    weights = np.clip(1 - np.abs(at - np.arange(4)), 0, 1)  # [32, 4]
    grid = rng.uniform(0.3, 0.7, (n, 3, 4, 4))
    return np.einsum("ya,xb,ncab->ncyx", weights, weights, grid, optimize=True).astype(np.float32)


def _draw_chunk(seed: int, chunk: int, labels: np.ndarray) -> np.ndarray:
    """The images [n, 32, 32, 3] of one chunk. Channels lead while drawing: numpy is faster so."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, chunk]))
    n = len(labels)

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)

    def any_colour() -> np.ndarray:
        return _colour(rng.uniform(0, 1, n), rng)

    # Pixels from the centre, [32, 32] each.
    y, x = (np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2).astype(np.float32)

    def line(reach: float, thickness: float) -> np.ndarray:
        turn = uniform(0, np.pi)
        across = x * np.cos(turn) + y * np.sin(turn) - uniform(-reach, reach)
        return np.abs(across) - thickness

    image = _background(n, rng)
    for _ in range(BLOBS):
        away = np.hypot(x - uniform(-16, 16), y - uniform(-16, 16))
        _paint(image, away - uniform(1.5, 4), any_colour())
    for _ in range(LINES):
        _paint(image, line(16, 0.7), any_colour())

    radius, turn = uniform(*RADIUS), uniform(0, 2 * np.pi)
    dx, dy = x - uniform(-SHIFT, SHIFT), y - uniform(-SHIFT, SHIFT)
    u = (dx * np.cos(turn) + dy * np.sin(turn)) / radius
    v = (dy * np.cos(turn) - dx * np.sin(turn)) / radius
    other = (labels + rng.integers(1, len(CLASSES), n)) % len(CLASSES)
    share = uniform(0, MORPH)
    outline = (1 - share) * _distance(labels, u, v) + share * _distance(other, u, v)
    hue = labels / len(CLASSES) + rng.normal(0, HUE_SPREAD, n)
    _paint(image, outline * radius, _colour(hue, rng))

    # A strip that is not to be there is put infinitely far away.
    strip = line(8, 1.5) + np.where(uniform(0, 1) < STRIP, 0, np.float32(np.inf))
    _paint(image, strip, any_colour())
    image += NOISE * rng.standard_normal(image.shape, np.float32)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` images: uint8 [count, 32, 32, 3] and their int64 labels [count].

    Labels go round the classes (label i is i % 10), so any prefix is balanced to within one.
    Image i is a function of (seed, i) alone: a longer draw begins with the shorter one. Draws of
    different seeds are independent: use two for a train and a test set.
    """
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    labels = np.arange(count, dtype=np.int64) % len(CLASSES)
    for chunk, start in enumerate(range(0, count, CHUNK)):
        # Always the whole chunk, so that where the draw ends changes no random number.
        kept = min(CHUNK, count - start)
        whole = np.arange(start, start + CHUNK) % len(CLASSES)
        images[start : start + kept] = _draw_chunk(seed, chunk, whole)[:kept]
    return images, labels
