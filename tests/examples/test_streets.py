"""The streets: the same everywhere, and what an independent caster sees.

Every fourth pixel of four pictures is kept beside this file; `python tests/examples/test_streets.py` writes it
anew, after a change that is meant.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from lightning_uncertainty.examples import _rays, streets
from lightning_uncertainty.examples.streets import CLASSES, THINGS, draw_street

KEPT = Path(__file__).with_name("streets.npz")
SEEDS = range(4)
SURFACES = "1ecf2c1435b5a2979241c94baf67056d2e251d495bdbc6cd4a3844ef31ea19cd"


def surfaces():
    """Return the hash of class and instance of every pixel."""
    drawn = [draw_street(seed) for seed in SEEDS]
    return hashlib.sha256(b"".join(s.label.tobytes() + s.instance.tobytes() for s in drawn)).hexdigest()


def test_class_and_instance_are_the_same_on_every_machine():
    assert surfaces() == SURFACES


def test_pictures_and_depths_are_the_same_but_for_rounding():
    for seed, image, depth in zip(SEEDS, *np.load(KEPT).values(), strict=True):
        street = draw_street(seed)
        assert np.abs(street.image[::4, ::4].astype(int) - image).max() <= 1
        np.testing.assert_allclose(street.depth[::4, ::4], depth, rtol=1e-6)


def town(seed, height=64, width=128):
    made = streets._Town(np.random.RandomState(seed), height, width, CLASSES.index("sky"))
    made.build()
    return made


def cast(solid, eye, rays):
    """Return the depth at which rays `[3, H, W]` enter a solid, inf where they do not, in float64, face by face."""
    cos, sin = solid.yaw.astype(float)
    to_own = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    o = to_own @ (eye.astype(float) - solid.centre)
    d = np.einsum("ij,jhw->ihw", to_own, rays.astype(float))
    half = solid.half.astype(float)
    if not solid.box:
        a = ((d / half[:, None, None]) ** 2).sum(0)
        b = 2 * (d * (o / half**2)[:, None, None]).sum(0)
        c = ((o / half) ** 2).sum() - 1
        with np.errstate(invalid="ignore"):
            t = (-b - np.sqrt(b * b - 4 * a * c)) / (2 * a)
        return np.where(t > _rays.NEAR, t, np.inf)
    best = np.full(rays.shape[1:], np.inf)
    for axis in range(3):
        for side in (-1, 1):
            t = (side * half[axis] - o[axis]) / d[axis]
            place = o[:, None, None] + t * d
            others = [other for other in range(3) if other != axis]
            on = np.logical_and.reduce([np.abs(place[other]) <= half[other] for other in others])
            best = np.where(on & (t > _rays.NEAR) & (t < best), t, best)
    return best


@pytest.mark.parametrize("seed", range(5, 15))
def test_an_independent_caster_sees_the_same(seed):
    made = town(seed)
    depth, material = made.depth.astype(float), made.material.copy()
    for solid in made.solids:
        t = cast(solid, made.eye, made.rays)
        nearer = t < depth
        depth[nearer], material[nearer] = t[nearer], solid.material
    street = draw_street(seed, 64, 128)
    kinds = np.array([(kind, instance) for kind, instance, _ in made.materials])
    same = (kinds[material] == np.stack([street.label, street.instance], -1)).all(-1)
    expected = np.where(np.isfinite(depth), depth.clip(max=_rays.FAR), 0)
    assert same.mean() > 0.9995  # a ray along an edge may pass on either side of it
    np.testing.assert_allclose(street.depth[same], expected[same], rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_shadows_are_where_the_sun_does_not_reach(seed):
    bare, made = town(seed), town(seed)
    made.draw()
    ground = np.isfinite(bare.depth) & (made.depth == bare.depth)
    dark = made.shade < 0.999 * bare.shade
    assert not (dark & ~ground)[made.depth == bare.depth].any()
    assert dark.any()
    solids = [solid for solid in made.solids if solid.casts]
    sun = made.sun.astype(float)[:, None, None]
    wrong, looked_at = 0, np.argwhere(ground)[::37]
    for i, j in looked_at:
        point = made.eye.astype(float) + made.rays[:, i, j].astype(float) * made.depth[i, j]
        wrong += dark[i, j] != any(np.isfinite(cast(solid, point - made.sun, sun)).all() for solid in solids)
    assert wrong <= 0.02 * len(looked_at)  # along edges


@pytest.mark.parametrize("size", [(64, 128), (96, 96), (128, 256)])
def test_a_street_is_of_the_size_asked_for(size):
    street = draw_street(3, *size)
    assert street.image.shape == (*size, 3)
    assert {part.shape for part in street[1:]} == {size}
    assert [part.dtype for part in street] == [np.uint8, np.uint8, np.uint8, np.float32]


def test_things_are_numbered_and_nothing_else_is():
    things = [CLASSES.index(name) for name in THINGS]
    for seed in range(20):
        street = draw_street(seed, 64, 128)
        assert ((street.instance > 0) == np.isin(street.label, things)).all()
        assert ((street.depth == 0) == (street.label == CLASSES.index("sky"))).all()
        for number in np.unique(street.instance)[1:]:
            assert len(np.unique(street.label[street.instance == number])) == 1


def test_every_class_is_seen_and_facades_are_of_muted_colours():
    drawn = [draw_street(seed, 64, 128) for seed in range(30)]
    assert set(np.unique([street.label for street in drawn])) == set(range(len(CLASSES)))
    walls = np.concatenate([street.image[street.label == CLASSES.index("building")] for street in drawn]).astype(float)
    saturation = 1 - walls.min(1) / walls.max(1).clip(min=1)
    assert saturation.mean() < 0.17


if __name__ == "__main__":
    drawn = [draw_street(seed) for seed in SEEDS]
    images, depths = (np.stack([getattr(street, name)[::4, ::4] for street in drawn]) for name in ("image", "depth"))
    np.savez_compressed(KEPT, image=images, depth=depths)
    print(f"SURFACES = {surfaces()!r}")
