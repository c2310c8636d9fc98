"A faultless view is exact, each fault does what its name says and grows with its knob, and nothing lost looks like a place."
from dataclasses import replace

import numpy as np
import pytest
import torch

from hclab.core.sample import validate
from hclab.core.skeleton import anatomy
from hclab.data.grammar import generate
from hclab.data.motion import cut, place
from hclab.data.sensor import (
    AZIMUTHS,
    FAR,
    JITTER,
    REFERENCE,
    Noise,
    SensorError,
    bone_spread,
    camera_at,
    correlated,
    depth_law,
    face,
    filled,
    gone,
    hidden,
    inferred,
    jitter,
    kept,
    late,
    lost,
    ntu_cameras,
    off_front,
    random_camera,
    residual,
    runs,
    sense,
    swapped,
    to_clip,
    to_sample,
    view,
    wander,
)

NONE = Noise(0, 0, 0, 0, 0, 0, 0)


def gen(seed=0): return torch.Generator().manual_seed(seed)


def person(action="kick", degrees=0, seconds=2.0, layout="NTU25", fps=30): return face(generate(action, 3, seconds, fps=fps, layout=layout), degrees)


def index(clip, name): return anatomy(clip.skeleton).index(name)


# ------------------------------------------------------------------------------------------------ cameras
def test_cameras_stand_where_they_should():
    for degrees, camera in zip(AZIMUTHS, ntu_cameras(1.7, 3.5)):
        x, y, z = camera.centre.tolist()
        assert np.degrees(np.arctan2(y, x)) == pytest.approx(degrees) and np.hypot(x, y) == pytest.approx(3.5) and z == pytest.approx(1.7)
        assert camera.project(torch.tensor([0, 0, .9])).tolist() == pytest.approx([256, 212], abs=1e-3)
    level = camera_at(0, 1.5, 3, pitch=0).to_camera(torch.tensor([[0., 0, 1.5], [0, 1, 1.5], [0, 0, .5]]))
    # x right, y down, z forward: the person's left (+y when facing x) is on the picture's right
    assert torch.allclose(level, torch.tensor([[0., 0, 3], [1, 0, 3], [0, 1, 3]]), atol=1e-5)
    assert camera_at(0, 1.5, 3, pitch=30).to_camera(torch.tensor([0., 0, 1.5]))[1] < 0, "a camera that looks down sees what is level with it above the middle"


def test_random_cameras_keep_the_ranges():
    made = [random_camera(g) for g in [gen(1)] for _ in range(200)]
    centres = torch.stack([c.centre for c in made])
    distance, height = centres[:, :2].norm(dim=1), centres[:, 2]
    assert 2 <= distance.min() < 2.3 and 4.2 < distance.max() <= 4.5 and .5 <= height.min() < .8 and 2.4 < height.max() <= 2.7
    assert torch.equal(random_camera(gen(4)).R, random_camera(gen(4)).R)


@pytest.mark.parametrize("make, says", [
    (lambda: camera_at(0, 1.5, 0), "positive"), (lambda: camera_at(0, 1.5, float("nan")), "positive"), (lambda: camera_at(0, 1.5, 3, pitch=95), "89"),
    (lambda: view(person(), camera_at(0, 1.0, .1)), "comes within .* a depth sensor needs 0.5 m"),
    (lambda: view(place(person(), shift=(9, 0)), camera_at(0, 1.0, 3)), "behind camera"),
    (lambda: sense(person(), camera_at(), gen(), -.1), "severity"), (lambda: sense(person(), camera_at(), gen(), float("nan")), "severity"),
    (lambda: sense(person(), camera_at(), gen(), 1, Noise(swaps=-1)), "swaps"),
    (lambda: sense(person(), camera_at(), 0), "manual_seed"),
    (lambda: replace(view(person(), camera_at()), times=torch.zeros(0), joints=torch.zeros(0, 25, 3), state=torch.zeros(0, 25, dtype=torch.int8)), "zero frames"),
    (lambda: replace(view(person(), camera_at()), state=torch.zeros(60, 25, dtype=torch.int8)), "never a zero"),
    (lambda: replace(view(person(), camera_at()), joints=torch.zeros(60, 17, 3)), "don't fit")])
