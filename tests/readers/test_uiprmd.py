"""UI-PRMD's text: decoding worked by hand and against a slow loop, damaged files with file and line, the archive, and the published files against it."""
import gzip
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hclab.core.config import samples_dir
from hclab.core.skeleton import UIPRMD22
from hclab.data.motion import ClipError
from hclab.data.readers.uiprmd import MOVEMENTS, SPLIT, UIPRMDError, decode, parse_name, read_uiprmd, read_uiprmd_npz, split_subjects, steady

REST = np.array([[0, 85, -230], [0, 28, 0], [0, 20, 0], [0, .7, 0], [0, 6, 0], [0, 15, 0], [1.5, -.5, .2], [14, 0, 0], [27, 0, 0], [24, 0, 0], [-1.5, -.5, .2], [-14, 0, 0], [-27, 0, 0], [-24, 0, 0],
                 [7, 0, 3.5], [0, -36, 0], [0, -39, 0], [0, 0, 13], [-7, 0, 3.5], [0, -36, 0], [0, -39, 0], [0, 0, 13]])


def text(x): return "\n".join(",".join(f"{v:.6f}" for v in row.ravel()) for row in x) + "\n"


POSITIONS, ANGLES = text(np.tile(REST, (3, 1, 1))), text(np.zeros((3, 22, 3)))


def read(folder, positions=POSITIONS, angles=ANGLES, name="m01_s02_e03_{}.txt", **kw):
    paths = [folder / name.format(kind) for kind in ("positions", "angles")]
    for path, content in zip(paths, (positions, angles)): path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_uiprmd(paths[0], **kw)


def test_someone_who_stands(tmp_path):
    r = read(tmp_path)
    assert (r.movement, r.subject, r.episode, r.incorrect) == (1, 2, 3, False) and r.clip.action == "deep squat" and r.clip.performer == "s02" and r.clip.fps == 30 and r.clip.skeleton == UIPRMD22 and r.clip.rotations is None
    assert torch.allclose(r.clip.joint("waist")[0], torch.tensor([0, 2.3, .85]), atol=1e-6)
    assert torch.allclose(r.clip.joint("left_foot")[0], torch.tensor([.07, 2.265, .10]), atol=1e-6)
    assert r.clip.joint("left_toes")[0, 1] < r.clip.joint("left_foot")[0, 1] and r.clip.joint("left_hand")[0, 0] > .6, "faces -y, left is +x"
    assert torch.allclose(steady(r).joints, r.clip.joints, atol=1e-6) and steady(r).rotations is not None


def test_decoding_agrees_with_a_loop_that_anyone_can_read():
    rng = np.random.default_rng(0)
    positions, angles = rng.uniform(-40, 40, (4, 22, 3)).astype(np.float32), rng.uniform(-180, 180, (4, 22, 3)).astype(np.float32)
    joints, turns, bones = decode(positions, angles)
    for t in range(4):
        W, p = {}, {}
        for j, parent in enumerate(UIPRMD22.parents):
            (cx, cy, cz), (sx, sy, sz) = [[f(math.radians(a)) for a in angles[t, j]] for f in (math.cos, math.sin)]
            Rx, Ry, Rz = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]]), np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]), np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
            R = Rz @ Ry @ Rx
            p[j], W[j] = (positions[t, j], R) if parent < 0 else (p[parent] + W[parent] @ positions[t, j], W[parent] @ R)
            assert np.allclose(joints[t, j], np.array([p[j][0], -p[j][2], p[j][1]]) / 100, atol=1e-5), (t, j)


