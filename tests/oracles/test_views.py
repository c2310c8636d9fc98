"""Views: every crop stays in its picture, every pixel of one view is found in another, masks have the promised size."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from hclab.core.sample import validate
from hclab.core.skeleton import skeleton
from hclab.data.augment import AugmentError, Colour, Rules, compose, inside, move, scaling, warp
from hclab.data.views import (GLOBAL, LOCAL, SCALES, SECOND, Crop, composite, cover, draw_scale, hidden_patches, match, multi_crop, patch_masks, random_box, random_view,
                              rescaled, shared, two_views)

FAST = settings(max_examples=40, deadline=None)
H, W = 60, 44
PLAIN = Colour(jittered=0, grey=0)
seeds = st.integers(0, 2**40)


def generator(seed): return torch.Generator().manual_seed(seed)


def source(seed=0):
    "A picture whose red is x and whose green is y, with two people's joints."
    y, x = torch.meshgrid((torch.arange(H) + .5) / H, (torch.arange(W) + .5) / W, indexing="ij")
    joints = torch.rand(2, 17, 2, generator=generator(seed)) * torch.tensor([W, H])
    return dict(image=torch.stack([x, y, 0 * x + .5]), depth=1 + x[None], joints2d=joints, visibility=torch.full((2, 17), 2, dtype=torch.int8),
                boxes=torch.cat([joints.amin(1), joints.amax(1)], 1), skeleton="COCO17", image_size=(H, W))


@FAST
@given(seeds, st.floats(.05, 1), st.floats(.05, 1), st.floats(.2, 4), st.floats(1, 3))
def test_boxes_stay_in_the_picture_and_in_their_ranges(seed, least, most, narrow, ratio):
    how = Crop(area=(min(least, most), max(least, most)), aspect=(narrow, narrow * ratio))
    x1, y1, x2, y2 = random_box((3, 5, 103, 65), how, generator(seed)).tolist()
    assert 3 - 1e-6 <= x1 < x2 <= 103 + 1e-6 and 5 - 1e-6 <= y1 < y2 <= 65 + 1e-6
    aspect, area = (x2 - x1) / (y2 - y1), (x2 - x1) * (y2 - y1) / 6000
    assert narrow - 1e-6 <= aspect <= narrow * ratio + 1e-6
    if area < how.area[0] - 1e-6: assert x2 - x1 > 100 - 1e-6 or y2 - y1 > 60 - 1e-6, "smaller than asked only where the picture ends"
    assert area <= how.area[1] + 1e-6


def test_shapes_are_drawn_evenly_on_a_log_scale():
    boxes = torch.stack([random_box((0, 0, 100, 100), Crop(area=(.04, .06), aspect=(.5, 2.)), generator(s)) for s in range(600)])
    shape = ((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])).log2()
    assert abs(shape.mean()) < .08 and abs(shape.std() - 2 / 12**.5) < .05 and .49 < float((boxes[:, :2].mean() + boxes[:, 2:].mean()) / 200) < .51


def test_a_shape_that_does_not_fit():
    x1, y1, x2, y2 = random_box((0, 0, 100, 40), Crop(area=(1., 1.), aspect=(.5, .5)), generator(0)).tolist()
    assert (x2 - x1, y2 - y1) == pytest.approx((20, 40)) and 0 <= x1 <= 80
    with pytest.raises(AugmentError, match="x1 < x2"): random_box((5, 0, 5, 40), Crop(), generator(0))
    for wrong in (dict(area=(0., 1.)), dict(area=(.5, 1.5)), dict(area=(.9, .5)), dict(aspect=(0., 1.)), dict(aspect=(2., 1.))):
        with pytest.raises(AugmentError, match="area=|aspect="): Crop(**wrong)


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_joints_of_two_views_are_the_same_joints(seed):
    views = multi_crop(source(seed), generator(seed), count=2)
    assert [v.size for v in views] == [(256, 128), (256, 128), (128, 64), (128, 64)]
    order = skeleton("COCO17").mirror_order
    for a in views:
        validate(a.sample)
        for b in views:
            if len(a.sample["joints2d"]) != 2 or len(b.sample["joints2d"]) != 2: continue
            there, seen = match(a.sample["joints2d"], a, b)
            mirrored = float(torch.linalg.det(a.matrix[:2, :2]) * torch.linalg.det(b.matrix[:2, :2])) < 0
            expected = b.sample["joints2d"][:, order] if mirrored else b.sample["joints2d"]
            assert (there - expected).abs().max() < 2e-3
            in_both = seen & (a.sample["visibility"] > 0)
            label = b.sample["visibility"][:, order] if mirrored else b.sample["visibility"]
            assert (label[in_both] > 0).float().mean() > .9 or not in_both.any()      # a joint on the very edge may fall to either side


@FAST
@given(seeds)
def test_matched_pixels_show_the_same_place(seed):
    "Red is x and green is y of the source: two views must read the same numbers at matched cells, and depth is the same number too."
    how = Crop(size=(64, 48), area=(.3, .9), aspect=(.5, 1.), colour=PLAIN)
    a, b = two_views(source(), generator(seed), how, how)
    points, there = shared(a, b, 4)
    clear = ((there > 1) & (there < torch.tensor([47., 63]))).all(-1)
    read = lambda view, key, at: view.sample[key][:, at[:, 1].long(), at[:, 0].long()]
    assert (read(a, "image", points) - read(b, "image", there))[:, clear].abs().max() < .06 if clear.any() else True
    assert (read(a, "depth", points) - read(b, "depth", there))[:, clear].abs().max() < .08 if clear.any() else True
    back, seen = match(there, b, a)
    assert torch.allclose(back, points, atol=1e-3) and seen.all()


def test_a_view_reads_what_its_matrix_says():
    view = random_view(source(), Crop(size=(50, 30), area=(.4, .6), colour=PLAIN), generator(7), within=(4, 4, 40, 56))
    at = torch.tensor([[10.5, 20.5], [25.5, 40.5]])
    x, y = (move(at, torch.linalg.inv(view.matrix)) / torch.tensor([W, H])).T
    seen = view.sample["image"][:2, at[:, 1].long(), at[:, 0].long()]
    assert torch.allclose(seen, torch.stack([x, y]), atol=2e-3)


def test_the_same_generator_gives_the_same_views_and_no_global_one_is_used():
    state = torch.get_rng_state()
    one, two = (multi_crop(source(), generator(3), GLOBAL, SECOND, LOCAL, count=3) for _ in range(2))
    assert all(torch.equal(a.sample["image"], b.sample["image"]) and torch.equal(a.matrix, b.matrix) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0].matrix, one[1].matrix) and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("scale", [*SCALES, 1.0, .01])
def test_rescaled_views_keep_their_way_back(scale):
    view = random_view(source(), replace(LOCAL, colour=PLAIN), generator(1))
    other = rescaled(view, scale)
    assert other.size == (max(1, round(128 * scale)), max(1, round(64 * scale)))
    corners, _ = match(torch.tensor([[0., 0], [64, 128]]), view, other)
    assert torch.allclose(corners, torch.tensor([[0., 0], [other.size[1], other.size[0]]]), atol=1e-4)
    assert rescaled(view, scale, 16).size[0] % 16 == 0 and draw_scale(generator(0)) in SCALES
    validate(other.sample)


@pytest.mark.parametrize("rules", [Rules(outside=2, clip_boxes=False, vanished="keep"), Rules(outside=1, fill=.25), Rules()])
def test_rescaled_views_keep_the_rules_by_which_they_were_cut(rules):
    "At another size a view is what the source becomes by both matrices at once: people, boxes and joints outside of it included."
    first = source() | {"boxes": torch.tensor([[1., 1, 6, 6], [20, 20, 43, 59]])}
    outside = 0
    for seed in range(6):
        view = random_view(first, replace(LOCAL, area=(.1, .3), colour=PLAIN), generator(seed), rules=rules)
        other, matrix = rescaled(view, 1.5), scaling(1.5)
        whole = warp(first, compose(view.matrix, matrix), other.size, rules)
        for key in ("joints2d", "boxes"): assert whole[key].shape == other.sample[key].shape and torch.allclose(other.sample[key], whole[key], atol=1e-3), key
        assert torch.equal(other.sample["visibility"], whole["visibility"]) and other.rules == rules == rescaled(other, .5).rules
        outside += int(((other.sample["visibility"] == rules.outside) & ~inside(other.sample["joints2d"], other.size)).sum())
    assert outside > 0, "joints that the rules speak of"


@FAST
@given(seeds, st.integers(1, 20), st.integers(1, 12), st.floats(0, 1), st.integers(1, 5))
def test_exactly_so_many_patches_are_hidden(seed, rows, columns, ratio, block):
    mask = hidden_patches((rows, columns), generator(seed), ratio, block)
    assert mask.shape == (rows, columns) and int(mask.sum()) == round(ratio * rows * columns)
    assert torch.equal(mask, hidden_patches((rows, columns), generator(seed), ratio, block))


def test_blocks_are_blocks_and_every_patch_has_its_turn():
    mask = hidden_patches((12, 12), generator(0), .5, 3)
    coarse = mask.reshape(4, 3, 4, 3).float().mean((1, 3))
    assert set(coarse.unique().tolist()) == {0., 1.}
    often = torch.stack([hidden_patches((6, 4), generator(s), .75) for s in range(400)]).float().mean(0)
    assert (often - .75).abs().max() < .1
    image = torch.rand(3, 24, 16, generator=generator(0))
    covered = cover(image, hidden_patches((6, 4), generator(0)), fill=2.)
    assert (covered == 2).float().mean() == .75 and torch.equal(covered[covered != 2], image[covered != 2])


@FAST
@given(seeds)
def test_composite_of_saip(seed):
    "Two crops of 128 x 64 on 224 x 224: never overlapping, inside, 32 of 196 cells each, 0.7 to 0.3."
    background, crops = torch.full((3, 224, 224), .2), [torch.full((3, 128, 64), 1.), torch.full((3, 128, 64), .6)]
    out = composite(background, crops, generator(seed))
    assert not (out.masks[0] & out.masks[1]).any() and out.masks.sum((1, 2)).tolist() == [8192, 8192]
    assert patch_masks(out.masks, (14, 14)).sum((1, 2)).tolist() == [32, 32]
    for mask, box, value in zip(out.masks, out.boxes, (.7 * 1 + .3 * .2, .7 * .6 + .3 * .2), strict=True):
        at = np.argwhere(mask.numpy())
        assert box.tolist() == [at[:, 1].min(), at[:, 0].min(), at[:, 1].max() + 1, at[:, 0].max() + 1]
        assert torch.allclose(out.image[:, mask], torch.tensor(value), atol=1e-6)
    assert torch.allclose(out.image[:, ~out.masks.any(0)], torch.tensor(.2)) and out.boxes[0, 2] <= out.boxes[1, 0]


def test_a_composite_that_does_not_fit_is_refused():
    with pytest.raises(AugmentError, match="side by side"): composite(torch.zeros(3, 20, 20), [torch.zeros(3, 5, 11), torch.zeros(3, 5, 10)], generator(0))
    full = composite(torch.zeros(3, 20, 20), [torch.ones(3, 20, 12), torch.ones(3, 20, 8)], generator(0))
    assert full.masks.any(0).all() and composite(torch.zeros(3, 4, 4), [], generator(0)).boxes.shape == (0, 4)
