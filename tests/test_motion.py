"""The motion generator: people who differ, limbs that keep their length, feet that stay where they stand."""
from dataclasses import replace

import pytest
import torch

from hclab.core.skeleton import skeleton
from hclab.data.grammar import ACTIONS, Performer, generate
from hclab.data.measures import flexion, gait, heading, speeds, stance
from hclab.data.motion import Clip, ClipError, split_performers

PEOPLE = range(8)

@pytest.fixture(scope="module")
def clips():
    return {(a, n): generate(a, n, 5, seed=n) for a in ACTIONS for n in PEOPLE}

def test_limbs_keep_their_length(clips):
    for key, c in clips.items():
        for a, b in c.skeleton.edges:
            length = (c.joints[:, a] - c.joints[:, b]).norm(dim=-1)
            assert float(length.max() - length.min()) < 1e-5, (key, c.skeleton.names[b])

def test_knees_and_elbows_bend_forward_only(clips):
    for key, c in clips.items():
        for s in ("left", "right"):
            knee = flexion(c, f"{s}_hip", f"{s}_knee", f"{s}_foot")
            elbow = flexion(c, f"{s}_shoulder", f"{s}_elbow", f"{s}_wrist")
            assert 1 < knee.min() and knee.max() < 135 and 0 < elbow.min() and elbow.max() < 150, key
            middle = (c.joint(f"{s}_hip") + c.joint(f"{s}_foot")) / 2
            assert (((c.joint(f"{s}_knee") - middle) * heading(c)).sum(-1) > 0).all(), key

def test_feet_stay_on_the_floor_and_do_not_slide(clips):
    for (action, n), c in clips.items():
        ankle = .039 * Performer.from_seed(n).stature
        lowest = torch.minimum(c.joint("left_foot"), c.joint("right_foot"))[:, 2]
        assert (lowest - ankle).abs().max() < .02, (action, n)
        for s in ("left", "right"):
            assert speeds(c, f"{s}_foot")[stance(c, s, .001)].quantile(.95) < .08, (action, n)

def test_left_is_left_of_where_a_walker_goes(clips):
    for n in PEOPLE:
        c = clips["walk", n]
        ahead = c.joint("hip")[-1] - c.joint("hip")[0]
        left = torch.stack([-ahead[1], ahead[0], torch.zeros(())])
        for j in ("hip", "shoulder"): assert (((c.joint(f"left_{j}") - c.joint(f"right_{j}")) @ left) > 0).all()

def test_walkers_go_different_ways_at_human_speed(clips):
    ways = torch.stack([clips["walk", n].joint("hip")[-1] - clips["walk", n].joint("hip")[0] for n in PEOPLE])[:, :2]
    assert torch.nn.functional.normalize(ways, dim=1).mean(0).norm() < .9
    for n in PEOPLE:
        g = gait(clips["walk", n])
        assert .7 < g["speed"] < 1.9 and 80 < g["cadence"] < 145 and .015 < g["bob"] < .07 and g["knee_max"] > 45, n

def test_the_preferred_hand_waves():
    for left in (True, False):
        c = generate("wave", replace(Performer.from_seed(1), left_handed=left), 4)
        up, down = ("left", "right") if left else ("right", "left")
        assert c.joint(f"{up}_wrist")[:, 2].max() > c.joint("neck_nose")[:, 2].mean() > c.joint(f"{down}_wrist")[:, 2].max()

def test_a_squat_goes_down_and_comes_back(clips):
    for n in PEOPLE:
        z = clips["squat", n].joint("hip")[:, 2]
        assert z.min() < .75 * z.max()

def test_same_seed_same_bytes_and_other_takes_differ():
    a, b, c = (generate("walk", 2, 1, seed=s).joints for s in (5, 5, 6))
    assert a.numpy().tobytes() == b.numpy().tobytes() and not torch.equal(a, c)

def test_performers_differ_without_noise():
    limbs = [(c.joint("left_hip") - c.joint("left_knee")).norm(dim=-1).mean() for c in (generate("idle", replace(Performer.from_seed(n), noise=0.0), 1) for n in (3, 4))]
    assert abs(limbs[0] - limbs[1]) > .005
    paces = [gait(generate("walk", replace(Performer.from_seed(n), noise=0.0), 6))["cadence"] for n in (3, 4)]
    assert abs(paces[0] - paces[1]) > 2

def test_one_frame_is_a_clip():
    assert len(generate("walk", 0, .02, fps=50)) == 1 and len(generate("squat", 0, .02, fps=50).resample(100)) == 1

@pytest.mark.parametrize("wrong, says", [
    (dict(action="wlak"), "did you mean 'walk'"), (dict(performer=-1), "int >= 0"), (dict(seconds=0), "no frame"),
    (dict(seconds=float("inf")), "no frame"), (dict(fps=0), "fps"), (dict(performer=Performer(amplitude=1, stature=1.7, leg_ratio=1, lean=200)), "trunk")])
def test_bad_requests_teach(wrong, says):
    with pytest.raises(ClipError, match=says): generate(**{**dict(action="walk", performer=0, seconds=1), **wrong})

def person(frames=3): return generate("idle", 0, frames / 50).joints

@pytest.mark.parametrize("change, says", [
    (lambda j: dict(joints=j[:0]), "zero frames"), (lambda j: dict(joints=j * 1000), "millimetres"), (lambda j: dict(joints=j * 100), "centimetres"),
    (lambda j: dict(joints=j / 10), "impossible"), (lambda j: dict(joints=j[:, :16]), "16 joints"), (lambda j: dict(joints=j.double()), "float32"),
    (lambda j: dict(joints=torch.where(torch.arange(17)[:, None] == 4, torch.nan, j)), "left_hip"), (lambda j: dict(fps=-1), "fps"),
    (lambda j: dict(fps=float("nan")), "fps"), (lambda j: dict(frame="camera"), "world"), (lambda j: dict(rotations=torch.zeros(3, 17, 3)), "rotations")])
def test_a_clip_refuses_what_is_no_person(change, says):
    good = dict(joints=person(), skeleton=skeleton("H36M17"), fps=50.0, action="idle", performer=0)
    with pytest.raises(ClipError, match=says): Clip(**{**good, **change(good["joints"])})

def test_resample_and_slice():
    c = generate("walk", 0, 2, fps=60)
    assert torch.equal(c.resample(30).joints, c.joints[::2]) and c.resample(60) is c
    assert len(c.slice(5, 9)) == 4 and torch.equal(c.slice(5, 9).joints, c.joints[5:9])
    up = c.resample(120)
    assert torch.allclose(up.joints[1::2], (c.joints[1:] + c.joints[:-1]) / 2, atol=1e-6)
    with pytest.raises(ClipError, match="zero frames"): c.slice(7, 7)
    with pytest.raises(ClipError, match="fps"): c.resample(0)

def test_splits_share_nobody():
    parts = split_performers(range(30), seed=4)
    assert sorted(sum(parts.values(), ())) == list(range(30)) and all(parts.values())
    assert parts == split_performers(list(range(30))[::-1], seed=4) != split_performers(range(30), seed=5)
    for wrong, says in (([1, 1, 2], "twice"), ([1, 2], "at least 3")):
        with pytest.raises(ClipError, match=says): split_performers(wrong)
