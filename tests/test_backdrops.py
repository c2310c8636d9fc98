"Backdrops, light and noise: the same seed gives the same bytes, rays end where the geometry says, and no camera stands in a wall."
import math
import subprocess
import sys

import numpy as np
import pytest

from hclab.data import rooms
from hclab.data.backdrops import BackdropError, draw_backdrop
from hclab.data.light import KINDS, STYLES, Light, LightError, draw_light, linear, meter, tone
from hclab.data.materials import colour, flat_patch, inside, painted, painting, stripes
from hclab.data.noise import cells, noise2, noise3, resolved
from hclab.data.scenery import Ball, Belt, Box, Level, Rays, Scenery, Wall

FIELDS = ("colour", "distance", "normal", "lit", "sun", "open", "glow")


def camera(rng):
    "A camera 1 to 8 m from the origin at 0.5 to 3 m height, and (n,3) rays with camera z = 1 around the view of a person."
    a, far, high = rng.uniform(0, 2 * math.pi), rng.uniform(1, 8), rng.uniform(.5, 3)
    eye = np.array([far * math.cos(a), far * math.sin(a), high])
    forward = np.array([0, 0, 1.]) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    x, y = rng.uniform(-.7, .7, (2, 400, 1))
    return eye, forward + x * right + y * np.cross(right, forward), forward


def cases(count, start=0):
    for seed in range(start, start + count):
        rng = np.random.default_rng(seed)
        eye, ways, forward = camera(rng)
        yield rng, KINDS[seed % 4], STYLES[seed % 5], eye, ways, forward


def paint(base="#808080"):
    return lambda p: (np.broadcast_to(colour(base), (3, len(p))), 0)


def some_light(direction=(0, -.6, .8)):
    return Light(direction, (2, 2, 2), (.5, .5, .5), (.2, .2, .2), (.3, .4, .8), (.8, .8, .9))


# ------------------------------------------------------------------------------------------------ drawn places
def test_same_seed_same_bytes():
    for seed, (_, kind, style, eye, ways, _) in enumerate(cases(40)):
        one, two = (draw_backdrop(np.random.default_rng(seed), kind, style, eye, 2.)(eye, ways, .004) for _ in range(2))
        assert all(getattr(one, f).tobytes() == getattr(two, f).tobytes() for f in FIELDS), (kind, style)
        other = draw_backdrop(np.random.default_rng(seed + 1000), kind, style, eye, 2.)(eye, ways, .004)
        assert other.colour.tobytes() != one.colour.tobytes()


def test_same_bytes_in_another_process():
    code = ("import numpy as np, hashlib\nfrom hclab.data.backdrops import draw_backdrop\nh = hashlib.sha256()\n"
            "d = np.random.default_rng(0).normal(size=(300, 3)) + [0, 3, 0]\n"
            "for k in ('room', 'street', 'field', 'photo'):\n    s = draw_backdrop(np.random.default_rng(3), k)((0, -4, 1.5), d, .004)\n"
            "    for f in ('colour', 'distance', 'glow'): h.update(getattr(s, f).tobytes())\nprint(h.hexdigest())")
    out = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=None).stdout for _ in range(2)}
    assert len(out) == 1


def test_surfaces_are_sound():
    for _, kind, style, eye, ways, _ in cases(80, 100):
        s = draw_backdrop(np.random.default_rng(5), kind, style, eye, 2.)(eye, ways, .004)
        n = len(ways)
        assert s.colour.shape == s.normal.shape == s.glow.shape == (n, 3) and s.distance.shape == s.lit.shape == s.sun.shape == s.open.shape == (n,)
        assert all(getattr(s, f).dtype == np.float32 for f in FIELDS if f != "lit") and s.lit.dtype == bool
        assert np.abs(np.linalg.norm(s.normal, axis=1) - 1).max() < 1e-3
        assert ((s.normal * ways).sum(1) < 0).all(), "every normal faces its ray"
        assert (s.distance > 0).all() and np.array_equal(np.isinf(s.distance), s.sky) and not (s.sky & s.lit).any()
        assert 0 <= s.colour.min() and s.colour[s.lit].max(initial=0) < 1 and s.colour.max() < 12, (kind, style)
        assert 0 <= s.glow.min() and s.glow.max() < 12, (kind, style)
        assert 0 <= s.sun.min() and s.sun.max() < 2.2 and 0 <= s.open.min() and s.open.max() <= 1.0001
        picture = tone(s.radiance(some_light()))
        assert np.isfinite(picture).all() and 0 <= picture.min() and picture.max() <= 1


