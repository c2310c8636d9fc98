"""F29: joints in another order, unit, frame or not centred, and results of different meaning, are errors that say what to do - never numbers."""
import dataclasses
import pytest, torch
from hclab.core.metrics import (MetricError, MetricResult, Poses, auc3d, cmc_map, confusion_matrix, mean_over_groups, mpjpe, oks, p_mpjpe, pck2d, pck3d, per_joint)
from hclab.core.skeleton import SKELETONS, rest_pose, skeleton

METRICS = (mpjpe, p_mpjpe, pck3d, auc3d, per_joint, lambda a, b: mean_over_groups(a, b, [0] * len(a)))
ROOTED = (mpjpe, pck3d, auc3d, per_joint)


def people(name="H36M16", n=3, **kwargs):
    "n standing people in metres, centred."
    return dataclasses.replace(Poses(rest_pose(name).repeat(n, 1, 1), name, "m").centred(), **kwargs)


@pytest.mark.parametrize("name", SKELETONS)
def test_unit_is_seen_in_every_layout(name):
    joints = rest_pose(name)[None]
    Poses(joints, name, "m"), Poses(joints * 1000, name, "mm"), Poses(joints * 0.5, name, "m"), Poses(joints * 1.3, name, "m")
    with pytest.raises(MetricError, match="look like millimetres: pass unit='mm' or divide them by 1000"): Poses(joints * 1000, name, "m")
    with pytest.raises(MetricError, match="look like metres: pass unit='m' or multiply them by 1000"): Poses(joints, name, "mm")
    for wrong, unit in ((joints * 1000, "m"), (joints, "mm")):
        with pytest.raises(MetricError, match="look like"): Poses(wrong, name, unit, estimated=True)


def test_an_untrained_network_can_be_scored():
    noise = torch.randn(3, 16, 3, generator=torch.Generator().manual_seed(0))
    for scale in (0.0, 1e-9, 0.03, 3.0, 1e6):
        guess = Poses(noise * scale, "H36M16", "m", estimated=True).centred()
        assert mpjpe(guess, people()).n == 3
    with pytest.raises(MetricError, match="estimated=True"): Poses(noise * 0, "H36M16", "m")


@pytest.mark.parametrize("metric", METRICS)
def test_wrong_joint_order_is_refused(metric):
    a = skeleton("H36M16")
    order = list(range(16))
    order[4], order[5] = 5, 4
    swapped = dataclasses.replace(a, name="SWAPPED", names=tuple(a.names[i] for i in order), edges=tuple((order[p], order[c]) for p, c in a.edges), pairs=())
    other = Poses(people().joints[:, order], swapped, "m", root="hip")
    with pytest.raises(MetricError, match="joint 4 is 'left_knee' here and 'left_hip' there; convert"): metric(other, people())
    with pytest.raises(MetricError, match="H36M17"): metric(people("H36M17"), people())


@pytest.mark.parametrize("metric", ROOTED)
def test_root_and_frame_must_be_named_and_equal(metric):
    raw = Poses(rest_pose("H36M16").repeat(3, 1, 1) + 4, "H36M16", "m")
    for a, b in ((raw, people()), (people(), raw)):
        with pytest.raises(MetricError, match="not centred on a root; call .centred()"): metric(a, b)
    with pytest.raises(MetricError, match="bring both to one root"): metric(people().centred("thorax"), people())
    with pytest.raises(MetricError, match="bring both to one frame"): metric(people(frame="world"), people())
    assert metric(raw.centred(), people())


def test_a_root_that_is_only_claimed_is_refused():
    with pytest.raises(MetricError, match="from the origin; leave root=None and call .centred()"): Poses(rest_pose("H36M16")[None] + 4, "H36M16", "m", root="hip")
    with pytest.raises(MetricError, match="did you mean 'hip'"): people().centred("hips")
    mask = torch.ones(3, 16, dtype=torch.bool)
    mask[1, 0] = False
    with pytest.raises(MetricError, match="pose 1 .* no labelled 'hip'"): Poses(rest_pose("H36M16").repeat(3, 1, 1), "H36M16", "m", mask=mask).centred()


@pytest.mark.parametrize("metric", METRICS)
def test_bare_tensors_and_other_counts_are_refused(metric):
    with pytest.raises((MetricError, TypeError, AttributeError)) as caught: metric(people().joints, people())
    assert isinstance(caught.value, MetricError) and "bare tensor" in str(caught.value)
    with pytest.raises(MetricError, match="2 predicted poses for 3"): metric(people(n=2), people())


