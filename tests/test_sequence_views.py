"What is done to a skeleton sequence before a network sees it: each operation against a naive loop, and padding that never matters."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hclab.core.config import ConfigError
from hclab.core.skeleton import skeleton
from hclab.data.sequence_views import (SPATIAL, STREAMS, TEMPORAL, SequenceAugment, SequenceViewError, augment, below, centre, check_sequence, clip_stream, crop, draw_choices, interpolate, mask_joints, noise, reflect_crop, rescale, resize_frames,
                                       shear, stream, turn_shoulders)

NTU = skeleton("NTU25")
LENGTHS = (17, 1, 0, 40, 9)     # a single frame and an absent person among them


def gen(seed=0): return torch.Generator().manual_seed(seed)


def batch(lengths=LENGTHS, frames=40, joints=25, seed=0, dtype=torch.float32):
    mask = torch.arange(frames) < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), frames, joints, 3, generator=gen(seed), dtype=dtype)*mask[..., None, None], mask


OPS = {
    **{f"stream {kind}": lambda x, m, g, kind=kind: (stream(x, m, kind, NTU), m) for kind in STREAMS},
    "backward": lambda x, m, g: (stream(x, m, "motion", NTU, "backward"), m),
    "centre": lambda x, m, g: (centre(x, m, NTU), m), "centre frame": lambda x, m, g: (centre(x, m, NTU, "frame"), m), "turn": lambda x, m, g: (turn_shoulders(x, m, NTU), m),
    "shear": lambda x, m, g: (shear(x, g), m), "rescale": lambda x, m, g: (rescale(x, g), m),
    "noise": lambda x, m, g: (noise(x, m, g), m), "noise per sequence": lambda x, m, g: (noise(x, m, g, per="sequence"), m),
    "interpolate": lambda x, m, g: (interpolate(x, m, g), m), "crop": lambda x, m, g: crop(x, m, g), "reflect": lambda x, m, g: (reflect_crop(x, m, g), m), "reflect once": lambda x, m, g: (reflect_crop(x, m, g, edge="once"), m),
    "resize": lambda x, m, g: resize_frames(x, m, 40), "mask": lambda x, m, g: mask_joints(x*(m.sum(1) > 1)[:, None, None, None], m & (m.sum(1) > 1)[:, None], g),
    "augment": lambda x, m, g: augment(x, m, SequenceAugment(chance=.9, spatial=SPATIAL, temporal=TEMPORAL), g),
}


@pytest.mark.parametrize("name", OPS)
def test_padding_changes_nothing_and_the_generator_everything(name):
    x, m = batch()
    longer, longer_mask = torch.cat([x, torch.zeros(5, 23, 25, 3)], 1), torch.cat([m, torch.zeros(5, 23, dtype=torch.bool)], 1)
    before = x.clone()
    (one, left), (two, _), (padded, padded_left) = OPS[name](x, m, gen(3)), OPS[name](x, m, gen(3)), OPS[name](longer, longer_mask, gen(3))
    assert torch.equal(x, before), "the input is not written to"
    assert torch.equal(one, two) and torch.equal(padded[:, :one.shape[1]], one) and torch.equal(padded_left[:, :left.shape[1]], left)
    assert not padded[:, one.shape[1]:].any() and not padded_left[:, left.shape[1]:].any()
    if name == "mask": assert not left[~m].any()
    else: check_sequence(one, left)
    assert not one[2].any(), "an absent person stays absent"
    if name not in ("mask", "resize"): assert left[[0, 1, 3, 4]].any(1).all(), "and nobody else vanishes"
    assert one.isfinite().all()


@pytest.mark.parametrize("name", [n for n in OPS if n != "augment"])
def test_float64_stays_float64(name):
    x, m = batch(dtype=torch.float64)
    assert OPS[name](x, m, gen())[0].dtype == torch.float64


