"Parts share nobody, the same clip is the same in any set, copies are refused, and performers differ in more than noise."
from dataclasses import replace

import pytest
import torch

from hclab.data.motion import ClipError, place
from hclab.data.sensor import Noise
from hclab.data.splits import (
    DUPLICATE,
    PARTS,
    Protocol,
    SplitError,
    as_seen,
    by_both,
    by_performer,
    by_view,
    directions,
    distances,
    guard,
    make_set,
    manner,
    proportions,
    signature,
    take_of,
    usable,
)

FEW = ("drink", "walk", "squat")
EACH = {p: (0,) for p in PARTS}


def test_forty_performers_in_three_parts_share_nobody():
    p = by_performer()
    held = [set(p.performers[part]) for part in PARTS]
    assert sum(map(len, held)) == 40 == len(set().union(*held)) and list(map(len, held)) == [28, 4, 8]
    assert by_performer(seed=1).performers != p.performers == by_performer(seed=0).performers


def test_views_and_takes_are_apart():
    for test in (0, 1, 2):
        v, b = by_view(test=test), by_both(test=test)
        for p in (v, b): assert set(p.cameras["train"]).isdisjoint(p.cameras["test"]) and len(p.cameras["train"]) == 2
        assert set(v.takes["train"]).isdisjoint(v.takes["test"]) and set(b.performers["train"]).isdisjoint(b.performers["test"])
    assert by_view(same_takes=True).takes["train"] == by_view(same_takes=True).takes["test"]


@pytest.mark.parametrize("make, says", [
    (lambda: Protocol("mine", dict(train=(1, 2, 7), val=(3,), test=(7, 2)), EACH, EACH, ("performers",)), "performers 2, 7 are in train and in test"),
    (lambda: Protocol("mine", dict(train=(1,), val=(3, 9), test=(9,)), EACH, EACH, ("performers",)), "performers 9 are in val and in test"),
    (lambda: Protocol("mine", EACH, dict(train=(0, 1), val=(0,), test=(1,)), EACH, ("cameras",)), "cameras 1 are in train and in test"),
    (lambda: Protocol("mine", EACH, EACH, EACH, ("takes",)), "takes 0"),
    (lambda: Protocol("mine", dict(train=(1,), test=(2,)), EACH, EACH, ()), "parts"),
    (lambda: Protocol("mine", dict(train=(1,), val=(), test=(2,)), EACH, EACH, ()), "no performers in val"),
    (lambda: make_set(by_performer(), "tset"), "no part 'tset'"),
    (lambda: by_performer([1, 1, 2]), "twice"), (lambda: by_performer(range(2)), "can't fill"),
    (lambda: make_set(by_performer(range(3)), "test", ("wlak",)), "walk")])
def test_dishonest_or_impossible_splits_are_refused(make, says):
    with pytest.raises((SplitError, ClipError), match=says): make()


def test_a_clip_does_not_depend_on_what_else_is_made():
    protocol = by_both(range(6))
    a = make_set(protocol, "test", FEW, fps=15)
    b = make_set(protocol, "test", FEW[::-1], fps=15)
    find = lambda items, name: next(i for i in items if i.clip.action == name)
    for name in FEW: assert torch.equal(find(a, name).track.joints.nan_to_num(), find(b, name).track.joints.nan_to_num()) and torch.equal(find(a, name).clip.joints, find(b, name).clip.joints)
    assert [i.action for i in a][:3] == [0, 1, 2] and {i.camera for i in a} == {0} and {i.performer for i in a} == set(protocol.performers["test"])
    other = find(make_set(protocol, "test", FEW, fps=15, seed=1), "drink")
    assert torch.equal(other.clip.joints, find(a, "drink").clip.joints) and not torch.equal(other.track.joints.nan_to_num()[:9], find(a, "drink").track.joints.nan_to_num()[:9])


def test_windows_are_cut_to_length_at_different_places():
    clips = [take_of("pick_up", 3, k, seconds=1.0, fps=20) for k in range(4)]
    assert all(len(c) == 20 for c in clips) and len({round(float(c.joints[0, 0, 2]), 3) for c in clips}) > 1
    assert len(take_of("drink", 3, 0, seconds=9, fps=20)) == 180, "a window longer than one execution holds several"


