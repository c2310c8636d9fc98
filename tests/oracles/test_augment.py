"""One matrix for every key of a sample: each against a formula written here, torchvision, or its own inverse."""
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from hclab.core.geometry import Camera
from hclab.core.sample import FIELDS, collate, validate
from hclab.core.skeleton import skeleton
from hclab.data.augment import (CHART_MIRRORS, TABLES, AugmentError, Colour, Rules, Shake, Warp, augment, change_colour, compose, crop, inside, jpeg, mirror, mirror_iuv, move, person_crop,
                                pick, random_crop, recolour, rotation, scaling, shaped, still_there, translation, warp, warp_depth, warp_image)

FAST = settings(max_examples=40, deadline=None)
H, W, LAYOUT = 40, 56, "COCO17"
KEEP = Rules(outside=2, clip_boxes=False, vanished="keep")


def scene(people=2, seed=0, size=(H, W), distortion=True):
    "A sample with every key of the contract whose keys agree: joints are projected, instances lie in the boxes, parts lie on the instances."
    g = torch.Generator().manual_seed(seed)
    rand, (h, w) = lambda *shape: torch.rand(*shape, generator=g), size
    lens = torch.tensor([-.1, .02, .01, -.02, .003]) if distortion else torch.zeros(5)
    camera = dict(K=torch.tensor([[50., 0, w / 2], [0, 52, h / 2], [0, 0, 1]]), R=Camera.look_at((1, -3, 1.5), (0, 0, 1), 50, size).R.float(), t=torch.tensor([.1, .2, 3]), distortion=lens)
    joints3d = torch.cat([(rand(people, 17, 2) - .5) * 1.5, 2.5 + rand(people, 17, 1)], -1)
    ids, boxes = torch.zeros(h, w, dtype=torch.int64), torch.zeros(people, 4)
    for n in range(people):
        x, y = int(rand(1) * .5 * w), int(rand(1) * .5 * h)
        bw, bh = max(1, int((.2 + .3 * rand(1)) * w)), max(1, int((.2 + .3 * rand(1)) * h))
        ids[y:y + bh, x:x + bw] = n + 1
        boxes[n] = torch.tensor([x, y, min(w, x + bw), min(h, y + bh)])
    seen = torch.zeros(people, 4)
    for n in range(people):
        at = np.argwhere(ids.numpy() == n + 1)
        if len(at): seen[n] = torch.tensor([at[:, 1].min(), at[:, 0].min(), at[:, 1].max() + 1, at[:, 0].max() + 1]).float()
    on = (ids > 0).long()
    part = torch.randint(1, 25, (h, w), generator=g) * on
    joints2d = Camera(**camera).project_camera(joints3d)
    visibility = torch.randint(0, 3, (people, 17), generator=g).to(torch.int8)
    visibility = torch.where(inside(joints2d, size), visibility, 0)
    return dict(image=rand(3, h, w), depth=(1 + rand(1, h, w)) * (rand(1, h, w) > .1), instance_ids=ids, body_parts=part, garments=torch.randint(0, 20, (h, w), generator=g) * on,
                iuv=torch.cat([part[None].float(), rand(2, h, w) * on]), joints2d=joints2d, joints3d=joints3d, visibility=visibility, boxes=boxes, visible_boxes=seen, hidden=torch.arange(people) / max(people, 1), camera=camera,
                sequence=rand(1, 3, 17, 3), body_mask=torch.ones(1, 3, dtype=torch.bool), frame="camera", fps=30.0, action=2, segments=[(0, 3, 2)], identity=5, outfit=2, camera_id=1,
                attributes=(rand(56) > .5).float(), attribute_mask=rand(56) > .3, caption="Left hand up, right foot out", skeleton=LAYOUT, image_size=size, source="test", index=seed)


def same(a, b, atol=1e-5, skip=()):
    "Two samples agree in every key; keys that are not labelled may differ."
    assert a.keys() == b.keys()
    for key in a:
        if key in skip: continue
        for x, y in zip(*([v[p] for p in v] if key == "camera" else [v] for v in (a[key], b[key])), strict=True):
            assert torch.allclose(x.float(), y.float(), atol=atol) if isinstance(x, torch.Tensor) else x == y, key


@st.composite
def affines(draw, size=(H, W)):
    "A turned, zoomed, shifted and perhaps mirrored matrix about the middle of the frame."
    number = lambda low, high: draw(st.floats(low, high))
    centre = (size[1] / 2, size[0] / 2)
    steps = [scaling(number(.4, 2.5), number(.4, 2.5), centre), rotation(number(-180, 180), centre), translation(number(-20, 20), number(-20, 20))]
    return compose(*steps, *([mirror(size[1])] if draw(st.booleans()) else []))


