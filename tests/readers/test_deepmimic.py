"""DeepMimic's JSON: conventions worked by hand, damaged files with file and line, archives that lie, and the real clips against positions that somebody else computed."""
import io
import json
import math
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hclab.core.config import samples_dir
from hclab.core.skeleton import MOCAP20
from hclab.data.measures import heading
from hclab.data.motion import ClipError
from hclab.data.readers.bvh import read_bvh, write_bvh
from hclab.data.readers.deepmimic import EXPMAP38, TURNING, DeepMimicError, read_arrays, read_deepmimic, read_expmap38, read_mocap20

BALLS = [n for n, at in TURNING.items() if n not in ("rknee", "relbow", "lknee", "lelbow")]


def rows(frames=3, seconds=.02):
    "Someone who stands, arms hanging, 0.9 m from floor to hips."
    out = np.zeros((frames, 44)); out[:, 0], out[:, 2] = seconds, .9
    for n in BALLS: out[:, TURNING[n]] = 1
    return out


def text(r, loop='"wrap"', before="", after=""): return "{\n" + before + f'"Loop": {loop},\n"Frames":\n[\n' + ",\n".join("[" + ", ".join(f"{x:.6g}" for x in row) + "]" for row in r) + "\n]\n" + after + "}\n"


def read(folder, content, name="humanoid3d_stand.txt"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_deepmimic(path)


def quat(axis, degrees): a = math.radians(degrees) / 2; return [math.cos(a), *(math.sin(a) * np.array(axis))]


def test_someone_who_stands(tmp_path):
    c = read(tmp_path, text(rows()))
    assert c.skeleton == MOCAP20 and c.fps == 50 and len(c) == 3 and c.action == "stand" and "loop: wrap" in c.source
    assert torch.allclose(c.joint("lankle")[0], torch.tensor([.084887, 0, .9 - .421546 - .40987]), atol=1e-6)
    assert torch.allclose(c.joint("rankle")[0], torch.tensor([-.084887, 0, .9 - .421546 - .40987]), atol=1e-6)
    assert torch.allclose(c.joint("neck")[0], torch.tensor([0, 0, .9 + .236151 + .223894]), atol=1e-6)
    assert c.joint("ltoe")[0, 1] < -.1 and torch.allclose(heading(c)[0], torch.tensor([0.0, -1, 0]), atol=1e-5), "people face -y"


def test_each_turn_goes_where_the_body_would(tmp_path):
    r = rows(5)
    r[1, 4:8] = quat((0, 1, 0), 90)                                     # root about up: x, its ahead, goes to -z, its left
    r[2, TURNING["lknee"]] = -math.pi / 2                               # a knee folds backwards
    r[3, TURNING["relbow"]] = math.pi / 2                               # an elbow forwards
    r[4, TURNING["spine"]:][:4] = quat((0, 0, 1), -90)   # the trunk bows
    c = read(tmp_path, text(r))
    assert torch.allclose(heading(c)[1], torch.tensor([1.0, 0, 0]), atol=1e-5)
    assert torch.allclose(c.joint("lankle")[2] - c.joint("lknee")[2], torch.tensor([0, .40987, 0]), atol=1e-5)
    assert torch.allclose(c.joint("rwrist")[3] - c.joint("relbow")[3], torch.tensor([0, -.258947, 0]), atol=1e-5)
    assert torch.allclose(c.joint("neck")[4] - c.joint("spine")[4], torch.tensor([0, -.223894, 0]), atol=1e-5)


def test_form_of_the_json_does_not_matter(tmp_path):
    plain = read(tmp_path, text(rows())).joints
    r = rows().tolist()
    for content in (json.dumps(dict(Loop="none", Frames=r)), json.dumps(dict(Frames=r, Loop="wrap", Other=dict(a=[1, {"b": None}]))), json.dumps(dict(Frames=r), indent=3).replace("\n", "\r\n"), "\ufeff" + text(rows())):
        assert torch.equal(read(tmp_path, content).joints, plain)


def test_one_frame_lengths_and_rates(tmp_path):
    one = read(tmp_path, text(rows(1, 0)))
    assert len(one) == 1 and one.fps == 30
    assert read(tmp_path, text(rows(4, .016667))).fps == 60 and abs(read(tmp_path, text(rows(4, .0301))).fps - 1 / .0301) < 1e-3
    long = rows(2); long[:, TURNING["neck"]] = 1.2
    assert torch.allclose(read(tmp_path, text(long)).joints, read(tmp_path, text(rows(2))).joints, atol=1e-6), "quaternions are normalised"
    last = rows(4); last[-1, 0] = 0
    assert len(read(tmp_path, text(last))) == 4 and read(tmp_path, text(last)).fps == 50


def test_a_frame_that_lasts_longer_is_filled_at_constant_speed(tmp_path):
    r = rows(5); r[1, 0] = .06                                          # frames at 0, .02, .08, .10, .12 s
    for t, degrees in enumerate((0, 10, 40, 50, 60)): r[t, 4:8] = quat((0, 1, 0), degrees); r[t, 1] = degrees / 100
    c = read(tmp_path, text(r))
    assert len(c) == 7 and c.fps == 50 and "1 frames of other duration" in c.source
    turned = 2 * torch.rad2deg(torch.atan2(c.rotations[:, 0, 3], c.rotations[:, 0, 0]))
    assert torch.allclose(turned, torch.arange(7) * 10.0, atol=1e-2) and torch.allclose(c.joint("hips")[:, 1], -torch.arange(7) / 10.0, atol=1e-4)


GOOD = text(rows())
BROKEN = dict(
    empty=("", 1, "truncated"), html=("<html>", 1, "expected '{'"), binary=(b"\x89PNG\r\n\x1a\n\0", 1, "expected '{'"), list=("[1]", 1, "expected '{'"), cut=(GOOD[:250], 6, "frame 2"), cut_between=(GOOD[:GOOD.index("],") + 1], 5, "truncated"), unclosed=(GOOD[:-3], 8, "truncated"),
    no_frames=('{"Loop": "wrap"}', 1, "no 'Frames'"), misspelt=(GOOD.replace("Frames", "frames"), 9, "did you mean 'frames'"), nothing=("{}", 1, "object is empty"), zero=('{\n"Frames":\n[]}', 3, "Frames is empty"), frames_word=('{"Frames": "many"}', 1, "expected '['"), frames_null=('{"Frames": null}', 1, "expected '['"),
    loop=(text(rows(), '"for ever"'), 2, "Loop must be"), loop_number=(text(rows(), "1"), 2, "Loop must be"), twice=(GOOD.replace('"Loop": "wrap"', '"Loop": "wrap",\n"Loop": "wrap"'), 3, "second time"), after=(GOOD + "{}", 9, "text follows"), comma=(GOOD.replace("]\n]", "],\n]"), 8, "frame 4"),
    few=(text(rows()[:, :43]), 5, "44 numbers, got 43"), many=(text(np.c_[rows(), rows()]), 5, "44 numbers, got 88"), not_a_list=(GOOD.replace("[0.02", "3, [0.02", 1), 5, "got int"), nested=(GOOD.replace("0.9", "[0.9]", 1), 5, "which is no number"),
    nan=(GOOD.replace("0.9", "NaN", 1), 5, "NaN is no number"), infinity=(GOOD.replace("0.9", "-Infinity", 1), 5, "-Infinity is no number"), overflow=(GOOD.replace("0.9", "1e999", 1), 5, "no place"), huge=(GOOD.replace("0.9", "1e30", 1), 5, "no place"), digits=(GOOD.replace("0.9", "9" * 6000, 1), 5, "frame 1"), integer=(GOOD.replace("0.9", "9" * 400, 1), 5, "many digits"),
    word=(GOOD.replace("0.9", '"0.9"', 1), 5, "no number"), truth=(GOOD.replace("0.9", "true", 1), 5, "'True'"), null=(GOOD.replace("0.9", "null", 1), 5, "'None'"), zero_quaternion=(text(np.r_[rows(2), np.eye(44)[:1] * .02]), 7, "quaternion of hips has length 0,"),
    deep_row=('{"Frames":\n[' + "[" * 1_000_000, 2, "nested too deeply"), deep_key=('{"x":\n' + '{"a":' * 1_000_000, 2, "nested too deeply"), key=('{1: 2}', 1, "key"), key_null=('{null: 2}', 1, "no key"), colon=('{"Frames" [[1]]}', 1, "':'"))


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_name_file_and_line(tmp_path, name):
    content, line, says = BROKEN[name]
    with pytest.raises(DeepMimicError) as e: read(tmp_path, content, "x.txt")
    assert str(e.value).startswith(f"{tmp_path / 'x.txt'}:{line}: ") and says in str(e.value), str(e.value)[:300]


def test_durations_and_units_that_cannot_be(tmp_path):
    for seconds in (0, -.01, 5):
        with pytest.raises(DeepMimicError, match="durations"): read(tmp_path, text(rows(3, seconds)))
    stopped = rows(3); stopped[0, 0] = 1000
    with pytest.raises(DeepMimicError, match="durations"): read(tmp_path, text(stopped))
    with pytest.raises(FileNotFoundError): read_deepmimic(tmp_path / "none.txt")


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_end_in_the_readers_own_error(tmp_path, data):
    good = GOOD.encode()
    start, length = data.draw(st.integers(0, len(good))), data.draw(st.integers(0, 80))
    middle = data.draw(st.one_of(st.binary(max_size=20), st.sampled_from([b"NaN", b"1e999", b"[", b"]", b"{", b"}", b",", b'"', b"9" * 5000, b"-", b"null", b"[" * 100_000, "é".encode(), b"\\u12"])))
    try: read(tmp_path, good[:start] + middle + good[start + length:])
    except (DeepMimicError, ClipError): pass


# ------------------------------------------------------------------------------------------------ archives
def archive(path, **change):
    j = np.random.default_rng(0).normal(0, .5, (5, 20, 3)).astype(np.float32)
    arrays = dict(joint_names=np.array(MOCAP20.names), clip=np.array(["a", "b"]), action=np.array(["walk", "run"]), fps=np.array([30.0, 16.0]), source=np.array(["cmu", "deepmimic"]), length=np.array([2, 3]), joints=j)
    np.savez(path, **{k: v for k, v in {**arrays, **change}.items() if v is not None})
    return path, j


def test_clips_of_an_archive(tmp_path):
    path, j = archive(tmp_path / "a.npz")
    one, two = read_mocap20(path)
    assert (len(one), one.fps, one.action, len(two), two.fps, two.performer) == (2, 30, "walk", 3, 16, "deepmimic") and one.skeleton == MOCAP20
    assert torch.equal(two.joints, torch.from_numpy(np.stack([j[2:, :, 0], -j[2:, :, 2], j[2:, :, 1]], -1)))
    assert [c.action for c in read_mocap20(path, "deepmimic")] == ["run"]


@pytest.mark.parametrize("change, says", [
    (dict(joints=None), "no 'joints'"), (dict(joints=np.zeros((5, 60), np.float32)), "expected 3 axes"), (dict(joints=np.zeros((5, 20, 3), int)), "expected kind f"), (dict(joints=np.array([[[{}]]], dtype=object)), "object arrays are never read"),
    (dict(length=np.array([2, 2])), "add up"), (dict(length=np.array([-1, 6])), "positive"), (dict(length=np.array([0, 5])), "positive"), (dict(length=np.array([2**62, 2**62])), "add up"), (dict(length=np.array([2.0, 3.0])), "expected kind"), (dict(length=np.array([5])), "one entry a clip"),
    (dict(joint_names=np.array(["hip"] * 20)), "expected MOCAP20"), (dict(fps=np.array([30.0])), "one entry a clip")])
def test_archives_that_contradict_themselves(tmp_path, change, says):
    path, _ = archive(tmp_path / "a.npz", **change)
    with pytest.raises(DeepMimicError, match=says) as e: list(read_mocap20(path))
    assert str(e.value).startswith(str(path))


def test_archives_whose_content_cannot_be(tmp_path):
    for change in (dict(fps=np.array([0.0, 30])), dict(fps=np.array([np.nan, 30])), dict(joints=np.full((5, 20, 3), np.nan, np.float32)), dict(joints=1000 * archive(tmp_path / "a.npz")[1])):
        with pytest.raises(ClipError): list(read_mocap20(archive(tmp_path / "a.npz", **change)[0]))
    with pytest.raises(DeepMimicError, match="did you mean 'deepmimic'"): list(read_mocap20(archive(tmp_path / "a.npz")[0], "deepmimik"))
    for content in (b"", b"no zip", b"PK\3\4" + bytes(60)):
        (tmp_path / "b.npz").write_bytes(content)
        with pytest.raises(DeepMimicError): list(read_mocap20(tmp_path / "b.npz"))
    with pytest.raises(FileNotFoundError): list(read_mocap20(tmp_path / "none.npz"))


def test_an_array_that_announces_more_than_it_holds_takes_no_memory(tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, dict(descr="<f4", fortran_order=False, shape=(10**7, 20, 3)))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as z: z.writestr("joints.npy", buffer.getvalue() + bytes(240))
    with pytest.raises(DeepMimicError, match="announces 2,400,000,000 bytes"): read_arrays(tmp_path / "a.npz", dict(joints=("f", 3)))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_archives_end_in_the_readers_own_error(tmp_path, data):
    path, _ = archive(tmp_path / "good.npz")
    good = path.read_bytes()
    start, length = data.draw(st.integers(0, len(good))), data.draw(st.integers(0, 40))
    (tmp_path / "x.npz").write_bytes(good[:start] + data.draw(st.binary(max_size=40)) + good[start + length:])
    try: list(read_mocap20(tmp_path / "x.npz"))
    except (DeepMimicError, ClipError): pass


# ------------------------------------------------------------------------------------------------ real clips
def sample(name):
    path = samples_dir() and samples_dir() / "motions" / name
    if not (path and path.is_file()): pytest.skip(f"HCLAB_SAMPLES does not hold motions/{name}")
    return path


def test_the_offsets_reproduce_positions_that_others_computed(tmp_path):
    r = read_arrays(sample("deepmimic_frames44.npz"), dict(length=("i", 1), frames=("f", 2)))
    theirs = list(read_mocap20(sample("mocap_joints20_30hz.npz"), "deepmimic"))
    stops = np.cumsum(r["length"])
    assert len(theirs) == len(stops) == 29
    compared = 0
    for i in (0, 1, 10, 12, 14, 18, 19, 28):   # kick and sideflip have quaternions far from length one, roll has a longer frame
        ours = read(tmp_path, text(r["frames"][stops[i] - r["length"][i]:stops[i]]))
        if "evened" in ours.source: continue
        step = round(ours.fps / theirs[i].fps)
        assert (ours.joints[::step] - theirs[i].joints).abs().max() < .001, theirs[i].source
        compared += 1
    assert compared == 7


def test_the_archive_of_125_clips():
    clips = list(read_mocap20(sample("mocap_joints20_30hz.npz")))
    assert len(clips) == 125 and sum(map(len, clips)) == 30_969 and len({c.action for c in clips if c.performer == "cmu"}) == 8 and {c.fps for c in clips} == {16, 24, 30, 60}
    for c in clips:
        if c.action == "walking": assert c.joint("headtop")[0, 2] - c.joint("hips")[0, 2] > .3 and -.1 < c.joint("ltoe")[:, 2].min() < .1, c.source   # later, some bow down


def test_expmaps_agree_with_the_positions_and_go_through_bvh(tmp_path):
    rotated, placed = list(read_expmap38(sample("cmu_expmap38_30hz.npz"))), list(read_mocap20(sample("mocap_joints20_30hz.npz"), "cmu"))
    assert len(rotated) == len(placed) == 96 and [c.action for c in rotated] == [c.action for c in placed]
    shared = [n for n in MOCAP20.names if n in EXPMAP38.names]
    assert len(shared) == 19
    for a, b in zip(rotated, placed): assert max(float((a.joint(n) - b.joint(n)).norm(dim=-1).max()) for n in shared) < .001, a.source
    write_bvh(rotated[0], tmp_path / "a.bvh", "ZYX")
    again = read_bvh(tmp_path / "a.bvh")
    assert (again.joints[:, [again.skeleton.index(n) for n in EXPMAP38.names]] - rotated[0].joints).abs().max() < 5e-5
