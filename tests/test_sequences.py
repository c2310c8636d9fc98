"""Untrimmed motion: labels exact to the frame, bodies that really get from one action to the next, people who keep their distance."""
import math

import numpy as np
import pytest
import torch

from hclab.core.sample import collate, validate
from hclab.data.figure import LIMITS
from hclab.data.grammar import ACTIONS, generate
from hclab.data.measures import flexion, heading
from hclab.data.motion import ClipError
from hclab.data.performers import Performer, segment_lengths
from hclab.data.sequences import (CLASSES, FACINGS, INTERACTIONS, Actor, Segment, Sequence, SequenceError, Sequences, act, compose, cut_sequence, draw_take, duet, finish, footing, nearest,
                                  plan, resample_sequence, sample, windows)

FPS = 50
SCRIPTS = {0: ["walk", "sit_down", "wave", "turn_around", "run"], 1: ["squat", "bow", "jump", "fall", "kick"], 2: ["run", "walk", "lift", "lunge", "stretch"], 7: ["phone", "march", "punch", "sit_down", "fall"],
           11: ["push", "walk", "jumping_jack", "balance", "throw"]}


@pytest.fixture(scope="module")
def composed():
    return {n: compose(n, script, seed=n, fps=FPS, layout="FIGURE") for n, script in SCRIPTS.items()}


@pytest.fixture(scope="module")
def pairs():
    return [duet((3, 8), [name], seed=k, distance=1.8) for k, name in enumerate(INTERACTIONS)]


def aligned(a, b):
    "Largest distance (m) between (T,J,3) tracks after the best common turn and shift over the floor."
    flat = lambda x: torch.complex(*(x - x.mean((0, 1)))[..., :2].double().unbind(-1))
    u, v = flat(a), flat(b)
    turn = (u.conj() * v).sum()
    return max(float((u * turn / turn.abs() - v).abs().max()), float((a - b)[..., 2].abs().max()))


def background(seq, who=0):
    "(T-1,) bool: steps between frames of which at least one is background."
    zero = (seq.labels[who] == 0).numpy()
    return zero[1:] | zero[:-1]


# ------------------------------------------------------------------------------------------------ exact labels
def test_a_segment_is_the_take_that_the_grammar_draws(composed, pairs):
    for seq in [*composed.values(), *pairs]:
        for s in seq.segments:
            c = seq.clips[s.who]
            take = generate(s.action, c.performer, s.take.frames / c.fps, c.fps, s.take.seed, c.skeleton.name).joints[s.take.offset:][:len(s)]
            assert len(take) == len(s) and aligned(take, c.joints[s.start:s.end]) < 1e-4, s


def test_a_shifted_segment_would_be_noticed(composed):
    seq = composed[0]
    s = next(s for s in seq.segments if s.action == "wave")
    take = generate("wave", 0, s.take.frames / FPS, FPS, s.take.seed, "FIGURE").joints
    assert aligned(take[:-2], seq.clips[0].joints[s.start + 2:s.end]) > .02


def test_every_wished_action_has_its_segment_in_order(composed):
    for n, script in SCRIPTS.items():
        assert [s.action for s in composed[n].segments] == plan(script)
        labels = composed[n].labels[0]
        for s in composed[n].segments: assert (labels[s.start:s.end] == CLASSES.index(s.action)).all()
        assert int((labels > 0).sum()) == sum(map(len, composed[n].segments)) and 0 < composed[n].background < .7


def test_idle_is_background():
    seq = compose(2, ["idle", "wave", "idle"], seed=1, idle=0)
    assert [s.action for s in seq.segments] == ["wave"] and seq.segments[0].start > 25 and CLASSES[0] == "background" and "idle" not in CLASSES


