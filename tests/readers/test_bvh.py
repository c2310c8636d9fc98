"""The BVH reader on files written here, by hand and by a small writer, on broken files, and on a recording where there is one."""
import math

import numpy as np
import pytest
import torch

from hclab.core.config import samples_dir
from hclab.data.measures import gait, heading
from hclab.data.motion import ClipError
from hclab.data.readers.bvh import BVHError, guess_unit, match_names, read_bvh, to_h36m

HEAD = """HIERARCHY
ROOT Hips
{
\tOFFSET 0 0 0
\tCHANNELS 6 Xposition Yposition Zposition Zrotation Yrotation Xrotation
\tJOINT LeftUpLeg
\t{
\t\tOFFSET 1.0e-1 0 0
\t\tCHANNELS 3 Xrotation Zrotation Yrotation
\t\tEnd Site
\t\t{
\t\t\tOFFSET 0 -0.9 0
\t\t}
\t}
}
"""
TAIL = "MOTION\nFrames: 2\nFrame Time: 0.01\n0 1 0 0 0 0 0 0 0\n1 1 -2 90 0 0 90 0 0\n"
GOOD = HEAD + TAIL

def write(folder, text, name="clip.bvh", **kw):
    path = folder / name
    path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text, **kw)
    return path

def test_positions_worked_by_hand(tmp_path):
    c = read_bvh(write(tmp_path, GOOD))
    assert c.skeleton.names == ("Hips", "LeftUpLeg", "LeftUpLeg_end") and c.fps == 100 and c.frame == "world"
    # rest, y up: hips (0,1,0), hip joint (.1,1,0), foot (.1,.1,0); z up: (x, -z, y)
    assert torch.allclose(c.joints[0], torch.tensor([[0, 0, 1], [.1, 0, 1], [.1, 0, .1]]), atol=1e-6)
    # hips turned by 90 about z: the offset (.1,0,0) becomes (0,.1,0); the leg turns (0,-.9,0) about x to (0,0,-.9), which z leaves alone
    assert torch.allclose(c.joints[1], torch.tensor([[1, 2, 1], [1, 2, 1.1], [1, 2.9, 1.1]]), atol=1e-6)

def test_each_joint_has_its_own_rotation_order(tmp_path):
    rot = lambda axis, d: np.array(dict(X=[[1, 0, 0], [0, math.cos(d), -math.sin(d)], [0, math.sin(d), math.cos(d)]], Y=[[math.cos(d), 0, math.sin(d)], [0, 1, 0], [-math.sin(d), 0, math.cos(d)]],
                                        Z=[[math.cos(d), -math.sin(d), 0], [math.sin(d), math.cos(d), 0], [0, 0, 1]])[axis])
    for order in ("XYZ", "XZY", "YXZ", "YZX", "ZXY", "ZYX"):
        text = HEAD.replace("Xrotation Zrotation Yrotation", " ".join(f"{a}rotation" for a in order)) + "MOTION\nFrames: 1\nFrame Time: 0.01\n0 0 0 0 0 0 20 -50 130\n"
        foot = np.array([.1, 0, 0]) + np.linalg.multi_dot([rot(a, math.radians(d)) for a, d in zip(order, (20, -50, 130))]) @ [0, -.9, 0]
        got = read_bvh(write(tmp_path, text)).joints[0, 2].double().numpy()
        assert np.allclose(got, [foot[0], -foot[2], foot[1]], atol=1e-6), order

def test_windows_lines_spaces_and_braces_change_nothing(tmp_path):
    plain = read_bvh(write(tmp_path, GOOD)).joints
    assert torch.equal(plain, read_bvh(write(tmp_path, GOOD.replace("\n", "\r\n").encode())).joints)
    assert torch.equal(plain, read_bvh(write(tmp_path, GOOD.replace("Hips\n{", "Hips {").replace("0 -0.9 0\n\t\t}", "0 -0.9 0 }").replace("\t", "  "))).joints)
    assert torch.equal(plain, read_bvh(write(tmp_path, GOOD.replace("0.01", "1E-2"), "a b'é.bvh")).joints)

