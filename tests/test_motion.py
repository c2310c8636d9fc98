"""A clip holds what can be a person and refuses the rest; it is cut, resampled, placed and joined with its rotations."""
import numpy as np
import pytest
import torch

from hclab.core.geometry import quaternion_to_matrix
from hclab.core.skeleton import SKELETONS, skeleton
from hclab.data.grammar import generate
from hclab.data.measures import flexion, gait, heading, planted, speeds, track
from hclab.data.motion import Clip, ClipError, depths, forward_kinematics, join, place, split_performers


def person(frames=3): return generate("idle", 0, frames / 50).joints


def turning(frames=40, fps=50): return generate("turn_around", 1, frames / fps, fps, layout="FIGURE")


@pytest.mark.parametrize("change, says", [
    (lambda j: dict(joints=j[:0]), "zero frames"), (lambda j: dict(joints=j * 1000), "millimetres"), (lambda j: dict(joints=j * 100), "centimetres"),
    (lambda j: dict(joints=j / 10), "impossible"), (lambda j: dict(joints=j[:, :16]), "16 joints"), (lambda j: dict(joints=j.double()), "float32"),
    (lambda j: dict(joints=torch.where(torch.arange(17)[:, None] == 4, torch.nan, j)), "left_hip"), (lambda j: dict(fps=-1), "fps"),
    (lambda j: dict(fps=float("nan")), "fps"), (lambda j: dict(frame="camera"), "world"), (lambda j: dict(rotations=torch.zeros(3, 17, 3)), "without offsets"),
    (lambda j: dict(offsets=torch.zeros(17, 3)), "without rotations")])
def test_a_clip_refuses_what_is_no_person(change, says):
    good = dict(joints=person(), skeleton=skeleton("H36M17"), fps=50.0, action="idle", performer=0)
    with pytest.raises(ClipError, match=says): Clip(**{**good, **change(good["joints"])})


@pytest.mark.parametrize("change, says", [
    (lambda c: dict(rotations=c.rotations * 1.5), "length 1.5"), (lambda c: dict(rotations=c.rotations[..., [1, 2, 3, 0]]), "mm away"), (lambda c: dict(offsets=c.offsets * 1.1), "mm away"),
    (lambda c: dict(rotations=c.rotations[:, :-1]), "shape"), (lambda c: dict(rotations=c.rotations.double()), "float32"), (lambda c: dict(rotations=c.rotations * torch.nan), "not finite")])
def test_rotations_that_lead_elsewhere_are_refused(change, says):
    c = turning()
    good = {k: getattr(c, k) for k in ("joints", "skeleton", "fps", "action", "performer", "rotations", "offsets")}
    with pytest.raises(ClipError, match=says): Clip(**{**good, **change(c)})


def test_forward_kinematics_against_a_naive_walk():
    "Parents after children, as in NTU25; matrices multiplied joint by joint."
    for name in ("NTU25", "CMU31", "H36M16", "MPI3DHP17"):
        s, g = skeleton(name), torch.Generator().manual_seed(0)
        offsets = torch.randn(len(s), 3, generator=g); offsets[s.root] = 0
        q = torch.nn.functional.normalize(torch.randn(4, len(s), 4, generator=g), dim=-1)
        root, R = torch.randn(4, 3, generator=g), quaternion_to_matrix(q)
        def naive(t, j):
            p = s.parents[j]
            if p < 0: return root[t], R[t, j]
            at, turned = naive(t, p)
            return at + turned @ offsets[j], turned @ R[t, j]
        mine = forward_kinematics(s, offsets, q, root)
        assert torch.allclose(mine, torch.stack([torch.stack([naive(t, j)[0] for j in range(len(s))]) for t in range(4)]), atol=1e-4), name
        assert sorted(sum(depths(s), [])) == list(range(len(s)))


def test_loose_parts_are_named():
    from hclab.core.skeleton import Skeleton
    with pytest.raises(ClipError, match="b hang on nothing"): depths(Skeleton("loose", ("a", "b"), ()))