def test_500_cameras_stand_free_and_see_the_person():
    for rng, kind, style, eye, _, _ in cases(500, 1000):
        reach = rng.uniform(1, 3)
        backdrop = draw_backdrop(rng, kind, style, eye, reach)
        assert backdrop.clear(eye), (kind, style, eye)
        # written independently of clear(): a ray from the camera to a point over the origin, and a ray back, meet nothing on the way
        way = np.array([[0, 0, 1.]]) - eye
        assert backdrop(eye, way).distance[0] > 1, (kind, style, eye)
        assert backdrop(np.array([0, 0, 1.]), -way).distance[0] > 1, (kind, style, eye)


def test_people_have_their_place():
    "Rays along the floor from the origin run at least to where people reach."
    a = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    ways = np.stack([np.cos(a), np.sin(a), 0 * a], 1)
    for rng, kind, style, eye, _, _ in cases(120, 3000):
        backdrop = draw_backdrop(rng, kind, style, eye, 1.8)
        assert backdrop(np.array([0, 0, .4]), ways).distance.min() > 1.79, (kind, style)


def test_light_comes_from_the_open_side_of_a_street():
    for rng, _, _, eye, _, _ in cases(60, 5000):
        backdrop = draw_backdrop(rng, "street", "day", eye, 2.)
        azimuth, _ = backdrop.scenery.bound[0]
        assert backdrop.light.direction[:2] @ [math.cos(azimuth), math.sin(azimuth)] < 0


def test_photographs_are_optional(monkeypatch):
    monkeypatch.setattr(rooms, "photographs", lambda: ())
    rooms.photo.cache_clear()
    try:
        for seed in range(4):
            s = draw_backdrop(np.random.default_rng(seed), "photo", "day")((0, -4, 1.5), np.array([[0, 1, 0.], [0, 1, -.2]]))
            assert np.isfinite(s.radiance(some_light())).all() and np.isfinite(s.distance).all()
    finally:
        rooms.photo.cache_clear()


@pytest.mark.parametrize("wrong, said", [(dict(kind="romm"), "did you mean 'room'"), (dict(style="nigth"), "'nigth' is not known"), (dict(camera=(0, 1)), "three finite metres"),
                                         (dict(camera=(0, 1, -1)), "above 0"), (dict(camera=(0, float("nan"), 1)), "finite"), (dict(reach=0), "at most 20")])
def test_wrong_requests_are_explained(wrong, said):
    with pytest.raises(BackdropError, match=said):
        draw_backdrop(np.random.default_rng(0), **wrong)


# ------------------------------------------------------------------------------------------------ geometry by hand
def test_distances_put_rays_on_their_shapes():
    shapes = [Level(paint()), Level(paint(), 2.7), Wall(paint(), .7, 3.), Box(paint(), (.4, .9, .5), (.5, .3, .5), .6), Ball(paint(), (-1, .8, .7), (.4, .5, .6)), Belt(paint(), 30.)]
    place, rng = Scenery(some_light(), shapes), np.random.default_rng(0)
    eye = np.array([.3, -2.5, 1.4])
    ways = (rng.normal(size=(20_000, 3)) * rng.uniform(.2, 5, (20_000, 1))).astype(np.float32)
    s = place(eye, ways)
    _, which = place.cast(Rays.of(eye, ways))
    p = eye + ways * np.where(s.sky, 0, s.distance)[:, None]
    close = s.distance * np.linalg.norm(ways, axis=1) < 60
    residual = [np.abs(p[:, 2]), np.abs(p[:, 2] - 2.7), np.abs(p[:, 0] * math.cos(.7) + p[:, 1] * math.sin(.7) - 3)]
    c, si = math.cos(.6), math.sin(.6)
    q = (p - [.4, .9, .5]) @ np.array([[c, -si, 0], [si, c, 0], [0, 0, 1]])
    residual += [np.abs((np.abs(q) - [.5, .3, .5]).max(1)), np.abs(np.linalg.norm((p - [-1, .8, .7]) / [.4, .5, .6], axis=1) - 1), np.abs(np.hypot(p[:, 0], p[:, 1]) - 30)]
    for k, r in enumerate(residual):
        mine = (which == k) & close
        assert mine.sum() > 50 and r[mine].max() < 2e-3, k