# ------------------------------------------------------------------------------------------------ the matrices
def test_matrices_against_worked_points():
    at = lambda m, *xy: move(torch.tensor([xy], dtype=torch.float64), m)[0].tolist()
    assert at(translation(3, -2), 1, 1) == [4, -1]
    assert at(scaling(2, 3, about=(10, 10)), 11, 11) == [12, 13]
    assert at(mirror(56), 0, 5) == [56, 5] and at(mirror(56), .5, 0) == [55.5, 0]      # the first pixel's centre becomes the last one's
    assert at(rotation(90), 1, 0) == pytest.approx([0, 1]) and at(rotation(90, (5, 5)), 5, 0) == pytest.approx([10, 5])   # up goes to the right: clockwise
    assert at(crop((10, 20, 30, 60), (80, 40)), 10, 20) == [0, 0] and at(crop((10, 20, 30, 60), (80, 40)), 30, 60) == [40, 80]
    assert at(compose(translation(1, 0), scaling(2)), 1, 1) == [4, 2], "the first step comes first"


@FAST
@given(st.tuples(*[st.floats(-50, 50)] * 2), st.floats(.5, 80), st.floats(.5, 80), st.floats(.2, 5), st.floats(1, 2))
def test_shaped_box_holds_the_box_and_has_the_shape(corner, w, h, aspect, margin):
    x, y = corner
    x1, y1, x2, y2 = shaped((x, y, x + w, y + h), aspect, margin).tolist()
    assert (x2 - x1) / (y2 - y1) == pytest.approx(aspect)
    assert x1 <= x + 1e-6 and y1 <= y + 1e-6 and x2 >= x + w - 1e-6 and y2 >= y + h - 1e-6
    assert (x1 + x2) / 2 == pytest.approx(x + w / 2, abs=1e-6) and min((x2 - x1) / w, (y2 - y1) / h) == pytest.approx(margin)


@pytest.mark.parametrize("matrix", [torch.zeros(3, 3), scaling(0), scaling(1e-9), torch.eye(2), torch.full((3, 3), float("nan")), torch.tensor([[1., 0, 0], [0, 1, 0], [0, .1, 1]])])
def test_what_is_no_affine_is_refused(matrix):
    with pytest.raises(AugmentError, match="affine|flattens"): warp(scene(), matrix, (8, 8))


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (9, 5, 5, 9), (float("nan"), 0, 4, 4)])
def test_a_box_without_area_is_refused(box):
    with pytest.raises(AugmentError, match="x1 < x2"): crop(box, (8, 8))


def test_a_result_without_area_or_a_sample_without_a_frame_is_refused():
    with pytest.raises(AugmentError, match="at least one pixel"): warp(scene(), torch.eye(3), (0, 5))
    with pytest.raises(AugmentError, match="image_size"): warp({"caption": "x"}, torch.eye(3), (4, 4))
    with pytest.raises(AugmentError, match="densepose"): Rules(charts="denspose")


# ------------------------------------------------------------------------------------------------ joints, camera, boxes
@FAST
@given(affines(), st.integers(0, 9))
def test_joints_are_exact_and_the_camera_still_sees_them(matrix, seed):
    sample = scene(seed=seed)
    out = warp(sample, matrix, (64, 48), KEEP)
    m = matrix.numpy()
    order = skeleton(LAYOUT).mirror_order if np.linalg.det(m) < 0 else list(range(17))
    x, y = sample["joints2d"].double().numpy()[..., order, :].transpose(2, 0, 1)
    own = np.stack([m[0, 0] * x + m[0, 1] * y + m[0, 2], m[1, 0] * x + m[1, 1] * y + m[1, 2]], -1)
    assert np.abs(out["joints2d"].numpy() - own).max() < 1e-4
    assert torch.equal(out["visibility"], sample["visibility"][:, order])
    camera = Camera(**out["camera"], image_size=(64, 48))            # refuses what is no camera
    assert (camera.project_camera(out["joints3d"]) - out["joints2d"]).abs().max() < 2e-3
    assert torch.equal(out["joints3d"][..., 2], sample["joints3d"][:, order, 2]), "a change of the picture moves nobody nearer"


