"Body and camera, without a browser: one cause at a time, and only what follows from it changes."
import asyncio
from concurrent.futures import ThreadPoolExecutor
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from hclab.core.config import ConfigError
from hclab.core.sample import validate
from hclab.data.body import Shape
from hclab.data.looks import Look
from hclab.data.render import render
from hclab.lab.body_camera import (CHOICES, FULL, GROUPS, HASTE, PANELS, PLACES, QUICK, RANGES, SLIDERS, BodyCamera, BodyCameraDesk, Shot, ShotError, draw_place, numbers, panel_svg, pixels_of, save_sample, shot_of, skeleton_lines,
                                   sun_at, with_value)

MAPS = ("depth", "instance_ids", "body_parts", "garments", "iuv", "normals", "hidden")


@pytest.fixture(scope="module")
def desk(): return BodyCameraDesk()


SHOT = shot_of(3, action="walk", place="field")      # the cheapest place


@pytest.mark.parametrize("given, words", [
    (dict(action="wlak"), "did you mean 'walk'"), (dict(place="beech"), "no place 'beech'"), (dict(style="evning"), "did you mean 'evening'"), (dict(height=-1.0), "give 0.2 to 2.4 metres over the floor"),
    (dict(distance=0.0), "distance=0"), (dict(frame=60), "frame=60; give 0 to 59"), (dict(azimuth=float("nan")), "azimuth=nan"), (dict(hour=23), "give 6 to 18 o'clock"), (dict(seed=-1), "seed=-1")])
def test_what_cannot_be_photographed_is_refused_in_words(given, words):
    with pytest.raises(ShotError, match=re.escape(words)): Shot(**given)
    assert issubclass(ShotError, ConfigError)


def test_a_quick_picture_is_the_worlds_own_picture_with_fewer_rays(desk):
    for shot in (SHOT, replace(SHOT, place="room", azimuth=200.0, hour=15.0)):
        quick = desk.picture(shot, quick=True)
        own = render([desk.person(shot)], desk.camera(shot, QUICK), desk.backdrop(shot), np.random.default_rng(0), HASTE)
        assert (quick.image == own.image).all(), "kept parts give the same colours as everything made anew"
        for name in MAPS: assert np.array_equal(getattr(quick, name), getattr(own, name)), name
        assert quick.image.shape == (QUICK, QUICK, 3) and (quick.instance_ids == 1).mean() > .03


def test_parts_are_made_once_for_what_they_depend_on():
    desk = BodyCameraDesk()
    desk.sample(SHOT, quick=True)
    def made(shot):
        before = desk.parts.made.copy()
        desk.sample(shot, quick=True)
        return set(desk.parts.made - before)
    assert made(SHOT) == set(), "the same shot needs nothing"
    assert made(replace(SHOT, azimuth=100.0)) == {"backdrop", "cast", "meeting", "sensor"}, "a camera that moves leaves body and place alone"
    assert made(replace(SHOT, hour=14.0)) == {"place", "backdrop"}, "light is no reason to cast rays at the person again"
    assert made(replace(SHOT, look=replace(SHOT.look, top="tank"))) == {"person", "scene", "cast", "meeting", "sensor"}, "another shirt is put on the body in its pose"
    assert made(replace(SHOT, frame=9)) == {"posed", "person", "scene", "cast", "meeting", "sensor"}, "the clip stays"
    assert {"motion", "posed", "person"} <= made(replace(SHOT, shape=replace(SHOT.shape, age=.95)))
    for shelf in desk.parts.kept.values(): assert len(shelf) <= desk.parts.most
    for k in range(8): made(replace(SHOT, hour=6.0 + k))
    assert len(desk.parts.kept["backdrop"]) == desk.parts.most, "the oldest goes"


def test_light_changes_colours_and_no_label(desk):
    morning, evening = (desk.picture(replace(SHOT, hour=h), quick=True) for h in (7.0, 17.0))
    assert np.abs(morning.image.astype(int) - evening.image).mean() > 3
    for name in MAPS: assert np.array_equal(getattr(morning, name), getattr(evening, name)), name


def test_the_sun_goes_from_the_persons_left_to_their_right(desk):
    assert sun_at(6, "field", "day")[0] > .5 > -.5 > sun_at(18, "field", "day")[0] and abs(np.linalg.norm(sun_at(9, "room", "lamp")) - 1) < 1e-6
    shot = replace(SHOT, azimuth=0.0, action="idle", look=Look(skin=.3, top="longsleeve", top_colour="grey", bottom_colour="grey", pattern="plain"))
    for hour, bright in ((7.0, 1), (17.0, -1)):     # seen from the front, the person's left is on the right of the picture
        p = desk.picture(replace(shot, hour=hour), quick=True)
        mine = p.garments == 5
        x = np.nonzero(mine)[1]
        grey = p.image.mean(2)
        left, right = (grey[mine][x < np.median(x)].mean(), grey[mine][x > np.median(x)].mean())
        assert bright*(right - left) > 3, f"{hour} h: left of the picture {left:.0f}, right {right:.0f}"


