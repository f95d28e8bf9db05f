"""A ray caster for boxes and ellipsoids over a ground, in numpy: depth and material of every pixel.

What decides a surface is computed by sums, products and roots of float32 alone, which IEEE 754 fixes on every machine;
what only colours it (powers, exponentials) is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

__all__ = ["FAR", "Array", "View", "fraction", "texture", "turn"]

NEAR, FAR = 0.5, 150.0  # metres
BRIGHT = 1.15  # what sun and sky shed together
CORNERS = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], np.float32)

Array: TypeAlias = "np.ndarray[Any, Any]"
Window: TypeAlias = tuple[slice, slice]
Pattern: TypeAlias = Callable[[Array, Array, Array, Array], None]
"""Changes material and shade `[N]` in place, given the place `[3, N]` in the solid's own frame and the axis `[N]` of
the face that was hit (0 of an ellipsoid).
"""


@lru_cache
def _grain() -> Array:
    rng = np.random.RandomState(0)
    return np.asarray(
        sum(np.kron(rng.random_sample((128 // k,) * 2), np.ones((k, k))) for k in (1, 4, 16)) / 3, np.float32
    )


def texture(a: Array, b: Array, scale: float = 1.0) -> Array:
    """Return noise in three octaves, from 0 to 1, at places."""
    i, j = (np.floor(x * np.float32(scale)).astype(np.intp) & 127 for x in (a, b))
    found: Array = _grain()[i, j]
    return found


def fraction(x: Array) -> Array:
    """Return what is behind the point."""
    return x - np.floor(x)


def turn(x: Any, z: Any, yaw: Any) -> tuple[Any, Any]:
    """Rotate about the vertical axis, by an angle of this cosine and sine."""
    cos, sin = yaw
    return cos * x - sin * z, sin * x + cos * z


class Solid(NamedTuple):
    """A box, or the ellipsoid in it, given by half its sides."""

    box: bool
    centre: Array
    half: Array
    yaw: Array
    material: int
    pattern: Pattern | None
    casts: bool

    def inside(self, x: Any, y: Any, z: Any) -> Array:
        """Return vectors of the street in the solid's own frame, `[3, ...]`."""
        x, z = turn(x, z, (self.yaw[0], -self.yaw[1]))
        return np.stack(np.broadcast_arrays(x, y, z))

    def hit(self, origin: Array, rays: Array, inverse: Array | None = None) -> tuple[Array, Array, Array | None]:
        """Return where rays `[3, ...]` enter, whether they do, and where they pass the faces of each axis of a box."""
        half = self.half.reshape(3, *[1] * (rays.ndim - 1))
        if self.box:
            inverse = 1 / rays if inverse is None else inverse
            one, other = (-half - origin) * inverse, (half - origin) * inverse
            enter = np.minimum(one, other)
            t = enter.max(0)
            return t, (t < np.maximum(one, other).min(0)) & (t > NEAR), enter
        o, d = origin / half, rays / half
        a, b, c = (d * d).sum(0), (o * d).sum(0), (o * o).sum(0) - 1
        root = b * b - a * c
        t = (-b - np.sqrt(np.maximum(root, 0))) / a
        return t, (root > 0) & (t > NEAR), None