def test_a_signature_forgets_place_and_heading_and_nothing_else():
    clip = take_of("punch", 4, 0, fps=20)
    x = signature(clip)
    assert x.shape == (16, 25, 3) and torch.allclose(x, signature(place(clip, turn=123, shift=(4, -2))), atol=1e-5)
    hips = [clip.skeleton.names.index(f"{s}_hip") for s in ("left", "right")]
    assert x[:, hips].mean(1).abs().max() < 1e-5 and (x[0, hips[0]] - x[0, hips[1]])[1] > .1 and abs(float((x[0, hips[0]] - x[0, hips[1]])[0])) < 1e-5
    assert torch.allclose(signature(place(clip, turn=90), turn=False)[..., 1], signature(clip, turn=False)[..., 0], atol=1e-5)
    assert signature(replace(clip, joints=clip.joints[:1], rotations=None, offsets=None)).shape == (16, 25, 3)


def test_distance_against_a_naive_loop():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 16, 5, 3, generator=g), torch.randn(4, 16, 5, 3, generator=g)
    naive = torch.tensor([[(x - y).square().sum(-1).mean().sqrt() for y in b] for x in a])
    assert torch.allclose(distances(a, b), naive, atol=1e-5) and distances(a, a).diag().max() == 0
    assert distances(a[:1], a[:1] + torch.tensor([.03, 0, .04])).item() == pytest.approx(.05, abs=1e-5)


def test_the_guard_finds_planted_copies_and_passes_honest_splits():
    made = {part: make_set(by_performer(range(10), seed=1), part, FEW, fps=15) for part in ("train", "test")}
    gap = guard(made["test"], made["train"])
    assert len(gap) == len(made["test"]) and gap.min() > DUPLICATE
    copy = made["test"][4]
    moved = replace(copy, performer=99, clip=place(copy.clip, turn=50, shift=(1, 1)))
    shaken = replace(copy, clip=replace(copy.clip, joints=copy.clip.joints + .001 * torch.randn(copy.clip.joints.shape, generator=torch.Generator().manual_seed(0)), rotations=None, offsets=None))
    for planted in (copy, moved, shaken):
        with pytest.raises(SplitError, match="a copy"): guard(made["test"], made["train"] + [planted])
    with pytest.raises(SplitError, match="by 99"): guard(made["test"], made["train"] + [moved])
    twins = by_view(range(2), same_takes=True)
    with pytest.raises(SplitError, match="0.0 mm"): guard(*(make_set(twins, part, FEW[:1], fps=15) for part in ("test", "train")))
    assert guard(made["test"], []).isinf().all() and len(guard([], made["train"])) == 0


def test_views_that_never_saw_a_joint_are_named():
    items = make_set(by_both(range(4)), "test", FEW, fps=15)
    t = items[0].track
    state = t.state.clone(); state[:, 7] = 0
    blind = replace(items[0], track=replace(t, state=state, joints=torch.where((state == 0)[..., None], torch.nan, t.joints)))
    assert usable([blind, items[1]]) == [items[1]]
    with pytest.raises(SplitError, match="left_hand"): as_seen(blind)
    assert as_seen(items[0]).shape == as_seen(items[0], turn=False).shape == (16, 25, 3)


def test_without_faults_the_sensor_changes_nothing_a_signature_sees():
    item = make_set(by_both(range(4)), "test", FEW[:1], severity=0, fps=15)[0]
    assert torch.allclose(as_seen(item), signature(item.clip), atol=1e-4)
    loud = make_set(by_both(range(4)), "test", FEW[:1], noise=Noise(jitter=20), fps=15)[0]
    assert (as_seen(loud) - signature(item.clip)).norm(dim=-1).mean() > .01


def test_performers_are_people_and_not_noise():
    "Another take of the same performer is nearer than a stranger's, by manner and by directions alone; a bone's length tells who it is."
    people, actions = 12, ("drink", "squat", "wave")
    x = torch.stack([torch.stack([torch.stack([signature(take_of(a, n, s, fps=15)) for s in (0, 1)]) for a in actions]) for n in range(people)])
    skeleton = take_of("drink", 0, 0, fps=15).skeleton
    for name, f, floor in (("manner", manner, .4), ("directions", lambda v: manner(directions(v, skeleton)), .25), ("proportions", lambda v: proportions(v, skeleton), .99)):
        d = torch.stack([distances(f(x[:, k, 1]), f(x[:, k, 0])) for k in range(len(actions))])
        hits = (d.argmin(-1) == torch.arange(people)).float().mean()
        assert hits > floor > 2 / people, (name, hits)
        if name != "proportions": assert d[:, ~torch.eye(people, dtype=torch.bool)].median() > 1.2 * d.diagonal(dim1=1, dim2=2).median(), name