def test_azimuth_zero_sees_the_face_and_ninety_the_left_side(desk):
    front, side, back = (desk.sample(replace(SHOT, azimuth=a, action="idle"), quick=True) for a in (0.0, 90.0, 180.0))
    nose = lambda s: float(s["joints3d"][0, 0, 2] - s["joints3d"][0, 5:7, 2].mean())     # how much farther than the shoulders
    assert nose(front) < -.05 and nose(back) > .05
    shoulders = side["joints3d"][0, 5:7, 2]
    assert shoulders[0] < shoulders[1] - .2, "the left shoulder is the nearer one"
    words = [s["caption"] for s in (front, side, back)]
    assert front["joints2d"][0, 5, 0] > front["joints2d"][0, 6, 0] and back["joints2d"][0, 5, 0] < back["joints2d"][0, 6, 0], words


def test_distance_and_focal_length_do_what_they_do_in_a_camera(desk):
    tall = lambda **c: float(np.ptp(np.nonzero(desk.picture(replace(SHOT, action="idle", height=.9, **c), quick=True).instance_ids)[0]))
    assert tall(distance=3.0, focal=1.0)*1.4 == pytest.approx(tall(distance=3.0, focal=1.4), rel=.04)
    assert tall(distance=3.0, focal=1.2) == pytest.approx(tall(distance=2.0, focal=.8), rel=.08), "twice as near with half the lens: nearly the same size, another perspective"
    K = desk.camera(replace(SHOT, focal=1.4)).K
    assert K[0, 0] == pytest.approx(1.4*FULL) and K[0, 2] == FULL/2


def test_shape_is_seen_and_joints_follow(desk):
    wide = lambda w: (desk.picture(replace(SHOT, action="idle", azimuth=0.0, shape=replace(Shape(), weight=w)), quick=True).instance_ids > 0).sum()
    assert wide(1.0) > 1.05*wide(0.0)
    small, big = (desk.motion(replace(SHOT, shape=replace(Shape(), height=h))).stature for h in (.2, .6))
    assert big > small + .3


def test_a_sample_keeps_the_contract_and_agrees_with_itself(desk):
    sample = desk.sample(replace(SHOT, place="room"))
    validate({k: v for k, v in sample.items() if k != "sensor_depth"})
    assert sample["image"].shape == (3, FULL, FULL) and sample["identity"] == 3
    camera, mask = sample["camera"], sample["instance_ids"] == 1
    again = sample["joints3d"][0] @ camera["K"].T
    assert torch.allclose(again[:, :2]/again[:, 2:], sample["joints2d"][0], atol=.05)
    for (x, y), state in zip(sample["joints2d"][0].tolist(), sample["visibility"][0].tolist(), strict=True):
        if state == 2: assert mask[max(int(y) - 4, 0):int(y) + 5, max(int(x) - 4, 0):int(x) + 5].any(), "a visible joint is on or beside the person"
    read, true = sample["sensor_depth"][0], sample["depth"][0]
    both = (read > 0) & mask
    assert (read == 0).float().mean() > .005 and 0 < (read - true).abs()[both].median() < .05


def test_cameras_have_room(desk):
    refused = 0
    for place in PLACES:
        for seed in range(6):
            scenery = draw_place(place, "day", 10.0, seed)[1]
            for turn in np.radians(np.arange(0, 360, 15)):
                for distance in (1.0, 2.0, RANGES["distance"][1]): refused += not scenery.clear((distance*np.sin(turn), -distance*np.cos(turn), 1.4))
    assert refused <= .01*len(PLACES)*6*24*3
    from hclab.data.scenery import Box
    shot = replace(SHOT, seed=31, azimuth=90.0)
    desk.place(shot)[1].shapes.append(Box(None, (2.8, 0, 1.0), (.4, .4, 1.0)))
    with pytest.raises(ShotError, match="would stand in something; come nearer"): desk.picture(shot)