@pytest.mark.parametrize("change, hint", [
    (dict(joints=torch.zeros(3, 17, 3)), "has 16 joints"), (dict(joints=torch.zeros(16, 3)), "add a first dimension"), (dict(joints=torch.zeros(3, 16, 2)), "expected"),
    (dict(joints=torch.zeros(3, 16, 3, dtype=torch.int64)), "float"), (dict(joints=[[0.0]]), "torch tensor"), (dict(joints=torch.full((3, 16, 3), float("nan"))), "not finite"), (dict(joints=torch.zeros(0, 16, 3)), "0 poses"),
    (dict(unit="cm"), "use 'm' or 'mm'"), (dict(frame="image"), "use 'camera' or 'world'"), (dict(skeleton="H36M61"), "H36M16"), (dict(mask=torch.ones(3, 15, dtype=torch.bool)), "visibility > 0"), (dict(mask=torch.ones(3, 16)), "visibility > 0"),
])
def test_poses_that_contradict_themselves(change, hint):
    given = dict(joints=rest_pose("H36M16").repeat(3, 1, 1), skeleton="H36M16", unit="m") | change
    with pytest.raises(ValueError, match=hint): Poses(**given)


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_to_score_is_no_number(metric):
    with pytest.raises(MetricError, match="nothing can be scored"): metric(people(mask=torch.zeros(3, 16, dtype=torch.bool)), people())


def test_swapped_sides_cost_what_they_should():
    "What no tag can see still shows in the number: a pose with left and right exchanged is far off, aligned or not."
    swapped = dataclasses.replace(people(), joints=people().joints[:, skeleton("H36M16").mirror_order])
    assert float(mpjpe(swapped, people())) > 100 and float(mpjpe(people(), people())) == 0


def test_results_of_different_meaning_cannot_be_ordered():
    a, b = people(), people()
    for left, right in ((mpjpe(a, b), p_mpjpe(a, b)), (p_mpjpe(a, b), p_mpjpe(a, b, "rigid")), (pck3d(a, b), pck3d(a, b, 100)), (pck3d(a, b), auc3d(a, b)), (pck3d(a, b), pck3d(a, b, joints=("hip",)))):
        for compare in (lambda: left < right, lambda: left >= right, lambda: left - right, lambda: left.better_than(right)):
            with pytest.raises(MetricError, match="measure both the same way"): compare()
    with pytest.raises(MetricError, match="float"): mpjpe(a, b) < 50
    for value in (float("nan"), float("inf")):
        with pytest.raises(MetricError, match="NaN"): MetricResult(value, "mm", "P", 1, True)
    with pytest.raises(MetricError, match="at least 1"): MetricResult(1.0, "mm", "P", 0, True)


def test_alignment_needs_enough_joints_and_a_known_name():
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[:, :2] = True
    with pytest.raises(MetricError, match="at least 3"): p_mpjpe(people(mask=mask), people())
    with pytest.raises(MetricError, match="did you mean 'similarity'"): p_mpjpe(people(), people(), "similar")
    with pytest.raises(MetricError, match="use mpjpe"): p_mpjpe(people(), people(), None)
    with pytest.raises(MetricError, match="did you mean 'hip'"): pck3d(people(), people(), joints=("hipp",))
    with pytest.raises(MetricError, match="empty"): pck3d(people(), people(), joints=())
    with pytest.raises(MetricError, match="one label a pose"): mean_over_groups(people(), people(), ["walk"])


def test_misuse_in_two_dimensions_parsing_and_retrieval():
    spot, seen, size = torch.zeros(1, 17, 2), torch.ones(1, 17, dtype=torch.bool), torch.ones(1)
    for call, hint in (
        (lambda: pck2d(spot, spot[:, :16], seen, size), "both must be"), (lambda: pck2d(spot, spot, seen.long(), size), "visibility > 0"), (lambda: pck2d(spot, spot, seen, size * 0), "more than 0"),
        (lambda: pck2d(spot, spot, ~seen, size), "nothing can be scored"), (lambda: pck2d(spot, spot, seen, size, "tors"), "torso"), (lambda: pck2d(spot * float("nan"), spot, seen, size), "not finite"),
        (lambda: oks(spot[:, :16], spot[:, :16], seen[:, :16], size, "H36M16"), "sigmas"), (lambda: oks(spot, spot, seen * 0, size), "nothing can be scored"), (lambda: oks(spot, spot, seen, size * 0), "area"),
        (lambda: confusion_matrix(torch.zeros(2, 2), torch.zeros(2, 2), 3), "argmax"), (lambda: confusion_matrix(torch.zeros(2).long(), torch.zeros(3).long(), 3), "resize the scores"),
        (lambda: confusion_matrix(torch.tensor([3]), torch.tensor([0]), 3), "0 to 2"), (lambda: confusion_matrix(torch.tensor([0]), torch.tensor([255]), 3), "nothing can be scored"),
        (lambda: cmc_map(torch.zeros(1, 2), torch.zeros(1), torch.zeros(3)), "gallery_ids"), (lambda: cmc_map(torch.zeros(1, 2), torch.zeros(1), torch.zeros(2), torch.zeros(1)), "one side"),
        (lambda: cmc_map(torch.full((1, 2), float("nan")), torch.zeros(1), torch.zeros(2)), "finite"), (lambda: cmc_map(torch.zeros(1, 2), torch.zeros(1), torch.ones(2)), "nothing can be scored"),
    ):
        with pytest.raises(MetricError, match=hint): call()
