"""Drawn motion: bodies keep their bones and limits, feet stay where they stand, hands go where the action says, people differ."""
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from hclab.core.skeleton import SKELETONS, conversion
from hclab.data.figure import FIGURE, LIMITS, Pose, angles_of, blend, figure_of, mirrored, moved, offsets_of, rest_pose_of, send, solve, two_bones
from hclab.data.gait import RUN, WALK, going
from hclab.data.grammar import ACTIONS, POSTURES, generate
from hclab.data.measures import flexion, gait, heading
from hclab.data.motion import ClipError
from hclab.data.performers import Performer, segment_lengths
from hclab.data.stance import Step, centre_of_mass, ground, keys, smooth, standing, step_over, take_steps
from hclab.data.whole_body import jump

PEOPLE = range(6)
ALL = sorted(ACTIONS)


@pytest.fixture(scope="module")
def clips():
    return {(a, n): generate(a, n, ACTIONS[a].length(Performer.from_seed(n)), 50, seed=n, layout="FIGURE") for a in ALL for n in PEOPLE}


# ------------------------------------------------------------------------------------------------ the figure
def test_figure_has_a_joint_of_its_own_for_every_layout():
    for name in SKELETONS:
        kinds = {r.kind for r in conversion(FIGURE, name)}
        assert kinds == {"same"} or name == "WHOLEBODY133", (name, kinds)
    assert all(p < c for c, p in enumerate(FIGURE.parents))


def test_stature_is_what_it_says():
    for n in range(20):
        p, f = Performer.from_seed(n), segment_lengths(Performer.from_seed(n))
        assert abs(f["ankle"] + f["shank"] + f["thigh"] + f["trunk"] + f["head"] - p.stature) < 1e-9


def test_two_bones_reach_and_never_bend_back():
    r = np.random.default_rng(0)
    to = r.uniform(-.8, .8, (500, 3)); to = to[(np.linalg.norm(to, axis=1) > .3) & (np.linalg.norm(to, axis=1) < .85) & (to[:, 2] < .2)]
    down, ahead = np.broadcast_to([0, 0, -1.0], to.shape), np.broadcast_to([1.0, 0, 0], to.shape)
    mid, end, _ = two_bones(np.zeros_like(to), to, .45, .42, down, ahead)
    assert np.allclose(end, to) and np.allclose(np.linalg.norm(mid, axis=1), .45) and np.allclose(np.linalg.norm(end - mid, axis=1), .42)
    assert ((mid - .5 * to) * ahead).sum(1)[to[:, 2] < -.5].min() > 0, "a knee points ahead while the leg hangs"


def test_mirror_move_and_blend_of_poses():
    p = Performer.from_seed(1)
    a = ACTIONS["throw"].draw(p, np.arange(60) / 50, np.random.default_rng(0)); b = ACTIONS["drink"].draw(p, np.arange(60) / 50, np.random.default_rng(0))
    same = lambda x, y: all(np.allclose(getattr(x, f.name), getattr(y, f.name)) for f in fields(Pose))
    assert same(mirrored(mirrored(a)), a) and same(moved(moved(a, 70, (1, 2)), 0, (-1, -2)), moved(a, 70)) and same(blend(a, b, np.zeros(60)), a) and same(blend(a, b, np.ones(60)), b)
    J, M = figure_of(a, p)[0], figure_of(mirrored(a), p)[0]
    assert np.allclose(J[:, FIGURE.mirror_order] * [1, -1, 1], M, atol=1e-9), "the mirror image of a pose is the pose of the mirror image"
    turned = figure_of(moved(a, 90, (1, 0)), p)[0]
    assert np.allclose(turned, J @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1.0]]) + [1, 0, 0], atol=1e-9)
    figure_of(blend(a, b, np.linspace(0, 1, 60)), p)


def test_a_hand_goes_to_its_place():
    p, pose = Performer(), rest_pose_of(1)
    f = segment_lengths(p)
    pose.pelvis[:, 2] = .99 * (f["thigh"] + f["shank"]) + f["ankle"]; pose.feet[:, 0, 1], pose.feet[:, 1, 1] = .1, -.1; pose.arms[..., 3] = 30
    for at in ([.35, -.2, 1.2], [.2, .1, 1.3], [.1, -.5, 1.1]):
        for hand in (0, 1):
            one = pose.map(np.copy); send(one, hand, "world", np.array(at) * (1, 1 if hand else -1, 1), 1.0)
            palm = figure_of(one, p)[0][0, FIGURE.index(f"{'left right'.split()[hand]}_hand")]
            assert np.linalg.norm(palm - np.array(at) * (1, 1 if hand else -1, 1)) < .015