class View:
    """A camera at the origin of a street, looking along z.

    Args:
        rng: draws camera and light.
        height: of the picture, in pixels.
        width: of the picture, in pixels.

    Attributes:
        depth: by pixel, inf for the sky, `[H, W]`.
        material: number in `materials`, 0 for the sky, `[H, W]`.
        materials: class, instance and colour.
    """

    def __init__(self, rng: np.random.RandomState, height: int, width: int, sky: int) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.focal = np.float32(rng.uniform(1.15, 1.75) * height)
        self.eye = np.array([rng.uniform(-1.2, 1.2), rng.uniform(1.3, 2.0), 0], np.float32)
        yaw, pitch = rng.normal(0, 0.1), rng.normal(-0.04, 0.03)
        self.yaw, self.pitch = [np.array([math.cos(a), math.sin(a)], np.float32) for a in (yaw, pitch)]
        across = (np.arange(width, dtype=np.float32) + np.float32(0.5 - width / 2)) / self.focal
        rise = (np.float32(height / 2 - 0.5) - np.arange(height, dtype=np.float32))[:, None] / self.focal
        z, y = turn(np.float32(1), rise, self.pitch)
        x, z = turn(across, z, self.yaw)
        rays = np.stack(np.broadcast_arrays(x, y, z))  # a step of 1 along a ray is a metre of depth
        self.rays = np.where(np.abs(rays) < 1e-6, np.float32(1e-6), rays)
        self.inverse = 1 / self.rays
        up, round_ = rng.uniform(0.3, 1.3), rng.uniform(0, 2 * math.pi)
        sun = math.cos(up) * math.cos(round_), math.sin(up), math.cos(up) * math.sin(round_)
        self.sun, self.ambient = np.array(sun, np.float32), np.float32(rng.uniform(0.45, 0.85))
        self.depth = np.full((height, width), np.inf, np.float32)
        self.material, self.shade = np.zeros((height, width), np.intp), np.ones((height, width), np.float32)
        self.materials: list[tuple[int, int, Any]] = [(sky, 0, (0, 0, 0))]
        self.solids: list[Solid] = []

    def add(
        self,
        material: int,
        centre: Sequence[float],
        half: Any,
        *,
        yaw: Sequence[float] = (1, 0),
        round_: bool = False,
        pattern: Pattern | None = None,
        casts: bool = True,
    ) -> None:
        """Add a box or an ellipsoid, turned by an angle of this cosine and sine; it casts a shadow on the ground."""
        place, size, turned = (np.array(numbers, np.float32) for numbers in (centre, half, yaw))
        self.solids.append(Solid(not round_, place, size, turned, material, pattern, casts))

    def draw(self) -> None:
        """Draw the solids, the nearest first, and their shadows on the ground that is seen."""
        half, centre = (
            np.stack([getattr(solid, name) for solid in self.solids])[:, None] for name in ("half", "centre")
        )
        x, y, z = np.moveaxis(CORNERS * half, 2, 0)
        x, z = turn(x, z, np.stack([solid.yaw for solid in self.solids], 1)[:, :, None])
        corners = np.stack([x, y, z]) + np.moveaxis(centre, 2, 0)  # [3, S, 8]
        ground = self.depth.copy()
        windows, nearest = self._windows(corners)
        for index in np.argsort(nearest, kind="stable"):
            self._draw(self.solids[index], windows[index], nearest[index])
        lit = np.isfinite(ground) & (self.depth == ground)
        fall = corners - (self.sun / self.sun[1])[:, None, None] * corners[1]
        dark = self.ambient / self.light(self.sun[1])
        for solid, window in zip(self.solids, self._windows(fall)[0], strict=True):
            if solid.casts:
                self._shadow(solid, window, lit, dark)

    def _windows(self, points: Array) -> tuple[list[Window], Array]:
        """Return the part of the picture that holds the hull of points `[3, S, P]`, and its least depth `[S]`."""
        x, y, z = points - self.eye[:, None, None]
        x, z = turn(x, z, (self.yaw[0], -self.yaw[1]))
        z, y = turn(z, y, (self.pitch[0], -self.pitch[1]))
        least, most = z.min(1), z.max(1)
        windows = []
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = self.focal * x / z + self.width / 2, self.height / 2 - self.focal * y / z
        bounds = np.stack([v.min(1), v.max(1), u.min(1), u.max(1)], 1)
        for i, box in enumerate(bounds.tolist()):
            if most[i] < NEAR:
                box = [-9] * 4
            elif least[i] < NEAR:  # where its edges come through the near plane
                front = z[i] >= NEAR
                share = (z[i, front, None] - NEAR) / (z[i, front, None] - z[i, ~front])
                cut = [c[front, None] + share * (c[~front] - c[front, None]) for c in (x[i], y[i])]
                us = [*u[i, front], *(self.focal * cut[0].ravel() / NEAR + self.width / 2)]
                vs = [*v[i, front], *(self.height / 2 - self.focal * cut[1].ravel() / NEAR)]
                box = [min(vs), max(vs), min(us), max(us)]
            top, bottom = (int(min(max(edge, 0), self.height)) for edge in (box[0] - 1, box[1] + 2))
            left, right = (int(min(max(edge, 0), self.width)) for edge in (box[2] - 1, box[3] + 2))
            windows.append((slice(top, bottom), slice(left, right)))
        return windows, least

    def light(self, facing: Any) -> Any:
        """Return what falls on a surface, given the cosine between its normal and the sun."""
        return self.ambient + (np.float32(BRIGHT) - self.ambient) * np.maximum(facing, 0)

    def _draw(self, solid: Solid, window: Window, nearest: float) -> None:
        depth, turned = self.depth[window], bool(solid.yaw[1] != 0)
        if not depth.size or depth.max() <= nearest:
            return
        rays, inverse = self.rays[:, window[0], window[1]], self.inverse[:, window[0], window[1]]
        rays = solid.inside(*rays) if turned else rays
        origin = solid.inside(*(self.eye - solid.centre))
        t, hit, enter = solid.hit(origin[:, None, None], rays, None if turned else inverse)
        i, j = np.nonzero(hit & (t < depth))
        t, sun, place = t[i, j], solid.inside(*self.sun), origin[:, None] + t[i, j] * rays[:, i, j]
        if enter is None:
            axis, normal = np.zeros(t.shape, np.intp), place / np.square(solid.half)[:, None]
            facing = (normal * sun[:, None]).sum(0) / np.sqrt((normal * normal).sum(0))
        else:
            axis = enter[:, i, j].argmax(0)
            facing = (sun * np.sign(origin))[axis]
        material, shade = np.full(t.shape, solid.material), np.ones(t.shape, np.float32)
        if solid.pattern is not None:
            solid.pattern(material, shade, place, axis)
        depth[i, j], self.material[window][i, j], self.shade[window][i, j] = t, material, shade * self.light(facing)

    def _shadow(self, solid: Solid, window: Window, lit: Array, dark: Any) -> None:
        i, j = np.nonzero(lit[window])
        if not i.size:
            return
        x, _, z = self.rays[:, window[0], window[1]][:, i, j] * self.depth[window][i, j]
        points = solid.inside(x + (self.eye[0] - solid.centre[0]), -solid.centre[1], z - solid.centre[2])
        sun = solid.inside(*self.sun)[:, None]
        far = np.float32(2 * NEAR)  # a solid that stands on the ground is not too near
        _, hit, _ = solid.hit(points - far * sun, np.where(np.abs(sun) < 1e-6, np.float32(1e-6), sun))
        self.shade[window][i[hit], j[hit]] *= dark
        lit[window][i[hit], j[hit]] = False

    def photograph(self, colours: Array) -> Array:
        """Return the picture `[H, W, 3]` under a sky, through haze, with the camera's colours and noise.

        Args:
            colours: by material, `[3, M]`.
        """
        rng, (h, w) = self.rng, self.depth.shape
        blue = rng.uniform(0.6, 0.9) * (1 - rng.uniform((0.3, 0.15, 0), (0.55, 0.25, 0)) * (rng.random_sample() < 0.7))
        horizon, cover, far = rng.uniform((0.7, 0, 60), (0.98, 0.9, 350)).astype(np.float32)
        tint, gamma = rng.uniform(0.75, 1.1) * rng.uniform(0.95, 1.05, 3), rng.uniform(0.85, 1.15)
        clouds = _smooth(rng.random_sample((h // 16 + 2, w // 16 + 2)), h, w)
        up = np.linspace(1, 0, h, dtype=np.float32)[:, None] ** np.float32(0.8)
        painted = horizon + (np.float32(blue).reshape(-1, 1, 1) - horizon) * up
        painted = painted + (np.float32(0.97) - painted) * (cover * clouds * clouds)
        haze = np.exp(-self.depth / far)  # 0 for the sky
        rgb = colours[:, self.material] * (self.shade * haze)
        rgb += np.where(np.isfinite(self.depth), horizon, painted) * (1 - haze)
        curve = 255 * np.linspace(0, 1, 4096, dtype=np.float32) ** np.float32(gamma)  # of the film, as a table
        rgb = curve[np.minimum(rgb * (4095 * np.float32(tint).reshape(3, 1, 1)), 4095).astype(np.intp)]
        one, other = np.frombuffer(rng.bytes(2 * rgb.size), np.uint8).reshape(2, *rgb.shape).astype(np.float32)
        rgb += (one - other) * np.float32(rng.uniform(0.01, 0.05)) + np.float32(0.5)
        return np.ascontiguousarray(np.clip(rgb, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _smooth(grid: Array, height: int, width: int) -> Array:
    """Return a grid of numbers, interpolated bilinearly over a picture."""
    for size in (height, width):  # an axis is done, and the other comes first
        at = np.linspace(0, len(grid) - 1.001, size)
        low = np.floor(at).astype(np.intp)
        share = (at - low)[:, None]
        grid = ((1 - share) * grid[low] + share * grid[low + 1]).T
    return grid.astype(np.float32)