def test_postures_are_left_before_something_else_is_done():
    assert plan(["fall", "walk"]) == ["fall", "get_up", "walk"] and plan(["sit_down", "fall", "sit_down"]) == ["sit_down", "stand_up", "fall", "get_up", "sit_down"]
    assert plan("get_up") == ["fall", "get_up"] and plan(["wave", "fall"], upright=True) == ["wave", "fall", "get_up"] and plan(["sit_down", "stand_up"]) == ["sit_down", "stand_up"]
    for name in ACTIONS: assert name in plan([name])


# ------------------------------------------------------------------------------------------------ bodies
def test_nobody_jumps_between_actions(composed):
    for n, seq in composed.items():
        c, between = seq.clips[0], background(seq)
        v = (c.joints[1:] - c.joints[:-1]).norm(dim=-1).numpy() * FPS
        gait = max((v[s.start:s.end - 1].max() for s in seq.segments if s.action in ("walk", "run")), default=0.0)
        hips = max((v[s.start:s.end - 1, 0].max() for s in seq.segments if s.action in ("walk", "run")), default=0.0)
        assert v[between].max() < max(1.1 * gait, 3.0) and v[between, 0].max() < max(1.1 * hips, 1.2), n
        turn = heading(c)[:, :2].double().numpy()
        degrees = np.degrees(np.abs(np.arctan2(turn[:-1, 0] * turn[1:, 1] - turn[:-1, 1] * turn[1:, 0], (turn[:-1] * turn[1:]).sum(1))))
        standing = between & (c.joints[1:, 0, 2].numpy() > .6)
        assert degrees[standing].max() * FPS < 240, f"{n}: the pelvis spins"


def test_the_seams_have_no_step_in_place(composed):
    "At a seam a joint goes on about as it went: the second difference is no larger than within the action, or than that of actions that begin in motion."
    bent = lambda x: float((x[2:] - 2 * x[1:-1] + x[:-2]).norm(dim=-1).max())
    for n, seq in composed.items():
        x = seq.clips[0].joints
        for s in seq.segments:
            most = max(1.1 * bent(x[s.start:s.end]), .03)
            for edge in (s.start, s.end):
                if 2 <= edge <= len(x) - 2: assert bent(x[edge - 2:edge + 2]) < most, (n, s.action, edge)


def test_resting_feet_do_not_slide_in_transitions(composed):
    for n, seq in composed.items():
        c, between, sole = seq.clips[0], background(seq), segment_lengths(Performer.from_seed(n))["sole"]
        upright = (c.joints[1:, 0, 2] > .5).numpy()
        for name in ("left_foot", "right_foot", "left_heel", "right_heel"):
            x = c.joint(name).numpy(); near = np.r_[True, x[:, 2] < sole + .0002, True]
            rests = near[:-2] & near[1:-1] & near[2:]
            slide = (np.linalg.norm(np.diff(x[:, :2], axis=0), axis=1) * FPS)[rests[1:] & rests[:-1] & between & upright]
            assert slide.max(initial=0) < .02, (n, name, slide.max())


def test_some_foot_stands_while_someone_walks_off_or_steps(composed):
    seq = composed[2]
    c, between, sole = seq.clips[0], background(seq), segment_lengths(Performer.from_seed(2))["sole"]
    low = torch.stack([c.joint(f"{s}_{p}")[:, 2] for s in ("left", "right") for p in ("foot", "heel")]).amin(0).numpy()[1:]
    run = np.zeros(len(low), bool)
    for s in seq.segments:
        if s.action == "run": run[max(s.start - 60, 0):s.end + 60] = True      # flight belongs to running
    assert low[between & ~run].max() < sole + .03


def test_nothing_goes_through_the_floor_and_joints_keep_their_limits(composed, pairs):
    for seq in [*composed.values(), *pairs]:
        for c in seq.clips: assert float(c.joints[..., 2].min()) > -.02
    for seq in composed.values():        # `figure_of` refuses what goes beyond LIMITS; the angle seen is the one meant
        assert flexion(seq.clips[0], "left_hip", "left_knee", "left_ankle").max() <= LIMITS["knee"][1] + 1
        assert torch.allclose(seq.clips[0].rotations.norm(dim=-1), torch.ones(()), atol=1e-4)
        q = seq.clips[0].rotations
        assert ((q[1:] * q[:-1]).sum(-1) >= 0).all(), "rotations change sign between frames"