def test_panels_are_drawings_with_the_layouts_lines(desk):
    from xml.dom.minidom import parseString
    sample = desk.sample(SHOT, quick=True)
    for panel in PANELS:
        parseString(panel_svg(sample, panel))
        assert pixels_of(sample, panel).shape == (QUICK, QUICK, 3)
    flat = {panel: pixels_of(sample, panel).astype(int) for panel in PANELS}
    assert all(np.abs(flat[a] - flat[b]).mean() > 5 for a in PANELS for b in PANELS if a < b), "six different pictures"
    lines = skeleton_lines(sample, 256)
    assert lines.count("stroke-dasharray") >= 4 and "#" in lines
    hidden = dict(sample, visibility=torch.zeros_like(sample["visibility"]))
    assert skeleton_lines(hidden, 256) == "", "nothing is drawn for joints that nobody labelled"


def test_files(desk, tmp_path):
    sample = desk.sample(SHOT, quick=True)
    with np.load(save_sample(sample, tmp_path/"a.npz"), allow_pickle=False) as kept:
        assert set(kept.files) == {k for k in sample if k != "camera"} | {f"camera.{k}" for k in sample["camera"]}
        for key in ("image", "depth", "sensor_depth", "iuv", "joints3d", "boxes"): assert (kept[key] == sample[key].numpy()).all(), key
    assert save_sample(sample, tmp_path/"a.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ShotError, match=r"a\.jpg: write a \.npz"): save_sample(sample, tmp_path/"a.jpg")
    assert not (tmp_path/"a.jpg").exists()
    text = numbers(sample)
    assert f"{sample['camera']['K'][0, 0]:.1f}" in text and "seen" in text


# ------------------------------------------------------------------------------------------------ the shell, without a browser
@pytest.fixture(scope="module")
def app(tmp_path_factory): return apart(lambda: BodyCamera(SHOT, tmp_path_factory.mktemp("kept")))


def test_every_control_is_in_a_group_and_starts_where_the_shot_is(app):
    names = [n for group in GROUPS.values() for n in group]
    assert sorted(names) == sorted([*CHOICES, *SLIDERS]) == sorted(app.c)
    for name in names: assert with_value(app.shot, name, app.c[name].value) == app.shot, name
    app.groups.value = "Light"
    assert [g for g, box in app.boxes.items() if box.layout.display != "none"] == ["Light", "Camera"]


def apart(f):
    "The result of `f` in a thread of its own, where no event loop runs: a browser test before this one may have left its own."
    with ThreadPoolExecutor(1) as pool: return pool.submit(f).result()


def hands_are_followed_and_refused(app):
    seen = lambda: [image.value for image in app.images.values()]
    first = seen()
    app.c["azimuth"].value = 140
    assert all(a != b for a, b in zip(first, seen(), strict=True)) and app.shot.azimuth == 140 and "full picture" in app.says.value
    before, shot = seen(), app.shot
    from hclab.data.scenery import Box
    app.desk.place(shot)[1].shapes.append(Box(None, (2.8, 0, 1.0), (.4, .4, 1.0)))
    app.c["azimuth"].value = 90
    assert 'role="alert"' in app.says.value and "stand in something" in app.says.value
    assert app.c["azimuth"].value == 140 and app.shot is shot and seen() == before, "the hand is led back, and the picture stays"
    app.buttons["another person"].click()
    assert app.shot.person == 4 and app.c["look.top"].value == app.shot.look.top and app.c["shape.female"].value == app.shot.shape.female and seen() != before


def test_hands_are_followed_and_refused(app): apart(lambda: hands_are_followed_and_refused(app))


def test_saving(app):
    for name, words in (("", "give a file name"), ("../x.npz", "without folders"), ("x.jpg", "write a .npz")):
        app.name.value = name
        app.buttons["save"].click()
        assert 'role="alert"' in app.saved.value and words in app.saved.value
    app.name.value = "x.npz"
    app.buttons["save"].click()
    assert "saved: x.npz" in app.saved.value
    app.rest()
    assert "saved: x.npz" in app.saved.value, "a picture that comes later does not take the word away"
    with np.load(app.folder/"x.npz") as kept: assert kept["image"].shape == (3, FULL, FULL), "what is saved is the careful picture"


def test_quick_while_the_hand_moves_and_one_full_picture_when_it_rests():
    async def hand():
        app, drawn = BodyCamera(SHOT), []
        draw = app._draw
        app._draw = lambda s, quick: (drawn.append("quick" if quick else "full"), draw(s, quick))
        for value in (40, 50, 60):
            app.c["azimuth"].value = value
            await asyncio.sleep(.02)
        for _ in range(200):
            if drawn[-1] == "full": break
            await asyncio.sleep(.05)
        await asyncio.sleep(.6)
        return drawn
    assert apart(lambda: asyncio.run(hand())) == ["quick", "quick", "quick", "full"]
