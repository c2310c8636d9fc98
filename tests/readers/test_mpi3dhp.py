"""MPI-INF-3DHP: annotations written by SciPy and by hand, calibration text, the test set where h5py is installed; broken and hostile files."""
import importlib.util, math, struct, tracemalloc, zlib

import numpy as np
import pytest
import scipy.io
import torch
from drawing import drawn
from hypothesis import given, settings, strategies as st

from hclab.core.geometry import Camera
from hclab.core.sample import validate
from hclab.data.readers.mpi3dhp import JOINTS28, MPIError, RELEVANT, clip_of, read_annotations, read_calibration, read_test, sample_of, sequence_of

T = 30
CAMERAS = [Camera.look_at((3.5 * math.cos(a), 3.5 * math.sin(a), 1.4), (0, 0, .9), 1500, (2048, 2048)) for a in np.linspace(0, 6, 14)]
UP = torch.tensor([[1., 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)   # y up -> z up


@pytest.fixture(scope="module")
def world():
    "(T,28,3) metres: the 17 joints drawn, the others on the pelvis."
    seventeen = drawn("squat", 1, T, 25.0, "MPI3DHP17").double()
    joints = seventeen[:, 14:15].repeat(1, 28, 1)
    joints[:, list(RELEVANT)] = seventeen
    return joints


def cells(items):
    out = np.empty((len(items), 1), dtype=object)
    for i, x in enumerate(items): out[i, 0] = x
    return out


def annotations(world):
    return dict(annot2=cells([c.project(world).flatten(1).numpy() for c in CAMERAS]), annot3=cells([(c.to_camera(world) * 1000).flatten(1).numpy() for c in CAMERAS]),
                univ_annot3=cells([(c.to_camera(world) * 1100).flatten(1).numpy() for c in CAMERAS]), cameras=np.arange(14), frames=np.arange(T)[:, None])


def save(folder, content, name="annot.mat", **kw):
    scipy.io.savemat(folder / name, content, **kw)
    return folder / name


def calibration(cameras=CAMERAS, first=0):
    row, text = (lambda m: " ".join(f"{v:.9g}" for v in m.flatten().tolist())), "Skeletool Camera Calibration File V1.0\n"
    for i, c in enumerate(cameras, first):
        K, E = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
        K[:3, :3], E[:3, :3], E[:3, 3] = c.K, c.R @ UP, c.t * 1000
        text += f"name          {i}\n  sensor      10 10\n  size        2048 2048\n  animated    0\n  intrinsic   {row(K)} \n  extrinsic   {row(E)} \n  radial      0\n"
    return text


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_annotations_agree_with_scipy(tmp_path, world, packed, kind):
    content = annotations(world)
    for key in ("annot2", "annot3", "univ_annot3"): content[key] = cells([x.astype(kind) for x in content[key][:, 0]])
    path = save(tmp_path, content, do_compression=packed)
    reference = scipy.io.loadmat(path)
    for what, axes in (("annot3", 3), ("univ_annot3", 3), ("annot2", 2)):
        found = read_annotations(path, what)
        assert list(found) == list(range(14))
        for c in range(14):
            want = torch.from_numpy(reference[what][c, 0].reshape(T, 28, axes)[:, list(RELEVANT)]).float()
            assert torch.allclose(found[c], want * (.001 if axes == 3 else 1), rtol=1e-6)
    some = read_annotations(path, "annot3", (5, 2))
    assert sorted(some) == [2, 5] and torch.equal(some[5], read_annotations(path)[5])


def test_whole_numbers_come_back_from_fewer_bytes(tmp_path, world):
    rounded = cells([np.round(x) for x in annotations(world)["annot3"][:, 0]])
    path = save(tmp_path, dict(annot3=rounded))
    assert torch.allclose(read_annotations(path)[3], torch.from_numpy(rounded[3, 0].reshape(T, 28, 3)[:, list(RELEVANT)]).float() / 1000, atol=1e-6)


def test_order_of_the_joints():
    names = dict(zip(("head_top", "neck", "right_shoulder", "left_wrist", "right_ankle", "left_hip", "pelvis", "spine", "head"), (0, 1, 2, 7, 10, 11, 14, 15, 16)))
    assert all(JOINTS28[RELEVANT[i]] == n for n, i in names.items()) and len(set(RELEVANT)) == 17 and len(JOINTS28) == 28


def test_a_clip_in_the_world(tmp_path, world):
    for sequence, fps in (("S1/Seq1", 25), ("S1/Seq2", 50), ("S3/Seq1", 50), ("S8/Seq2", 25)):
        folder = tmp_path / sequence; folder.mkdir(parents=True)
        path = save(folder, annotations(world)); (folder / "camera.calibration").write_text(calibration())
        clip = clip_of(path, 7)
        assert clip.fps == fps and clip.performer == sequence[:2] and torch.allclose(clip.joints.double(), world[:, list(RELEVANT)], atol=1e-4)
    assert torch.allclose(clip_of(path, 0).joints, clip_of(path, 13).joints, atol=1e-4)
    with pytest.raises(MPIError): clip_of(path, 0, "annot2")
    (folder / "camera.calibration").write_text(calibration(CAMERAS[:2]))
    with pytest.raises(MPIError, match="no camera 7; it has"): clip_of(path, 7)
    with pytest.raises(MPIError, match="S1..S8"): sequence_of("S9/Seq1/annot.mat")


def test_the_published_example_of_a_calibration(tmp_path):
    "A camera about 1.4 m above a floor at zero, y up; looking at the middle of the room from 4 m away."
    text = ("Skeletool Camera Calibration File V1.0\nname          0\n  sensor      10 10\n  size        2048 2048\n  animated    0\n"
            "  intrinsic   1497.693 0 1024.704 0 0 1497.103 1051.394 0 0 0 1 0 0 0 0 1 \n"
            "  extrinsic   0.9650164 0.00488022 0.262144 -562.8666 -0.004488356 -0.9993728 0.0351275 1398.138 0.262151 -0.03507521 -0.9643893 3852.623 0 0 0 1 \n  radial      0\n")
    (tmp_path / "c").write_text(text)
    camera = read_calibration(tmp_path / "c")[0]
    assert 1 < camera.centre[2] < 2 and 3 < camera.centre[:2].norm() < 5 and camera.image_size == (2048, 2048)
    head, feet = camera.project(torch.tensor([[0., 0, 1.7], [0, 0, 0]]))
    assert head[1] < feet[1], "up in the world is up in the picture"


@pytest.mark.parametrize("change, at, says", [
    (lambda s: "", 1, "truncated"), (lambda s: "x" + s, 1, "Skeletool"), (lambda s: s[:190], 7, "expected 'extrinsic'"), (lambda s: s.replace("1500", "wide", 1), 6, "'wide'"), (lambda s: s.replace("1500", "nan", 1), 6, "not finite"), (lambda s: s.replace("1500", "-1500", 1), 8, "focal"),
    (lambda s: s.replace("  radial      0", "  radial      0.1 0.2", 1), 8, "distortion"), (lambda s: s.replace("  sensor", "  sensors", 1), 3, "expected 'sensor'"), (lambda s: s + s.split("\n", 1)[1], 0, "twice"), (lambda s: s.split("\n")[0], 1, "truncated")])
def test_broken_calibrations(tmp_path, change, at, says):
    path = tmp_path / "camera.calibration"
    path.write_text(change(calibration()))
    with pytest.raises(MPIError, match=says) as e: read_calibration(path)
    assert str(e.value).startswith(f"{path}:{at}: " if at else str(path)), str(e.value)


@pytest.mark.parametrize("change, says", [
    (lambda x: x / 1000, "look like metres"), (lambda x: x[:, :51], "frames x 84"), (lambda x: x[:0], "zero frames|no matrix"), (lambda x: x * np.nan, "not finite"), (lambda x: x * 0, "size 0"), (lambda x: x.astype(str), "class"), (lambda x: x + 1j, "complex"), (lambda x: x[None], "frames x 84"),
    (lambda x: cells([x]), "cells in cells"), (lambda x: dict(a=1), "class|not a real")])
def test_broken_cells(tmp_path, world, change, says):
    good = annotations(world)["annot3"][:, 0]
    path = save(tmp_path, dict(annot3=cells([change(good[0]), *good[1:]])))
    with pytest.raises(MPIError, match=says) as e: read_annotations(path)
    assert str(e.value).startswith(str(path))


def test_files_of_another_kind(tmp_path, world):
    good = annotations(world)
    for content, says in ((dict(annot3=good["annot3"][:13]), "list of 14"), (dict(annot3=np.zeros((14, 1))), "list of 14"), (dict(other=1), "no variable 'annot3'; found other"), ({}, "no variable")):
        with pytest.raises(MPIError, match=says): read_annotations(save(tmp_path, content))
    for data, says in ((b"", "MATLAB 5"), (b"x" * 500, "MATLAB 5"), (b"MATLAB 7.3 MAT-file".ljust(128), "read_test"), (b"MATLAB 5.0".ljust(124) + b"\x01\x00MI", "little-endian")):
        (tmp_path / "x.mat").write_bytes(data)
        with pytest.raises(MPIError, match=says): read_annotations(tmp_path / "x.mat")
    path = save(tmp_path, good)
    for wrong in (dict(what="annot4"), dict(cameras=[14]), dict(cameras=[-1])):
        with pytest.raises(MPIError): read_annotations(path, **wrong)
    with pytest.raises(FileNotFoundError): read_annotations(tmp_path / "none.mat")


@pytest.mark.parametrize("packed", [False, True])
def test_every_truncation_is_refused(tmp_path, world, packed):
    data = save(tmp_path, dict(annot3=annotations(world)["annot3"]), do_compression=packed).read_bytes()
    for n in np.linspace(0, len(data) - 12, 40).astype(int):
        (tmp_path / "cut.mat").write_bytes(data[:n])
        with pytest.raises(MPIError): read_annotations(tmp_path / "cut.mat")


def element(kind, data): return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def matrix(cls, dims, name, payload, size=None):
    body = element(6, struct.pack("<II", cls, 0)) + element(5, struct.pack(f"<{len(dims)}i", *dims)) + element(1, name) + payload
    return struct.pack("<II", 14, len(body) if size is None else size) + body


def mat(folder, content):
    (folder / "hostile.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + content)
    return folder / "hostile.mat"


def test_hostile_files(tmp_path):
    inner = matrix(6, (1, 84), b"", element(9, bytes(84 * 8)))
    for _ in range(8000): inner = matrix(1, (1, 1), b"", inner)      # ends the interpreter in SciPy 1.17
    with pytest.raises(MPIError, match="cells in cells"): read_annotations(mat(tmp_path, matrix(1, (14, 1), b"annot3", inner)))
    tracemalloc.start()
    for payload in (matrix(6, (2**31 - 1, 84), b"", struct.pack("<II", 9, 2**32 - 8)), matrix(6, (1, 84), b"", struct.pack("<II", 9, 8)), matrix(6, (-1, 84), b"", b""), struct.pack("<II", 14, 2**32 - 8), b""):
        for content in (matrix(1, (14, 1), b"annot3", payload), element(15, zlib.compress(matrix(1, (14, 1), b"annot3", payload)))):
            with pytest.raises(MPIError): read_annotations(mat(tmp_path, content))
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
    bomb = matrix(1, (14, 1), b"annot3", matrix(6, (2**31 // 672, 84), b"", struct.pack("<II", 9, 2**31 // 672 * 672), size=2**31))
    squeeze = zlib.compressobj()
    with pytest.raises(MPIError, match="more than|early|are allowed"): read_annotations(mat(tmp_path, element(15, squeeze.compress(bomb) + squeeze.flush())))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_nothing_but_its_own_error_escapes(tmp_path_factory, world, data):
    folder = tmp_path_factory.getbasetemp()
    raw = bytearray(save(folder, dict(annot3=cells([x[:2] for x in annotations(world)["annot3"][:, 0]])), "fuzz.mat", do_compression=data.draw(st.booleans())).read_bytes())
    for _ in range(data.draw(st.integers(1, 5))): raw[data.draw(st.integers(100, min(len(raw) - 1, 700)))] = data.draw(st.integers(0, 255))
    (folder / "fuzz.mat").write_bytes(raw)
    try: read_annotations(folder / "fuzz.mat")
    except MPIError: pass
    (folder / "fuzz.txt").write_text("Skeletool Camera Calibration File V1.0\n" + data.draw(st.text(max_size=80)), encoding="utf-8")
    try: read_calibration(folder / "fuzz.txt")
    except MPIError: pass


def test_memory(tmp_path, world):
    path = save(tmp_path, dict(annot3=cells([np.tile(x, (100, 1)) for x in annotations(world)["annot3"][:, 0]])))
    stored = 3000 * 84 * 8
    tracemalloc.start()
    read_annotations(path)
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()   # NumPy's and Python's; the result is torch's
    assert peak < 2.2 * stored, f"{peak / stored:.2f} cameras as stored"


# ------------------------------------------------------------------------------------------------ the test set
def test_without_h5py_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(MPIError, match=r"pip install 'hclab\[hdf5\]'"): read_test(tmp_path / "annot_data.mat")


h5 = pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="h5py is not installed: the test set's files can't be written or read")


def test_file(folder, world, name="TS1", **change):
    import h5py
    (folder / name).mkdir(exist_ok=True)
    seventeen = world[:, list(RELEVANT)]
    content = dict(annot2=CAMERAS[0].project(seventeen)[:, None].numpy(), annot3=CAMERAS[0].to_camera(seventeen)[:, None].numpy() * 1000, valid_frame=np.arange(T)[:, None] % 3 > 0, activity_annotation=np.full((T, 1), 4.0)) | change
    content.setdefault("univ_annot3", content["annot3"])
    with h5py.File(folder / name / "annot_data.mat", "w", userblock_size=512) as f:
        for k, v in content.items():
            if v is not None: f[k] = v.astype(float) if isinstance(v, np.ndarray) and v.dtype == bool else v
    return folder / name / "annot_data.mat"


test_file.__test__ = False


@h5
def test_the_test_set(tmp_path, world):
    held_out = read_test(test_file(tmp_path, world))
    assert torch.allclose(held_out.joints3d.double(), CAMERAS[0].to_camera(world[:, list(RELEVANT)]), atol=1e-5) and held_out.valid.tolist()[:4] == [False, True, True, False] and held_out.activity[0] == 3
    sample = validate(sample_of(held_out, 1))
    assert sample["image_size"] == (2048, 2048) and read_test(test_file(tmp_path, world, "TS5")).image_size == (1080, 1920)
    for frame, says in ((0, "not valid"), (T, "frames 0 to"), (-1, "frames 0 to")):
        with pytest.raises(MPIError, match=says): sample_of(held_out, frame)


@h5
@pytest.mark.parametrize("change, says", [(dict(annot3=None, univ_annot3=np.zeros((3, 1, 17, 3))), "not an array"), (dict(annot3=np.zeros((T, 1, 16, 3))), "shape"), (dict(annot3=np.zeros((T, 17, 3))), "shape"), (dict(annot3=np.ones((T, 1, 17, 3))), "millimetres are expected"),
                                          (dict(annot3=np.full((T, 1, 17, 3), np.nan)), "not finite"), (dict(valid_frame=np.ones((T - 1, 1))), "shape"), (dict(activity_annotation=np.full((T, 1), 9.0)), "0 to 7"), (dict(activity_annotation=np.full((T, 1), np.nan)), "0 to 7"), (dict(annot2="text"), "plain arrays")])
def test_broken_test_sets(tmp_path, world, change, says):
    with pytest.raises(MPIError, match=says): read_test(test_file(tmp_path, world, **change))


@h5
def test_links_to_other_files_are_not_followed(tmp_path, world):
    import h5py
    other, path = test_file(tmp_path, world, "TS2"), test_file(tmp_path, world, annot3=None)
    with h5py.File(path, "a") as f: f["annot3"] = h5py.ExternalLink(str(other), "annot3")
    with pytest.raises(MPIError, match="not an array of this file"): read_test(path)


@h5
def test_broken_hdf5(tmp_path, world):
    data = test_file(tmp_path, world).read_bytes()
    for cut in (b"", data[:100], data[:1200], data[:len(data) // 2]):
        (tmp_path / "x.mat").write_bytes(cut)
        with pytest.raises(MPIError): read_test(tmp_path / "x.mat")
    with pytest.raises(FileNotFoundError): read_test(tmp_path / "none.mat")
