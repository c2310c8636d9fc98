"""ASF and AMC: positions worked by hand, every convention on its own, damaged files with file and line, and CMU's recordings where they are."""
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hclab.core.config import samples_dir
from hclab.core.skeleton import CMU31, convert
from hclab.data.measures import heading
from hclab.data.motion import ClipError, forward_kinematics
from hclab.data.readers.asfamc import AcclaimError, read_asf, read_asfamc, to_cmu31
from hclab.data.readers.bvh import read_bvh, write_bvh

UNIT = .0254 / .45


def bone(name, direction, length, axis="0 0 0 XYZ", dof="", limits=""):
    lines = ["  begin", "     id 1", f"     name {name}", f"     direction {direction}", f"     length {length}", f"     axis {axis}"]
    return "\n".join([*lines, *([f"    dof {dof}"] if dof else []), *([f"    limits {limits}"] if limits else []), "  end", ""])


ASF = ("# AST/ASF file\n# ------\n:version 1.10\n:name VICON\n:units\n  mass 1.0\n  length 0.45\n  angle deg\n:documentation\n   begin with any words\n"
       ":root\n   order TX TY TZ RX RY RZ\n   axis XYZ\n   position 0 0 0  \n   orientation 0 0 0 \n:bonedata\n"
       + bone("lhip", "1 0 0", 2) + bone("lfemur", "0 -1 0", 7, dof="rx ry rz", limits="(-160.0 20.0)\n           (-70.0 70.0)\n           (-inf inf)")
       + bone("ltibia", "0 -1 0", 7, "0 0 20 XYZ", "rx", "(-10.0 170.0)") + bone("back", "0 1 0", 8, dof="rx")
       + ":hierarchy\n  begin\n    root lhip back\n    lhip lfemur\n    lfemur ltibia\n  end\n")
HEAD = "#!OML:ASF H:\\a b\\c.ASF\n:FULLY-SPECIFIED\n:DEGREES\n"


def frame(number, root="0 20 0 0 0 0", lfemur="0 0 0", ltibia="0", back="0"): return f"{number}\nroot {root}\nback {back}\nlfemur {lfemur}\nltibia {ltibia}\n"


AMC = HEAD + frame(1) + frame(2, ltibia="9e1")