def test_limits_are_refused_by_name():
    pose = rest_pose_of(2); pose.pelvis[:, 2] = .9; pose.trunk_turn[:, 0] = 90
    with pytest.raises(ClipError, match="trunk_twist reaches 90"): figure_of(pose, Performer())


# ------------------------------------------------------------------------------------------------ machinery
def test_keys_pass_without_overshoot_and_stop_where_told():
    u = np.linspace(-.2, 1.2, 500)
    for times, values in (([0, .3, 1], [0, 1, 5]), ([0, .5, 1], [0, 3, 0]), ([0, .1, .2, 1], [1, 1, 2, 2])):
        v = keys(u, times, values, through=True)
        assert min(values) - 1e-9 <= v.min() and v.max() <= max(values) + 1e-9 and v[0] == values[0] and v[-1] == values[-1]
    assert np.allclose(keys(u, [0, 1], [0, 1]), smooth(u)) and smooth(np.array([.5]), .8) > .5 > smooth(np.array([.5]), -.8)
    assert np.gradient(keys(np.linspace(0, 2, 2001), [0, 1, 2], [0, 1, 0], speeds=[0, -3, 0]), 1e-3)[1000] == pytest.approx(-3, abs=.01)


def test_balance_keeps_the_centre_of_mass_over_the_feet():
    p, t = Performer(noise=0.0), np.zeros(1)
    for bend in (8, 60, 110):
        pose = standing(p, t, np.random.default_rng(0)); pose.trunk_turn[:, 2] += bend / 3
        ground(pose, p, bend=bend)
        assert abs(centre_of_mass(pose, p)[0, 0] - .045) < .03
    one = ground(standing(p, t, np.random.default_rng(0)), p, carry=np.array([[1.0, 0.0]]))
    assert abs(centre_of_mass(one, p)[0, 1] - one.feet[0, 0, 1]) < .03


def test_steps_lift_before_they_move():
    p, t = Performer(), np.arange(150) / 50
    a = ground(standing(p, t[:1], np.random.default_rng(1)), p)
    for turn, shift in ((0, (.3, 0)), (90, (0, .2)), (-45, (-.2, -.1))):
        J = figure_of(step_over(a, moved(a, turn, shift), p, t), p)[0]
        for side in ("left", "right"):
            for point in ("foot", "heel"):
                x = J[:, FIGURE.index(f"{side}_{point}")]
                down = (x[1:, 2] < segment_lengths(p)["sole"] + .001) & (x[:-1, 2] < segment_lengths(p)["sole"] + .001)
                assert np.linalg.norm(np.diff(x[:, :2], axis=0), axis=1)[down].max() * 50 < .02
    with pytest.raises(ClipError, match="in the air twice"): take_steps(rest_pose_of(150), t, [Step(1, 0, 1, (0, 0, 0)), Step(1, .5, 2, (0, 0, 0))])


# ------------------------------------------------------------------------------------------------ actions
def test_there_are_enough_actions_with_postures():
    assert len(ACTIONS) >= 24 and all(a.start in POSTURES and a.end in POSTURES and a.seconds > 0 for a in ACTIONS.values())


def test_bones_keep_their_length(clips):
    for key, c in clips.items():
        O = torch.as_tensor(offsets_of(Performer.from_seed(key[1])), dtype=torch.float32)
        for a, b in c.skeleton.edges: assert ((c.joints[:, a] - c.joints[:, b]).norm(dim=-1) - O[b].norm()).abs().max() < 1e-5, (key, c.skeleton.names[b])


def test_knees_and_elbows_bend_one_way(clips):
    "Signed: the shank lies behind the thigh's front, the forearm before the upper arm's."
    for (name, n), c in clips.items():
        for s in ("left", "right"):
            for a, b, low in (("hip", "knee", "ankle"), ("shoulder", "elbow", "wrist")):
                bend = flexion(c, f"{s}_{a}", f"{s}_{b}", f"{s}_{low}")
                assert bend.max() < 156, (name, n, b)
    for name in ALL:
        p = Performer.from_seed(3)
        pose = ACTIONS[name](p, np.arange(150) / 50, np.random.default_rng(0))
        for k, v in angles_of(pose, solve(replace(pose, roll=pose.roll.copy()), p)[0]).items(): assert LIMITS[k][0] <= v.min() and v.max() <= LIMITS[k][1], (name, k)