def test_compressed_or_not_is_told_by_the_content_and_spaces_do(tmp_path):
    plain = read(tmp_path).clip.joints
    assert torch.equal(plain, read(tmp_path, gzip.compress(POSITIONS.encode()), gzip.compress(ANGLES.encode()), "m01_s02_e03_{}.txt.gz").clip.joints)
    assert torch.equal(plain, read(tmp_path, gzip.compress(POSITIONS.encode())).clip.joints)
    assert torch.equal(plain, read(tmp_path, POSITIONS.replace(",", "  "), ANGLES.replace("\n", "\r\n\r\n")).clip.joints)
    r = read(tmp_path, name="m10_s08_e10_{}_inc.txt")
    assert r.incorrect and r.clip.action == MOVEMENTS[9]
    odd = tmp_path / "my squat.txt"; odd.write_text(POSITIONS)
    assert read_uiprmd(odd, tmp_path / "m01_s02_e03_angles.txt", (1, 9, 1, True)).subject == 9
    with pytest.raises(UIPRMDError, match="is called like"): read_uiprmd(odd, tmp_path / "m01_s02_e03_angles.txt")
    with pytest.raises(UIPRMDError, match="no positions by its name"): read_uiprmd(odd, labels=(1, 9, 1, True))


def test_bones_that_change_are_kept_and_steadied(tmp_path):
    p = np.tile(REST, (5, 1, 1)); p[:, 15, 1] = (-30, -33, -36, -39, -60)
    a = np.zeros((5, 22, 3)); a[:, 14, 0] = (0, -20, -40, -60, -80)
    r = read(tmp_path, text(p), text(a))
    assert torch.allclose(r.bones[:, 15].norm(dim=-1), torch.tensor([.30, .33, .36, .39, .60]), atol=1e-6) and r.clip.rotations is None
    s = steady(r)
    assert torch.allclose((s.joint("left_lower_leg") - s.joint("left_upper_leg")).norm(dim=-1), torch.tensor(.36)) and torch.allclose(s.joints[2], r.clip.joints[2], atol=1e-6)
    assert (s.joint("left_lower_leg")[-1] - s.joint("left_upper_leg")[-1])[1] < -.3, "a hip bent by -80 about x lifts the knee ahead"


LINES = POSITIONS.splitlines(keepends=True)
BROKEN = dict(
    empty=("", 1, "no frames"), blank=("\n\n", 2, "no frames"), html=("<html>", 1, "needs 66 numbers"), binary=(b"\x89PNG\r\n\x1a\n\0", 1, "needs 66 numbers"), cut=(POSITIONS[:-200], 3, "needs 66 numbers"), few=(POSITIONS.replace("0.000000,85", "85", 1), 1, "got 65"), many=("".join([LINES[0], "1," + LINES[1]]), 2, "got 67"),
    vicon=(",".join(["1"] * 117), 1, "Vicon"), semicolons=(POSITIONS.replace(",", ";"), 1, "got 1"), nan=("".join([LINES[0], LINES[1].replace("85.000000", "NaN")]), 2, "number 2 is nan"), infinite=(POSITIONS.replace("85.000000", "-inf", 1), 1, "number 2 is -inf"), overflow=(POSITIONS.replace("85.000000", "1e999", 1), 1, "number 2 is inf"), huge=(POSITIONS.replace("85.000000", "1e9", 1), 1, "1e+09"),
    word=(POSITIONS.replace("85.000000", "high", 1), 1, "number 2 is 'high'"), digits=(POSITIONS.replace("85.000000", "9" * 5000, 1), 1, "number 2 is inf"), zipped_cut=(gzip.compress(POSITIONS.encode())[:-12], None, "damaged or truncated"), zipped_junk=(b"\x1f\x8b" + bytes(100), 1, "damaged or truncated"), long_line=("1," * 100_000, 1, "needs 66 numbers"))


@pytest.mark.parametrize("which", ["positions", "angles"])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_name_file_and_line(tmp_path, name, which):
    content, line, says = BROKEN[name]
    with pytest.raises(UIPRMDError) as e: read(tmp_path, **{which: content})
    assert str(e.value).startswith(f"{tmp_path / f'm01_s02_e03_{which}.txt'}:{line or ''}") and says in str(e.value), str(e.value)