def write(folder, asf=ASF, amc=AMC):
    for name, text in (("a.asf", asf), ("a.amc", amc)): (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / "a.asf", folder / "a.amc"


def read(folder, asf=ASF, amc=AMC, **kw): return read_asfamc(*write(folder, asf, amc), **kw)


def rot(axis, degrees):
    "Written out, so that it shares nothing with the reader."
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array(dict(X=[[1, 0, 0], [0, c, -s], [0, s, c]], Y=[[c, 0, s], [0, 1, 0], [-s, 0, c]], Z=[[c, -s, 0], [s, c, 0], [0, 0, 1]])[axis])


def world(v): return torch.tensor([v[0], -v[2], v[1]], dtype=torch.float32) * UNIT


def test_positions_worked_by_hand(tmp_path):
    c = read(tmp_path)
    assert c.skeleton.names == ("root", "lhip", "lfemur", "ltibia", "back_pivot", "back") and c.fps == 120 and len(c) == 2 and "120 Hz assumed" in c.source
    for name, at in dict(root=(0, 20, 0), lhip=(2, 20, 0), lfemur=(2, 13, 0), ltibia=(2, 6, 0), back=(0, 28, 0)).items():
        assert torch.allclose(c.joint(name)[0], world(at), atol=1e-6), name
    # the knee bends by 90 degrees about its own x axis, which is (cos 20, sin 20, 0)
    u = np.array([math.cos(math.radians(20)), math.sin(math.radians(20)), 0]); v = np.array([0, -7.0, 0])
    assert torch.allclose(c.joint("ltibia")[1], world(np.array([2, 13, 0]) + np.cross(u, v) + u * (u @ v)), atol=1e-6)


def test_every_order_and_every_own_axis(tmp_path):
    "p = start + R_root C R C^-1 v, all products written out."
    angles, axis, root = (20, -50, 130), (15, -25, 35), (40, 10, -70)
    for order in ("XYZ", "XZY", "YXZ", "YZX", "ZXY", "ZYX"):
        asf = ASF.replace("order TX TY TZ RX RY RZ", "order " + " ".join(f"R{a}" for a in order) + " TZ TX TY")
        asf = asf.replace(bone("lfemur", "0 -1 0", 7, dof="rx ry rz", limits="(-160.0 20.0)\n           (-70.0 70.0)\n           (-inf inf)"),
                          bone("lfemur", "0 -1 0", 7, f"{axis[0]} {axis[1]} {axis[2]} {order}", " ".join(f"r{a.lower()}" for a in order)))
        amc = HEAD + frame(7, root=f"{root[0]} {root[1]} {root[2]} 3 1 2", lfemur="20 -50 130")
        chain = lambda values, order=order: rot(order[2], values[2]) @ rot(order[1], values[1]) @ rot(order[0], values[0])   # the first turns first
        C = np.eye(3)
        for letter in order: C = rot(letter, axis["XYZ".index(letter)]) @ C
        knee = np.array([1, 2, 3]) + chain(root) @ (np.array([2, 0, 0]) + C @ chain(angles) @ C.T @ np.array([0, -7, 0]))
        assert torch.allclose(read(tmp_path, asf, amc).joint("lfemur")[0], world(knee), atol=2e-6), order


def test_rotations_lead_to_the_joints_and_bones_keep_their_length(tmp_path):
    rng = np.random.default_rng(0)
    num = lambda n: " ".join(f"{x:.4f}" for x in rng.uniform(-60, 60, n))
    c = read(tmp_path, amc=HEAD + "".join(frame(t + 1, num(6), num(3), num(1), num(1)) for t in range(700)))   # more than one block
    assert torch.allclose(forward_kinematics(c.skeleton, c.offsets, c.rotations, c.joints[:, 0]), c.joints, atol=1e-5)
    for p, k in c.skeleton.edges: assert torch.allclose((c.joints[:, p] - c.joints[:, k]).norm(dim=-1), c.offsets[k].norm(), atol=1e-4)
    write_bvh(c, tmp_path / "a.bvh", "XZY")
    again = read_bvh(tmp_path / "a.bvh", unit_metres=.01)
    assert torch.allclose(again.joints[:, [again.skeleton.index(n) for n in c.skeleton.names]], c.joints, atol=2e-5)


def test_units_rates_and_angles_are_those_of_the_files_or_given(tmp_path):
    tall = lambda c: float(c.joint("back")[0, 2])
    assert abs(tall(read(tmp_path)) - 28 * UNIT) < 1e-5
    assert abs(tall(read(tmp_path, ASF.replace("length 0.45", "length 1.0"))) - 28 * .0254) < 1e-5
    assert abs(tall(read(tmp_path, unit_metres=.05)) - 1.4) < 1e-5
    assert read(tmp_path, fps=60).fps == 60 and read(tmp_path, amc=AMC.replace(":DEGREES\n", ":DEGREES\n:SAMPLES-PER-SECOND 100\n")).fps == 100
    plain = read(tmp_path).joints
    r = math.radians(90)
    assert torch.allclose(read(tmp_path, amc=AMC.replace(":DEGREES", ":RADIANS").replace("9e1", f"{r:.9f}")).joints, plain, atol=1e-6)
    radians = ASF.replace("angle deg", "angle rad").replace("0 0 20 XYZ", f"0 0 {math.radians(20):.9f} XYZ")
    assert torch.allclose(read(tmp_path, radians, AMC.replace(":DEGREES\n", "").replace("9e1", f"{r:.9f}")).joints, plain, atol=1e-6)
    moved = read(tmp_path, ASF.replace("position 0 0 0", "position 1 2 3").replace("orientation 0 0 0", "orientation 0 90 0"))
    assert torch.allclose(moved.joint("root")[0], world((1, 22, 3)), atol=1e-6) and torch.allclose(moved.joint("lhip")[0], world((1, 22, 1)), atol=1e-6)
    for wrong in (0, -1, math.nan, math.inf):
        with pytest.raises(AcclaimError, match="unit_metres"): read(tmp_path, unit_metres=wrong)
        with pytest.raises((AcclaimError, ClipError)): read(tmp_path, fps=wrong or -0.5)


def test_windows_lines_spaces_and_empty_lines_change_nothing(tmp_path):
    plain = read(tmp_path).joints
    assert torch.equal(plain, read(tmp_path, ASF.replace("\n", "\r\n"), AMC.replace("\n", "\r\n")).joints)
    assert torch.equal(plain, read(tmp_path, ASF.replace("\n", "\n\n"), AMC.replace("\n", "  \n\n")).joints)
    assert torch.equal(plain, read(tmp_path, amc=HEAD + frame(41) + frame(42, ltibia="90")).joints), "frames may be counted from anywhere"


def test_one_frame_is_a_clip_and_limits_are_kept(tmp_path):
    assert len(read(tmp_path, amc=HEAD + frame(1))) == 1
    asf = read_asf(tmp_path / "a.asf")
    assert asf.bones["lfemur"].limits == ((-160, 20), (-70, 70), (-math.inf, math.inf)) and asf.bones["lfemur"].dofs == ("rx", "ry", "rz") and asf.name == "VICON"


TIBIA = "  begin\n     id 1\n     name ltibia"
ASFS = dict(
    empty=("", 1, "truncated"), html=("<html>", 1, "no ASF file"), binary=(b"\x89PNG\r\n\x1a\n\0\0\0", 1, "no ASF file"), amc_for_asf=(AMC, 2, "unknown section"),
    cut=(ASF[:400], 29, "truncated"), no_hierarchy=(ASF.split(":hierarchy")[0], 51, ":hierarchy should follow"), no_end=(ASF[:-6], 56, "'end' should follow"),
    no_unit=(ASF.replace("  length 0.45\n", ""), 51, "no length in :units"), zero_unit=(ASF.replace("length 0.45", "length 0"), 7, "positive number"), metre=(ASF.replace("length 0.45", "length many"), 7, "no number"),
    angle=(ASF.replace("angle deg", "angle turns"), 8, "deg or rad"), no_root=(ASF.replace("   order TX TY TZ RX RY RZ\n", ""), 51, "no order in :root"), root_order=(ASF.replace("TX TY TZ RX RY RZ", "TX TY TZ RX RY RY"), 12, "each once"),
    root_axis=(ASF.replace("axis XYZ\n   position", "axis XYX\n   position"), 13, "rotation order 'XYX'"), bone_axis=(ASF.replace("0 0 20 XYZ", "0 0 20 XYW"), 40, "rotation order 'XYW'"), two_angles=(ASF.replace("0 0 20 XYZ", "0 20 XYZ"), 40, "three angles"),
    nan=(ASF.replace("direction 1 0 0", "direction nan 0 0"), 20, "'nan'"), infinite=(ASF.replace("length 7\n     axis 0 0 20", "length 1e999\n     axis 0 0 20"), 39, "'1e999'"), word=(ASF.replace("direction 1 0 0", "direction one 0 0"), 20, "no number"), two=(ASF.replace("direction 1 0 0", "direction 1 0"), 20, "three numbers"),
    negative=(ASF.replace("length 8", "length -8"), 51, "negative length"), long_direction=(ASF.replace("direction 1 0 0", "direction 5 0 0"), 23, "length 5, not 1"),
    slides=(ASF.replace("dof rx\n    limits", "dof rx tx\n    limits"), 41, "'tx' can't be read"), stretches=(ASF.replace("dof rx\n    limits", "dof l\n    limits"), 41, "'l' can't be read"), dof_twice=(ASF.replace("dof rx ry rz", "dof rx ry rx"), 30, "twice"),
    limits=(ASF.replace("(-10.0 170.0)", "(170 -10)"), 42, "lower first"), limits_open=(ASF.replace("(-10.0 170.0)", "(-10.0"), 42, "lower first"), limits_nan=(ASF.replace("(-10.0 170.0)", "(nan 170)"), 42, "lower first"), limits_count=(ASF.replace("(-10.0 170.0)", "(-10.0 170.0) (1 2)"), 43, "1 dofs but 2 limits"),
    twice=(ASF.replace("name ltibia", "name lfemur"), 43, "second bone called 'lfemur'"), called_root=(ASF.replace("name ltibia", "name root"), 43, "root is the root's"), nameless=(ASF.replace("     name ltibia\n", ""), 42, "no name"), lengthless=(ASF.replace("     length 8\n", ""), 50, "no length"),
    cycle=(ASF.replace("    lhip lfemur\n    lfemur ltibia\n", "    lfemur ltibia\n    ltibia lfemur\n"), 57, "one tree"), lost=(ASF.replace("    lfemur ltibia\n", ""), 56, "ltibia can't be reached"), unknown=(ASF.replace("    lfemur ltibia\n", "    lfemur ltiba\n"), 56, "did you mean 'ltibia'"),
    two_parents=(ASF.replace("    lfemur ltibia\n", "    lfemur ltibia\n    back ltibia\n"), 57, "second parent"), root_child=(ASF.replace("    lfemur ltibia\n", "    lfemur ltibia root\n"), 56, "the root has none"), itself=(ASF.replace("    lfemur ltibia\n", "    ltibia ltibia\n"), 57, "one tree"),
    stray=(ASF.replace(TIBIA, "  start\n" + TIBIA), 35, "expected 'begin'"), many=(ASF.replace(":hierarchy", "".join(bone(f"b{i}", "1 0 0", 1) for i in range(600)) + ":hierarchy"), None, "500 bones"),
    long_line=("# " + "x" * (2 << 20), 1, "million characters"))


@pytest.mark.parametrize("name", ASFS)
def test_broken_skeletons_name_file_and_line(tmp_path, name):
    text, line, says = ASFS[name]
    path = write(tmp_path, text)[0]
    with pytest.raises(AcclaimError) as e: read_asf(path)
    assert str(e.value).startswith(f"{path}:{line or ''}") and says in str(e.value), str(e.value)


AMCS = dict(
    empty=("", 1, "truncated"), header_only=(HEAD, 3, "the first frame should follow"), html=("<html>", 1, "no AMC file"), binary=(b"\x89PNG\r\n\x1a\n\0\0", 1, "no AMC file"), asf_for_amc=(ASF, 3, "no AMC file"),
    cut=(AMC[:-12], 12, "truncated"), cut_bone=(AMC[:-11], 12, "truncated"), cut_first=(HEAD + frame(1)[:20], 5, "a bone of the first frame (lfemur, ltibia, back to come)"), nan=(AMC.replace("9e1", "nan"), 13, "nan is no angle"), infinite=(AMC.replace("9e1", "-1e999"), 13, "-inf is no angle"), huge=(AMC.replace("9e1", "1e30"), 13, "no angle"),
    word=(AMC.replace("9e1", "ninety"), 13, "'ninety', which is no number"), nan_first=(AMC.replace("ltibia 0", "ltibia nan"), 8, "'nan'"), few=(AMC.replace("lfemur 0 0 0\nltibia 9e1", "lfemur 0 0\nltibia 9e1"), 12, "needs 3 numbers, got 2"), more=(AMC.replace("ltibia 9e1", "ltibia 9e1 3"), 13, "needs 1 numbers, got 2"),
    jump=(AMC.replace("\n2\n", "\n3\n"), 9, "expected frame 2"), missing=(AMC.replace("back 0\nlfemur 0 0 0\nltibia 9e1", "back 0\nltibia 9e1"), 12, "expected 'lfemur', got 'ltibia'"), missing_last=(AMC.replace("ltibia 9e1\n", "") + "3\n", 13, "frame 2 has no line for 'ltibia'"), twice=(AMC.replace("back 0\nlfemur 0 0 0\nltibia 9e1", "back 0\nback 0"), 12, "expected 'lfemur', got 'back'"),
    other_person=(AMC.replace("ltibia 9e1", "tail 9e1"), 13, "right .asf"), other_first=(AMC.replace("ltibia 0", "tail 0"), 8, "right .asf"), radians=(AMC.replace(":DEGREES", ":GRADIANS"), 3, "no AMC file"), rate=(AMC.replace(":DEGREES\n", ":DEGREES\n:SAMPLES-PER-SECOND 0\n"), 4, "between 1 and 10,000"),
    trailing=(AMC + "some words", 14, "expected frame 3"), huge_number=(AMC.replace("\n1\n", "\n" + "1" * 5000 + "\n"), 4, "no AMC file"), unfinished_bone=(HEAD + frame(1).replace("ltibia 0", "ltibia"), 8, "needs 1 numbers, got 0"))


@pytest.mark.parametrize("name", AMCS)
def test_broken_motions_name_file_and_line(tmp_path, name):
    text, line, says = AMCS[name]
    asf, amc = write(tmp_path, amc=text)
    with pytest.raises(AcclaimError) as e: read_asfamc(asf, amc)
    assert str(e.value).startswith(f"{amc}:{line}: ") and says in str(e.value), str(e.value)


def test_millimetres_a_missing_file_and_other_skeletons(tmp_path):
    with pytest.raises(ClipError, match="impossible"): read(tmp_path, unit_metres=1.0)
    with pytest.raises(FileNotFoundError): read_asfamc(tmp_path / "a.asf", tmp_path / "none.amc")
    with pytest.raises(FileNotFoundError): read_asf(tmp_path / "none.asf")
    with pytest.raises(AcclaimError, match="isn't CMU's skeleton"): to_cmu31(read(tmp_path))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["asf", "amc"]), st.data())