def test_a_position_channel_on_a_limb_replaces_its_offset(tmp_path):
    text = HEAD.replace("3 Xrotation Zrotation Yrotation", "1 Yposition") + "MOTION\nFrames: 1\nFrame Time: .01\n0 0 0 0 0 0 .3\n"
    assert torch.allclose(read_bvh(write(tmp_path, text)).joints[0, 1], torch.tensor([.1, 0, .3]))

def test_units_are_given_or_guessed_and_always_told(tmp_path):
    scaled = lambda k: HEAD.replace("1.0e-1", f"{.1 * k}").replace("-0.9", f"{-.9 * k}") + f"MOTION\nFrames: 1\nFrame Time: .01\n0 {k} 0 0 0 0 0 0 0\n"
    for k, name in ((1, "metre"), (100, "centimetre"), (1000, "millimetre"), (1 / .0254, "inch"), (.45 / .0254, "CMU")):
        c = read_bvh(write(tmp_path, scaled(k)))
        assert f"guessed from the bones: {name}," in c.source and torch.allclose(c.joints[0, 0], torch.tensor([0, 0, 1.0]), atol=1e-5)
    c = read_bvh(write(tmp_path, scaled(3)), unit_metres=1 / 3)
    assert "given" in c.source and abs(float(c.joints[0, 0, 2]) - 1) < 1e-5
    with pytest.raises(BVHError, match="unit can't be told.*unit_metres"): read_bvh(write(tmp_path, scaled(4)))
    with pytest.raises(ClipError, match="impossible"): read_bvh(write(tmp_path, scaled(100)), unit_metres=1.0)
    with pytest.raises(BVHError, match="positive"): read_bvh(write(tmp_path, GOOD), unit_metres=0)

def test_z_up_files_stay_as_they_are(tmp_path):
    assert torch.allclose(read_bvh(write(tmp_path, GOOD), up="z").joints[1, 0], torch.tensor([1.0, 1, -2]))
    with pytest.raises(BVHError, match="up must be"): read_bvh(write(tmp_path, GOOD), up="sideways")

BROKEN = dict(
    empty=("", 1, "truncated"), html=("<html></html>", 1, "not a BVH"), binary=(b"\x89PNG\r\n\x1a\n\x00\x00", 1, "not a BVH"),
    no_motion=(HEAD, 15, "MOTION should follow"), cut_in_hierarchy=(GOOD[:120], 6, "truncated"),
    cut_in_frames=(HEAD + TAIL.replace("Frames: 2", "Frames: 3"), 20, "frame 3 of 3"), cut_in_a_frame=(GOOD[:-6], 20, "needs 9 numbers, got 7"),
    too_many_values=(GOOD.replace("0 1 0 0", "0 1 0 0 0"), 19, "needs 9 numbers, got 10"), nan=(GOOD.replace("1 1 -2", "1 nan -2"), 20, "number 2 of 9 is 'nan'"),
    infinite=(GOOD.replace("1 1 -2", "1 1e999 -2"), 20, "'1e999'"), word=(GOOD.replace("1 1 -2", "1 one -2"), 20, "no number"),
    channel=(GOOD.replace("Zrotation Yrotation Xrotation", "Zrotation Yrotation Wrotation"), 5, "unknown channel 'Wrotation'"),
    channel_twice=(GOOD.replace("Zrotation Yrotation Xrotation", "Zrotation Yrotation Zrotation"), 5, "twice"),
    channel_count=(GOOD.replace("CHANNELS 6", "CHANNELS many"), 5, "number"),
    zero_frames=(HEAD + "MOTION\nFrames: 0\nFrame Time: 0.01\n", 17, "zero frames"), negative_frames=(GOOD.replace("Frames: 2", "Frames: -2"), 17, "expected 'Frames"),
    frozen=(GOOD.replace("0.01", "0"), 18, "positive"), backwards=(GOOD.replace("0.01", "-0.01"), 18, "positive"), nan_time=(GOOD.replace("0.01", "nan"), 18, "Frame Time"),
    bomb=(GOOD.replace("Frames: 2", "Frames: 99999999999999999999"), 18, "announced"), more=(GOOD + "9 9 9\n", 20, "more follow"),
    offset=(GOOD.replace("1.0e-1 0 0", "1.0e-1 0"), 9, "OFFSET of LeftUpLeg"), no_offset=(GOOD.replace("\t\t\tOFFSET 0 -0.9 0\n", ""), 12, "no OFFSET"),
    twice=(GOOD.replace("JOINT LeftUpLeg", "JOINT Hips"), 7, "second joint"), two_people=(GOOD.replace("MOTION", "ROOT Other\n{\n"), 16, "second ROOT"),
    brace=(GOOD.replace("}\nMOTION", "}\n}\nMOTION"), 16, "'}' without"), open_brace=(GOOD.replace("}\nMOTION", "MOTION"), 15, "braces are open"),
    deep=("HIERARCHY\nROOT r {\nOFFSET 0 0 0\n" + "".join(f"JOINT j{i} {{\nOFFSET 0 0 0\n" for i in range(5000)), 402, "200 deep"),
    long_line=("HIERARCHY " + "x" * (2 << 20), 1, "million characters"))