def test_nothing_is_under_the_floor(clips):
    for key, c in clips.items(): assert c.joints[..., 2].min() > (-.035 if key[0] in ("fall", "get_up") else .005), key


def test_planted_feet_do_not_slide(clips):
    for (name, n), c in clips.items():
        sole = segment_lengths(Performer.from_seed(n))["sole"]
        for side in ("left", "right"):
            for point in ("foot", "heel"):
                x = c.joint(f"{side}_{point}").double().numpy()
                near = np.r_[True, x[:, 2] < sole + .0002, True]
                rests = near[:-2] & near[1:-1] & near[2:]
                down = rests[1:] & rests[:-1]
                if down.any(): assert np.percentile(np.linalg.norm(np.diff(x[:, :2], axis=0), axis=1)[down], 95) * c.fps < .02, (name, n, side, point)


def test_actions_return_to_their_stance(clips):
    for (name, n), c in clips.items():
        if (ACTIONS[name].start, ACTIONS[name].end) == ("stand", "stand"): assert (c.joints[0] - c.joints[-1]).norm(dim=-1).max() < .3, (name, n)


def test_nothing_jumps(clips):
    "Positions are continuous: no joint moves more than a person could within a frame."
    for key, c in clips.items(): assert (c.joints.diff(dim=0).norm(dim=-1).max() * c.fps) < 16, key


def apart(c, a, b): return (c.joint(a) - c.joint(b)).norm(dim=-1)


def test_hands_do_what_the_name_says(clips):
    for n in PEOPLE:
        p = Performer.from_seed(n)
        own, other = ("left", "right") if p.left_handed else ("right", "left")
        hand = f"{own}_hand"
        assert apart(clips["clap", n], "left_hand", "right_hand").min() < .06
        assert apart(clips["phone", n], hand, f"{own}_ear").min() < .10
        assert apart(clips["drink", n], hand, "nose").min() < .12
        assert apart(clips["check_watch", n], f"{other}_wrist", "nose").min() < .5
        assert clips["pick_up", n].joint(hand)[:, 2].min() < .2 * p.stature
        assert clips["reach", n].joint(hand)[:, 2].max() > 1.02 * p.stature
        assert clips["wave", n].joint(hand)[:, 2].max() > clips["wave", n].joint("head")[:, 2].mean() > clips["wave", n].joint(f"{other}_hand")[:, 2].max()
        assert clips["stretch", n].joint("left_hand")[:, 2].max() > p.stature < clips["stretch", n].joint("right_hand")[:, 2].max()
        assert clips["lift", n].joint(hand)[:, 2].min() < .3 * p.stature
        assert clips["kick", n].joint(f"{own}_foot")[:, 2].max() > .2 * p.stature


def test_bodies_do_what_the_name_says(clips):
    height = lambda name, n, joint="pelvis": clips[name, n].joint(joint)[:, 2]
    for n in PEOPLE:
        up = height("idle", n).mean()
        assert height("squat", n).min() < .8 * up and height("lunge", n).min() < .8 * up and height("lift", n).min() < .85 * up
        assert height("sit_down", n)[0] > .95 * up > 1.2 * height("sit_down", n)[-1] and height("stand_up", n)[-1] > .95 * up > 1.2 * height("stand_up", n)[0]
        assert height("fall", n, "head")[-1] < .3 and height("get_up", n, "head")[0] < .3 < 1.2 < height("get_up", n, "head")[-1]
        assert height("jump", n, "left_toe_tip").max() > .10 and height("jump", n, "right_toe_tip").max() > .10
        faces = heading(clips["turn_around", n])
        assert faces[0] @ faces[-1] < -.9
        assert height("bow", n, "head").min() < .88 * height("idle", n, "head").mean()


def test_a_jump_obeys_gravity():
    p, t = Performer(noise=0.0), np.arange(300) / 100
    pose = jump(p, t, np.random.default_rng(0))
    flying = pose.feet[..., 2].min(1) > .01
    assert abs(np.diff(pose.pelvis[:, 2], 2)[flying[1:-1]][2:-2].mean() * 100**2 + 9.81) < .8