def test_the_nearest_shape_wins_and_length_does_not_matter():
    "Against a loop over the shapes one ray at a time."
    shapes = [Level(paint()), *(Box(paint(), (x, 2 + x, .5), (.3, .4, .5), x) for x in (-1., 0., 1.)), *(Ball(paint(), (x, 1.2, 1.), (.2, .3, .4)) for x in (-.8, .6))]
    place, eye = Scenery(some_light(), shapes), np.array([0, -3, 1.2])
    ways = np.random.default_rng(1).normal(size=(300, 3)) * .4 + [0, 1, -.1]
    s, double = place(eye, ways), place(eye, 2 * ways)
    for i, way in enumerate(ways):
        best = min((float(t[0]) for shape in shapes for _, t in [shape.hit(Rays.of(eye, way[None]))] if len(t)), default=math.inf)
        assert s.distance[i] == pytest.approx(best, rel=1e-5)
    assert np.allclose(s.distance, 2 * double.distance, rtol=1e-4) and np.allclose(s.colour, double.colour, atol=1e-4)


def test_rays_are_independent_of_their_neighbours():
    rng = np.random.default_rng(2)
    eye, ways, _ = camera(rng)
    backdrop = draw_backdrop(rng, "field", "day", eye, 2.)
    order = rng.permutation(len(ways))
    s, shuffled = backdrop(eye, ways, .004), backdrop(eye, ways[order], .004)
    assert np.array_equal(s.distance[order], shuffled.distance) and np.allclose(s.colour[order], shuffled.colour, atol=1e-6) and np.allclose(s.sun[order], shuffled.sun, atol=1e-6)


def test_shadow_of_a_box_by_hand():
    "A cube of 1 m under a sun at 45 degrees from -y throws a shadow 1 m long towards +y."
    light = some_light((0, -math.sqrt(.5), math.sqrt(.5)))
    place = Scenery(light, [Level(paint()), Box(paint(), (0, 0, .5), (.5, .5, .5))])
    y = np.array([-.9, .8, 1.3, 1.8, 3.])
    points = np.stack([0 * y, y, 0 * y]).astype(np.float32)
    sun, _ = place.blocked(points, np.zeros(5, np.int16), np.zeros(5, np.float32))
    assert (sun[[0, 3, 4]] == 1).all() and (sun[[1, 2]] < .05).all()
    beside, _ = place.blocked(points + np.float32([[.7], [0], [0]]), np.zeros(5, np.int16), np.zeros(5, np.float32))
    assert (beside == 1).all()


def test_clear_knows_walls_and_things():
    place = Scenery(some_light(), [Level(paint()), Level(paint(), 2.5), Box(paint(), (0, 2, .5), (.5, .5, .5), math.pi / 4)], bound=((0., 3.), (math.pi, 4.)))
    assert place.clear((0, 0, 1)) and place.clear((2.8, 0, 1)) and place.clear((-3.8, 0, 1)) and place.clear((0, 2, 1.3))
    assert not any(place.clear(p) for p in ((2.9, 0, 1), (-3.9, 0, 1), (0, 0, 2.4), (0, 0, .1), (0, 2, .9), (0, 1.25, .5)))