def test_an_actor_goes_where_he_is_told():
    actor = Actor(Performer.from_seed(5), 30.0, (0,))
    actor.move((1.0, -.5), 170.0)
    at, faces = footing(actor.now)
    assert np.allclose(at, (1.0, -.5), atol=1e-6) and abs(faces - 170) < 1e-6
    actor.move(heading=-170.0)
    assert abs(footing(actor.now)[1] - 190) < 1e-6, "by the shorter way"
    begun = act(actor, "wave", start=actor.frames + 200)
    assert begun.start == actor.frames - len(begun) and len(finish([actor], "H36M17", 0)) == actor.frames


@pytest.mark.parametrize("fps", [10.0, 24.0, 60.0])
def test_other_rates(fps):
    seq = compose(6, ["walk", "kick", "run"], seed=4, fps=fps, layout="H36M17")
    assert seq.fps == fps and [s.action for s in seq.segments] == ["walk", "kick", "run"]
    hips = (seq.clips[0].joints[1:, 0] - seq.clips[0].joints[:-1, 0]).norm(dim=-1) * fps
    assert hips.max() < 5.5


# ------------------------------------------------------------------------------------------------ determinism
def test_same_seed_same_bytes_and_others_differ():
    data = lambda s: b"".join(c.joints.numpy().tobytes() for c in s.clips)
    a, b = compose(1, 3, seed=2, index=4), compose(1, 3, seed=2, index=4)
    assert data(a) == data(b) and a.segments == b.segments
    assert len({data(compose(1, ["wave", "bow"], seed=s, index=i)) for s, i in ((0, 0), (0, 1), (1, 0))}) == 3
    assert data(duet((0, 1), 1, seed=3)) == data(duet((0, 1), 1, seed=3)) != data(duet((0, 1), 1, seed=4))


def test_a_data_set_does_not_care_in_which_order_it_is_asked():
    d = Sequences(6, performers=(2, 5, 9), seed=1, actions=2, pairs=.5)
    last = d[5]
    for i in (0, 2): d[i]
    assert torch.equal(d[5].clips[0].joints, last.clips[0].joints) and d[5].segments == last.segments
    assert {p for i in range(6) for p in d[i].performers} <= {2, 5, 9} and {len(d[i].clips) for i in range(6)} == {1, 2} and len(d) == 6
    with pytest.raises(IndexError, match="6 of 6"): d[6]


# ------------------------------------------------------------------------------------------------ two people
def test_two_people_keep_their_distance(pairs):
    for seq in pairs:
        assert nearest(seq).min() >= .2
        a, b = (c.joints.double() for c in seq.clips)
        again = min(float((a[t, :, None] - b[t, None]).norm(dim=-1).min()) for t in range(0, len(a), 7))
        assert again >= float(nearest(seq).min()) - 1e-5


def test_the_answer_comes_when_it_should(pairs):
    for name, seq in zip(INTERACTIONS, pairs):
        x = INTERACTIONS[name]
        assert [s.action for s in seq.segments] == [x.first] + [x.second] * bool(x.second)
        if x.second: assert seq.segments[1].start - seq.segments[0].start == round(x.delay * seq.fps), name
        if x.back:
            who = 1 - seq.segments[0].who
            root = seq.clips[who].joints[:, 0, :2]
            gone = (root - root[0]).norm(dim=-1)
            assert x.back - .1 < gone.max() < x.back + .15 and gone[-1] < .1, name
            begun = seq.segments[0].start
            assert begun < int((gone > x.back / 2).nonzero()[0]) < begun + 1.5 * seq.fps, f"{name}: out of the way before it comes"