def test_what_no_sensor_could_do_is_refused(make, says):
    with pytest.raises(SensorError, match=says): make()


def test_a_track_is_one_line():
    said = repr(sense(person(), camera_at(), gen()))
    assert "60 frames" in said and "tracked" in said and len(said) < 250 and "\n" not in said


# ------------------------------------------------------------------------------------------------ identity, determinism, severity
def test_nothing_at_severity_zero():
    clip, camera = person(), ntu_cameras()[0]
    clean = view(clip, camera)
    for t in (sense(clip, camera, gen(), 0), sense(clip, camera, gen(), 1, NONE)):
        assert torch.allclose(t.joints, clean.joints, atol=1e-6) and torch.equal(t.state, clean.state) and torch.equal(t.times, clean.times)
    assert torch.allclose(to_clip(clean).joints, clip.joints, atol=1e-5)


def test_same_generator_same_bytes_and_faults_do_not_move_each_other():
    clip, camera = person("turn_around"), ntu_cameras()[2]
    a, b, c = sense(clip, camera, gen(3)), sense(clip, camera, gen(3)), sense(clip, camera, gen(4))
    assert a.joints.numpy().tobytes() == b.joints.numpy().tobytes() and torch.equal(a.state, b.state)
    assert a.joints.shape != c.joints.shape or not torch.equal(a.joints.nan_to_num(), c.joints.nan_to_num())
    loud, quiet = (sense(clip, camera, gen(3), 3, Noise(timing=0, jitter=j)) for j in (1, 0))
    assert torch.equal(loud.state, quiet.state), "turning jitter off must not change what is lost"


def test_more_severity_never_gives_more():
    "What is lost or guessed at a low severity is so at a high one, clip by clip; the error grows on the mean of clips (one guess may be lucky)."
    errors = []
    for action in ("kick", "turn_around", "walk"):
        for k, camera in enumerate(ntu_cameras()):
            clip = person(action, 20, 4); clean = view(clip, camera)
            tracks = [sense(clip, camera, gen(k), severity, Noise(swaps=0, timing=0)) for severity in (0, .5, 1, 2, 4)]
            for a, b in zip(tracks, tracks[1:]): assert (b.mask <= a.mask).all() and ((b.state == 2) <= (a.state == 2)).all()
            errors.append([float((t.joints - clean.joints).norm(dim=-1)[tracks[-1].mask].mean()) for t in tracks])
    mean = np.mean(errors, 0)
    assert mean[0] == 0 and (np.diff(mean) > 0).all(), mean


@pytest.mark.parametrize("part", ["jitter", "wander", "occlusion"])
def test_each_error_grows_with_its_own_knob(part):
    clip, camera = person("turn_around", 0, 4), ntu_cameras()[0]
    error = [float((sense(clip, camera, gen(1), 1, replace(NONE, **{part: x})).joints - view(clip, camera).joints).norm(dim=-1).mean()) for x in (0, .5, 1, 2)]
    assert error[0] < 1e-6 and all(a < b for a, b in zip(error, error[1:])), error


# ------------------------------------------------------------------------------------------------ faults, one by one
def test_correlated_noise_has_unit_variance_from_the_first_frame_on():
    x = correlated((50, 20_000), 4.0, gen())
    assert x[0].std() == pytest.approx(1, abs=.03) and x[-1].std() == pytest.approx(1, abs=.03)
    assert float((x[4:] * x[:-4]).mean()) == pytest.approx(np.exp(-1), abs=.02)


def test_jitter_follows_the_law_of_distance_and_the_table():
    clip = face(generate("idle", 1, 60, fps=30, layout="UIPRMD22"))
    spread = lambda metres: jitter(view(clip, camera_at(0, 1.0, metres)), 1, gen()).std((0, 2))
    near, far = spread(REFERENCE), spread(4.4)
    assert float((far / near).median()) == pytest.approx(float(depth_law(torch.tensor(4.4)) / depth_law(torch.tensor(REFERENCE))), rel=.1)
    for name in ("elbow", "foot", "spine"):
        j = index(clip, name if name == "spine" else f"left_{name}")
        assert float(near[j]) * 1000 == pytest.approx(JITTER[name], rel=.15)
    assert float(depth_law(torch.tensor(2.4))) == pytest.approx(.0088)