@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_name_file_and_line(tmp_path, name):
    text, line, says = BROKEN[name]
    path = write(tmp_path, text, f"{name}.bvh")
    with pytest.raises(BVHError) as e: read_bvh(path)
    assert str(e.value).startswith(f"{path}:{line}: ") and says in str(e.value), str(e.value)

def test_a_missing_file_is_the_systems_own_error(tmp_path):
    with pytest.raises(FileNotFoundError): read_bvh(tmp_path / "nothing.bvh")

# -- a writer, so that a whole body goes out and comes back ------------------------------------------------------------------------------

def rig(convention):
    "(name, parent, offset) of a standing person, y up, facing +z, left is +x, metres."
    limbs = ("Hip", "Knee", "Ankle", "Shoulder", "Elbow", "Wrist") if convention == "Biovision" else ("UpLeg", "Leg", "Foot", "Arm", "ForeArm", "Hand")
    trunk = dict(zip(("CMU (Hahne)", "Mixamo", "Biovision"), (["LowerBack", "Spine", "Neck", "Head"], ["Spine", "Spine1", "Neck", "Head"], ["Chest", "Neck", "Head"])))[convention]
    bones = [("Hips", None, (0, 0, 0))]
    for name, parent in zip(trunk, ["Hips", *trunk]): bones.append((name, parent, (0, .6 / len(trunk), 0)))
    for side, s in (("Left", 1), ("Right", -1)):
        hip, knee, ankle, shoulder, elbow, wrist = (side + n for n in limbs)
        bones += [(hip, "Hips", (s * .1, -.08, 0)), (knee, hip, (0, -.42, 0)), (ankle, knee, (0, -.41, 0)), (shoulder, trunk[-2], (s * .18, 0, 0)), (elbow, shoulder, (s * .3, 0, 0)), (wrist, elbow, (s * .25, 0, 0))]
    return [(("mixamorig:" if convention == "Mixamo" else "") + n, ("mixamorig:" if convention == "Mixamo" else "") + p if p else None, o) for n, p, o in bones]

def to_text(bones, values):
    "A BVH file from `rig` bones and (T, 6 + 3 * rest) channel values."
    def node(name, parent, offset, indent):
        children = [b for b in bones if b[1] == name]
        pad, kind = "  " * indent, "JOINT" if parent else "ROOT"
        position = "" if parent else "Xposition Yposition Zposition "
        order.append(name)
        body = "".join(node(*c, indent + 1) for c in children) or f"{pad}  End Site\n{pad}  {{\n{pad}    OFFSET 0 0.1 0\n{pad}  }}\n"
        return f"{pad}{kind} {name}\n{pad}{{\n{pad}  OFFSET {offset[0]} {offset[1]} {offset[2]}\n{pad}  CHANNELS {3 if parent else 6} {position}Zrotation Xrotation Yrotation\n{body}{pad}}}\n"
    order = []
    tree = node(*bones[0], 0)
    return "HIERARCHY\n" + tree + f"MOTION\nFrames: {len(values)}\nFrame Time: 0.02\n" + "\n".join(" ".join(f"{v:.9g}" for v in row) for row in values) + "\n", order

