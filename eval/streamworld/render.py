"""Pixels of StreamWorld: sprites, scenes, and one frame from its description."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.streamworld.vocabulary import COLOURS, DIGITS, ENTITIES, LETTERS, SCENES

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]

FRAME_PX = 96
SPRITE_PX = 36
FREE_PX = FRAME_PX - SPRITE_PX
STREAK_PX = 16
_STREAK_HALF_WIDTH_PX = 6
NOWHERE = 4
# (x, y) unit steps of DIRECTIONS
DIRECTION_XY = ((-1, 0), (1, 0), (0, -1), (0, 1), (0, 0))

_RGB = {
    "red": (220, 40, 40),
    "green": (50, 190, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 220, 50),
    "purple": (150, 50, 190),
    "orange": (245, 140, 30),
    "white": (245, 245, 245),
    "cyan": (60, 215, 225),
}
# 7 rows of 5 pixels each
_FONT = {
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "01110 10001 00001 00110 00001 10001 01110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "K": "10001 10010 10100 11000 10100 10010 10001",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "V": "10001 10001 10001 01010 01010 01010 00100",
    "X": "10001 01010 01010 00100 01010 01010 10001",
}
_SUPERSAMPLE = 4


@dataclass(frozen=True, kw_only=True)
class FrameSpec:
    """What one frame shows.

    A moving object drags a streak of its colour behind it, so that one frame shows its direction.

    Attributes:
        scene: Index into SCENES.
        entity: Index into ENTITIES, or -1 for an empty scene.
        colour: Index into COLOURS.
        x: Left edge of the sprite in pixels, 0..FREE_PX.
        y: Top edge of the sprite in pixels, 0..FREE_PX.
        direction: Index into DIRECTIONS; the streak is drawn unless it is NOWHERE.
        scene_to: Index into SCENES of the background it fades to, or -1.
        colour_to: Index into COLOURS of the colour that the object fades to, or -1.
        faded: How far it has faded, 0..1.
    """

    scene: int
    entity: int = -1
    colour: int = 0
    x: int = 0
    y: int = 0
    direction: int = NOWHERE
    scene_to: int = -1
    colour_to: int = -1
    faded: float = 0.0


def _shape_masks() -> dict[str, Bool]:
    side = SPRITE_PX * _SUPERSAMPLE
    y, x = (np.mgrid[0:side, 0:side] + 0.5) / side * 2 - 1
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    half_point = np.pi / 5
    to_tip = np.abs((angle + np.pi / 2) % (2 * half_point) - half_point) / half_point
    heart_y = -y * 1.2 - 0.05 - 0.55 * np.sqrt(np.abs(x * 1.25))
    return {
        "circle": radius < 0.8,
        "square": (np.abs(x) < 0.72) & (np.abs(y) < 0.72),
        "triangle": (y < 0.7) & (y > -0.85 + 1.755 * np.abs(x)),
        "star": radius < 1 / (to_tip / 0.95 + (1 - to_tip) / 0.42),
        "cross": ((np.abs(x) < 0.28) | (np.abs(y) < 0.28)) & (np.maximum(abs(x), abs(y)) < 0.85),
        "ring": (radius < 0.9) & (radius > 0.48),
        "diamond": np.abs(x) * 1.25 + np.abs(y) < 0.95,
        "heart": (x * 1.25) ** 2 + heart_y**2 < 0.62,
    }


def _glyph_mask(name: str) -> Bool:
    bits = np.array([[int(c) for c in row] for row in _FONT[name].split()], bool)
    glyph = np.kron(bits, np.ones((5 * _SUPERSAMPLE, 6 * _SUPERSAMPLE), bool))
    side = SPRITE_PX * _SUPERSAMPLE
    top, left = (side - glyph.shape[0]) // 2, (side - glyph.shape[1]) // 2
    mask = np.zeros((side, side), bool)
    mask[top : top + glyph.shape[0], left : left + glyph.shape[1]] = glyph
    return mask


def _sprites() -> Float:
    """[entity, (fill, fill and outline), SPRITE_PX, SPRITE_PX] coverage in 0..1."""
    masks = _shape_masks() | {name: _glyph_mask(name) for name in DIGITS + LETTERS}
    sprites = np.zeros((len(ENTITIES), 2, SPRITE_PX, SPRITE_PX), np.float32)
    reach = range(-_SUPERSAMPLE, _SUPERSAMPLE + 1, 2)
    for i, name in enumerate(ENTITIES):
        fill = masks[name]
        outline = fill.copy()
        for dy in reach:
            for dx in reach:
                outline |= np.roll(np.roll(fill, dy, 0), dx, 1)
        for j, mask in enumerate((fill, outline)):
            blocks = mask.reshape(SPRITE_PX, _SUPERSAMPLE, SPRITE_PX, _SUPERSAMPLE)
            sprites[i, j] = blocks.mean((1, 3))
    return sprites


def _scenes() -> Float:
    """[scene, FRAME_PX, FRAME_PX, 3] in -1..1; textures are constant, from a fixed seed."""
    y, x = np.mgrid[0:FRAME_PX, 0:FRAME_PX].astype(np.float32)[..., None]
    rng = np.random.default_rng(7)

    def flat(*rgb: float) -> Float:
        return np.array(rgb, np.float32) + np.zeros((FRAME_PX, FRAME_PX, 1), np.float32)

    stars = rng.random((FRAME_PX, FRAME_PX, 1)) > 0.985
    mortar = (y % 12 < 2) | ((x + 8 * ((y // 12) % 2)) % 16 < 2)
    grain = rng.standard_normal((FRAME_PX, FRAME_PX, 1))
    images = {
        "night": flat(18, 18, 48) + 120 * stars,
        "grass": flat(60, 95, 45) + 18 * ((x // 4 + y // 8) % 2) * np.array((1, 1, 0.5)),
        "sky": flat(110, 150, 195) + (y / FRAME_PX) * np.array((50, 40, 20)),
        "sand": flat(170, 145, 100) + 14 * grain,
        "brick": flat(120, 70, 60) - 45 * mortar,
        "snow": flat(190, 195, 205) - 25 * ((x + y) % 16 < 3),
    }
    stacked = np.stack([images[name] for name in SCENES])
    scaled: Float = (np.clip(stacked, 0, 255) / 127.5 - 1).astype(np.float32)
    return scaled


_SPRITES = _sprites()
_SCENES = _scenes()
_COLOURS = np.array([_RGB[c] for c in COLOURS], np.float32) / 127.5 - 1
_OUTLINE = -0.88


def look_alikes(entity: int) -> list[int]:
    """The other entities, those first whose sprites cover most of the same pixels."""
    fills = _SPRITES[:, 0].reshape(len(ENTITIES), -1)
    shared = np.minimum(fills, fills[entity]).sum(1) / np.maximum(fills, fills[entity]).sum(1)
    return [int(other) for other in np.argsort(-shared, kind="stable") if other != entity]


def _faded(table: Float, start: int, end: int, faded: float) -> Float:
    mixed: Float = table[start]
    return mixed if end < 0 else mixed + np.float32(faded) * (table[end] - mixed)


def _draw_streak(image: Float, spec: FrameSpec) -> None:
    dx, dy = DIRECTION_XY[spec.direction]
    half = SPRITE_PX // 2
    cx, cy = spec.x + half, spec.y + half
    near, far = half, half + STREAK_PX
    width = _STREAK_HALF_WIDTH_PX
    x0, x1 = sorted((cx - near * dx, cx - far * dx)) if dx else (cx - width, cx + width)
    y0, y1 = sorted((cy - near * dy, cy - far * dy)) if dy else (cy - width, cy + width)
    image[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)] = _COLOURS[spec.colour]


def draw(spec: FrameSpec, out: Float) -> None:
    """Draw one frame into `out`, [FRAME_PX, FRAME_PX, 3] float32 in -1..1."""
    out[:] = _faded(_SCENES, spec.scene, spec.scene_to, spec.faded)
    if spec.entity < 0:
        return
    if spec.direction != NOWHERE:
        _draw_streak(out, spec)
    patch = out[spec.y : spec.y + SPRITE_PX, spec.x : spec.x + SPRITE_PX]
    fill, outline = _SPRITES[spec.entity][:, :, :, None]
    patch *= 1 - outline
    colour = _faded(_COLOURS, spec.colour, spec.colour_to, spec.faded)
    patch += (outline - fill) * _OUTLINE + fill * colour


def render(specs: list[FrameSpec]) -> Float:
    """Frames as [n, FRAME_PX, FRAME_PX, 3] float32 in -1..1 (the model's normalised pixels)."""
    images = np.empty((len(specs), FRAME_PX, FRAME_PX, 3), np.float32)
    for image, spec in zip(images, specs, strict=True):
        draw(spec, image)
    return images


def to_uint8(images: Float) -> NDArray[np.uint8]:
    """Pixels in 0..255 of images in -1..1."""
    rounded: NDArray[np.uint8] = np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)
    return rounded


def position_range(
    direction: int, *, steps: int = 0, step_px: int = 0
) -> tuple[int, int, int, int]:
    """Where a sprite may start: (x least, x greatest, y least, y greatest), inclusive, in pixels.

    Its whole streak and the `steps` moves of `step_px` that follow stay inside the frame.
    """
    low, high = [0, 0], [FREE_PX, FREE_PX]
    for axis, sign in enumerate(DIRECTION_XY[direction]):
        ahead, behind = steps * step_px, STREAK_PX
        if sign > 0:
            low[axis], high[axis] = behind, FREE_PX - ahead
        elif sign < 0:
            low[axis], high[axis] = ahead, FREE_PX - behind
    return low[0], high[0], low[1], high[1]
