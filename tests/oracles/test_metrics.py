"""Every metric against a loop that shares no line with it, against closed forms, and under the symmetries that its definition has."""
import dataclasses
import math
import pytest, torch
from hypothesis import given, settings, strategies as st
from hclab.core.metrics import (AUC_THRESHOLDS, MPI3DHP_SCORED, MetricError, MetricResult, Poses, auc3d, cmc_map, confusion_matrix, head_size, iou_per_class, mean_over_groups,
                                miou, mpjpe, oks, p_mpjpe, parsing_scores, pck2d, pck3d, per_joint, torso_size)
from hclab.core.skeleton import skeleton

FAST = settings(max_examples=25, deadline=None)
H36M = skeleton("H36M16")
seeds = st.integers(0, 10_000)


def figure(n, seed, layout=H36M, bone=0.25):
    "n random stick figures (n,J,3) float64 in metres whose bones have length `bone`, root at the origin."
    g = torch.Generator().manual_seed(seed)
    step, joints, done = torch.randn(n, len(layout), 3, generator=g, dtype=torch.float64), torch.zeros(n, len(layout), 3, dtype=torch.float64), {layout.root}
    edges = list(layout.edges)
    while edges:
        parent, child = edges.pop(0)
        if parent not in done: edges.append((parent, child)); continue
        joints[:, child] = joints[:, parent] + bone * step[:, child] / step[:, child].norm(dim=1, keepdim=True)
        done.add(child)
    return joints


def pair(n, seed, noise=0.05, mask=None, layout=H36M):
    "Prediction and target, centred, in metres."
    true, g = figure(n, seed, layout), torch.Generator().manual_seed(seed + 1)
    given = true + noise * torch.randn(true.shape, generator=g, dtype=true.dtype)
    return Poses(given, layout, "m", mask=mask).centred(), Poses(true, layout, "m", mask=mask).centred()


def rotation(seed):
    "A random rotation (3,3) float64."
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    q = q * r.diag().sign()
    return q * q.det()


def naive_errors(prediction, target):
    "Per pose, the list of distances in mm of the labelled joints."
    rows = []
    for p, q, m in zip(prediction.joints.tolist(), target.joints.tolist(), (prediction.valid & target.valid).tolist()):
        rows.append([1000 * math.dist(a, b) for a, b, seen in zip(p, q, m) if seen])
    return rows


def random_mask(n, seed, layout=H36M, share=0.7):
    mask = torch.rand(n, len(layout), generator=torch.Generator().manual_seed(seed)) < share
    mask[:, layout.root] = True
    mask[:, :4] = True
    return mask


@FAST
@given(seeds, st.integers(1, 12), st.booleans())
def test_mpjpe_pck_auc_against_loops(seed, n, masked):
    a, b = pair(n, seed, mask=random_mask(n, seed) if masked else None)
    flat = [e for row in naive_errors(a, b) for e in row]
    assert abs(float(mpjpe(a, b)) - sum(flat) / len(flat)) < 1e-9
    assert abs(float(pck3d(a, b, 70)) - 100 * sum(e < 70 for e in flat) / len(flat)) < 1e-9
    assert abs(float(auc3d(a, b)) - sum(100 * sum(e < t for e in flat) / len(flat) for t in range(0, 151, 5)) / 31) < 1e-9
    assert len(AUC_THRESHOLDS) == 31 and mpjpe(a, b).n == n


@FAST
@given(seeds)
def test_float32_agrees_to_1e_6(seed):
    a, b = pair(20, seed)
    low = lambda p: dataclasses.replace(p, joints=p.joints.float())
    exact = float(mpjpe(Poses(low(a).joints.double(), H36M, "m", root=a.root), Poses(low(b).joints.double(), H36M, "m", root=b.root)))
    assert abs(float(mpjpe(low(a), low(b))) - exact) < 1e-6 * exact


@FAST
@given(seeds, st.floats(-0.5, 0.5), st.floats(0.8, 1.25))
def test_alignments_remove_what_they_name(seed, shift, scale):
    a, b = pair(5, seed)
    R = rotation(seed)
    turned = Poses(a.joints @ R.T + shift, H36M, "m", frame="world")
    scaled = Poses(scale * a.joints @ R.T + shift, H36M, "m", frame="world")
    assert abs(float(p_mpjpe(turned, b, "rigid")) - float(p_mpjpe(a, b, "rigid"))) < 1e-6
    assert abs(float(p_mpjpe(scaled, b)) - float(p_mpjpe(a, b))) < 1e-6
    assert float(p_mpjpe(Poses(b.joints @ R.T + shift, H36M, "m"), b, "rigid")) < 1e-6