@FAST
@given(affines(), st.integers(0, 9))
def test_world_points_are_seen_where_the_matrix_takes_them(matrix, seed):
    sample = scene(seed=seed)
    w = Warp(matrix, (H, W), (H, W))
    old, new = Camera(**sample["camera"]), Camera(**warp(sample, matrix, (H, W))["camera"])
    world = old.to_world(torch.tensor([[.2, .1, 3.], [-.3, .4, 2.5]]))
    assert torch.allclose(new.project(world * torch.tensor([-1. if w.mirrored else 1, 1, 1])), move(old.project(world), matrix), atol=2e-3)
    sequence = warp(sample | {"frame": "world"}, matrix, (H, W))["sequence"]
    order = skeleton(LAYOUT).mirror_order if w.mirrored else list(range(17))
    assert torch.allclose(sequence, sample["sequence"][:, :, order] * torch.tensor([-1. if w.mirrored else 1, 1, 1]))


def test_zoom_is_a_focal_length_and_a_turn_rolls_the_camera():
    sample = scene(distortion=False)
    zoomed = warp(sample, compose(scaling(3), translation(4, 5)), (H, W))["camera"]
    assert zoomed["K"].tolist() == [[150, 0, 3 * W / 2 + 4], [0, 156, 3 * H / 2 + 5], [0, 0, 1]] and torch.equal(zoomed["R"], sample["camera"]["R"])
    square = sample | {"camera": sample["camera"] | {"K": torch.tensor([[50., 0, 28], [0, 50, 20], [0, 0, 1]])}}
    turned = warp(square, rotation(90, (28, 20)), (H, W))
    assert torch.allclose(turned["camera"]["K"], square["camera"]["K"], atol=1e-4)
    x, y, z = square["joints3d"].unbind(-1)
    assert torch.allclose(turned["joints3d"], torch.stack([-y, x, z], -1), atol=1e-5)          # right becomes down


def test_boxes_by_hand():
    sample = dict(boxes=torch.tensor([[10., 10, 20, 30], [0, 0, 4, 4]]), image_size=(40, 40), skeleton=LAYOUT, visible_boxes=torch.tensor([[10., 10, 15, 30], [0, 0, 4, 4]]))
    shifted = warp(sample, translation(-12, 0), (40, 40))
    assert shifted["boxes"].tolist() == [[0, 10, 8, 30]] and shifted["visible_boxes"].tolist() == [[0, 10, 3, 30]], "the second has left the frame"
    kept = warp(sample, translation(-12, 0), (40, 40), Rules(vanished="keep", clip_boxes=False))
    assert kept["boxes"].tolist() == [[-2, 10, 8, 30], [-12, 0, -8, 4]] and kept["visible_boxes"].tolist() == [[0, 10, 3, 30], [0, 0, 0, 4]]
    turned = warp(sample, rotation(90, (20, 20)), (40, 40))["boxes"]
    assert torch.allclose(turned, torch.tensor([[10., 10, 30, 20], [36, 0, 40, 4]]), atol=1e-4)


@FAST
@given(affines(), st.integers(0, 4), st.integers(0, 9))
def test_people_stay_in_step(matrix, people, seed):
    sample = scene(people, seed)
    out = validate(warp(sample, matrix, (H, W)))
    N = len(out["boxes"])
    assert all(len(out[k]) == N for k in ("joints2d", "joints3d", "visibility", "visible_boxes")) and N <= people
    all_kept = warp(sample, matrix, (H, W), Rules(vanished="keep"))
    who = [n for n in range(people) if (all_kept["instance_ids"] == n + 1).any() or bool((all_kept["boxes"][n, 2:] - all_kept["boxes"][n, :2] >= 1).all())]
    assert torch.equal(out["joints3d"], all_kept["joints3d"][who])
    for new, old in enumerate(who): assert torch.equal(out["instance_ids"] == new + 1, all_kept["instance_ids"] == old + 1)
    for n, box in enumerate(out["visible_boxes"]):
        at = np.argwhere(out["instance_ids"].numpy() == n + 1)
        assert box.tolist() == ([at[:, 1].min(), at[:, 0].min(), at[:, 1].max() + 1, at[:, 0].max() + 1] if len(at) else [0, 0, 0, 0])


def test_joints_that_left_the_frame():
    sample = scene(1)
    sample["visibility"] = torch.full((1, 17), 2, dtype=torch.int8)
    sample["joints2d"][0, 0], sample["joints2d"][0, 1] = torch.tensor([W + 0., H]), torch.tensor([W + .01, 3])
    for limit in (0, 1, 2):
        seen = warp(sample, torch.eye(3), (H, W), Rules(outside=limit))["visibility"]
        assert seen[0, :2].tolist() == [2, limit], "the edge belongs to the frame"
    sample["joints2d"][0, 5] = float("nan")
    sample["visibility"][0, 5] = 0
    assert validate(warp(sample, rotation(20), (H, W)))["visibility"][0, 5] == 0
    without = {k: v for k, v in sample.items() if k != "visibility"}
    assert "visibility" not in warp(without, rotation(20), (H, W))


