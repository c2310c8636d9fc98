"Action detection: segments from frames, and the two average precisions, each against a slow restatement written here."
import itertools
import math
import random

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from hclab.tasks.action_detection import (FLAVOURS, DetectionError, PostConfig, Proposal, ap, ap_2d, boundary_errors, bridged, detect_scores, f1, map_action, map_video, matching, noisy_oracle, overlap, pairs,
                                          proposals, runs, smoothed, timeline_row, truths)


# ------------------------------------------------------------------------------------------------ the rules, said again, slowly
def agreement(p, g):
    if p[0] != g[0] or p[4] != g[4]: return 0
    return (min(p[2], g[2]) - max(p[1], g[1]))/(max(p[2], g[2]) - min(p[1], g[1]))


def matched(lines, ground, theta):
    "The evaluator's loop, with its comparison against the last truth while nothing is matched."
    to = []
    for p in lines:
        mine = -1
        for k, g in enumerate(ground):
            if g[0] != p[0] or agreement(p, g) < theta: continue
            if agreement(p, g) < agreement(p, ground[mine]): continue
            mine = k
        to.append(mine)
    return to


def official(lines, ground, theta):
    "The sheet's words: all proposals, then the least sure go one by one; precision is re-read only after one with a truth went."
    if not lines or not ground: return 0.0
    lines = sorted(lines, key=lambda p: p[3])
    to = matched(lines, ground, theta)
    def read(k):
        found = len({m for m in to[k:] if m >= 0})
        return (found/(len(lines) - k) if k < len(lines) else 0.0), found/len(ground)
    highest, recall = read(0)
    total = 0.0
    for k, m in enumerate(to):
        if m < 0: continue
        precision, after = read(k + 1)
        highest = max(highest, precision)
        total += highest*(recall - after)
        recall = after
    return total


def textbook(lines, ground, theta):
    "From the surest down: for each truth that is found anew, the best precision there or later; their mean over all truths."
    if not ground: return 0.0
    lines = sorted(lines, key=lambda p: p[3])
    to = matched(lines, ground, theta)[::-1]
    precision = [len({m for m in to[:k + 1] if m >= 0})/(k + 1) for k in range(len(to))]
    news = [k for k, m in enumerate(to) if m >= 0 and m not in to[:k]]
    return sum(max(precision[k:]) for k in news)/len(ground)


def tangle(rng, most=14):
    "Proposals and truths of few classes and videos, on top of each other, with equal scores here and there."
    def one(score):
        a = rng.randrange(0, 30)
        return (rng.randrange(1, 4), a, a + rng.randrange(1, 16), score, rng.choice("ab"))
    return [one(rng.choice((.1, .3, .5, rng.random()))) for _ in range(rng.randrange(most))], [one(1.0) for _ in range(rng.randrange(most))]


def segments(lines): return [Proposal(*line) for line in lines]


@pytest.mark.parametrize("theta", [.1, .5, .75, 1.0])
def test_both_average_precisions_agree_with_the_rules_said_slowly(theta):
    rng = random.Random(int(100*theta))
    both = 0
    for _ in range(250):
        lines, ground = tangle(rng)
        given, true = segments(lines), segments(ground)
        assert matching(given, true, theta) == matched(lines, ground, theta)
        pku, standard = (ap(given, true, theta, f) for f in FLAVOURS)
        assert math.isclose(pku, official(lines, ground, theta), abs_tol=1e-12) and math.isclose(standard, textbook(lines, ground, theta), abs_tol=1e-12)
        assert 0 <= pku <= standard + 1e-12 <= 1 + 1e-9, "the evaluator never credits more than the textbook"
        both += pku < standard - 1e-9
    assert both > 3, "the trials tell the flavours apart"


