"""Random streets, drawn in numpy alone: class, instance and depth of every pixel are exact.

x points right, y up and z along the street, in metres; depth is measured along the optical axis. A seed is the same
street on every machine (see `_rays.py` beside this file, which draws what is laid out here).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lightning_uncertainty.examples._rays import FAR, Array, View, fraction, texture, turn

__all__ = ["CLASSES", "THINGS", "Street", "draw_street"]

CLASSES = ("road", "sidewalk", "building", "pole", "sign", "vegetation", "terrain", "sky", "person", "car", "truck")
THINGS = ("person", "car", "truck")
PLASTER = (
    (0.8, 0.78, 0.73),
    (0.7, 0.61, 0.5),
    (0.56, 0.42, 0.36),
    (0.5, 0.52, 0.54),
    (0.74, 0.7, 0.6),
    (0.4, 0.38, 0.37),
)
BOARDS = ((0.75, 0.1, 0.1), (0.1, 0.25, 0.7), (0.85, 0.75, 0.1), (0.9, 0.9, 0.9))


class Street(NamedTuple):
    """What a camera sees of a street.

    Attributes:
        image: `[H, W, 3]`, uint8.
        label: index in `CLASSES`, `[H, W]`, uint8.
        instance: number of the person, car or truck, 0 elsewhere, `[H, W]`, uint8.
        depth: metres along the optical axis, 0 for the sky, `[H, W]`, float32.
    """

    image: Array
    label: Array
    instance: Array
    depth: Array


def draw_street(seed: int, height: int = 128, width: int = 256) -> Street:
    """Return the street of a seed.

    Example:
        >>> street = draw_street(1, height=64, width=128)
        >>> street.image.shape, sorted({CLASSES[index] for index in street.label.flat} & set(THINGS))
        ((64, 128, 3), ['car', 'person'])
    """
    town = _Town(np.random.RandomState(seed), height, width, CLASSES.index("sky"))
    town.build()
    town.draw()
    label, instance, colour = (np.array(column) for column in zip(*town.materials, strict=True))
    return Street(
        town.photograph(colour.T.astype(np.float32)),
        label.astype(np.uint8)[town.material],
        instance.astype(np.uint8)[town.material],
        np.where(np.isfinite(town.depth), np.minimum(town.depth, np.float32(FAR)), np.float32(0)),
    )


class _Town(View):
    """What stands in a street."""

    instances = 0

    def paint(self, name: str, colour: Any, instance: int = 0) -> int:
        """Return the number of a new material."""
        self.materials.append((CLASSES.index(name), instance, colour))
        return len(self.materials) - 1

    def colour(self, low: float = 0.08, high: float = 0.9) -> Array:
        """Return any, more often a grey one."""
        tint = self.rng.uniform(-1, 1, 3) * (0.04, 0.08, 0.2)[self.rng.randint(3)]
        return np.clip(self.rng.uniform(low, high) + tint, 0.03, 1)

    def thing(self, x: float, z: float, yaw: float) -> tuple[int, tuple[float, float], Callable[..., Any]]:
        """Return the number of a new thing, how it is turned, and what leads from its own frame to the street."""
        self.instances += 1
        turned = math.cos(yaw), math.sin(yaw)

        def at(right: float, up: float, ahead: float) -> tuple[float, float, float]:
            dx, dz = turn(right, ahead, turned)
            return x + dx, up, z + dz

        return self.instances, turned, at

    def building(self, side: int, edge: float, z: float, length: float) -> None:
        rng = self.rng
        deep, up, long = half = rng.uniform(3, 5), rng.uniform(2.2, 10), length / 2
        bay, floor, wide, tall = rng.uniform((1.6, 2.6, 0.15, 0.18), (4.5, 4, 0.4, 0.37)).astype(np.float32)
        rough, bricks, trim = rng.uniform((0, 2, 0.7), (0.5, 12, 1.25)).astype(np.float32)
        wall = np.array(PLASTER[rng.randint(len(PLASTER))]) * rng.uniform(0.7, 1.15) + rng.uniform(-0.05, 0.05, 3)
        glass = self.paint("building", rng.uniform(0.1, 0.45) * np.array((0.85, 0.95, 1.1)))

        def facade(material: Array, shade: Array, place: Array, axis: Array) -> None:
            along = np.where(axis == 0, place[2] + np.float32(long), place[0] + np.float32(deep))
            height = place[1] + np.float32(up)
            shade *= 1 + rough * (texture(along, height, bricks) - np.float32(0.5))
            a, b = along / bay, height / floor
            aside = np.maximum(np.abs(fraction(a) - 0.5) - wide, np.abs(fraction(b) - 0.5) - tall)
            shade[(aside < 0.05) & (axis != 1)] *= trim
            pane = np.nonzero((aside < 0) & (axis != 1))
            material[pane] = glass
            shade[pane] *= 0.6 + 1.2 * texture(np.floor(a[pane]), np.floor(b[pane]), 7)

        place = side * (edge + deep + rng.uniform(0, 0.8)), up, z + long
        self.add(self.paint("building", np.clip(wall, 0.05, 1)), place, half, pattern=facade)

    def vehicle(self, x: float, z: float, oncoming: bool, truck: bool) -> None:
        rng, name = self.rng, "truck" if truck else "car"
        low, high = ((1.15, 1.1, 2.6), (1.25, 1.5, 4)) if truck else ((0.8, 0.34, 1.8), (0.95, 0.45, 2.4))
        width, height, length = half = rng.uniform(low, high)
        me, yaw, at = self.thing(x, z + length, rng.normal(0, 0.03) + math.pi * oncoming)
        paint, dark = self.colour(0.2, 0.95) if truck else self.colour(0.03), rng.uniform(0.05, 0.3)
        body, cab = self.paint(name, paint, me), self.paint(name, self.colour(), me)
        ahead, behind = self.paint(name, (0.95, 0.95, 0.8), me), self.paint(name, (0.7, 0.06, 0.06), me)
        glass, tyre = self.paint(name, (dark, dark, 1.15 * dark), me), self.paint(name, (0.06, 0.06, 0.065), me)

        def lamps(material: Array, shade: Array, place: Array, axis: Array) -> None:
            lamp = (axis == 2) & (np.abs(place[0]) > 0.6 * width) & (np.abs(place[1] - 0.2 * height) < 0.25 * height)
            material[lamp] = np.where(place[2] > 0, ahead, behind)[lamp]
            shade[place[1] < -0.5 * height] *= 0.8

        self.add(body, at(0, 0.35 + height, 0), half, yaw=yaw, pattern=lamps)
        if truck:
            self.add(cab, at(0, 1.35, length + 0.9), (1.1, 1, 0.8), yaw=yaw, pattern=lamps)
        else:
            top = 0.35 + 2 * height
            self.add(glass, at(0, top + 0.25, -0.1 * length), (0.86 * width, 0.27, 0.55 * length), yaw=yaw)
            roof = 0.84 * width, 0.04, 0.5 * length
            self.add(body, at(0, top + 0.55, -0.1 * length), roof, yaw=yaw, casts=False)
        for side in (-width, width):
            for axle in (-0.6 * length, 0.62 * length):
                self.add(tyre, at(side, 0.33, axle), (0.12, 0.34, 0.34), yaw=yaw, round_=True, casts=False)

    def person(self, x: float, z: float) -> None:
        rng = self.rng
        me, yaw, at = self.thing(x, z, rng.uniform(0, 6))
        k, step, pale = rng.uniform(0.85, 1.1), rng.uniform(0.04, 0.2), rng.uniform(0.25, 0.9)
        coat, trousers = self.paint("person", self.colour(), me), self.paint("person", self.colour(0.05, 0.5), me)
        skin = self.paint("person", (pale, 0.8 * pale, 0.65 * pale), me)
        for side in (-1, 1):
            self.add(trousers, at(0.09 * side, 0.43 * k, step * side), (0.075, 0.43 * k, 0.09), yaw=yaw)
            arm = at(0.26 * side, 1.1 * k, -step * side)
            self.add(coat, arm, (0.06, 0.34 * k, 0.08), yaw=yaw, round_=True, casts=False)
        self.add(coat, at(0, 1.15 * k, 0), (0.22, 0.38 * k, 0.16), yaw=yaw, round_=True)
        self.add(skin, at(0, 1.63 * k, 0), (0.11, 0.14, 0.12), yaw=yaw, round_=True)

    def tree(self, x: float, z: float) -> None:
        rng, tall, bush = self.rng, self.rng.uniform(1.4, 3.2), self.rng.random_sample() < 0.25
        leaf = self.paint("vegetation", rng.uniform((0.15, 0.25, 0.08), (0.5, 0.5, 0.25)) * rng.uniform(0.6, 1.2))

        def leaves(material: Array, shade: Array, place: Array, axis: Array) -> None:
            shade *= 0.4 + 1.2 * texture(place[0] + place[2], place[1], 9)

        if not bush:
            self.add(self.paint("vegetation", (0.27, 0.21, 0.16)), (x, tall / 2, z), (0.13, tall / 2, 0.13))
        for _ in range(rng.randint(2, 6)):
            r = rng.uniform(0.4, 0.9) if bush else rng.uniform(0.8, 1.7)
            up = 0.6 * r if bush else tall + rng.uniform(0, 1.8)
            centre = x + rng.normal(0, 0.6), up, z + rng.normal(0, 0.6)
            self.add(leaf, centre, (r, r * rng.uniform(0.7, 1.1), r), round_=True, pattern=leaves)

    def pole(self, x: float, z: float) -> None:
        rng, metal = self.rng, self.paint("pole", [self.rng.uniform(0.15, 0.65)] * 3)
        if rng.random_sample() < 0.5:  # a street lamp
            tall = rng.uniform(4.5, 7.5)
            self.add(metal, (x - math.copysign(0.5, x), tall, z), (0.6, 0.05, 0.08), casts=False)
        else:
            tall, board = rng.uniform(2.2, 3.2), self.paint("sign", BOARDS[rng.randint(len(BOARDS))])
            self.add(board, (x, tall, z - 0.11), (rng.uniform(0.25, 0.45), rng.uniform(0.25, 0.5), 0.03), casts=False)
        self.add(metal, (x, tall / 2, z), (0.07, tall / 2, 0.07))

    def build(self) -> None:
        """Lay out the street, and draw its ground."""
        rng = self.rng
        chance = rng.random_sample
        road, walk = rng.uniform(3.2, 6), rng.uniform(1.6, 4)
        crossing = rng.uniform(14, 45) if chance() < 0.5 else 1e3
        self.ground(road, walk, crossing)
        for side in (-1, 1):
            edge, z = road + walk + rng.uniform(0, 4) * (chance() < 0.6), rng.uniform(-3, 5)
            while z < 110:
                length = rng.uniform(7, 20)
                if chance() < 0.85 and abs(z + length / 2 - crossing) > road + length / 2:
                    self.building(side, edge, z, length)
                z += length + rng.uniform(0, 5) * (chance() < 0.5)
            for _ in range(rng.randint(0, 6)):
                self.tree(side * (road + rng.uniform(0.8, walk + 2)), rng.uniform(5, 55))
            for _ in range(rng.randint(1, 5)):
                self.pole(side * (road + rng.uniform(0.3, 0.8)), rng.uniform(5, 50))
            for _ in range(rng.randint(0, 6)):
                self.person(side * (road + rng.uniform(0.3, walk)), 4.5 + 32 * chance() * chance())
            z = rng.uniform(3.5, 12)
            while z < 60 and chance() < 0.75:
                truck = chance() < 0.13
                if abs(z - crossing) > road + walk:
                    self.vehicle(side * (road - 1.1), z, side < 0, truck)
                z += rng.uniform(11 if truck else 6.5, 22)
            if road > 4.2 and chance() < 0.6:
                self.vehicle(side * (road - 3.3), rng.uniform(8, 55), side < 0, chance() < 0.15)
        if chance() < 0.35:
            self.person(rng.uniform(-road, road), rng.uniform(6, 25))

    def ground(self, road: float, walk: float, crossing: float) -> None:
        rng = self.rng
        tone = rng.uniform(0.2, 0.5) * rng.uniform(0.95, 1.05, 3)
        self.paint("road", tone)
        self.paint("sidewalk", tone * rng.uniform(0.75, 1.7) + rng.uniform(-0.03, 0.03, 3))
        lawn = (rng.uniform(0.2, 0.45), rng.uniform(0.3, 0.5), 0.18)
        self.paint("terrain", lawn if rng.random_sample() < 0.7 else self.colour(0.25, 0.6))
        white = self.paint("road", [rng.uniform(0.55, 0.9)] * 3)
        down = self.rays[1, :, 0]  # the same along a row: the camera does not roll
        t = np.where(down < 0, -self.eye[1] / np.minimum(down, np.float32(-1e-6)), np.float32(np.inf))
        rows = t < FAR
        t = t[rows, None]
        x, z = self.eye[0] + t * self.rays[0, rows], t * self.rays[2, rows]
        from_side = np.abs(z - np.float32(crossing))
        away = np.minimum(np.abs(x), from_side)
        material = 1 + (away >= np.float32(road)).astype(np.intp) + (away >= np.float32(road + walk))
        shade = np.float32(0.7) + 0.36 * texture(x, z, 20) + 0.24 * texture(x, z, 2.3)
        joint = (fraction(x / np.float32(0.9)) < 0.055) | (fraction(z / np.float32(0.9)) < 0.055)
        shade[(material == 2) & joint & (t < 12)] -= 0.15
        shade[np.abs(away - np.float32(road)) < 0.08] *= 1.25
        dashes = (np.abs(x) < 0.07) & (fraction(z / np.float32(5)) < 0.44) & (from_side > road + 0.5)
        stripes = (np.abs(from_side - np.float32(road + 1.2)) < 0.9) & (fraction(x) < 0.5) & (np.abs(x) < road - 0.3)
        material[(material == 1) & (dashes | stripes)] = white
        self.depth[rows], self.material[rows], self.shade[rows] = t, material, shade * self.light(self.sun[1])