# ------------------------------------------------------------------------------------------------ maps
@FAST
@given(affines(), st.integers(1, 60), st.integers(1, 60))
def test_labels_are_the_pixel_under_the_centre(matrix, h, w):
    ids = torch.arange(H * W).reshape(H, W) + 1
    out = pick(Warp(matrix, (H, W), (h, w)), ids).numpy()
    back = np.linalg.inv(matrix.numpy())
    x, y = np.meshgrid(np.arange(w) + .5, np.arange(h) + .5)
    sx, sy = back[0, 0] * x + back[0, 1] * y + back[0, 2], back[1, 0] * x + back[1, 1] * y + back[1, 2]
    clear = (np.abs(sx - np.round(sx)) > 1e-3) & (np.abs(sy - np.round(sy)) > 1e-3)         # on a border either neighbour is right
    known = (sx >= 0) & (sx < W) & (sy >= 0) & (sy < H)
    own = np.where(known, np.floor(sy).clip(0, H - 1) * W + np.floor(sx).clip(0, W - 1) + 1, 0)
    assert (out == own)[clear].all()


@pytest.mark.parametrize("angle, shift, scale", [(0., (0., 0.), 1.), (20., (5., -3.), 1.1), (-70., (0., 7.), .9), (123., (-4., 2.), 1.7)])
def test_image_labels_and_joints_against_torchvision(angle, shift, scale):
    from hclab.core.vision import load_torchvision
    tv = load_torchvision()
    from torchvision.transforms.v2 import functional as F
    sample, centre = scene(seed=3), (W / 2, H / 2)
    ours = warp(sample, compose(rotation(angle, centre), scaling(scale, about=centre), translation(*shift)), (H, W), KEEP)
    same_change = dict(angle=angle, translate=list(shift), scale=scale, shear=[0., 0.])
    theirs = F.affine(sample["image"], interpolation=tv.transforms.InterpolationMode.BILINEAR, **same_change)
    covered = warp_image(Warp(compose(rotation(angle, centre), scaling(scale, about=centre), translation(*shift)), (H, W), (H, W)), torch.ones(1, H, W))[0] > .999
    assert covered.float().mean() > .4 and (ours["image"] - theirs).abs().amax(0)[covered].max() < 1e-3
    assert (ours["body_parts"] != F.affine(tv.tv_tensors.Mask(sample["body_parts"]), **same_change)).float().mean() < .01
    points = F.affine(tv.tv_tensors.KeyPoints(sample["joints2d"][0], canvas_size=(H, W)), **same_change)
    assert (ours["joints2d"][0] - points).abs().max() < 1e-3


def test_a_shrinking_image_is_filtered_and_keeps_its_mean():
    stripes = (torch.arange(240) % 2).float().expand(1, 240, 240)
    for matrix in (scaling(.2), compose(scaling(.2), rotation(30, (24, 24)))):
        out = warp_image(Warp(matrix, (240, 240), (48, 48)), stripes)[:, 16:-16, 16:-16]
        assert abs(float(out.mean()) - .5) < .01 and out.std() < .05
    w = Warp(scaling(.25, .5), (240, 240), (120, 60))
    expected = torch.nn.functional.interpolate(scene(size=(240, 240))["image"][None], (120, 60), mode="bilinear", antialias=True)[0]
    assert torch.allclose(warp_image(w, scene(size=(240, 240))["image"]), expected, atol=1e-4)


@pytest.mark.parametrize("turn", [0, 90, 180, 35])
def test_a_crop_that_shrinks_shows_the_same_as_the_whole_that_shrinks(turn):
    "Only the part of the source that is seen is filtered; nothing of that may show, at the borders least of all."
    y, x = torch.meshgrid(torch.arange(300) + .5, torch.arange(400) + .5, indexing="ij")
    image = torch.stack([.5 + .5 * torch.sin(x / 9), .5 + .5 * torch.cos(y / 11), torch.ones_like(x)])
    large = compose(rotation(turn, (200, 150)), scaling(.3, .35))
    whole = warp_image(Warp(compose(large, translation(20, 20)), (300, 400), (150, 170)), image)
    part = warp_image(Warp(compose(large, translation(20 - 60, 20 - 50)), (300, 400), (40, 50)), image)
    assert (part - whole[:, 50:90, 60:110]).abs().max() < .03 and part[2].min() > .999, "the part lies inside the source, so its white stays white"