def test_means_are_means_of_the_rules():
    rng = random.Random(5)
    for _ in range(60):
        lines, ground = tangle(rng)
        if not ground: continue
        given, true = segments(lines), segments(ground)
        for flavour, rule in zip(FLAVOURS, (official, textbook)):
            classes = [rule([p for p in lines if p[0] == c], [g for g in ground if g[0] == c], .5) for c in range(1, 6)]
            there = {g[0] for g in ground}
            assert math.isclose(map_action(given, true, 5, .5, flavour).value, 100*sum(classes)/5, abs_tol=1e-9)
            assert math.isclose(map_action(given, true, 5, .5, flavour, "skip").value, 100*sum(classes[c - 1] for c in there)/len(there), abs_tol=1e-9)
            videos = [rule([p for p in lines if p[4] == v], [g for g in ground if g[4] == v], .5) for v in "abc"]
            assert math.isclose(map_video(given, true, .5, flavour, ["a", "b", "c"]).value, 100*sum(videos)/3, abs_tol=1e-9)
            assert math.isclose(ap_2d(given, true, flavour).value, 100*sum(rule(lines, ground, k/20) for k in range(1, 21))/20, abs_tol=1e-9)
        found = len(set(matched(lines, ground, .5)) - {-1})
        precision, recall = found/max(len(lines), 1), found/len(ground)
        assert math.isclose(f1(given, true).value, 100*2*precision*recall/max(precision + recall, 1e-12), abs_tol=1e-6)


# ------------------------------------------------------------------------------------------------ what no order and no scale may change
spans = st.tuples(st.integers(1, 3), st.integers(0, 40), st.integers(1, 20), st.sampled_from("ab")).map(lambda t: (t[0], t[1], t[1] + t[2], t[3]))


@settings(max_examples=60, deadline=None)
@drawn(st.lists(spans, max_size=12), st.lists(spans, min_size=1, max_size=10), st.randoms(use_true_random=False), st.sampled_from(FLAVOURS))
def test_order_and_scale_of_scores_say_nothing(lines, ground, rng, flavour):
    scores = rng.sample(range(1, 100), len(lines))
    make = lambda rows, f=lambda s: s: [Proposal(a, b, c, f(s), v) for (a, b, c, v), s in rows]
    rows, true = list(zip(lines, scores)), [Proposal(a, b, c, 1, v) for a, b, c, v in ground]
    shuffled = rng.sample(rows, len(rows))
    want = ap(make(rows), true, .5, flavour)
    assert math.isclose(want, ap(make(shuffled), true, .5, flavour), abs_tol=1e-12)
    assert math.isclose(want, ap(make(rows, lambda s: math.log(s) - 9), true, .5, flavour), abs_tol=1e-12), "only the order of scores counts"
    assert detect_scores(make(rows), true, 3, 30.0) == detect_scores(make(shuffled), true, 3, 30.0)


@settings(max_examples=40, deadline=None)
@drawn(st.lists(spans, min_size=1, max_size=10, unique_by=lambda t: t), st.integers(0, 5))
def test_the_truth_is_perfect(ground, more):
    true = [Proposal(a, b, c, 1, v) for a, b, c, v in ground]
    kinds, top = {t.label for t in true}, 3 + more
    scores = detect_scores(true, true, top, 30.0)
    for name, r in scores.items():
        if name.startswith("mAP_a"): assert math.isclose(r.value, 100*len(kinds)/top)
        elif "@" in name or name.startswith("2D"): assert math.isclose(r.value, 100), (name, r)
        else: assert r.value == 0, (name, r)
    assert math.isclose(map_action(true, true, top, absent="skip").value, 100)


def test_a_trailing_false_alarm_is_where_the_flavours_part():
    hit, false = Proposal(1, 0, 100, .9), Proposal(1, 500, 600, .1)
    assert [ap([hit, false], [Proposal(1, 0, 100)], .5, f) for f in FLAVOURS] == [.5, 1.0]
    assert all(ap([], [hit], .5, f) == ap([hit], [], .5, f) == 0 for f in FLAVOURS)