def test_walk_and_run_are_human(clips):
    for g, speed, cadence, bob, knee in ((WALK, (.75, 1.9), (78, 145), (.012, .055), (60, 84)), (RUN, (2.1, 4.5), (125, 195), (.035, .15), (88, 118))):
        for n in PEOPLE:
            row = gait(generate("walk" if g is WALK else "run", n, 5, seed=n))
            for k, (low, high) in dict(speed=speed, cadence=cadence, bob=bob, knee_max=knee).items(): assert low < row[k] < high, (n, k, row[k])
    for n in PEOPLE:
        c = clips["walk", n]
        way = c.joint("pelvis")[-1] - c.joint("pelvis")[0]
        assert (heading(c) @ (way / way.norm()) > .9).all(), "the pelvis faces where it goes"
        arms, legs = (((c.joint(f"left_{j}") - c.joint(f"right_{j}")) * heading(c)).sum(-1).numpy() for j in ("wrist", "ankle"))
        assert np.corrcoef(arms, legs)[0, 1] < -.5, "arms swing against the legs"
    run = generate("run", 0, 3, 100, layout="FIGURE")
    lowest = torch.stack([run.joint(f"{s}_{j}")[:, 2] for s in ("left", "right") for j in ("foot", "heel")]).amin(0)
    assert (lowest > segment_lengths(Performer.from_seed(0))["sole"] + .01).float().mean() > .05, "running has a phase of flight"
    assert going(Performer(), np.zeros(1), np.random.default_rng(0), WALK).pelvis.shape == (1, 3)


def test_left_handers_mirror():
    for left in (True, False):
        c = generate("wave", replace(Performer.from_seed(1), left_handed=left), 4)
        up, down = ("left", "right") if left else ("right", "left")
        assert c.joint(f"{up}_wrist")[:, 2].max() > c.joint("neck_nose")[:, 2].mean() > c.joint(f"{down}_wrist")[:, 2].max()


# ------------------------------------------------------------------------------------------------ clips
def test_same_seed_same_bytes_and_other_takes_differ():
    for name in ("walk", "throw", "fall"):
        a, b, c = (generate(name, 2, 1, seed=s, layout="FIGURE") for s in (5, 5, 6))
        assert a.joints.numpy().tobytes() == b.joints.numpy().tobytes() and a.rotations.numpy().tobytes() == b.rotations.numpy().tobytes() and not torch.equal(a.joints, c.joints)


def test_layouts_agree_and_rotations_do_not_flip():
    c = generate("get_up", 1, 4, layout="FIGURE")
    assert ((c.rotations[1:] * c.rotations[:-1]).sum(-1) > .5).all()
    for name in SKELETONS:
        if name == "WHOLEBODY133": continue
        other = generate("get_up", 1, 4, layout=name)
        for j, r in enumerate(conversion(FIGURE, name)): assert torch.equal(other.joints[:, j], c.joints[:, r.sources[0]]), (name, r.joint)
    with pytest.raises(ClipError, match="without face or fingers"): generate("walk", 0, 1, layout="WHOLEBODY133")


@pytest.mark.parametrize("name", ALL)
def test_any_length_and_rate(name):
    "One frame, few frames, and four a second, as the lifting task asks."
    for seconds, fps in ((.02, 50), (.06, 50), (.5, 30), (4.0, 4.0)): assert len(generate(name, 3, seconds, fps)) == round(seconds * fps)


def test_many_performers_stay_within_the_limits():
    for n in range(100, 130):
        for k, name in enumerate(ALL):
            if k % 3 == n % 3: generate(name, n, 4, 20, seed=n)


def test_performers_differ_without_noise():
    quiet = [replace(Performer.from_seed(n), noise=0.0, stature=1.7, leg_ratio=1.0, arm_ratio=1.0, shoulder_ratio=1.0, hip_ratio=1.0, left_handed=False) for n in range(12)]
    for name in ("idle", "wave", "squat"):
        poses = [figure_of(ACTIONS[name](p, np.arange(100) / 50, np.random.default_rng(0)), p)[0] for p in quiet]
        gaps = [np.linalg.norm(a - b, axis=-1).mean() for i, a in enumerate(poses) for b in poses[:i]]
        assert np.mean(gaps) > .02, name


@pytest.mark.parametrize("wrong, says", [
    (dict(action="wlak"), "did you mean 'walk'"), (dict(performer=-1), "int >= 0"), (dict(seconds=0), "no frame"),
    (dict(seconds=float("inf")), "no frame"), (dict(fps=0), "fps"), (dict(performer=Performer(lean=200)), "trunk")])
def test_bad_requests_teach(wrong, says):
    with pytest.raises(ClipError, match=says): generate(**{**dict(action="walk", performer=0, seconds=1), **wrong})