# ------------------------------------------------------------------------------------------------ light
def test_light_adds_up():
    light = some_light((0, 0, 1))
    up, down, side = np.eye(3)[[2]], -np.eye(3)[[2]], np.eye(3)[[0]]
    assert np.allclose(light.on(up), 2.5) and np.allclose(light.on(down), .2) and np.allclose(light.on(side), .35)
    assert np.allclose(light.on(up, sun=.25, open=.5), .75)


def test_tone_is_a_curve():
    x = np.linspace(0, 40, 4001)
    assert (np.diff(tone(x)) >= 0).all() and tone(0) == 0 and tone(-1) == 0 and .4 < tone(.18) < .55 and tone(1e9) <= 1
    assert np.allclose(linear(np.array([0, .04045, 1])), [0, .04045 / 12.92, 1], atol=1e-6)


def test_pictures_are_well_exposed():
    "The person's surroundings are neither black nor white: what the exposure is for."
    for rng, kind, style, eye, ways, _ in cases(120, 7000):
        backdrop = draw_backdrop(rng, kind, style, eye, 2.)
        mean = backdrop.exposure.develop(backdrop(eye, ways, .004).radiance(backdrop.light)).mean()
        assert .06 < mean < .93, (kind, style, mean)


def test_wrong_lights_are_explained():
    with pytest.raises(LightError, match="length 1"):
        some_light((0, 0, 2))
    with pytest.raises(LightError, match="three finite"):
        some_light((0, 1))
    with pytest.raises(LightError, match="did you mean 'evening'"):
        draw_light(np.random.default_rng(0), "room", "evning")
    assert meter(some_light()) > 0


# ------------------------------------------------------------------------------------------------ materials and noise
def test_stripes_are_the_mean_over_a_pixel():
    x, t = np.random.default_rng(0).uniform(-5, 5, 200).astype(np.float32), np.linspace(-.5, .5, 4001)
    for foot in (.02, .4, 2.3):
        byhand = (np.mod(x[:, None] + t * foot, .7) < .15).mean(1)
        assert np.abs(stripes(x, .7, .15, foot) - byhand).max() < 5e-3 * max(1, .7 / foot / 10)
        byhand = ((x[:, None] + t * foot > -1) & (x[:, None] + t * foot < 1.5)).mean(1)
        assert np.abs(inside(x, -1, 1.5, foot) - byhand).max() < 5e-3


def test_paintings_differ():
    p = flat_patch(1, 1, 24)
    seen = {painting(p, seed)[0].round(3).tobytes() for seed in range(60)}
    assert len(seen) == 60 and 0 < painted(p, colour("#808080"))[0].min()


def test_noise_is_smooth_seeded_and_centred():
    rng = np.random.default_rng(0)
    p = rng.uniform(-50, 50, (30_000, 3)).astype(np.float32)
    for f in (lambda q, s=1: noise3(q, s), lambda q, s=1: noise2(q[:, 0], q[:, 1], s)):
        a = f(p)
        assert a.dtype == np.float32 and abs(a.mean()) < .02 and .3 < a.std() < .55 and np.mean(np.abs(a) > 1.05) < .02
        assert np.array_equal(a, f(p)) and abs(np.corrcoef(a, f(p, 2))[0, 1]) < .03
        assert np.abs(f(p + np.float32(1e-3)) - a).max() < .05


def test_noise_fades_to_nothing_under_wide_pixels():
    u = np.linspace(0, 50, 2000, dtype=np.float32)
    foot = np.linspace(0, .6, 2000, dtype=np.float32)
    faded, full = noise2(u, u, 1, 4, foot), noise2(u, u, 1, 4)
    assert (faded[foot > .5] == 0).all() and np.allclose(faded[foot < .03], full[foot < .03], atol=1e-6)
    assert np.array_equal(noise2(u, u, 1, 4, 0.), full) and resolved(1., .5) == 0 and resolved(1., .25) == 1


def test_cells_are_uniform():
    c = cells(np.arange(200_000) % 501 - 250, np.arange(200_000) // 501, 9)
    assert np.abs(np.histogram(c, 20, (0, 1))[0] / len(c) - .05).max() < .002 and c.min() >= 0 and c.max() < 1