# ------------------------------------------------------------------------------------------------ naive loops
@pytest.mark.parametrize("layout", ["NTU25", "COCO17", "H36M17"])
def test_streams_by_loops(layout):
    s = skeleton(layout)
    x, m = batch(joints=len(s))
    bone, ahead, back = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
    for b, n in enumerate(LENGTHS):
        for t in range(n):
            for parent, child in s.edges: bone[b, t, child] = x[b, t, child] - x[b, t, parent]
            if t + 1 < n: ahead[b, t] = x[b, t + 1] - x[b, t]
            if t > 0: back[b, t] = x[b, t] - x[b, t - 1]
    assert torch.equal(stream(x, m, "bone", s), bone) and torch.equal(stream(x, m, "motion", layout), ahead) and torch.equal(stream(x, m, "motion", s, "backward"), back)
    assert torch.equal(stream(x, m, "joint", s), x)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_streams_of_clips_mean_what_those_of_sequences_mean(direction):
    g = torch.Generator().manual_seed(2)
    sequence, every = torch.randn(1, 40, 25, 3, generator=g, dtype=torch.double), torch.ones(1, 40, dtype=torch.bool)
    clip = sequence[:, 5:30:4]
    assert torch.equal(clip_stream(clip, "bone", "NTU25"), stream(sequence, every, "bone", "NTU25")[:, 5:30:4])
    inner, edge = (slice(0, 6), 6) if direction == "forward" else (slice(1, 7), 0)
    moved = clip_stream(clip, "motion", "NTU25", direction, 4)
    means = torch.stack([stream(sequence, every, "motion", "NTU25")[0, 5 + 4*k:9 + 4*k].mean(0) for k in range(6)])       # of the steps between two frames of the clip
    assert torch.allclose(moved[0, inner], means) and torch.equal(moved[0, edge], moved[0, edge + (1 if edge == 0 else -1)])
    with pytest.raises(SequenceViewError, match="two frames"): clip_stream(clip[:, :1], "motion", "NTU25")


def test_centring_and_turning_by_loops():
    x, m = batch()
    first, each, turned = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
    mid, left, right = (NTU.index(n) for n in ("spine_mid", "left_shoulder", "right_shoulder"))
    for b, n in enumerate(LENGTHS):
        for t in range(n):
            first[b, t], each[b, t] = x[b, t] - x[b, 0, NTU.root], x[b, t] - x[b, t, mid]
            angle = math.atan2(float(x[b, t, right, 1] - x[b, t, left, 1]), float(x[b, t, right, 0] - x[b, t, left, 0]))
            c, s = math.cos(-angle), math.sin(-angle)
            turned[b, t] = x[b, t] @ torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T
    assert torch.equal(centre(x, m, NTU), first) and torch.equal(centre(x, m, NTU, "frame", "spine_mid"), each) and torch.equal(centre(x, m, NTU, "none"), x)
    assert torch.allclose(turn_shoulders(x, m, NTU), turned, atol=1e-4)
    upright = x[..., [0, 2, 1]]*torch.tensor([1.0, 1.0, 1.0])
    assert torch.allclose(turn_shoulders(upright, m, NTU, vertical="y"), turned[..., [0, 2, 1]], atol=1e-4), "the vertical may be the second axis"


def test_one_angle_keeps_the_turning_of_a_person_and_a_level_line_stays():
    x, m = batch((30,), 30)
    once = turn_shoulders(x, m, NTU, "first")
    assert torch.allclose((once[0, 1:] - once[0, :1]).norm(dim=-1), (x[0, 1:] - x[0, :1]).norm(dim=-1), atol=1e-4), "one rotation for all frames"
    x[0, :, NTU.index("right_shoulder"), :2] = x[0, :, NTU.index("left_shoulder"), :2]
    assert torch.equal(turn_shoulders(x, m, NTU), x), "shoulders above one another: nothing to turn by"


def test_shear_and_scale_are_one_matrix_a_sequence():
    x, m = batch((12, 12, 12), 12, dtype=torch.float64)
    out = shear(x, gen(1))
    for b in range(3):
        matrix = torch.linalg.lstsq(x[b].reshape(-1, 3), out[b].reshape(-1, 3)).solution.T
        assert torch.allclose(x[b] @ matrix.T, out[b], atol=1e-9) and torch.allclose(matrix.diagonal(), torch.ones(3, dtype=torch.float64)) and matrix.fill_diagonal_(0).abs().max() <= .5
    ratio = rescale(x, gen(1))/x
    assert torch.allclose(ratio, ratio[:, :1, :1, :1].expand_as(ratio)) and (ratio[:, 0, 0, 0] - 1).abs().max() <= .2 and len(ratio[:, 0, 0, 0].unique()) == 3


@given(st.integers(0, 10_000), st.floats(0, .5))
@settings(max_examples=50, deadline=None)
def test_half_an_amplitude_never_mirrors(seed, amplitude):
    x = torch.eye(3, dtype=torch.float64)[None, None].expand(64, 1, 3, 3).clone()
    out = shear(x, gen(seed), amplitude)
    assert (torch.linalg.det(out[:, 0]) >= -1e-12).all()
    middle = shear((x[:, :, :1] + x[:, :, 1:2])/2, gen(seed), amplitude)
    assert torch.allclose(middle, (out[:, :, :1] + out[:, :, 1:2])/2), "the middle stays the middle"