def test_wander_rests_with_the_body_and_moves_bones():
    still = person("idle"); still = replace(still, joints=still.joints[:1].repeat(60, 1, 1), rotations=None, offsets=None)
    e = wander(view(still, camera_at()), 1, gen())
    assert e.std(0).max() < 1e-6 and e.abs().max() > .01, "the error of a body at rest rests"
    squat = view(person("squat", seconds=3), camera_at())
    clean = bone_spread(squat.joints, squat.skeleton)
    noisy = bone_spread(squat.joints + wander(squat, 1, gen()), squat.skeleton)
    k = anatomy(squat.skeleton).index("left_knee")
    assert clean[k] < 1e-5 and noisy[k] > .002


def test_residual_finds_noise_of_known_size_and_leaves_motion_out():
    x = .004 * torch.randn(600, 2, 3, generator=gen())
    assert float(residual(x).nanmedian()) == pytest.approx(.004, rel=.1)
    assert residual(x + torch.arange(600)[:, None, None] * .01).isnan().all(), "a moving joint says nothing of a sensor"
    assert residual(torch.zeros(5, 2, 3)).shape == (0, 2)


def test_the_far_side_is_hidden_and_mirrors():
    for degrees, far, near in ((90, "left", "right"), (-90, "right", "left")):
        clip = person("idle", degrees); out = hidden(view(clip, ntu_cameras()[1]))
        assert out[:, index(clip, f"{far}_shoulder")].all() and not out[:, index(clip, f"{near}_shoulder")].any() and not out[:, index(clip, f"{near}_knee")].any()
    assert not hidden(view(person("idle", 0), ntu_cameras()[1])).any()
    assert hidden(view(person("idle"), camera_at(0, 0.9, 1.0)))[:, index(person(), "left_foot")].all(), "a foot below the picture is out of sight"


def test_an_inferred_joint_stays_where_it_was_seen_beside_the_root():
    joints = torch.zeros(5, 2, 3); joints[:, 0, 0] = torch.arange(5.); joints[:, 1, 1] = torch.tensor([1., 2, 3, 4, 5])
    unseen = torch.zeros(5, 2, dtype=torch.bool); unseen[2:4, 1] = True
    out = inferred(joints, unseen, 0, bias=1.0)
    assert out[:, 1].tolist() == [[0, 1, 0], [0, 2, 0], [1, 2, 0], [2, 2, 0], [0, 5, 0]]      # held from frame 1, carried by the root
    assert torch.equal(inferred(joints, unseen, 0, bias=0.0), joints)


def test_runs_have_the_stated_rate_and_are_nested():
    few, many = (runs(torch.full((6000, 20), r), .3, 30, gen(2)) for r in (.1, .4))
    assert (few <= many).all()
    started = (few[1:] & ~few[:-1]).float().mean() * 30
    assert float(started) == pytest.approx(.1, rel=.15) and float(few.float().mean() / started) == pytest.approx(.3, rel=.15)
    assert not runs(torch.zeros(100, 3), .3, 30, gen()).any()


def test_swaps_come_from_behind_and_keep_the_body_whole():
    front, back = (view(person("idle", d, 40), ntu_cameras()[1]) for d in (0, 180))
    assert off_front(front).max() < 15 and off_front(back).min() > 165
    moved = [(swapped(t, 1, gen(1)) != torch.arange(25)).any(1).float().mean() for t in (front, back)]
    assert moved[0] < moved[1] and .02 < moved[1] < .3
    order = swapped(back, 5, gen(1))
    assert (order.sort(1).values == torch.arange(25)).all(), "a swap loses no joint"
    pairs = {a: b for l, r in back.skeleton.pairs for a, b in ((l, r), (r, l))}
    assert all(pairs[j] == int(order[t, j]) for t, j in (order != torch.arange(25)).nonzero().tolist())


def test_who_leaves_is_gone():
    clip = place(person("idle"), shift=(-3, 0))
    assert gone(view(clip, camera_at(0, 1.5, 3)), 1, gen()).all(), f"beyond {FAR} m"
    t = sense(clip, camera_at(0, 1.5, 3), gen())
    assert not t.body.any() and t.joints.isnan().all()
    aside = place(person("idle"), shift=(0, 3))
    assert gone(view(aside, camera_at(0, 1.5, 3)), 1, gen()).all() and not gone(view(aside, camera_at(0, 1.5, 3)), 0, gen()).any()