@FAST
@given(seeds)
def test_alignment_is_the_best_one(seed):
    "No small further rotation or scale lowers the squared error of the aligned pose."
    from hclab.core.metrics import aligned_to
    a, b = pair(1, seed, noise=0.1)
    mask = torch.ones(1, 16, dtype=torch.bool)
    for kind in ("rigid", "similarity"):
        done = aligned_to(a.joints, b.joints, mask, kind)
        best, centre = (done - b.joints).square().sum(), done.mean(1, keepdim=True)
        small = torch.linalg.matrix_exp(1e-3 * torch.tensor([[0., -1., .5], [1., 0., .3], [-.5, -.3, 0.]], dtype=torch.float64))
        for R in (small, small.T): assert ((done - centre) @ R + centre - b.joints).square().sum() >= best - 1e-12
        if kind == "similarity":
            for s in (0.999, 1.001): assert ((done - centre) * s + centre - b.joints).square().sum() >= best - 1e-12


@FAST
@given(seeds)
def test_alignment_never_looks_at_masked_joints(seed):
    mask = random_mask(6, seed)
    a, b = pair(6, seed, mask=mask)
    wild = dataclasses.replace(a, joints=torch.where(mask[:, :, None], a.joints, 1e3))
    for metric in (mpjpe, p_mpjpe, pck3d, auc3d): assert abs(float(metric(wild, b)) - float(metric(a, b))) < 1e-9
    loops = [r for i in range(6) for r in [p_mpjpe(a.select([i]), b.select([i]))]]
    weights = mask.sum(1).tolist()
    assert abs(float(p_mpjpe(a, b)) - sum(float(r) * w for r, w in zip(loops, weights)) / sum(weights)) < 1e-9


@FAST
@given(seeds, st.sampled_from(["rigid", "similarity"]))
def test_masked_joints_have_no_pull_on_the_alignment(seed, kind):
    mask, R = random_mask(5, seed), rotation(seed)
    _, true = pair(5, seed, mask=mask)
    turned = Poses(true.joints @ R.T + 0.7, H36M, "m", mask=mask)
    assert float(p_mpjpe(turned, true, kind)) < 1e-6


def test_masked_nan_is_no_number():
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[0, 5], mask[1] = False, False
    a, b = pair(2, 0)
    joints = a.joints.clone()
    joints[0, 5], joints[1] = float("nan"), float("nan")
    hidden = Poses(joints, H36M, "m", root=a.root, mask=mask)
    for metric in (mpjpe, p_mpjpe, pck3d, auc3d):
        assert math.isfinite(float(metric(hidden, b))) and metric(hidden, b).n == 1
    assert "left_foot" not in per_joint(dataclasses.replace(hidden, mask=mask & (torch.arange(16) != H36M.index("left_foot"))), b)


@FAST
@given(seeds)
def test_symmetries(seed):
    a, b = pair(8, seed)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    for metric in (mpjpe, pck3d, auc3d):
        assert abs(float(metric(a, b)) - float(metric(b, a))) < 1e-9
        assert abs(float(metric(a, b)) - float(metric(a.select(order), b.select(order)))) < 1e-9
        assert abs(float(metric(a.to("mm"), b)) - float(metric(a, b))) < 1e-6
    assert float(mpjpe(b, b)) == 0 and float(pck3d(b, b)) == 100 and abs(float(auc3d(b, b)) - 100 * 30 / 31) < 1e-9


def test_the_threshold_is_strict():
    b = Poses(figure(1, 3).round(decimals=3), H36M, "m").centred().to("mm")
    moved = b.joints.round().clone()
    moved[0, 5, 0] += 150
    target = Poses(b.joints.round(), H36M, "mm", root=b.root)
    assert float(pck3d(Poses(moved, H36M, "mm", root=b.root), target, 150)) == 100 * 15 / 16
    assert float(pck3d(Poses(moved, H36M, "mm", root=b.root), target, 150.01)) == 100


def test_pck_of_mpi_inf_3dhp_scores_14_joints():
    layout = skeleton("MPI3DHP17")
    a, b = pair(4, 2, layout=layout)
    joints = a.joints.clone()
    joints[:, [layout.index(n) for n in ("spine", "head")]] += 1.0
    off = Poses(joints, layout, "m", root="pelvis")
    assert len(MPI3DHP_SCORED) == 14 and float(pck3d(off, b, joints=MPI3DHP_SCORED)) == float(pck3d(a, b, joints=MPI3DHP_SCORED))
    assert float(pck3d(off, b)) < float(pck3d(a, b))
    with pytest.raises(MetricError, match="protocol"): pck3d(a, b, joints=MPI3DHP_SCORED) < pck3d(a, b)