def test_ties_go_to_the_later_truth_and_duplicates_are_false_alarms():
    first, later = Proposal(1, 0, 10), Proposal(1, 10, 20)
    assert matching([Proposal(1, 0, 20)], [first, later]) == [1] and matching([Proposal(1, 0, 20)], [later, first]) == [1]
    twice = [Proposal(1, 0, 10, .4), Proposal(1, 0, 8, .9)]
    assert pairs(twice, [first]) == [(twice[1], first)]
    b = boundary_errors(twice, [first, later], 5)
    assert (b["missed"].value, b["false"].value, b["end mean frames"].value, b["end median s"].value, b["start mean s"].value) == (1, 1, 2, .4, 0)


def test_boundaries_are_measured_on_what_was_matched():
    rng = random.Random(2)
    true = [Proposal(1, 100*k, 100*k + 60, video="v") for k in range(1, 9)]
    moves = [(rng.randrange(-9, 10), rng.randrange(-9, 10)) for _ in true]
    given = [Proposal(1, t.start + a, t.end + b, .5, "v") for t, (a, b) in zip(true, moves)][:6]
    b = boundary_errors(given, true, 30)
    for k, name in enumerate(("start", "end")):
        off = sorted(abs(m[k]) for m in moves[:6])
        assert math.isclose(b[f"{name} mean frames"].value, sum(off)/6) and math.isclose(b[f"{name} median s"].value, (off[2] + off[3])/2/30)
    assert b["missed"].value == 2 and b["false"].value == 0


# ------------------------------------------------------------------------------------------------ from frames to segments
def plain(labels, classes=3, sure=.9):
    p = torch.full((len(labels), classes + 1), (1 - sure)/classes)
    p[range(len(labels)), labels] = sure
    return p


@settings(max_examples=80, deadline=None)
@drawn(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.sampled_from([1, 3, 9]), st.integers(1, 8), st.integers(0, 6))
def test_segments_of_a_stream(labels, smooth, least, gap):
    found = proposals(plain(labels), PostConfig(smooth, least, gap), "v", classes=3)
    assert all(len(p) >= least and p.video == "v" for p in found) and all(a.end <= b.start for a, b in zip(found, found[1:])), "no two at the same time"
    assert all(b.start - a.end > gap for k, a in enumerate(found) for b in found[k + 1:k + 2] if a.label == b.label)
    if (smooth, least, gap) == (1, 1, 0):
        back = torch.zeros(len(labels), dtype=torch.long)
        for p in found: back[p.start:p.end] = p.label
        assert back.tolist() == labels and all(abs(p.score - .9) < 1e-6 for p in found)
    once = bridged(torch.tensor(labels), gap)
    assert all((once[a:b] == label).all() for label, a, b in runs(once)) and set(once.tolist()) <= set(labels)


def test_gaps_are_closed_from_the_left():
    "All streams of eight frames: where an action begins, look back over 1, 2 ... frames for what is left of it."
    for labels in itertools.product(range(3), repeat=8):
        for gap in (0, 1, 3):
            want = list(labels)
            for t, c in enumerate(labels):
                if not c or (t and labels[t - 1] == c): continue
                for wide in range(1, min(gap, t - 1) + 1):
                    if want[t - wide - 1] == c: want[t - wide:t] = [c]*wide; break
            assert bridged(torch.tensor(labels), gap).tolist() == want, (labels, gap)


