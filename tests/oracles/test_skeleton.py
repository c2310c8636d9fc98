"Layouts against published index lists, conversion against a loop, adjacency against formulas written out."
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hclab.core.config import samples_dir
from hclab.core.skeleton import (ADJACENCY_KINDS, COCO17, H36M16, NTU25, SKELETONS, WHOLEBODY133, Skeleton, SkeletonError, adjacency,
                                 anatomy, conversion, convert, convert_visible, hops, mirror, partitions, rest_pose, skeleton)

names = st.sampled_from(sorted(SKELETONS))
LAYOUTS = sorted(SKELETONS)


def pose(name, seed=0, batch=()):
    return torch.randn(*batch, len(skeleton(name)), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_importing_a_layout_does_not_load_torch():
    code = "import sys, hclab.core.skeleton as s; s.skeleton('H36M16').parents; s.conversion('COCO17', 'H36M16'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_sizes_and_pairs_of_the_data_sets():
    sizes = dict(COCO17=17, H36M16=16, H36M17=17, H36M32=32, NTU25=25, MPII16=16, LSP14=14, ITOP15=15, UIPRMD22=22, CMU31=31, MOCAP20=20,
                 MPI3DHP17=17, WHOLEBODY133=133)
    assert {n: len(s) for n, s in SKELETONS.items()} == sizes
    pairs = dict(COCO17=8, H36M16=6, H36M17=6, H36M32=13, NTU25=10, MPII16=6, LSP14=6, ITOP15=6, UIPRMD22=8, CMU31=12, MOCAP20=7, MPI3DHP17=6,
                 WHOLEBODY133=8 + 3 + 29 + 21)
    assert {n: len(s.pairs) for n, s in SKELETONS.items()} == pairs


@pytest.mark.parametrize("name, parents", [
    ("UIPRMD22", [-1, 0, 1, 2, 3, 4, 2, 6, 7, 8, 2, 10, 11, 12, 0, 14, 15, 16, 0, 18, 19, 20]),
    ("H36M16", [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 8, 10, 11, 8, 13, 14]),
])
def test_published_parents(name, parents):
    assert skeleton(name).parents == parents


def test_bones_of_ntu_are_those_of_the_papers():
    papers = [(1, 2), (2, 21), (3, 21), (4, 3), (5, 21), (6, 5), (7, 6), (8, 7), (9, 21), (10, 9), (11, 10), (12, 11), (13, 1), (14, 13), (15, 14), (16, 15),
              (17, 1), (18, 17), (19, 18), (20, 19), (22, 23), (23, 8), (24, 25), (25, 12)]
    assert {(c + 1, p + 1) for p, c in NTU25.edges} == set(papers)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_one_mirror_symmetric_tree(name):
    s = skeleton(name)
    assert len(s.edges) == len(s) - 1 and torch.isfinite(hops(s)).all()
    swap = s.mirror_order
    assert {(swap[p], swap[c]) for p, c in s.edges} == set(s.edges)
    assert len(s.colours) == len(s.edges) and all(side == "centre" or s.sides[c] == side or s.sides[p] == side
                                                  for (p, c), side in zip(s.edges, s.edge_sides, strict=True))


def test_sigmas():
    assert len(COCO17.sigmas) == 17 and len(WHOLEBODY133.sigmas) == 133 and WHOLEBODY133.sigmas[:17] == COCO17.sigmas
    assert COCO17.sigmas[11] == .107 and COCO17.sigmas[5] == .079


BAD = [("came twice", dict(names=("a", "a", "c"))), ("out of range", dict(edges=((0, 1), (1, 3)))), ("out of range", dict(root=3)), ("with itself", dict(pairs=((1, 1),))),
       ("two mirror pairs", dict(pairs=((0, 1), (1, 2)))), ("two parents", dict(edges=((0, 1), (0, 2), (1, 2)))), ("circle", dict(edges=((1, 2), (2, 1)))),
       ("points at the root", dict(edges=((1, 0),))), ("sigmas", dict(sigmas=(.1,))), ("colours", dict(colours=("#000000",))), ("out of range", dict(loops=((0, 7),)))]


@pytest.mark.parametrize("text, change", BAD)
def test_contradictions_are_refused(text, change):
    with pytest.raises(SkeletonError, match=text):
        Skeleton(**{**dict(name="x", names=("a", "b", "c"), edges=((0, 1), (1, 2))), **change})


def test_lookup_teaches():
    with pytest.raises(SkeletonError, match="did you mean 'H36M16'"): skeleton("h36m16")
    with pytest.raises(SkeletonError, match="left_wrist"): COCO17.index("left_wirst")
    with pytest.raises(SkeletonError, match="need 16 joints"): convert(torch.zeros(17, 3), "H36M16", "COCO17")
    with pytest.raises(SkeletonError, match="symmetric"): adjacency("COCO17", "symmetrical")


@settings(max_examples=60, deadline=None)
@given(names, names, st.integers(0, 99), st.booleans())
def test_convert_equals_a_loop_over_its_rules(a, b, seed, stand_ins):
    x = pose(a, seed, (2,))
    y, mask, derived = convert(x, a, b, stand_ins)
    assert y.shape == (2, len(skeleton(b)), 3) and y.dtype == x.dtype
    for j, rule in enumerate(conversion(a, b, stand_ins)):
        want = sum(x[:, i] for i in rule.sources) / len(rule.sources) if rule.sources else torch.zeros(2, 3, dtype=x.dtype)
        assert torch.allclose(y[:, j], want) and mask[j] == bool(rule.sources) and derived[j] == (rule.kind in ("mean", "stand-in"))
        assert stand_ins or rule.kind != "stand-in"


@settings(max_examples=60, deadline=None)
@given(names, names, st.integers(0, 99))
def test_there_and_back_keeps_every_shared_joint(a, b, seed):
    x = pose(a, seed)
    y, mask, derived = convert(x, a, b)
    back, mask2, derived2 = convert(y, b, a)
    shared = [i for i, p in enumerate(anatomy(skeleton(a))) if p in anatomy(skeleton(b))]
    assert torch.equal(back[shared], x[shared]) and mask2[shared].all() and not derived2[shared].any()
    assert (mask & ~derived).sum() == len(shared)


@settings(max_examples=60, deadline=None)
@given(names, names, st.integers(0, 200))
def test_nan_reaches_only_what_depends_on_it(a, b, joint):
    joint %= len(skeleton(a))
    x = pose(a)
    x[joint] = math.nan
    bad = convert(x, a, b)[0].isnan().any(-1).tolist()
    depends = [joint in r.sources for r in conversion(a, b)]
    assert bad == depends
    seen = convert_visible(~x.isnan().any(-1), a, b).tolist()
    assert seen == [bool(r.sources) and not d for r, d in zip(conversion(a, b), depends, strict=True)]


@settings(max_examples=60, deadline=None)
@given(names, names)
def test_left_stays_left(a, b):
    "Converting and mirroring commute, and no rule takes a left joint from the right."
    y, mask, _ = convert(rest_pose(a), a, b)
    s = skeleton(b)
    for j in range(len(s)):
        if mask[j] and s.sides[j] != "centre": assert (y[j, 0] > 0) == (s.sides[j] == "left")
    x = pose(a)
    assert torch.allclose(convert(mirror(x, a), a, b)[0], mirror(convert(x, a, b)[0], b))


@pytest.mark.parametrize("src, dst, want", [
    ("MPI3DHP17", "H36M16", [14, 8, 9, 10, 11, 12, 13, 15, 1, 0, 5, 6, 7, 2, 3, 4]),
    ("H36M32", "H36M17", [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]),
    ("H36M17", "H36M16", [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16]),
    ("LSP14", "MPII16", [0, 1, 2, 3, 4, 5, None, None, 12, 13, 6, 7, 8, 9, 10, 11]),
    ("NTU25", "MPII16", [18, 17, 16, 12, 13, 14, 0, 20, 2, 3, 10, 9, 8, 4, 5, 6]),
])
def test_published_conversions(src, dst, want):
    assert [r.sources[0] if len(r.sources) == 1 else None for r in conversion(src, dst)] == want


def test_integer_pixels_and_numpy():
    x = np.arange(34).reshape(17, 2)
    y, _, _ = convert(x, "COCO17", "H36M16")
    assert y[0].tolist() == ((x[11] + x[12]) / 2).tolist()


@settings(max_examples=40, deadline=None)
@given(names, st.integers(0, 99), st.integers(0, 2))
def test_mirror_is_an_involution(name, seed, axis):
    x = pose(name, seed, (3,))
    assert torch.equal(mirror(mirror(x, name, axis), name, axis), x)
    s = skeleton(name)
    l, r = s.pairs[0]
    m = mirror(x, name, axis)
    assert torch.equal(m[:, l, axis], -x[:, r, axis]) and torch.equal(m[:, l, (axis + 1) % 3], x[:, r, (axis + 1) % 3])


@pytest.mark.parametrize("name", LAYOUTS)
def test_rest_pose_is_its_own_mirror_image(name):
    rest = rest_pose(name)
    assert torch.allclose(mirror(rest, name), rest, atol=1e-6) and rest[:, 2].min() > 0


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("kind", ADJACENCY_KINDS)
def test_adjacency_against_the_formula(name, kind):
    s = skeleton(name)
    J = len(s)
    A = np.zeros((J, J))
    for p, c in s.edges: A[p, c] = A[c, p] = 1
    S = A + np.eye(J)
    D, DA = np.diag(S.sum(1)), np.diag(A.sum(1))
    root = np.diag(np.diag(D) ** -.5)
    want = dict(binary=S, symmetric=root @ S @ root, row=np.linalg.inv(D) @ S, column=S @ np.linalg.inv(D), row_then_self=np.linalg.inv(DA) @ A + np.eye(J))[kind]
    assert np.allclose(adjacency(name, kind, dtype=torch.float64), want, atol=1e-12)


def test_adjacency_numbers_of_the_global_node_paper():
    A = adjacency(H36M16, "symmetric", dtype=torch.float64)
    assert adjacency(H36M16, "binary").sum(1).tolist() == [4, 3, 3, 2, 3, 3, 2, 3, 5, 2, 3, 3, 2, 3, 3, 2]
    assert (A != 0).sum() == 46 and A[0, 0] == .25 and abs(A[8, 8] - .2) < 1e-12
    assert abs(A.sum(1).min() - .816) < 1e-3 and abs(A.sum(1).max() - 1.291) < 1e-3


def test_partitions_against_a_loop_over_pairs_of_joints():
    s, J = NTU25, 25
    A = adjacency(s, "column")
    parent = s.parents

    def depth(j): return 0 if parent[j] < 0 else 1 + depth(parent[j])
    want = torch.zeros(3, J, J)
    for i in range(J):
        for j in range(J):
            part = 0 if i == j else 1 if depth(i) < depth(j) else 2
            want[part, i, j] = A[i, j]
    assert torch.equal(partitions(s, "spatial"), want)
    assert torch.equal(partitions(s, "distance")[1], want[1] + want[2]) and partitions(s, "uniform").shape == (1, J, J)


def test_a_forest_has_a_head_for_each_part():
    s = Skeleton("two", ("a", "b", "c", "d"), ((0, 1), (2, 3)))
    assert s.parents == [-1, 0, -1, 2] and hops(s)[0, 2] == math.inf


@pytest.mark.skipif(samples_dir() is None, reason="no HCLAB_SAMPLES: the recordings are not part of the project")
def test_layouts_against_the_recordings():
    "Names and trees as the files themselves state them."
    clips = np.load(samples_dir() / "motions" / "mocap_joints20_30hz.npz")
    assert tuple(clips["joint_names"]) == skeleton("MOCAP20").names
    kinect = np.load(samples_dir() / "uiprmd" / "uiprmd_kinect22_s01-08.npz")
    assert kinect["parents"].tolist() == skeleton("UIPRMD22").parents
    lines = (samples_dir() / "cmu" / "01.asf").read_text().split(":hierarchy")[1].split("begin")[1].split("end")[0].strip().splitlines()
    tree = {(words[0], child) for words in map(str.split, lines) for child in words[1:]}
    s = skeleton("CMU31")
    assert {(s.names[p], s.names[c]) for p, c in s.edges} == tree