def test_resample_and_slice():
    c = generate("walk", 0, 2, fps=60)
    assert torch.equal(c.resample(30).joints, c.joints[::2]) and c.resample(60) is c
    assert len(c.slice(5, 9)) == 4 and torch.equal(c.slice(5, 9).joints, c.joints[5:9])
    up = c.resample(120)
    assert torch.allclose(up.joints[1::2], (c.joints[1:] + c.joints[:-1]) / 2, atol=1e-6)
    with pytest.raises(ClipError, match="zero frames"): c.slice(7, 7)
    with pytest.raises(ClipError, match="fps"): c.resample(0)


def test_resampling_rotations_keeps_bones():
    c = turning(60)
    slow, fast = c.resample(20), c.resample(130)
    for r in (slow, fast):
        for a, b in c.skeleton.edges:
            length = (r.joints[:, a] - r.joints[:, b]).norm(dim=-1)
            assert (length - c.offsets[b].norm()).abs().max() < 1e-5
    back = fast.resample(50)
    n = min(len(back), len(c))
    assert (back.joints[:n] - c.joints[:n]).norm(dim=-1).max() < .01


def test_place_moves_and_turns_everything():
    c = turning()
    there = place(c, 90, (1, 2))
    R = torch.tensor([[0., -1, 0], [1, 0, 0], [0, 0, 1]])
    assert torch.allclose(there.joints, c.joints @ R.T + torch.tensor([1., 2, 0]), atol=1e-5)
    assert torch.allclose(place(there, 0, (-1, -2)).joints, place(c, 90).joints, atol=1e-5)


def test_join_carries_on_where_the_last_clip_stopped():
    a, b = generate("walk", 1, 1, layout="FIGURE"), generate("wave", 1, 1, layout="FIGURE")
    both = join([a, b])
    assert len(both) == len(a) + len(b) and both.action == "walk + wave" and both.rotations is not None
    root = both.joints[:, 0, :2]
    assert torch.allclose(root[len(a) - 1], root[len(a)], atol=1e-6)
    with pytest.raises(ClipError, match="performer"): join([a, generate("wave", 2, 1, layout="FIGURE")])
    with pytest.raises(ClipError, match="skeleton"): join([a, generate("wave", 1, 1)])


def test_splits_share_nobody():
    parts = split_performers(range(30), seed=4)
    assert sorted(sum(parts.values(), ())) == list(range(30)) and all(parts.values())
    assert parts == split_performers(list(range(30))[::-1], seed=4) != split_performers(range(30), seed=5)
    for wrong, says in (([1, 1, 2], "twice"), ([1, 2], "at least 3")):
        with pytest.raises(ClipError, match=says): split_performers(wrong)


def test_measures_agree_on_every_layout():
    "The same motion on another layout has the same knees, heading and gait."
    one = generate("walk", 2, 4, layout="FIGURE")
    for name in ("H36M17", "COCO17", "NTU25", "UIPRMD22", "CMU31", "MOCAP20", "LSP14", "MPII16"):
        c = generate("walk", 2, 4, layout=name)
        assert torch.allclose(flexion(c, "left_hip", "left_knee", "left_ankle"), flexion(one, "left_hip", "left_knee", "left_ankle"), atol=.05), name
        assert torch.allclose(heading(c), heading(one), atol=1e-4) and (planted(track(c, "left_ankle").numpy(), c.fps) == planted(track(one, "left_ankle").numpy(), one.fps)).all()
        assert gait(c)["cadence"] == pytest.approx(gait(one)["cadence"], rel=1e-4)
    with pytest.raises(ClipError, match="no 'nose'"): track(generate("walk", 0, 1), "nose")
    assert np.isclose(float(speeds(one, "pelvis").mean()), gait(one)["speed"], rtol=.1)
    assert set(SKELETONS) - {"WHOLEBODY133"}