@FAST
@given(seeds, st.lists(st.sampled_from(["walk", "sit", "eat"]), min_size=2, max_size=12))
def test_means_over_groups_and_joints(seed, labels):
    a, b = pair(len(labels), seed)
    rows = [sum(r) / len(r) for r in naive_errors(a, b)]
    result = mean_over_groups(a, b, labels)
    want = {k: [e for e, other in zip(rows, labels) if other == k] for k in set(labels)}
    assert abs(float(result.mean) - sum(sum(v) / len(v) for v in want.values()) / len(want)) < 1e-9
    assert abs(float(result.pooled) - sum(rows) / len(rows)) < 1e-9
    assert all(k in repr(result) for k in want) and "over all poses" in repr(result) and "mean over groups" in repr(result)
    each = per_joint(a, b)
    assert list(each) == list(H36M.names) and float(each["hip"]) == 0
    assert abs(sum(map(float, each.values())) / 16 - float(mpjpe(a, b))) < 1e-9


@FAST
@given(seeds, st.sampled_from(["torso", "head"]))
def test_pck2d_against_a_loop(seed, normaliser):
    g = torch.Generator().manual_seed(seed)
    given, true = torch.rand(2, 6, 14, 2, generator=g, dtype=torch.float64).mul(100).unbind()
    seen, size = torch.rand(6, 14, generator=g) < 0.8, torch.rand(6, generator=g, dtype=torch.float64) * 200 + 20
    hits = [math.dist(a, b) < 0.5 * s for p, q, m, s in zip(given.tolist(), true.tolist(), seen.tolist(), size.tolist()) for a, b, v in zip(p, q, m) if v]
    assert abs(float(pck2d(given, true, seen, size, normaliser, 0.5)) - 100 * sum(hits) / len(hits)) < 1e-9


def test_body_sizes():
    layout, joints = skeleton("LSP14"), torch.zeros(1, 14, 2)
    assert (layout.index("right_hip"), layout.index("left_shoulder")) == (2, 9)
    joints[0, 9] = torch.tensor([30., 40.])
    assert torso_size(joints).tolist() == [50]
    assert abs(head_size(torch.tensor([[10., 10., 40., 50.]])).item() - 30) < 1e-5
    with pytest.raises(MetricError, match="left_shoulder"): torso_size(joints, dataclasses.replace(layout, names=tuple("abcdefghijklmn")))


@FAST
@given(seeds)
def test_oks_against_a_loop(seed):
    g, layout = torch.Generator().manual_seed(seed), skeleton("COCO17")
    true = torch.rand(5, 17, 2, generator=g, dtype=torch.float64) * 200
    given = true + torch.randn(5, 17, 2, generator=g, dtype=torch.float64) * 8
    flags, area = torch.randint(0, 3, (5, 17), generator=g), torch.rand(5, generator=g, dtype=torch.float64) * 9000 + 500
    flags[:, 0] = 2
    for row, p, q, v, a in zip(oks(given, true, flags, area).tolist(), given.tolist(), true.tolist(), flags.tolist(), area.tolist()):
        terms = [math.exp(-(math.dist(x, y) ** 2) / (2 * a * (2 * s) ** 2)) for x, y, f, s in zip(p, q, v, layout.sigmas) if f > 0]
        assert abs(row - sum(terms) / len(terms)) < 1e-9
    assert oks(true, true, flags, area).tolist() == pytest.approx([1.0] * 5)


def test_oks_against_pycocotools():
    cocoeval = pytest.importorskip("pycocotools.cocoeval", reason="pycocotools is not installed")
    from pycocotools.coco import COCO
    g = torch.Generator().manual_seed(0)
    true = torch.rand(17, 2, generator=g, dtype=torch.float64) * 200
    given, flags = true + 6, torch.randint(1, 3, (17,), generator=g)
    row = lambda p, v: torch.cat([p, v[:, None].double()], 1).flatten().tolist()
    ann = dict(id=1, image_id=1, category_id=1, keypoints=row(true, flags), num_keypoints=17, area=5000.0, iscrowd=0, bbox=[0, 0, 200, 200])
    coco = COCO()
    coco.dataset = dict(images=[dict(id=1)], categories=[dict(id=1, name="person")], annotations=[ann], info={})
    coco.createIndex()
    result = coco.loadRes([dict(image_id=1, category_id=1, keypoints=row(given, flags), score=1.0)])
    theirs = cocoeval.COCOeval(coco, result, "keypoints")
    theirs._prepare()
    assert abs(theirs.computeOks(1, 1).item() - oks(given[None], true[None], flags[None], torch.tensor([5000.0], dtype=torch.float64)).item()) < 1e-9