def test_units_pairs_and_names_that_cannot_be(tmp_path):
    for k in (10, .01):
        with pytest.raises(ClipError, match="impossible"): read(tmp_path, text(np.tile(REST * k, (3, 1, 1))))
    with pytest.raises(UIPRMDError, match="2 frames of angles for 3 frames"): read(tmp_path, angles=text(np.zeros((2, 22, 3))))
    assert len(read(tmp_path, LINES[0], text(np.zeros((1, 22, 3)))).clip) == 1
    for name in ("m00_s01_e01_positions.txt", "m11_s01_e01_positions.txt", "squat.txt", "m1_s1_e1_positions.txt", "m01_s01_e01_positions.txt.exe"):
        with pytest.raises(UIPRMDError): parse_name(name)
    with pytest.raises(FileNotFoundError): read_uiprmd(tmp_path / "m02_s01_e01_positions.txt")


def test_a_bomb_ends_early(tmp_path):
    "A kilobyte that unpacks to gigabytes of good rows stops at the limit of frames."
    bomb = gzip.compress((",".join(["0"] * 66) + "\n").encode() * 60_000)
    with pytest.raises(UIPRMDError, match="more than 54,000 frames"): read(tmp_path, bomb)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["positions", "angles"]), st.booleans(), st.data())
def test_damaged_files_end_in_the_readers_own_error(tmp_path, which, zipped, data):
    good = dict(positions=POSITIONS, angles=ANGLES)[which].encode()
    if zipped: good = gzip.compress(good, mtime=0)
    start, length = data.draw(st.integers(0, len(good))), data.draw(st.integers(0, 80))
    middle = data.draw(st.one_of(st.binary(max_size=20), st.sampled_from([b"nan", b"1e999", b"\n", b",", b"9" * 400, b"-", b"\0", "é".encode()])))
    try: read(tmp_path, **{which: good[:start] + middle + good[start + length:]})
    except (UIPRMDError, ClipError): pass


# ------------------------------------------------------------------------------------------------ the archive
def archive(path, **change):
    xyz = np.random.default_rng(0).normal(0, .5, (5, 22, 3)).astype(np.float16)
    arrays = dict(xyz=xyz, meta=np.array([[1, 1, 1, 0, 2], [10, 7, 3, 1, 3]]), parents=np.array(UIPRMD22.parents))
    np.savez(path, **{k: v for k, v in {**arrays, **change}.items() if v is not None})
    return path, xyz


def test_repetitions_of_an_archive_and_their_split(tmp_path):
    path, xyz = archive(tmp_path / "a.npz")
    one, two = read_uiprmd_npz(path)
    assert (two.movement, two.subject, two.episode, two.incorrect, len(two.clip), two.turns) == (10, 7, 3, True, 3, None) and one.clip.action == "deep squat" and "m10_s07_e03_inc" in two.clip.source
    assert torch.equal(one.clip.joints, torch.from_numpy(np.stack([xyz[:2, :, 0], -xyz[:2, :, 2], xyz[:2, :, 1]], -1).astype(np.float32)))
    assert [r.subject for r in read_uiprmd_npz(path, SPLIT["test"][:1])] == [7]
    assert {k: [r.subject for r in v] for k, v in split_subjects([one, two]).items()} == dict(train=[1], val=[], test=[7])
    with pytest.raises(UIPRMDError, match="positions only"): steady(two)
    with pytest.raises(UIPRMDError, match="no subject 9"): list(read_uiprmd_npz(path, (7, 9)))
    with pytest.raises(UIPRMDError, match="subject 10 is in no part"): split_subjects([read(tmp_path, name="m01_s10_e01_{}.txt")])


@pytest.mark.parametrize("change, says", [
    (dict(xyz=None), "no 'xyz'"), (dict(xyz=np.zeros((5, 25, 3), np.float16)), "expected .frames, 22, 3"), (dict(xyz=np.zeros((5, 66), np.float16)), "expected 3 axes"), (dict(xyz=np.array([[[{}]]], dtype=object)), "object arrays"), (dict(meta=np.array([[1, 1, 1, 0]])), "5 columns"), (dict(meta=np.array([[1, 1, 1, 0, 4]])), "add up"),
    (dict(meta=np.array([[0, 1, 1, 0, 5]])), "movement 0"), (dict(meta=np.array([[11, 1, 1, 0, 5]])), "movement 11"), (dict(meta=np.array([[1, 1, 1, 2, 5]])), "incorrect 2"), (dict(parents=np.arange(22)), "parents")])