def test_damaged_files_end_in_the_readers_own_error(tmp_path, which, data):
    good = (ASF if which == "asf" else AMC).encode()
    start, length = data.draw(st.integers(0, len(good))), data.draw(st.integers(0, 80))
    middle = data.draw(st.one_of(st.binary(max_size=20), st.sampled_from([b"nan", b"1e999", b"\n:hierarchy\n", b"\nbegin\n", b"\nend\n", b"9" * 400, b"-", b" root ", b"\n3\n", b"\0", "é".encode()])))
    bad = good[:start] + middle + good[start + length:]
    try: read(tmp_path, **{which: bad})
    except (AcclaimError, ClipError): pass


# ------------------------------------------------------------------------------------------------ recordings
def recording(name):
    path = samples_dir() and samples_dir() / "cmu" / name
    if not (path and path.is_file()): pytest.skip(f"HCLAB_SAMPLES does not hold cmu/{name}")
    return path


@pytest.mark.parametrize("amc, frames", [("02_01.amc", 343), ("01_14.amc", 2338)])
def test_recordings_are_people(amc, frames):
    clip = read_asfamc(recording(amc[:2] + ".asf"), recording(amc))
    assert len(clip) == frames and clip.fps == 120 and clip.skeleton.name == "CMU39" and clip.rotations is not None
    points = to_cmu31(clip)
    assert points.skeleton == CMU31 and points.rotations is None
    lengths = torch.stack([(points.joints[:, a] - points.joints[:, b]).norm(dim=-1) for a, b in CMU31.edges], 1)
    assert (lengths.amax(0) - lengths.amin(0)).max() < 1e-5, "bones keep their lengths"
    # twins differ by the 4 mm and more of a fitted skeleton, not by a convention
    for l, r in CMU31.pairs:
        a, b = (clip.offsets[clip.skeleton.index(CMU31.names[j])].norm() for j in (l, r))
        assert abs(a - b) < .02
    legs = sum(float(lengths[:, i].mean()) for i in (1, 2))
    assert .7 < legs < 1.0 and torch.equal(convert(clip.joints, clip.skeleton, "H36M17")[0], convert(points.joints, "CMU31", "H36M17")[0])