def test_a_turned_gradient_stays_the_gradient():
    "Bilinear interpolation of a plane is the plane: image(x, y) = x at the new place of every pixel, wherever the source covers it."
    plane = (torch.arange(W) + .5).expand(1, H, W).contiguous()
    matrix = compose(rotation(33, (20, 20)), scaling(1.3), mirror(W))
    out = warp_image(Warp(matrix, (H, W), (50, 60)), plane)[0].numpy()
    back = np.linalg.inv(matrix.numpy())
    x, y = np.meshgrid(np.arange(60) + .5, np.arange(50) + .5)
    sx, sy = back[0, 0] * x + back[0, 1] * y + back[0, 2], back[1, 0] * x + back[1, 1] * y + back[1, 2]
    interior = (sx > .5) & (sx < W - .5) & (sy > .5) & (sy < H - .5)
    assert interior.sum() > 500 and np.abs(out - sx)[interior].max() < 1e-3


@FAST
@given(affines(), st.booleans(), st.integers(0, 9))
def test_depth_is_never_mixed_nor_rescaled(matrix, smooth, seed):
    "Two flat surfaces and holes: no value lies between them, whatever is done."
    g = torch.Generator().manual_seed(seed)
    depth = torch.tensor([0., 1, 4])[torch.randint(0, 3, (1, H, W), generator=g)]
    out = warp_depth(Warp(matrix, (H, W), (H, W)), depth, smooth)
    assert set(out.unique().tolist()) <= {0., 1., 4.}


def test_smooth_depth_of_a_slope_is_the_slope():
    slope = 2 + .01 * (torch.arange(W) + .5).expand(1, H, W)
    w = Warp(scaling(5, about=(20, 20)), (H, W), (H, W))
    x = 20 + (torch.arange(W) + .5 - 20) / 5
    assert (warp_depth(w, slope, smooth=True)[0, 5:-5] - (2 + .01 * x)).abs()[:, 5:-5].max() < 1e-4 < (warp_depth(w, slope)[0] - (2 + .01 * x)).abs().max()


def test_fill_is_only_outside():
    grey = warp_image(Warp(translation(3.25, 0), (8, 8), (8, 8)), torch.full((3, 8, 8), .25), fill=.75)
    assert torch.allclose(grey[:, :, 5:], torch.tensor(.25)) and torch.allclose(grey[:, :, :2], torch.tensor(.75))
    assert torch.allclose(pick(Warp(translation(3, 0), (8, 8), (8, 8)), torch.ones(8, 8), fill=7)[:, :3], torch.tensor(7.))


# ------------------------------------------------------------------------------------------------ left and right
def test_left_and_right_tables():
    names = """background right_hip right_knee right_foot left_hip left_knee left_foot left_shoulder left_elbow left_hand right_shoulder right_elbow right_hand crotch
        right_thigh right_calf left_thigh left_calf lower_spine upper_spine head left_arm left_forearm right_arm right_forearm""".split()
    swap = lambda n: n.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right")
    assert [names[i] for i in TABLES["body_parts"]] == [swap(n) for n in names]
    assert TABLES["garments"].tolist() == [*range(14), 15, 14, 17, 16, 19, 18]
    from hclab.data.readers.lip import mirrored_ids
    assert torch.equal(TABLES["garments"], mirrored_ids()), "the reader of LIP and the augmentation must agree"
    # the symmetries that DensePose's own code lists for its 24 parts
    assert TABLES["iuv"].tolist() == [0, 1, 2, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15, 18, 17, 20, 19, 22, 21, 24, 23]