def test_smoothing_is_the_mean_of_seen_frames():
    g = torch.Generator().manual_seed(0)
    x, seen = torch.rand(50, 4, generator=g, dtype=torch.float64), torch.rand(50, generator=g) < .6
    for frames in (1, 5, 21, 201):
        want = torch.zeros_like(x)
        for t in range(50):
            near = [k for k in range(max(t - frames//2, 0), min(t + frames//2, 49) + 1) if seen[k]]
            if near: want[t] = sum(x[k] for k in near)/len(near)
        assert torch.allclose(smoothed(x*seen[:, None], seen, frames), want)


def test_frames_not_seen_are_background_without_a_say():
    p = plain([0]*10 + [1]*20 + [0]*10)
    mask = torch.ones(40, dtype=torch.bool); mask[18:21] = False
    hidden = torch.where(mask[:, None], p, float("nan"))
    (whole,) = proposals(hidden, PostConfig(1, 10, 5), mask=mask)
    assert (whole.start, whole.end) == (10, 30) and abs(whole.score - .9) < 1e-6, "three frames are bridged, and enter no mean"
    assert [(s.start, s.end) for s in proposals(hidden, PostConfig(1, 5, 2), mask=mask)] == [(10, 18), (21, 30)]
    assert proposals(p, mask=torch.zeros(40, dtype=torch.bool)) == []


def test_the_oracle_follows_its_generator_and_gives_distributions():
    labels = torch.tensor([0]*40 + [2]*90 + [0]*30 + [1]*60 + [-1]*20)
    a, b, c = (noisy_oracle(labels, 3, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c) and a.shape == (240, 4) and torch.allclose(a.sum(1), torch.ones(240), atol=1e-5)
    exact = noisy_oracle(labels, 3, torch.Generator(), shift=0.0, blur=1, noise=0.0)
    assert [(p.label, p.start, p.end) for p in proposals(exact, PostConfig(1, 1, 0), mask=labels >= 0)] == [(2, 40, 130), (1, 160, 220)]
    with pytest.raises(DetectionError, match="expected .T,. from -1 to 3"): noisy_oracle(labels + 2, 3, torch.Generator())


# ------------------------------------------------------------------------------------------------ errors are lessons
p, t = plain([0, 1, 1, 0]), [Proposal(1, 0, 9, video="a")]
holes = p.clone(); holes[2, 1] = float("nan")


@pytest.mark.parametrize("wrong, words", [
    (lambda: Proposal(1, 5, 5), r"must start at 0 or later and end after it starts; the end is exclusive"), (lambda: Proposal(1, 9, 5), "end after it starts"), (lambda: Proposal(1, -2, 5), "start at 0 or later"),
    (lambda: Proposal(0, 2, 5), "0 is background"), (lambda: Proposal(1.5, 2, 5), "whole number from 1"), (lambda: Proposal(1, 2, 5.5), "multiply seconds by the frame rate"), (lambda: Proposal(1, 2, 5, float("nan")), "look for NaN"),
    (lambda: truths([(1, 1, 3)]), "end after it starts"),
    (lambda: proposals(holes), r"frame 2 is not finite \(1 such"), (lambda: proposals(9*p), "take a softmax"), (lambda: proposals(p, classes=28), "4 columns for 28 actions; expected 29"),
    (lambda: proposals(p[0]), r"expected floats \(T, K\)"), (lambda: proposals(p, mask=torch.ones(4)), r"expected \(4,\) bool"), (lambda: PostConfig(smooth=6), "odd number of frames"), (lambda: PostConfig(bridge=-1), "at least 0 frames"),
    (lambda: map_video([], []), "no videos: neither proposals nor truths"), (lambda: map_video(t, t, videos=[]), "no videos"), (lambda: map_video(t, [], videos=["a"]), "no true segments in 1 videos"),
    (lambda: map_video(t, t, videos=["aa"]), "'a', which is not scored; did you mean 'aa'"), (lambda: detect_scores([Proposal(4, 0, 9)], t, 3, 30), "a proposal in '' is of class 4, but there are 3 actions"),
    (lambda: detect_scores(t, t, 0, 30), "there are 0 actions"), (lambda: detect_scores(t, t, 1, 0), "fps=0"), (lambda: ap(t, t, 1.5), "theta=1.5"), (lambda: ap(t, t, .5, "pkuu"), "did you mean 'pku'"),
    (lambda: map_action(t, t, 1, absent="none"), "absent='none'")])
def test_what_is_wrong_is_said(wrong, words):
    with pytest.raises(DetectionError, match=words): wrong()


def test_results_say_how_they_were_measured():
    a, b = map_action(t, t, 1), map_action(t, t, 1, flavour="standard")
    assert a.protocol == "mAP_a@0.5, pku AP, over 1 classes" and a.unit == "%" and not a.lower_is_better
    with pytest.raises(ValueError, match="protocol"): a < b
    assert overlap(t[0], t[0]) == 1 and timeline_row(t, 3) == [(0, 3, 1, 1.0)]