def test_archives_that_contradict_themselves(tmp_path, change, says):
    path, _ = archive(tmp_path / "a.npz", **change)
    with pytest.raises(UIPRMDError, match=says) as e: list(read_uiprmd_npz(path))
    assert str(e.value).startswith(str(path))


def test_archives_whose_content_cannot_be(tmp_path):
    for xyz in (np.full((5, 22, 3), np.nan, np.float16), 100 * archive(tmp_path / "a.npz")[1]):
        with pytest.raises(ClipError): list(read_uiprmd_npz(archive(tmp_path / "a.npz", xyz=xyz)[0]))
    (tmp_path / "b.npz").write_bytes(b"PK no zip")
    with pytest.raises(UIPRMDError): list(read_uiprmd_npz(tmp_path / "b.npz"))


# ------------------------------------------------------------------------------------------------ published files
def folder():
    path = samples_dir() and samples_dir() / "uiprmd"
    if not (path and (path / "uiprmd_kinect22_s01-08.npz").is_file()): pytest.skip("HCLAB_SAMPLES does not hold uiprmd/")
    return path


def test_text_and_archive_agree_within_a_millimetre():
    everything = {(r.movement, r.subject, r.episode, r.incorrect): r for r in read_uiprmd_npz(folder() / "uiprmd_kinect22_s01-08.npz")}
    texts = [read_uiprmd(p) for p in sorted((folder() / "original").rglob("*_positions*.gz"))]
    assert len(everything) == 1600 and len(texts) == 48 and sum(r.incorrect for r in texts) == 24
    for r in texts:
        other = everything[r.movement, r.subject, r.episode, r.incorrect].clip.joints
        half_step = np.spacing(np.float16(other.abs().max())) / 2          # float16 counts in steps of 2 mm between 2 and 4 m
        far = float((r.clip.joints - other).abs().max())
        assert r.clip.joints.shape == other.shape and far < .001 and far <= float(half_step) + 1e-5, r.clip.source


def test_people_stand_upright_with_left_on_the_left():
    split = split_subjects(read_uiprmd_npz(folder() / "uiprmd_kinect22_s01-08.npz"))
    assert {k: len(v) for k, v in split.items()} == dict(train=1000, val=200, test=400)
    assert not {r.subject for r in split["train"]} & {r.subject for r in split["test"] + split["val"]}
    first = torch.stack([r.clip.joints[0] for r in sum(split.values(), [])])
    at = UIPRMD22.index
    right_way = (first[:, at("left_upper_leg"), 0] > first[:, at("right_upper_leg"), 0]) & (first[:, at("head_tip"), 2] > first[:, 0, 2])
    assert int((~right_way).sum()) <= 1, "the sensor lost the legs in one first frame, m01_s06_e06_inc"


def test_the_order_of_the_angles_is_the_callers():
    "A turn about one axis is the same in any order; a turn about all three is not. The hand's formula is R = Rz Rx Ry for ZXY."
    rng = np.random.default_rng(0)
    positions, angles = rng.normal(0, 20, (3, 22, 3)), np.zeros((3, 22, 3))
    angles[..., 1] = 40
    assert torch.allclose(decode(positions, angles, "ZXY")[0], decode(positions, angles)[0], atol=1e-5)
    angles = rng.uniform(-90, 90, (3, 22, 3))
    x, y, z = np.radians(angles[0, 0])
    Rx, Ry, Rz = (np.array(m) for m in ([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]], [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]],
                                        [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]))
    for order, R in (("ZXY", Rz @ Rx @ Ry), ("ZYX", Rz @ Ry @ Rx)):
        spine = (positions[0, 0] + R @ positions[0, 1]) / 100
        assert np.allclose(decode(positions, angles, order)[0][0, 1], (spine[0], -spine[2], spine[1]), atol=1e-5), order