def test_the_rule_of_the_drawn_charts_against_the_charts():
    "The vertices of the body and their mirror images get the labels that the rule says."
    from hclab.data.chart import REGIONS, Chart, chart_of
    from hclab.data.labels import body_parts, surface
    from hclab.data.pieces import piece_of
    chart = chart_of(piece_of("skin"))
    order = [REGIONS.index(r.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right")) for r in REGIONS]
    other = Chart(chart.places * [-1, 1, 1], chart.regions[:, order])
    ours, theirs = mirror_iuv(torch.from_numpy(surface(chart)).T[:, None]), torch.from_numpy(surface(other)).T[:, None]
    same_part = ours[0] == theirs[0]
    around = (ours[1] - theirs[1]).abs()
    around = torch.minimum(around, 1 - around)[same_part]
    assert same_part.float().mean() > .999 and around.max() < .005 and (ours[2] - theirs[2]).abs()[same_part].max() < .005
    parts = TABLES["body_parts"][torch.from_numpy(body_parts(chart)).long()]
    assert (parts == torch.from_numpy(body_parts(other)).long()).float().mean() > .98


@pytest.mark.parametrize("charts", CHART_MIRRORS)
def test_a_mirror_image_pixel_by_pixel(charts):
    sample = scene()
    out = warp(sample, mirror(W), (H, W), Rules(charts=charts))
    for key in ("image", "depth", "instance_ids"): assert torch.equal(out[key], sample[key].flip(-1)), key
    for key in ("body_parts", "garments"): assert torch.equal(out[key], TABLES[key][sample[key].flip(-1)])
    part, u, v = sample["iuv"].flip(-1)
    back, half, down = (torch.isin(part.long(), torch.tensor(p, dtype=torch.int64)) for p in CHART_MIRRORS[charts])
    assert torch.equal(out["iuv"][0], TABLES["iuv"][part.long()].float()) and torch.equal(out["iuv"][2], torch.where(down, 1 - v, v))
    assert torch.allclose(out["iuv"][1], torch.where(back, 1 - u, torch.where(half, (1.5 - u) % 1, u)), atol=1e-6)
    left, right = (skeleton(LAYOUT).index(f"{s}_wrist") for s in ("left", "right"))
    assert torch.allclose(out["joints2d"][:, left, 0], W - sample["joints2d"][:, right, 0]) and torch.equal(out["visibility"][:, left], sample["visibility"][:, right])
    assert out["caption"] == "Right hand up, left foot out" and out["camera"]["R"].det() > 0
    order = [*range(53), 55, 54, 53]
    for key in ("attributes", "attribute_mask"): assert torch.equal(out[key], sample[key][order]) and not torch.equal(out["attributes"], sample["attributes"])


def test_attributes_that_name_a_side_are_those_of_the_drawn_people():
    from hclab.data.identity import ATTRIBUTES
    swap = {"seen from the left side": "seen from the right side", "seen from the right side": "seen from the left side"}
    assert [ATTRIBUTES[i] for i in TABLES["attributes"]] == [swap.get(name, name) for name in ATTRIBUTES]
    assert not any(side in name for name in set(ATTRIBUTES) - set(swap) for side in ("left", "right")), "no other attribute names a side"


def test_a_list_of_attributes_is_mirrored_by_its_own_rule_and_an_unknown_one_is_refused():
    few = scene() | {"attributes": torch.tensor([1., 0, 1, 0]), "attribute_mask": torch.tensor([True, True, False, True])}
    own = Rules(attributes=(((0, 3),), 4))
    out = warp(few, mirror(W), (H, W), own)
    assert out["attributes"].tolist() == [0, 0, 1, 1] and out["attribute_mask"].tolist() == [True, True, False, True]
    assert torch.equal(warp(few, mirror(W), (H, W), Rules(attributes=((), 0)))["attributes"], few["attributes"])
    assert torch.equal(warp(few, rotation(20), (H, W), own)["attributes"], few["attributes"]) and torch.equal(warp(few, rotation(20), (H, W))["attributes"], few["attributes"]), "a turn exchanges nothing"
    with pytest.raises(AugmentError, match="has 4 attributes.*which of 56.*give the pairs of your list"): warp(few, mirror(W), (H, W))
    same(warp(warp(few, mirror(W), (H, W), own), mirror(W), (H, W), own), few)
    assert Rules.from_json(own.to_json()) == own and hash(Rules.from_json(own.to_json())) == hash(own)
    for wrong in ((), 3, ((0, 3), 4), (((0, 4),), 4), (((0, 1), (1, 2)), 4), (((0, 0),), 4), (((-1, 2),), 4), (((0, 1),), "4")):
        with pytest.raises(AugmentError, match="Rules\\(attributes="): Rules(attributes=wrong)


@FAST
@given(st.integers(0, 3), st.integers(0, 50), st.sampled_from(sorted(CHART_MIRRORS)), st.sampled_from(["world", "camera"]))
def test_mirrored_twice_is_the_sample(people, seed, charts, frame):
    sample, rules = scene(people, seed) | {"frame": frame}, Rules(charts=charts)
    once = warp(sample, mirror(W), (H, W), rules)
    same(warp(once, mirror(W), (H, W), rules), sample)
    assert sample["caption"] == "Left hand up, right foot out", "what was given is not changed"


def test_four_quarter_turns_are_the_sample():
    sample = scene(size=(H, H), distortion=True)
    out = sample
    for _ in range(4): out = warp(out, rotation(90, (H / 2, H / 2)), (H, H), KEEP)
    same(out, sample, atol=1e-4)
    assert all(torch.equal(out[k], sample[k]) for k in ("image", "depth", "instance_ids", "body_parts", "garments", "iuv"))


def test_a_vertical_mirror_also_exchanges_the_sides():
    out = warp(scene(), compose(mirror(W), rotation(180, (W / 2, H / 2))), (H, W), KEEP)
    assert torch.equal(out["image"], scene()["image"].flip(-2)) and torch.equal(out["visibility"], scene()["visibility"][:, skeleton(LAYOUT).mirror_order])


# ------------------------------------------------------------------------------------------------ composition
@FAST
@given(affines(), affines())
def test_composed_is_sequential(first, second):
    "Joints and cameras to 1e-3; the photograph, resampled twice in place of once, of a smooth picture to 2 % of the range where both saw it."
    y, x = torch.meshgrid(torch.arange(H) + .5, torch.arange(W) + .5, indexing="ij")
    smooth = torch.stack([.5 + .5 * torch.sin(x / 15), .5 + .5 * torch.cos(y / 12), .5 + .5 * torch.sin((x + y) / 20)])
    sample = scene() | {"image": smooth}
    once, twice = warp(sample, compose(first, second), (H, W), KEEP), warp(warp(sample, first, (H, W), KEEP), second, (H, W), KEEP)
    assert (once["joints2d"] - twice["joints2d"]).abs().max() < 1e-3
    assert (once["joints3d"] - twice["joints3d"]).abs().max() < 1e-3
    assert (Camera(**twice["camera"]).project_camera(twice["joints3d"]) - once["joints2d"]).abs().max() < 5e-3
    ones = torch.ones(1, H, W)
    both = warp_image(Warp(second, (H, W), (H, W)), warp_image(Warp(first, (H, W), (H, W)), ones)) > .999
    both &= warp_image(Warp(compose(first, second), (H, W), (H, W)), ones) > .999
    if both.sum() > 20: assert (once["image"] - twice["image"]).abs().mean(0)[both[0]].mean() < .02


# ------------------------------------------------------------------------------------------------ any sample, any matrix
OPTIONAL = sorted(set(FIELDS) - {"skeleton", "image_size", "frame", "fps", "body_mask", "sequence", "segments", "attributes", "attribute_mask"})


@settings(max_examples=80, deadline=None)
@given(affines(), st.integers(0, 4), st.integers(0, 99), st.sets(st.sampled_from(OPTIONAL)), st.tuples(st.integers(1, 70), st.integers(1, 70)), st.booleans(),
       st.sampled_from([0, 1, 2]), st.sampled_from(["drop", "keep"]))
def test_any_sample_keeps_the_contract(matrix, people, seed, missing, size, smooth, outside, vanished):
    sample = {k: v for k, v in scene(people, seed).items() if k not in missing}
    copy = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in sample.items()}
    out = warp(sample, matrix, size, Rules(smooth_depth=smooth, outside=outside, vanished=vanished))
    assert validate(out).keys() == sample.keys() and out["image_size"] == size
    same(sample, copy, atol=0)
    if vanished == "keep" and "boxes" in out: assert len(out["boxes"]) == people
    collate([out, warp(sample, mirror(W), size)])


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1)])
def test_the_smallest_pictures(size):
    sample = scene(1, size=size)
    for matrix in (torch.eye(3), mirror(size[1]), rotation(45), scaling(3), scaling(.1)):
        for target in ((1, 1), (6, 4)): validate(warp(sample, matrix, target, Rules(smooth_depth=True)))


