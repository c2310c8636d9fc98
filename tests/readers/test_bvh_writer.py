"""BVH out and in again: a rig of our own, a recorded walk, all six orders, and clips that can't be written. Broken text must end in the reader's own error."""
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hclab.core.config import samples_dir
from hclab.core.geometry import quaternion_to_matrix
from hclab.core.skeleton import Skeleton, convert
from hclab.data.grammar import generate
from hclab.data.motion import Clip, ClipError, forward_kinematics
from hclab.data.readers.bvh import ORDERS, BVHError, axis_rotation, euler_angles, read_bvh, to_h36m, write_bvh

NAMES = ("hips", "left_hip", "left_knee", "left_knee_end", "right_hip", "right_knee", "spine", "head", "head_end")
RIG = Skeleton("rig", NAMES, ((0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (0, 6), (6, 7), (7, 8)), ((1, 4), (2, 5)))
OFFSETS = torch.tensor([[0, 0, 0], [.1, 0, 0], [0, 0, -.4], [0, 0, -.4], [-.1, 0, 0], [0, 0, -.4], [0, .02, .5], [0, 0, .2], [0, 0, .1]])


def person(frames=70, seed=0):
    "A clip longer than one block of the writer, every joint turned anyhow; ends don't turn."
    g = torch.Generator().manual_seed(seed)
    q = torch.nn.functional.normalize(torch.randn(frames, len(NAMES), 4, generator=g), dim=-1)
    q[:, [3, 8]] = torch.tensor([1.0, 0, 0, 0])
    root = torch.randn(frames, 3, generator=g)
    return Clip(forward_kinematics(RIG, OFFSETS, q, root), RIG, 50.0, "tumble", 1, rotations=q, offsets=OFFSETS)


def apart(a, b):
    "Largest distance of joints in metres and largest angle in degrees between two clips, joints matched by name."
    at = [b.skeleton.index(n) for n in a.skeleton.names]
    dot = (a.rotations.double() * b.rotations[:, at].double()).sum(-1).abs().clamp(max=1)
    return float((a.joints - b.joints[:, at]).norm(dim=-1).max()), math.degrees(2 * float(torch.acos(dot).max()))


@pytest.mark.parametrize("order", ORDERS)
def test_out_and_in_again(tmp_path, order):
    clip = person()
    write_bvh(clip, tmp_path / "a.bvh", order)
    again = read_bvh(tmp_path / "a.bvh", unit_metres=.01)
    far, angle = apart(clip, again)
    assert far < 1e-5 and angle < .1 and abs(again.fps - 50) < 1e-6 and len(again) == 70
    assert again.skeleton.names == NAMES, "the End Site of no length behind a bare leaf is not read as a joint"
    assert torch.allclose(again.offsets[[again.skeleton.index(n) for n in NAMES]], OFFSETS, atol=1e-6)
    assert f"CHANNELS 3 {order[0]}rotation {order[1]}rotation {order[2]}rotation" in (tmp_path / "a.bvh").read_text()


def test_three_times_is_the_same_file(tmp_path):
    "read(write(read(write(clip)))): after one round the tree and the numbers stay."
    write_bvh(person(), tmp_path / "a.bvh")
    once = read_bvh(tmp_path / "a.bvh", unit_metres=.01)
    write_bvh(once, tmp_path / "b.bvh")
    twice = read_bvh(tmp_path / "b.bvh", unit_metres=.01)
    assert once.skeleton.names == twice.skeleton.names and once.skeleton.edges == twice.skeleton.edges
    assert apart(once, twice)[0] < 1e-5 and apart(once, twice)[1] < .1 and torch.allclose(once.offsets, twice.offsets, atol=1e-7)
    half = lambda name: (tmp_path / name).read_text().split("MOTION")[0]
    assert half("a.bvh") == half("b.bvh")


def test_an_end_that_turns_or_has_no_length_survives(tmp_path):
    "Neither fits into an End Site, so each is written as a joint."
    clip = person(5)
    q, offsets = clip.rotations.clone(), OFFSETS.clone()
    q[:, 3] = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    offsets[8] = 0
    clip = replace(clip, rotations=q, offsets=offsets, joints=forward_kinematics(RIG, offsets, q, clip.joints[:, 0]))
    write_bvh(clip, tmp_path / "a.bvh")
    again = read_bvh(tmp_path / "a.bvh", unit_metres=.01)
    assert again.skeleton.names == NAMES and again.skeleton.edges == RIG.edges and torch.allclose(again.offsets, offsets, atol=1e-6)
    assert apart(clip, again)[0] < 1e-5 and apart(clip, again)[1] < .1


@pytest.mark.parametrize("up", ["y", "z"])
@pytest.mark.parametrize("unit", [1.0, .01, .0254, .001])
def test_units_and_axes(tmp_path, up, unit):
    clip = person(3)
    write_bvh(clip, tmp_path / "a.bvh", "XYZ", unit, up)
    assert apart(clip, read_bvh(tmp_path / "a.bvh", unit_metres=unit, up=up))[0] < 2e-5


def test_the_recorded_walk_goes_out_and_comes_back(tmp_path):
    path = samples_dir() and samples_dir() / "cmu" / "cmu_12_01_walk.bvh"
    if not (path and path.is_file()): pytest.skip("HCLAB_SAMPLES does not hold cmu/cmu_12_01_walk.bvh")
    clip = read_bvh(path)
    assert clip.rotations is not None
    for order in ("ZXY", "YZX"):
        write_bvh(clip, tmp_path / "walk.bvh", order)
        again = read_bvh(tmp_path / "walk.bvh")
        assert again.skeleton.names == clip.skeleton.names and "centimetre" in again.source
        far, angle = apart(clip, again)
        assert far < 5e-5 and angle < .1


@pytest.mark.parametrize("order", ORDERS)
def test_angles_make_the_rotation_again_also_where_two_axes_fall_together(order):
    q = torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    R = quaternion_to_matrix(q).numpy()
    locked = np.concatenate([axis_rotation(order[0], np.array([30.])) @ axis_rotation(order[1], np.array([b])) @ axis_rotation(order[2], np.array([70.])) for b in (90., -90., 89.99999)])
    for M in (R, locked, np.eye(3)[None]):
        a = euler_angles(M, order)
        again = axis_rotation(order[0], a[:, 0]) @ axis_rotation(order[1], a[:, 1]) @ axis_rotation(order[2], a[:, 2])
        assert np.abs(again - M).max() < 1e-6 and np.abs(a[:, 1]).max() <= 90 + 1e-9


def test_position_channels_that_stand_still_are_offsets_and_moving_ones_take_the_rotations_away(tmp_path):
    text = ("HIERARCHY\nROOT a {\nOFFSET 0 0 0\nCHANNELS 3 Zrotation Xrotation Yrotation\nJOINT b {\nOFFSET 9 9 9\n"
            "CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation\nEnd Site { OFFSET 0 .5 0 }\n}\n}\nMOTION\nFrames: 2\nFrame Time: .02\n0 0 0 0 .5 0 0 0 0\n0 0 0 0 {} 0 0 0 0\n")
    (tmp_path / "a.bvh").write_text(text.replace("{}", ".50005"))
    still = read_bvh(tmp_path / "a.bvh", unit_metres=1.0)
    assert still.rotations is not None and torch.allclose(still.offsets[1], torch.tensor([0, 0, .500025]), atol=1e-6)
    (tmp_path / "a.bvh").write_text(text.replace("{}", ".6"))
    stretched = read_bvh(tmp_path / "a.bvh", unit_metres=1.0)
    assert stretched.rotations is None and stretched.offsets is None and abs(float(stretched.joints[1, 1, 2]) - .6) < 1e-6


def test_what_cannot_be_written_says_why_and_leaves_no_file(tmp_path):
    clip, path = person(2), tmp_path / "a.bvh"
    with pytest.raises(BVHError, match="no rotations"): write_bvh(replace(clip, rotations=None, offsets=None), path)
    with pytest.raises(BVHError, match="rotation order 'XYX'.*did you mean"): write_bvh(clip, path, "XYX")
    with pytest.raises(BVHError, match="up must be"): write_bvh(clip, path, up="x")
    for unit in (0, -1, math.nan, math.inf):
        with pytest.raises(BVHError, match="unit_metres"): write_bvh(clip, path, unit_metres=unit)
    for name in ("a{b", "", " a", "a\nb", "a  b"):
        with pytest.raises(BVHError, match="joint's name"): write_bvh(replace(clip, skeleton=replace(RIG, names=(name, *NAMES[1:]), colours=())), path)
    with pytest.raises(OSError): write_bvh(clip, tmp_path / "no" / "such" / "folder.bvh")
    assert not list(tmp_path.iterdir())


def test_a_name_of_two_words_survives(tmp_path):
    clip = person(2)
    write_bvh(replace(clip, skeleton=replace(RIG, names=("my hips", *NAMES[1:]), colours=())), tmp_path / "a.bvh")
    assert read_bvh(tmp_path / "a.bvh", unit_metres=.01).skeleton.names[0] == "my hips"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    "The bytes of a small file that is right."
    path = tmp_path_factory.mktemp("bvh") / "g.bvh"
    write_bvh(person(4), path)
    return path.read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_end_in_the_readers_own_error(tmp_path, good, data):
    start, length = data.draw(st.integers(0, len(good))), data.draw(st.integers(0, 60))
    middle = data.draw(st.one_of(st.binary(max_size=20), st.sampled_from([b"nan", b"1e999", b"{", b"}", b"\n", b"JOINT x {", b"9" * 400, b"-", b"Frames: 999999999"])))
    (tmp_path / "x.bvh").write_bytes(good[:start] + middle + good[start + length:])
    try: read_bvh(tmp_path / "x.bvh", unit_metres=.01)
    except (BVHError, ClipError): pass

@pytest.mark.parametrize("layout", ["H36M16", "H36M17"])
def test_the_drawn_figure_comes_back_as_h36m(tmp_path, layout):
    clip = generate("throw", 1, 1.0, layout="FIGURE")
    write_bvh(clip, tmp_path / "throw.bvh")
    body = to_h36m(read_bvh(tmp_path / "throw.bvh"), layout)
    assert body.skeleton.name == layout and "the drawn figure" in body.source
    want, available = convert(clip.joints, clip.skeleton, layout)[:2]
    assert available.all() and (body.joints - want).norm(dim=-1).max() < .005   # the hip: middle of the hips here, the figure's own pelvis there
