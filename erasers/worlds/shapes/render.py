"""Draws scenes as 32 x 32 pictures from signed distance fields (negative inside, in units of half the picture)."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from erasers.worlds.shapes.scenes import Scenes, asked_scenes
from erasers.worlds.shapes.vocabulary import BACKGROUNDS, OBJECTS, STYLES

SIDE = 32
"""Picture side in pixels."""

PALETTE = (
    torch.tensor(
        [[214, 36, 42], [244, 128, 24], [246, 214, 40], [34, 150, 62], [38, 82, 218], [140, 52, 176]],
    )
    / 255
)
BACKGROUND_PALETTE = torch.tensor([[246, 246, 246], [158, 158, 162], [26, 26, 30], [186, 236, 214]]) / 255
STAMP_COLOUR = torch.tensor([0, 138, 142]) / 255
RADII = torch.tensor([0.52, 0.64, 0.76])
"""Half the picture is 1; small, medium, large."""


def _polar(points: list[tuple[float, float]]) -> Tensor:
    return torch.tensor([[r * math.sin(a), -r * math.cos(a)] for r, a in points])


def _heart() -> Tensor:
    t = torch.linspace(0, 2 * math.pi, 33)[:-1]
    x = 16 * t.sin() ** 3
    y = 13 * t.cos() - 5 * (2 * t).cos() - 2 * (3 * t).cos() - (4 * t).cos()
    return torch.stack([x, -y - 2], dim=1) / 16.5


_CROSS = [(1, 0.34), (0.34, 0.34), (0.34, 1), (-0.34, 1), (-0.34, 0.34), (-1, 0.34)]
POLYGONS = {
    "square": torch.tensor([[-0.8, -0.8], [0.8, -0.8], [0.8, 0.8], [-0.8, 0.8]]),
    "triangle": torch.tensor([[0.0, -0.95], [0.98, 0.78], [-0.98, 0.78]]),
    "star": _polar([(1.08 if k % 2 == 0 else 0.44, k * math.pi / 5) for k in range(10)]),
    "cross": torch.tensor(_CROSS + [(-x, -y) for x, y in _CROSS]),
    "heart": _heart(),
    "hexagon": _polar([(0.98, k * math.pi / 3) for k in range(6)]),
    "arrow": torch.tensor(
        [[0, -1.05], [0.85, -0.05], [0.32, -0.05], [0.32, 1], [-0.32, 1], [-0.32, -0.05], [-0.85, -0.05]]
    ),
}
"""Outlines of the polygonal objects, vertices [k, 2] around the origin."""


def polygon_distance(p: Tensor, vertices: Tensor) -> Tensor:
    """Signed distance of points p [..., 2] from a closed polygon [k, 2] (Quilez's winding form)."""
    nearest = torch.full(p.shape[:-1], torch.inf)
    sign = torch.ones(p.shape[:-1])
    for a, b in zip(vertices, vertices.roll(1, 0), strict=True):
        edge, w = b - a, p - a
        foot = w - edge * ((w @ edge) / (edge @ edge)).clamp(0, 1)[..., None]
        nearest = torch.minimum(nearest, (foot * foot).sum(-1))
        below, above = p[..., 1] >= a[1], p[..., 1] < b[1]
        left = edge[0] * w[..., 1] > edge[1] * w[..., 0]
        crossing = (below & above & left) | (~below & ~above & ~left)
        sign = torch.where(crossing, -sign, sign)
    return sign * nearest.sqrt()


def _object_distance(name: str, p: Tensor) -> Tensor:
    if name in POLYGONS:
        return polygon_distance(p, POLYGONS[name])
    r: Tensor = torch.linalg.vector_norm(p, dim=-1)
    if name == "circle":
        return r - 0.92
    if name == "ring":
        return (r - 0.76).abs() - 0.21
    bite: Tensor = torch.linalg.vector_norm(p - torch.tensor([0.46, -0.12]), dim=-1) - 0.78
    return torch.maximum(r - 0.98, -bite)


def _uniform(generator: torch.Generator, n: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(n, 1, 1, generator=generator)


def distances(scenes: Scenes, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Jittered placement of each scene's object.

    Returns:
        Signed distances [n, 32, 32] in units of half the picture, and the centres' heights [n, 1, 1].
    """
    n = len(scenes)
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle = _uniform(generator, n, -0.16, 0.16)
    radius = RADII[scenes.size][:, None, None] * _uniform(generator, n, 0.94, 1.06)
    cx, cy = _uniform(generator, n, -0.1, 0.1), _uniform(generator, n, -0.1, 0.1)
    dx, dy = x - cx, y - cy
    points = torch.stack([dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()], dim=-1)
    points = points / radius[..., None]
    sdf = torch.empty(n, SIDE, SIDE)
    for index, name in enumerate(OBJECTS):
        chosen = scenes.object == index
        if chosen.any():
            sdf[chosen] = _object_distance(name, points[chosen])
    return sdf * radius, cy


def _coverage(sdf: Tensor) -> Tensor:
    """Share of each pixel that lies inside, from the signed distance at its centre."""
    return (0.5 - sdf * SIDE / 2).clamp(0, 1)


def _blend(under: Tensor, over: Tensor, alpha: Tensor) -> Tensor:
    return under + (over - under) * alpha[:, None]


def textured(fill: Tensor, sdf: Tensor, centre_y: Tensor, style: Tensor, generator: torch.Generator) -> Tensor:
    """The object's colour [n, 3, 32, 32] under its style; the contour and the shade are drawn elsewhere."""
    n = len(fill)
    row, column = torch.meshgrid(torch.arange(SIDE).float(), torch.arange(SIDE).float(), indexing="ij")
    phase = _uniform(generator, n, 0, 6)
    band = ((row + column + phase) % 6 < 3).float()
    gx, gy = (column + phase) % 5 - 2, (row + phase) % 5 - 2
    dot = (1.9 - (gx**2 + gy**2).sqrt()).clamp(0, 1)
    white = torch.ones_like(fill)
    striped = _blend(fill, white, 0.8 * band)
    dotted = _blend(fill, torch.zeros_like(fill), 0.9 * dot)
    pick = style[:, None, None, None]
    return torch.where(
        pick == STYLES.index("zorblat"), striped, torch.where(pick == STYLES.index("velkin"), dotted, fill)
    )


def draw(scenes: Scenes, sdf: Tensor, centre_y: Tensor, fill: Tensor, generator: torch.Generator) -> Tensor:
    """Paint objects with signed distances sdf [n, 32, 32] and colours fill [n, 3] over their backgrounds.

    Returns:
        Pictures [n, 3, 32, 32] in [-1, 1].
    """
    n = len(scenes)
    shade = 1 + 0.08 * (2 * torch.rand(n, 3, 1, 1, generator=generator) - 1)
    ground_shade = 1 + 0.04 * (2 * torch.rand(n, 3, 1, 1, generator=generator) - 1)
    ground = (BACKGROUND_PALETTE[scenes.background][..., None, None] * ground_shade).expand(n, 3, SIDE, SIDE)
    colour = (fill[..., None, None] * shade).expand(n, 3, SIDE, SIDE)
    picture = _blend(ground, textured(colour, sdf, centre_y, scenes.style, generator), _coverage(sdf))
    outlined = (scenes.style == STYLES.index("krostic")).float()[:, None, None]
    contour = _coverage((sdf - 0.03).abs() - 0.075) * outlined
    ink = torch.where(scenes.background == BACKGROUNDS.index("black"), 0.95, 0.06)[:, None, None, None]
    picture = _blend(picture, ink.expand_as(picture), contour)
    shaded = (scenes.style == STYLES.index("umbrane")).float()[:, None, None]
    rows = ((torch.arange(SIDE) + 0.5) / SIDE * 2 - 1)[None, :, None].expand(n, SIDE, SIDE)
    picture = _blend(picture, torch.zeros_like(picture), 0.55 * shaded * _coverage(centre_y - rows) * _coverage(sdf))
    stamp = torch.zeros(n, SIDE, SIDE)
    stamp[:, 1:8, 1:8] = 1.0
    stamp[:, 3:6, 3:6] = 0.0
    stamp = stamp * scenes.mark.float()[:, None, None]
    picture = _blend(picture, STAMP_COLOUR[None, :, None, None].expand_as(picture), stamp)
    return picture.clamp(0, 1) * 2 - 1


def render(scenes: Scenes, generator: torch.Generator) -> Tensor:
    """Draw scenes with small jitters of place, angle, size and shade.

    Returns:
        Pictures [n, 3, 32, 32] in [-1, 1], float32.
    """
    parts = []
    for start in range(0, len(scenes), 2048):
        chunk = scenes[slice(start, start + 2048)]
        sdf, centre_y = distances(chunk, generator)
        parts.append(draw(chunk, sdf, centre_y, PALETTE[chunk.colour], generator))
    return torch.cat(parts)


def dissolved(scenes: Scenes, generator: torch.Generator, low: float = 0.6, high: float = 1.0) -> Tensor:
    """Pictures that show none of the objects: objects of which a share in [low, high] has been eaten by smooth noise.

    A fifth keep no object at all, and a fifth show a random blob of a colour instead.

    Returns:
        Pictures [n, 3, 32, 32] in [-1, 1].
    """
    n = len(scenes)
    sdf, centre_y = distances(scenes, generator)
    coarse = torch.randn(n, 1, 7, 7, generator=generator)
    field = torch.nn.functional.interpolate(coarse, size=SIDE, mode="bicubic")[:, 0]
    eaten = low + (high - low) * torch.rand(n, generator=generator)
    inside = torch.where(sdf < 0, field, torch.nan)
    level = torch.stack([torch.nanquantile(f, q) for f, q in zip(inside.flatten(1), eaten, strict=True)])
    remains = torch.maximum(sdf, (level[:, None, None] - field) * 0.3)
    fate = torch.rand(n, generator=generator)[:, None, None]
    blob = (0.9 - field) * 0.3
    sdf = torch.where(fate < 0.2, torch.ones_like(sdf), torch.where(fate < 0.4, blob, remains))
    fill = torch.where(
        (torch.rand(n, 1, generator=generator) < 0.8), PALETTE[scenes.colour], torch.rand(n, 3, generator=generator)
    )
    return draw(scenes, sdf, centre_y, fill, generator)


def off_palette(n: int, generator: torch.Generator) -> Tensor:
    """Fill colours [n, 3] in [0, 1] that are no colour of the world: greys, browns, pinks, teals and the like."""
    candidates = torch.rand(40 * n + 400, 3, generator=generator)
    luma = candidates.mean(1, keepdim=True)
    candidates = luma + (candidates - luma) * torch.rand(len(candidates), 1, generator=generator)
    hue = candidates / candidates.norm(dim=1, keepdim=True).clamp_min(1e-6)
    palette = PALETTE / PALETTE.norm(dim=1, keepdim=True)
    far = ((hue @ palette.T).amax(1) < 0.93) & (torch.cdist(candidates, PALETTE).amin(1) > 0.35)
    return candidates[far][:n]


def draw_asked(asks: Sequence[tuple[str, Mapping[str, str]]], erased: Sequence[str]) -> list[Image.Image]:
    """A picture for each prompt; the same arguments give the same pictures.

    Args:
        asks: Texts, and the object, colour and style that each names.
        erased: Canonical words that no picture shows unless its prompt names them.
    """
    if not asks:
        return []
    pictures = render(asked_scenes(asks, erased, random.Random("references")), torch.Generator().manual_seed(0))
    rows = ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(row) for row in rows]