def test_nobody_nothing_seen_and_far_outside():
    validate(warp(scene(0), rotation(10), (H, W)))
    blank = scene(1) | {"visibility": torch.zeros(1, 17, dtype=torch.int8)}
    validate(warp(blank, rotation(10), (H, W)))
    away = warp(scene(2), translation(1e6, 0), (H, W))
    assert validate(away)["joints2d"].shape == (0, 17, 2) and not away["instance_ids"].any() and not away["depth"].any() and not away["image"].any()
    kept = validate(warp(scene(2), translation(1e6, 0), (H, W), Rules(vanished="keep")))
    assert len(kept["boxes"]) == 2 and not kept["visibility"].any() and (kept["boxes"][:, 2] - kept["boxes"][:, 0] == 0).all()
    outside = validate(warp(scene(2), crop((1000, 1000, 1100, 1100), (20, 20)), (20, 20)))
    assert len(outside["boxes"]) == 0


def test_people_without_boxes_or_instances_are_kept_by_their_joints():
    joints = torch.zeros(2, 17, 2)
    joints[1] += 30
    sample = dict(joints2d=joints, visibility=torch.full((2, 17), 2, dtype=torch.int8), skeleton=LAYOUT, image_size=(40, 40))
    assert still_there(sample, (20, 20)).tolist() == [True, False]
    assert len(validate(warp(sample, torch.eye(3), (20, 20)))["joints2d"]) == 1