def test_noise_per_frame_and_per_sequence():
    x, m = batch((40, 25), 40)
    for per in ("frame", "sequence"):
        off = noise(x, m, gen(2), size=.1, joints=3, per=per) - x
        moved = off.abs().amax(3) > 1e-7
        assert (moved.sum(2)[m] == 3).all() and not moved[~m].any() and off.abs().max() <= .1 + 1e-6
        assert (len(moved[0].unique(dim=0)) == 1) == (per == "sequence")
        if per == "sequence": assert torch.allclose(off[0], off[0, :1].expand_as(off[0]), atol=1e-6)


def test_time_by_loops():
    x, m = batch()
    r = torch.rand(5, 1, 1, 1, generator=gen(4))
    later = x.clone()
    for b, n in enumerate(LENGTHS):
        for t in range(n - 1): later[b, t] = x[b, t] + r[b]*(x[b, t + 1] - x[b, t])
    assert torch.allclose(interpolate(x, m, gen(4)), later)
    numbers = (torch.arange(40.)[None, :, None, None] + 1).expand(5, -1, 1, 3)*m[..., None, None]
    out, left = crop(numbers, m, gen(4), drop=.7)
    for b, n in enumerate(LENGTHS):
        got = out[b, left[b], 0, 0].tolist()
        assert got == [got[0] + k for k in range(len(got))] and got[-1] <= n and len(got) >= max(1, n - round(.7*n)) if n else got == []