@pytest.mark.parametrize("facing", FACINGS)
def test_facing_and_distance_are_what_they_say(facing):
    seq = duet((1, 2), (["wave"], ["drink", "sit_down"]), facing=facing, distance=2.0, seed=6, layout="FIGURE")
    a, b = (c.joints[0, 0, :2] for c in seq.clips)
    assert abs(float((a - b).norm()) - 2.0) < .15
    ahead = [heading(c)[0, :2] for c in seq.clips]
    to = (b - a) / (b - a).norm()
    want = {"each other": (1, -1), "side by side": (0, 0), "back to back": (-1, 1)}[facing]
    assert abs(float(ahead[0] @ to) - want[0]) < .15 and abs(float(ahead[1] @ to) - want[1]) < .15
    assert [s.action for s in seq.segments if s.who == 1] == ["drink", "sit_down", "stand_up"]


def test_who_comes_late_and_leaves_early_has_no_labels_there():
    seq = duet((0, 4), ["greet", "toast"], seed=2, late=3.0, early=2.0)
    x = validate(sample(seq))
    T = len(seq)
    assert not x["body_mask"][1, :90].any() and not x["body_mask"][1, T - 60:].any() and x["body_mask"][1, 90:T - 60].all() and x["body_mask"][0].all()
    assert (x["sequence"][1, :90] == 0).all() and (seq.labels[1, :90] == -1).all() and all(90 <= s.start and s.end <= T - 60 for s in seq.segments if s.who == 1)
    cut_one = next(s for s in seq.segments if s.who == 1)
    if cut_one.start == 90: assert cut_one.take.offset > 0


# ------------------------------------------------------------------------------------------------ cutting and sampling
def test_cutting_cuts_segments(composed):
    seq = composed[0]
    for a, b in ((0, 100), (37, 333), (len(seq) - 40, len(seq))):
        part = cut_sequence(seq, a, b)
        assert len(part) == b - a and torch.equal(part.labels, seq.labels[:, a:b]) and torch.equal(part.clips[0].joints, seq.clips[0].joints[a:b])
        for s in part.segments:
            take = generate(s.action, 0, s.take.frames / FPS, FPS, s.take.seed, "FIGURE").joints[s.take.offset:][:len(s)]
            assert aligned(take, part.clips[0].joints[s.start:s.end]) < 1e-4


@pytest.mark.parametrize("fps", [12.5, 20, 120])
def test_resampling_scales_segments(composed, fps):
    seq = composed[1]
    other = resample_sequence(seq, fps)
    at = torch.arange(len(other), dtype=torch.float64) / fps * FPS
    assert torch.equal(other.labels[0], seq.labels[0][(at + 1e-6).floor().long()]), "a frame is labelled by what goes on at its time"
    assert all(s.take is None for s in other.segments) and resample_sequence(seq, FPS) is seq


def test_windows_cover_everything_once_padded(composed):
    seq = cut_sequence(composed[0], 0, 301)
    for length, stride in ((64, 64), (64, 20), (301, 301), (400, 7), (300, 1), (7, 7)):
        parts = windows(seq, length, stride)
        starts = [p.start for p in parts]
        assert starts == list(range(0, starts[-1] + 1, stride)) and starts[-1] + length >= 301 and (len(starts) == 1 or starts[-2] + length < 301)
        for p in parts:
            n = min(length, 301 - p.start)
            assert p.sequence.shape == (1, length, len(seq.clips[0].skeleton), 3) and p.labels.shape == (1, length)
            assert torch.equal(p.labels[:, :n], seq.labels[:, p.start:p.start + n]) and (p.labels[:, n:] == -1).all() and not p.body_mask[:, n:].any()
            assert torch.equal(p.sequence[:, :n], seq.clips[0].joints[None, p.start:p.start + n])