def test_hands_are_lost_before_spines_and_hidden_joints_before_both():
    t = view(person("idle", 0, 100), ntu_cameras()[1])
    rate = lambda unseen: lost(t, unseen, 20, gen(3)).float().mean(0)
    seen, dark = rate(torch.zeros(len(t), 25, dtype=torch.bool)), rate(torch.ones(len(t), 25, dtype=torch.bool))
    hand, spine = t.skeleton.names.index("left_hand"), t.skeleton.names.index("spine_mid")
    assert seen[hand] > seen[spine] and (dark > seen).float().mean() > .9


def test_late_and_skipped_frames():
    x = torch.arange(200.)[:, None].repeat(1, 2)
    y = late(x, 30, 1, gen())
    assert torch.equal(late(x, 30, 0, gen()), x) and float((y - x)[5:-5].std()) == pytest.approx(.06, rel=.25)    # 2 ms at 30 Hz
    assert torch.equal(late(x[:1], 30, 1, gen()), x[:1])
    less, more = (kept(3000, 30, s, gen(1)) for s in (4, 1))
    assert (less <= more).all() and less[0] and float((~less).float().mean()) == pytest.approx(4 * .3 / 30, rel=.3)
    t = sense(person("kick", seconds=6), camera_at(), gen(1), 8, replace(NONE, timing=1))
    assert len(t) < 180 and float(t.times[-1]) > len(t) / 30 - .1 and len(to_clip(t)) > len(t), "the clip gets its skipped frames back"


# ------------------------------------------------------------------------------------------------ ways out
def holed():
    t = view(cut(person(), 0, 20), camera_at())
    state = t.state.clone(); state[5:8, 3] = 0; state[:2, 4] = 0; state[10:, 6] = 0
    return t, replace(t, state=state, joints=torch.where((state == 0)[..., None], torch.nan, t.joints))


def test_gaps_are_filled_on_lines_up_to_a_length():
    t, h = holed()
    f = filled(h, .2)
    w = torch.tensor([.25, .5, .75])[:, None]
    assert torch.allclose(f.joints[5:8, 3], torch.lerp(t.joints[4, 3], t.joints[8, 3], w), atol=1e-6) and (f.state[5:8, 3] == 1).all()
    assert torch.equal(f.joints[:2, 4], t.joints[2, 4].expand(2, 3)) and not f.mask[10:, 6].any() and f.mask.sum() == f.mask.numel() - 10
    assert torch.equal(h.state[5:8, 3], torch.zeros(3, dtype=torch.int8)), "the original is left alone"
    with pytest.raises(SensorError, match="is lost for longer than 0.2 s"): to_clip(h, .2)
    assert len(to_clip(h, 1)) == 20


def test_samples_keep_the_contract_and_hide_nothing():
    t, h = holed()
    s = validate(to_sample([t, h], action=2, max_seconds=.2))
    assert s["sequence"].shape == (2, 20, 25, 3) and s["body_mask"][0].all() and s["body_mask"][1].tolist() == [True] * 10 + [False] * 10 and s["frame"] == "camera"
    assert torch.equal(s["sequence"][0], t.joints) and not s["sequence"].isnan().any()
    validate(to_sample(sense(person("walk", 90, 4), ntu_cameras()[1], gen(), 3)))
    with pytest.raises(SensorError, match="differ"): to_sample([t, view(cut(person(), 0, 19), camera_at())])


@pytest.mark.parametrize("layout", ["NTU25", "UIPRMD22", "H36M17", "COCO17"])
def test_any_layout_with_a_body(layout):
    t = sense(person(layout=layout), ntu_cameras()[0], gen())
    assert t.joints.shape[1:] == (len(t.skeleton), 3) and t.mask.float().mean() > .9


def test_one_frame_is_enough():
    one = cut(person(), 0, 1)
    assert len(sense(one, camera_at(), gen())) == 1 and len(to_clip(sense(one, camera_at(), gen(), 1, Noise(lost=0, gone=0)))) == 1