@pytest.mark.parametrize("convention", ["CMU (Hahne)", "Mixamo", "Biovision"])
def test_a_body_goes_out_and_comes_back(tmp_path, convention):
    bones = rig(convention)
    values = np.random.default_rng(0).uniform(-40, 40, (5, 6 + 3 * (len(bones) - 1))); values[:, :3] = (3, 1, 2)
    values[0, 3:] = 0
    text, order = to_text(bones, values)
    c = read_bvh(write(tmp_path, text))
    assert set(order) <= set(c.skeleton.names) and len(c.skeleton.pairs) >= 6
    for name, parent, offset in bones:
        if parent: assert torch.allclose((c.joint(name) - c.joint(parent)).norm(dim=-1), torch.tensor(float(np.linalg.norm(offset))), atol=1e-5), name
    for layout in ("H36M17", "H36M16"):
        h = to_h36m(c, layout)
        assert h.skeleton.name == layout and h.fps == 50 and convention in h.source
        # it stands at (3, 1, 2) facing +z, which is -y in the world; its left is +x and must stay left
        assert torch.allclose(heading(h)[0], torch.tensor([0.0, -1, 0]), atol=1e-5)
        assert torch.allclose(h.joint("hip")[0], torch.tensor([3, -2, .92]), atol=1e-5)
        assert h.joint("left_wrist")[0, 0] > 3 > h.joint("right_wrist")[0, 0] and h.joint("head")[0, 2] > h.joint("thorax")[0, 2] > h.joint("spine")[0, 2] > .92
    again, _ = to_text(bones, np.loadtxt(tmp_path / "clip.bvh", skiprows=text.split("MOTION")[0].count("\n") + 3))
    assert torch.equal(read_bvh(write(tmp_path, again, "again.bvh")).joints, c.joints)

def test_unknown_names_list_what_was_found_and_needed(tmp_path):
    with pytest.raises(BVHError, match="also needs .*LeftHand.*Found: Hips, LeftUpLeg, LeftUpLeg_end"): to_h36m(read_bvh(write(tmp_path, GOOD)))
    with pytest.raises(BVHError, match="follow none"): match_names(["a", "b"])
    with pytest.raises(BVHError, match="H36M16 or H36M17"): to_h36m(read_bvh(write(tmp_path, GOOD)), "COCO17")
    with pytest.raises(BVHError): guess_unit(0.0)

def test_the_recorded_walk():
    path = samples_dir() and samples_dir() / "cmu" / "cmu_12_01_walk.bvh"
    if not (path and path.is_file()): pytest.skip("HCLAB_SAMPLES does not hold cmu/cmu_12_01_walk.bvh")
    clip = read_bvh(path)
    assert len(clip) == 524 and abs(clip.fps - 120) < .01 and len(clip.skeleton) == 38 and "CMU" in clip.source
    body = to_h36m(clip.slice(1))   # frame 0 is the T-pose of the conversion
    walk = gait(body)
    assert .5 < walk["speed"] < 1.6 and 70 < walk["cadence"] < 130 and walk["knee_max"] > 50
    ahead = torch.nn.functional.normalize(body.joint("hip")[-1] - body.joint("hip")[0], dim=0)
    assert (heading(body) @ ahead > .8).all(), "left and right are exchanged, or the pelvis walks backwards"
    for a, b in clip.skeleton.edges:
        length = (clip.joints[:, a] - clip.joints[:, b]).norm(dim=-1)
        assert length.max() - length.min() < 1e-5