@FAST
@given(seeds, st.integers(2, 6))
def test_parsing_against_sets(seed, classes):
    g = torch.Generator().manual_seed(seed)
    given, true = torch.randint(0, classes, (2, 9, 7), generator=g).unbind()
    true = torch.where(torch.rand(9, 7, generator=g) < 0.1, 255, true)
    cells = [(p, t) for p, t in zip(given.flatten().tolist(), true.flatten().tolist()) if t != 255]
    want = {}
    for c in range(classes):
        both, either = sum(p == t == c for p, t in cells), sum(c in (p, t) for p, t in cells)
        if either: want[c] = 100 * both / either
    confusion = confusion_matrix(given, true, classes)
    assert iou_per_class(confusion) == pytest.approx(want, abs=1e-9) and int(confusion.sum()) == len(cells)
    assert abs(float(miou(given, true, classes)) - sum(want.values()) / len(want)) < 1e-9
    assert abs(float(parsing_scores(confusion)["pixel accuracy"]) - 100 * sum(p == t for p, t in cells) / len(cells)) < 1e-9
    recalls = [sum(p == t == c for p, t in cells) / sum(t == c for _, t in cells) for c in range(classes) if any(t == c for _, t in cells)]
    assert abs(float(parsing_scores(confusion)["mean accuracy"]) - 100 * sum(recalls) / len(recalls)) < 1e-9
    halves = confusion_matrix(given[:4], true[:4], classes) + confusion_matrix(given[4:], true[4:], classes)
    assert torch.equal(halves, confusion), "matrices of parts must add up"


@FAST
@given(seeds, st.integers(1, 20), st.booleans())
def test_retrieval_against_a_loop(seed, queries, cameras):
    g = torch.Generator().manual_seed(seed)
    distance = torch.randint(0, 9, (queries, 30), generator=g).float()          # many ties
    q, d, qc, dc = (torch.randint(0, top, (n,), generator=g) for top, n in ((4, queries), (4, 30), (2, queries), (2, 30)))
    q[0], qc[0], d[0], dc[0] = 1, 0, 1, 1
    firsts, precisions = [], []
    for row, who, where in zip(distance.tolist(), q.tolist(), qc.tolist()):
        answers = [j for j in sorted(range(30), key=lambda j: (row[j], j)) if not (cameras and d[j] == who and dc[j] == where)]
        right = [i + 1 for i, j in enumerate(answers) if d[j] == who]
        if right: firsts.append(right[0]); precisions.append(sum((k + 1) / r for k, r in enumerate(right)) / len(right))
    scores = cmc_map(distance, q, d, *((qc, dc) if cameras else ()), ranks=(1, 3))
    assert scores["mAP"].n == len(firsts)
    assert abs(float(scores["mAP"]) - 100 * sum(precisions) / len(precisions)) < 1e-9
    for k in (1, 3): assert abs(float(scores[f"rank-{k}"]) - 100 * sum(f <= k for f in firsts) / len(firsts)) < 1e-9


def test_results_keep_their_meaning():
    a, b = MetricResult(3.0, "mm", "P", 2, True), MetricResult(4.0, "mm", "P", 2, True)
    assert a < b and a <= b and b > a and b >= a and b - a == 1 and a.better_than(b) and not b.better_than(a) and float(a) == 3
    assert MetricResult.from_dict(a.to_dict()) == a and "mm" in repr(a) and "n=2" in repr(a)
    high = [dataclasses.replace(x, lower_is_better=False) for x in (a, b)]
    assert high[1].better_than(high[0])
    for wrong in (dict(unit="m"), dict(protocol="Q"), dict(lower_is_better=False)):
        with pytest.raises(MetricError, match=next(iter(wrong))): a < dataclasses.replace(b, **wrong)
    with pytest.raises(MetricError, match="did you mean 'value'"): MetricResult.from_dict(a.to_dict() | dict(valeu=1))
    with pytest.raises(MetricError, match="missing: n"): MetricResult.from_dict({k: v for k, v in a.to_dict().items() if k != "n"})