def test_the_recorded_walk_goes_ahead_on_the_floor():
    clip = to_cmu31(read_asfamc(recording("02.asf"), recording("02_01.amc")))
    tall = (clip.joints[..., 2].amax(1) - clip.joints[..., 2].amin(1)).median()
    soles = torch.minimum(clip.joint("ltoes")[:, 2], clip.joint("rtoes")[:, 2])
    assert 1.5 < tall < 1.9 and -.03 < soles.min() and soles.median() < .06
    ahead = torch.nn.functional.normalize((clip.joint("root")[-1] - clip.joint("root")[0]) * torch.tensor([1.0, 1, 0]), dim=0)
    assert (heading(clip) @ ahead > .8).all(), "left and right are exchanged, or the walker walks backwards"
    speed = (clip.joint("root")[-1] - clip.joint("root")[0]).norm() / clip.duration
    assert .7 < speed < 1.8
    for side in "lr":
        thigh, shank = (clip.joint(side + b) - clip.joint(side + a) for a, b in (("hipjoint", "femur"), ("femur", "tibia")))
        bent = torch.rad2deg(torch.acos(torch.nn.functional.cosine_similarity(thigh, shank, dim=-1).clamp(-1, 1)))
        assert 3 < bent.min() < 20 and 55 < bent.max() < 85, "a knee in walking"
        folded = torch.nn.functional.normalize(shank - thigh, dim=-1)[bent.argmax()]
        assert folded @ ahead < -.5, "a knee folds backwards"
        pace = (clip.joint(side + "foot")[1:] - clip.joint(side + "foot")[:-1]).norm(dim=-1) * 120
        assert pace.quantile(.2) < .15 < 1.5 < pace.quantile(.9), "a foot stands, then swings"