@pytest.mark.parametrize("edge", ["repeat", "once"])
def test_reflected_windows_are_those_of_numpy(edge):
    np = pytest.importorskip("numpy")
    for n in (1, 6, 13, 40):
        padded = np.pad(np.arange(n), n//6, mode="symmetric" if edge == "repeat" else "reflect")
        windows = {tuple(padded[s:s + n].tolist()) for s in range(2*(n//6) + 1)}
        x = torch.arange(float(n)).view(1, n, 1, 1).expand(400, n, 1, 3).clone()
        seen = {tuple(row) for row in reflect_crop(x, torch.ones(400, n, dtype=torch.bool), gen(n), edge=edge)[..., 0, 0].long().tolist()}
        assert seen == windows


@pytest.mark.parametrize("frames", [1, 7, 50, 64])
def test_resizing_is_that_of_torch(frames):
    x, m = batch()
    for ends in (False, True):
        out, left = resize_frames(x, m, frames, ends)
        for b, n in enumerate(LENGTHS):
            assert left[b].all() == left[b].any() == bool(n)
            if not n: continue
            flat = x[b, :n].flatten(1).T[None]
            if ends and frames == 1: wanted = flat[..., :1]
            else: wanted = torch.nn.functional.interpolate(flat, frames, mode="linear", align_corners=ends)
            assert torch.allclose(out[b].flatten(1), wanted[0].T, atol=1e-5)


# ------------------------------------------------------------------------------------------------ statistics
def test_choices_are_even_and_one_of_each():
    config = SequenceAugment(chance=.5, spatial=SPATIAL, temporal=("crop",))
    chosen = draw_choices(30_000, config, gen())
    assert torch.equal(chosen[:, 0] >= 0, chosen[:, 1] >= 0) and abs(float((chosen[:, 0] < 0).float().mean()) - .5) < .01
    assert ((torch.bincount(chosen[chosen[:, 0] >= 0, 0], minlength=3)/15_000 - 1/3).abs() < .01).all()
    assert (draw_choices(50, SequenceAugment(chance=1.0, spatial=()), gen())[:, 0] == -1).all()


def test_augment_is_one_operation_of_each_kind_a_sample():
    x, m = batch((40,)*64, dtype=torch.float64)
    config = SequenceAugment(chance=.7, spatial=("scale",), temporal=("crop",))
    out, left = augment(x, m, config, gen(5))
    chosen = draw_choices(64, config, gen(5))
    for b in range(64):
        n = int(left[b].sum())
        if chosen[b, 0] < 0: assert torch.equal(out[b], x[b]); continue
        fits = [s for s in range(41 - n) if (lambda ratio: torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio)))(out[b, :n]/x[b, s:s + n])]
        assert len(fits) == 1, "a window of the sequence times one factor"
    assert left.sum(1)[chosen[:, 0] >= 0].float().mean() < 38


def test_hidden_joints_by_counting():
    lengths = torch.randint(2, 41, (400,), generator=gen()).tolist()
    m = torch.arange(40) < torch.tensor(lengths)[:, None]
    x = (torch.arange(400*40*17*3.).view(400, 40, 17, 3) + 2)*m[..., None, None]
    corrupted, selected = mask_joints(x, m, gen(1))
    constant, kept = selected & (corrupted == 1).all(3), selected & (corrupted == x).all(3)
    swapped, n, total = selected & ~constant & ~kept, int(selected.sum()), int(m.sum())*17
    for share, wanted, count in ((n/total, .15, total), (int(constant.sum())/n, .8, n), (int(swapped.sum())/n, .1, n), (int(kept.sum())/n, .1, n)):
        assert abs(share - wanted) < 4*(wanted*(1 - wanted)/count)**.5
    assert not selected[~m].any() and torch.equal(corrupted[~selected], x[~selected])
    for (b, t, j), value in zip(swapped.nonzero().tolist(), corrupted[swapped][:, 0].tolist()):
        source = round(value - 2)//3
        assert source//(40*17) == b and source//17 % 40 != t and source % 17 != j and source//17 % 40 < lengths[b]
    per_joint = selected.float().sum((0, 1))/int(m.sum())
    assert (per_joint - .15).abs().max() < .02, "each joint alike"


@given(st.integers(1, 9), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_below_is_below(count, seed):
    drawn = below(gen(seed), torch.full((200,), count))
    assert drawn.min() >= 0 and drawn.max() < count


def test_two_frames_swap_only_with_each_other():
    x, m = batch((2,)*50, 2, 5)
    corrupted, selected = mask_joints(x, m, gen(), share=1.0, split=(0.0, 1.0, 0.0))
    assert selected.all()
    for b in range(50):
        for t in range(2):
            for j in range(5): assert any(torch.equal(corrupted[b, t, j], x[b, 1 - t, k]) for k in range(5) if k != j)


# ------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize("call, words", [
    (lambda x, m: stream(x[:, :0], m[:, :0], "bone", NTU), "no frames"), (lambda x, m: stream(x, m, "bones", NTU), "did you mean 'bone'"), (lambda x, m: stream(x, m, "bone", "H36M17"), "25 joints, H36M17 has 17"),
    (lambda x, m: stream(x, m, "motion", NTU, "foward"), "did you mean 'forward'"), (lambda x, m: centre(x, m, NTU, "root"), "known: first, frame, none"), (lambda x, m: turn_shoulders(x, m, NTU, vertical="x"), "vertical='x'"),
    (lambda x, m: shear(x[..., :2], gen()), r"expected \(B, T, J, 3\)"), (lambda x, m: shear(x, gen(), float("nan")), "0 or more"), (lambda x, m: crop(x, m, gen(), 1.5), "share"), (lambda x, m: crop(x, m.long(), gen()), "bool"),
    (lambda x, m: noise(x, m, gen(), joints=0), "1 to 25"), (lambda x, m: reflect_crop(x, m, gen(), 1), "at least 2"), (lambda x, m: resize_frames(x, m, 0), "at least one"), (lambda x, m: interpolate(x, m[:, :-1], gen()), "expected"),
    (lambda x, m: mask_joints(x, m, gen()), "1 frame"), (lambda x, m: mask_joints(x, m, gen(), share=15), "0 to 1"), (lambda x, m: augment(x.long(), m, SequenceAugment(), gen()), "floats"),
    (lambda x, m: check_sequence(x, ~m), "after a padded one"), (lambda x, m: check_sequence(x + 1, m), "padded but not zero"), (lambda x, m: check_sequence(x.index_fill(2, torch.tensor(4), torch.inf), m), "joint 4 in frame 0"),
    (lambda x, m: check_sequence([1, 2]), "list"), (lambda x, m: SequenceAugment(temporal=("shear",)), "temporal='shear'"), (lambda x, m: SequenceAugment(noise_per="joint"), "noise_per")])
def test_refusals_say_what_to_do(call, words):
    with pytest.raises(SequenceViewError, match=words): call(*batch())


def test_settings_travel_as_json():
    config = SequenceAugment(chance=1.0, spatial=("shear",), temporal=("reflect_crop",))
    assert SequenceAugment.from_json(config.to_json()) == config and config.hash() != SequenceAugment().hash()
    with pytest.raises(ConfigError, match="noise_per"): SequenceAugment.from_dict({"noise_pr": "frame"})