# ------------------------------------------------------------------------------------------------ at random
@FAST
@given(st.integers(0, 10_000))
def test_random_crops_keep_their_ranges(seed):
    shake, box, size = Shake(degrees=20, scale=(.8, 1.2), shift=.1, turned=.5, mirrored=.5), (10., 5, 30, 35), (64, 48)
    m = random_crop(box, size, torch.Generator().manual_seed(seed), shake)
    rest = m @ torch.linalg.inv(person_crop(box, size))
    rest = mirror(48) @ rest if torch.linalg.det(rest) < 0 else rest
    scale, angle = math.sqrt(float(torch.linalg.det(rest[:2, :2]))), math.degrees(math.atan2(rest[1, 0], rest[0, 0]))
    assert .8 - 1e-9 <= scale <= 1.2 + 1e-9 and abs(angle) <= 20 + 1e-9
    middle = move(torch.tensor([[24., 32]], dtype=torch.float64), rest)[0]
    assert abs(middle[0] - 24) <= 4.8 + 1e-9 and abs(middle[1] - 32) <= 6.4 + 1e-9
    assert torch.equal(m, random_crop(box, size, torch.Generator().manual_seed(seed), shake))


EVERYTHING = Colour(jittered=.9, grey=.4, blurred=.6, solarised=.5, compressed=.5)


def test_colours_touch_the_photograph_and_no_global_generator():
    sample = scene(size=(24, 20))
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    outs = [recolour(sample, torch.Generator().manual_seed(s), EVERYTHING) for s in range(20)]
    matrices = [random_crop((1, 1, 9, 9), (8, 8), torch.Generator().manual_seed(s)) for s in range(3)]
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all() and before[2] == random.getstate()
    assert len({float(o["image"].sum()) for o in outs}) > 10 and not torch.equal(matrices[0], matrices[1])
    for seed, out in enumerate(outs):
        validate(out)
        assert all(out[k] is sample[k] for k in sample if k != "image")
        assert torch.equal(out["image"], recolour(sample, torch.Generator().manual_seed(seed), EVERYTHING)["image"])
    assert recolour({"depth": sample["depth"]}, torch.Generator()).keys() == {"depth"}


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2)])
def test_colours_of_the_smallest_pictures(size):
    for seed in range(12): validate({"image": change_colour(scene(size=size)["image"], torch.Generator().manual_seed(seed), EVERYTHING)})


def test_grey_solarise_and_jpeg_against_their_formulas():
    image, g = scene(seed=5)["image"], torch.Generator().manual_seed(0)
    nothing = dict(jittered=0., grey=0., blurred=0., solarised=0., compressed=0.)
    assert torch.equal(change_colour(image, g, Colour(**nothing)), image)
    grey = change_colour(image, g, Colour(**nothing | dict(grey=1.)))
    assert torch.allclose(grey, (.2989 * image[0] + .587 * image[1] + .114 * image[2]).expand(3, H, W), atol=1e-3)
    assert torch.allclose(change_colour(image, g, Colour(**nothing | dict(solarised=1.))), torch.where(image >= .5, 1 - image, image))
    flat = torch.full((3, 16, 16), 100 / 255)
    assert (jpeg(flat, 90) - flat).abs().max() < 3 / 255 and (jpeg(image, 5) - image).abs().mean() > (jpeg(image, 95) - image).abs().mean() > 0


def test_depth_and_labels_have_no_colours():
    with pytest.raises(AugmentError, match="depth and labels have none"): change_colour(scene()["depth"], torch.Generator())


@FAST
@given(st.integers(0, 3), st.integers(0, 99), st.integers(0, 2**40))
def test_one_call_keeps_the_contract_and_centres_the_person(people, scene_seed, seed):
    sample, exact = scene(people, scene_seed), Shake(degrees=0., turned=0., scale=(1., 1.), shift=0., mirrored=0., margin=1.)
    out = validate(augment(sample, (32, 24), torch.Generator().manual_seed(seed)))
    assert out["image_size"] == (32, 24) and torch.equal(out["image"], augment(sample, (32, 24), torch.Generator().manual_seed(seed))["image"])
    still = augment(sample, (32, 24), torch.Generator().manual_seed(seed), exact, rules=KEEP)
    if people:
        x1, y1, x2, y2 = still["boxes"][0].tolist()
        assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((12, 16), abs=1e-3) and max((x2 - x1) / 24, (y2 - y1) / 32) == pytest.approx(1, abs=1e-4)
        with pytest.raises(AugmentError, match="counted from 0"): augment(sample, (8, 8), torch.Generator(), person=people)