MEMORY = """
import re, sys, torch
torch.set_num_threads(1)
from hclab.data.readers.asfamc import read_asf, read_asfamc
kib = lambda key: int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
asf = read_asf(sys.argv[1]); read_asfamc(asf, sys.argv[2])
before = kib("VmRSS")
clip = read_asfamc(asf, sys.argv[3])
print((kib("VmHWM") - before) * 1024, 4 * sum(x.numel() for x in (clip.joints, clip.rotations, clip.offsets)))
"""


def test_two_minutes_are_read_within_twice_the_clip(tmp_path):
    "Real frames where they are, else of the small skeleton; the notebook prints the time that it takes."
    folder = samples_dir() and samples_dir() / "cmu"
    asf, amc = (folder / "02.asf", folder / "02_01.amc") if folder and (folder / "02_01.amc").is_file() else write(tmp_path)
    lines = amc.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.isdecimal())
    size = next(i for i, line in enumerate(lines[first + 1:], 1) if line.isdecimal())
    body = ["\n".join(lines[i + 1:i + size]) for i in range(first, len(lines), size)]
    for frames, name in ((10, "short.amc"), (14_400, "long.amc")): (tmp_path / name).write_text("\n".join(lines[:first]) + "\n" + "".join(f"{t + 1}\n{body[t % len(body)]}\n" for t in range(frames)))
    assert len(read_asfamc(asf, tmp_path / "long.amc")) == 14_400
    if not sys.platform.startswith("linux"): return   # the peak of a process is read from /proc
    grown, size = map(int, subprocess.run([sys.executable, "-c", MEMORY, asf, tmp_path / "short.amc", tmp_path / "long.amc"], capture_output=True, text=True, check=True).stdout.split())
    print(f"peak {grown / 1e6:.1f} MB for a clip of {size / 1e6:.1f} MB")
    if size > 1e7: assert grown < 2 * size + 4e6   # each large array may begin and end inside a huge page of 2 MB