def test_samples_keep_the_contract(pairs):
    one = compose(3, ["wave"], seed=1)
    batch = collate([sample(one), sample(pairs[0])])
    assert batch["has_action"].tolist() == [True, True] and batch["action"].tolist() == [CLASSES.index("wave")] * 2 and batch["sequence"].shape[:2] == (2, 2)
    assert sample(one)["segments"] == [(one.segments[0].start, one.segments[0].end, CLASSES.index("wave"))] and sample(one)["identity"] == 3
    assert "action" not in sample(compose(3, ["wave", "bow"], seed=1))


# ------------------------------------------------------------------------------------------------ errors
CLIP = generate("wave", 3, 4, 30)


@pytest.mark.parametrize("build, says", [
    (lambda: Sequence((CLIP,), (Segment(0, 9, "waive"),)), "'waive'.*did you mean 'wave'"),
    (lambda: Sequence((CLIP,), (Segment(0, 9, "idle"),)), "background"),
    (lambda: Sequence((CLIP,), (Segment(5, 5, "wave"),)), "at least one frame"),
    (lambda: Sequence((CLIP,), (Segment(100, 121, "wave"),)), "120 frames"),
    (lambda: Sequence((CLIP,), (Segment(0, 60, "wave"), Segment(59, 80, "bow"))), "'bow' from 59 starts before 'wave' ends at 60"),
    (lambda: Sequence((CLIP, CLIP), (Segment(50, 60, "wave"), Segment(9, 20, "bow", 1))), "order"),
    (lambda: Sequence((CLIP,), (Segment(0, 9, "wave", 1),)), "performer 1 of 1"),
    (lambda: Sequence((CLIP, CLIP.resample(20))), "fps: 30"),
    (lambda: Sequence((CLIP, CLIP.slice(0, 50))), "frames: 120 and 50"),
    (lambda: Sequence((CLIP, generate("wave", 3, 4, 30, layout="NTU25"))), "skeleton: H36M17 and NTU25"),
    (lambda: Sequence(()), "one or two"),
    (lambda: Sequence((CLIP,), shown=((10, 10),)), "shown"),
    (lambda: compose(0, ["walk", "wlak"]), "did you mean 'walk'"),
    (lambda: compose(0, 0), "at least one"),
    (lambda: compose(0, []), "no actions"),
    (lambda: compose(0, ["wave"], fps=0), "fps=0"),
    (lambda: compose(0, ["wave"], fps=math.nan), "fps=nan"),
    (lambda: act(Actor(Performer(), 30.0, (0,)), "wave", 1e-3), "no frame"),
    (lambda: cut_sequence(Sequence((CLIP,)), 50, 50), "are none"),
    (lambda: windows(Sequence((CLIP,)), 0), "length=0"),
    (lambda: windows(Sequence((CLIP,)), 10, 20), "skip 10 frames"),
    (lambda: nearest(Sequence((CLIP,))), "sequence of two"),
    (lambda: duet((1, 1)), "two different"),
    (lambda: duet(script=["grete"]), "did you mean 'greet'"),
    (lambda: duet(script=("wave", "bow")), "two lists"),
    (lambda: duet(facing="eachother"), "did you mean 'each other'"),
    (lambda: duet(script=["greet"], late=99), "never"),
    (lambda: duet(script=(["lunge"], ["lunge"]), distance=1.0), "within 0.*farther apart"),
    (lambda: Sequences(3, (1,), pairs=1.0)[0], "two performers"),
])
def test_errors_teach(build, says):
    with pytest.raises(SequenceError, match=says): build()


def test_a_performer_who_can_not_be_is_refused():
    with pytest.raises(ClipError, match="int >= 0"): compose(-1, ["wave"])
    assert issubclass(SequenceError, ValueError)


def test_takes_are_drawn_as_generate_draws_them():
    p = Performer.from_seed(4)
    a, b = draw_take("throw", p, 60, 30.0, 9), draw_take("throw", p, 60, 30.0, 9)
    assert np.array_equal(a.arms, b.arms) and not np.array_equal(a.arms, draw_take("throw", p, 60, 30.0, 10).arms)
