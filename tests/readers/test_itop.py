"""ITOP on HDF5 files written here: numbers by hand, records that must not be used, one record at a time, workers, mirrors, and files that contradict themselves."""
import os, pickle, sys, tracemalloc

import numpy as np
import pytest
import torch
from drawing import drawn

from hclab.core.sample import validate
from hclab.data.loading import BadSample, Loader, LoadingError
from hclab.data.readers.itop import ITOP, ITOP15, ITOPError, knees_bend_forward

N = 6
NAMES = "head neck right_shoulder left_shoulder right_elbow left_elbow right_hand left_hand torso right_hip left_hip right_knee left_knee right_foot left_foot".split()


@pytest.fixture
def h5py(): return pytest.importorskip("h5py", reason="h5py is in the hdf5 extra")


def content(n=N, seed=0):
    "name -> array of the three files, in the file's own axes: x to the right of the picture, y up."
    rng = np.random.default_rng(seed)
    depth = rng.uniform(2, 4, (n, 240, 320)).astype(np.float16)
    v, u = np.mgrid[:240, :320]
    points = np.stack([(u - 160) * .0035 * depth.astype(np.float64), (120 - v) * .0035 * depth.astype(np.float64), depth.astype(np.float64)], -1).reshape(n, -1, 3).astype(np.float16)
    space = rng.uniform((-.5, -.8, 2), (.5, .8, 3.5), (n, 15, 3)).astype(np.float16)
    x, y, z = np.moveaxis(space.astype(np.float64), -1, 0)
    pixels = np.round(np.stack([160 + x / (z * .0035), 120 - y / (z * .0035)], -1)).astype(np.int16)
    ids = np.array([f"{i // 2:02}_{i:05}".encode() for i in range(n)])
    part = np.full((n, 240, 320), -1, np.int8); part[:, 50:60, 70:90] = 4
    return dict(depth_map=dict(id=ids, data=depth), point_cloud=dict(id=ids, data=points),
                labels=dict(id=ids, is_valid=np.array([1, 1, 0, 1, 0, 1] * (n // 6), np.uint8), visible_joints=rng.integers(0, 2, (n, 15)).astype(np.int16), image_coordinates=pixels, real_world_coordinates=space, segmentation=part))


def write(folder, h5py, change=None, view="side", split="train", n=N, parts=("depth_map", "point_cloud", "labels")):
    tables = content(n)
    if change: change(tables)
    for part in parts:
        with h5py.File(folder / f"ITOP_{view}_{split}_{part}.h5", "w") as f:
            for name, x in tables[part].items(): f.create_dataset(name, data=x, **(dict(chunks=(1, *x.shape[1:]), compression="gzip", compression_opts=1) if x.ndim > 1 and x.size > 1000 else {}))
    return tables


def test_a_record_by_hand(tmp_path, h5py):
    t = write(tmp_path, h5py)
    data = ITOP(tmp_path)
    assert len(data) == 4 and data.records.tolist() == [0, 1, 3, 5] and list(ITOP15.names) == NAMES
    for i, r in enumerate((0, 1, 3, 5)):
        sample = validate(data[i])
        assert np.array_equal(sample["depth"][0].numpy(), t["depth_map"]["data"][r].astype(np.float32))
        want = t["labels"]["real_world_coordinates"][r].astype(np.float32) * [1, -1, 1]
        assert np.allclose(sample["joints3d"][0].numpy(), want, atol=1e-6) and np.array_equal(sample["joints2d"][0].numpy(), t["labels"]["image_coordinates"][r].astype(np.float32))
        assert np.array_equal(sample["visibility"][0].numpy(), t["labels"]["visible_joints"][r] + 1)
        assert (sample["identity"], sample["camera_id"], sample["index"], sample["image_size"], sample["skeleton"]) == (r // 2, 0, i, (240, 320), "ITOP15")
        K = sample["camera"]["K"].numpy()
        seen = sample["joints3d"][0].numpy() @ K.T
        assert np.abs(seen[:, :2] / seen[:, 2:] - sample["joints2d"][0].numpy()).max() < .51 and abs(K[0, 0] - 1 / .0035) < 1e-3
    assert f"ITOP_side_train_depth_map.h5[data]:3: 01_{3:05}" in data.where(2) and data[-1]["index"] == 3
    with pytest.raises(IndexError): data[4]


def test_frames_that_are_not_valid(tmp_path, h5py):
    def spoil(t): t["labels"]["real_world_coordinates"][2] = np.nan; t["labels"]["image_coordinates"][4] = -32768
    write(tmp_path, h5py, spoil)
    everything = ITOP(tmp_path, valid_only=False)
    assert len(everything) == N
    for i in range(N): assert ("joints3d" in validate(everything[i])) == (i not in (2, 4))
    assert len(ITOP(tmp_path)) == 4
    everything.close()
    write(tmp_path, h5py, lambda t: t["labels"].update(is_valid=np.zeros(N, np.uint8)))
    with pytest.raises(ITOPError, match="none of 6 frames is valid"): ITOP(tmp_path)


def test_points_give_the_same_depth(tmp_path, h5py):
    t = write(tmp_path, h5py)
    maps, clouds = ITOP(tmp_path), ITOP(tmp_path, content="point_cloud")
    for i in range(4):
        assert torch.equal(maps[i]["depth"], clouds[i]["depth"])
        a, b = maps.read_points(i), clouds.read_points(i)
        assert a.shape == b.shape == (76800, 3) and (a - b).abs().max() < .002
    assert np.allclose(clouds.read_points(0).numpy()[5], t["point_cloud"]["data"][0, 5].astype(np.float32) * [1, -1, 1])
    maps.close(); clouds.close()
    def holes(t): t["depth_map"]["data"][0, 0, :3] = 0, np.nan, -1
    write(tmp_path, h5py, holes)
    maps = ITOP(tmp_path)
    assert maps[0]["depth"][0, 0, :3].tolist() == [0, 0, 0] and maps.read_points(0).shape == (76797, 3)
    maps.close()
    write(tmp_path, h5py, lambda t: t["point_cloud"].update(data=t["point_cloud"]["data"][:, ::-1]))
    with pytest.raises(ITOPError, match=r"point_cloud.h5\[data\]:0: .*not in the order of the pixels"): ITOP(tmp_path, content="point_cloud")[0]


def test_segmentation_and_views(tmp_path, h5py):
    write(tmp_path, h5py, view="top", split="test")
    sample = validate(ITOP(tmp_path, "top", "test", segmentation=True)[0])
    assert sample["camera_id"] == 1 and sample["instance_ids"].sum() == 200 and sample["instance_ids"][55, 80] == 1 and "test" in sample["source"]
    with pytest.raises(FileNotFoundError, match="ITOP_side_train_depth_map"): ITOP(tmp_path)
    (tmp_path / "ITOP_side_train_depth_map.h5.gz").touch()
    with pytest.raises(FileNotFoundError, match="gunzip"): ITOP(tmp_path)
    for kw in (dict(view="front"), dict(split="val"), dict(content="images")):
        with pytest.raises(ITOPError): ITOP(tmp_path, **kw)


def change(part, name, at, value):
    def f(t): t[part][name][at] = value
    return f


CONTRADICTIONS = dict(
    nan=(change("labels", "real_world_coordinates", (3, 6, 0), np.nan), r"labels.h5\[real_world_coordinates\]:3: right_hand"), behind=(change("labels", "real_world_coordinates", (3, 0, 2), -2), r"\[real_world_coordinates\]:3: head"),
    millimetres=(change("labels", "real_world_coordinates", (3, 0, 2), 1800), r"\[real_world_coordinates\]:3: 1800 from the sensor; metres"), seen=(change("labels", "visible_joints", (1, 14), 2), r"\[visible_joints\]:1: left_foot"),
    flag=(change("labels", "is_valid", 4, 3), r"\[is_valid\]:4: 3"), twice=(change("labels", "id", 5, b"01_00003"), r"\[id\]:5: 01_00003 comes twice, also in record 3"), name=(change("labels", "id", 1, b"frame_01"), r"\[id\]:1: 'frame_01'"),
    other=(change("depth_map", "id", 4, b"09_00009"), r"depth_map.h5\[id\]:4: person 9, frame 9"), deep=(change("depth_map", "data", (1, 3, 4), 2500), r"\[data\]:1: 00_00001: sample\['depth'\].*2500"),
    missing=(lambda t: t["labels"].pop("visible_joints"), r"labels.h5\[visible_joints\]: no array of that name"), joints=(lambda t: t["labels"].update(visible_joints=np.ones((N, 16), np.int16)), r"shape \(6, 16\), expected"),
    text=(lambda t: t["labels"].update(real_world_coordinates=np.full((N, 15, 3), b"1.0")), "type .S3"), shorter=(lambda t: t["labels"].update(is_valid=t["labels"]["is_valid"][:5]), "different lengths"),
    size=(lambda t: t["depth_map"].update(data=t["depth_map"]["data"][:, ::2]), r"shape \(6, 120, 320\)"), whole=(lambda t: t["depth_map"].update(data=(t["depth_map"]["data"] * 1000).astype(np.uint16)), "type uint16"))


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_files_that_contradict_themselves(tmp_path, h5py, name):
    spoil, says = CONTRADICTIONS[name]
    def both(t): t["depth_map"] = {k: v.copy() for k, v in t["depth_map"].items()}; spoil(t); t["depth_map"]["id"] = t["depth_map"]["id"] if name in ("other", "twice", "name") else t["labels"]["id"]
    write(tmp_path, h5py, both)
    with pytest.raises(ITOPError, match=says) as e: [ITOP(tmp_path)[i] for i in range(4)]
    assert str(e.value).startswith(str(tmp_path / "ITOP_side_train"))


def test_hostile_files(tmp_path, h5py):
    write(tmp_path, h5py)
    path = tmp_path / "ITOP_side_train_depth_map.h5"
    ids = content()["depth_map"]["id"]
    def spoil(make):
        with h5py.File(path, "w") as f: f["id"] = ids; make(f)
    spoil(lambda f: f.create_dataset("data", (6, 240, 320), np.float16, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED if hasattr(h5py.h5f, "UNLIMITED") else 2**30)]))
    with pytest.raises(ITOPError, match="another file"): ITOP(tmp_path)
    spoil(lambda f: f.__setitem__("data", h5py.ExternalLink("other.h5", "data")))
    with pytest.raises(ITOPError, match="no array of that name"): ITOP(tmp_path)
    spoil(lambda f: f.create_dataset("data", (6, 240, 320), np.float16, chunks=(6, 240, 320), compression="gzip"))
    ITOP(tmp_path)
    spoil(lambda f: f.create_dataset("data", (6000, 240, 320), np.float16, chunks=(6000, 240, 320), compression="gzip"))      # a few kB that unpack to 900 MB
    with pytest.raises(ITOPError, match="must be unpacked for one record"): ITOP(tmp_path)
    for data in (b"", b"<html>", b"\x89HDF\r\n\x1a\n" + b"\0" * 100):
        path.write_bytes(data)
        with pytest.raises(ITOPError, match="not a whole HDF5 file"): ITOP(tmp_path)


def test_damaged_bytes_name_the_record(tmp_path, h5py):
    write(tmp_path, h5py)
    path = tmp_path / "ITOP_side_train_depth_map.h5"
    with h5py.File(path) as f: chunk = f["data"].id.get_chunk_info(3)
    data = bytearray(path.read_bytes()); data[chunk.byte_offset:chunk.byte_offset + 2000] = os.urandom(2000)
    path.write_bytes(bytes(data))
    whole = ITOP(tmp_path)
    whole[1]
    with pytest.raises(ITOPError, match=r"depth_map.h5\[data\]:3: damaged"): whole[2]
    with pytest.raises(BadSample, match="01_00003"): list(Loader(whole, batch=4, shuffle=False))


def test_one_record_at_a_time(tmp_path, h5py):
    write(tmp_path, h5py, n=120, parts=("depth_map", "labels"))      # 18 MB of depth
    data = ITOP(tmp_path)
    data[0]
    tracemalloc.start()
    for i in range(0, 60, 7): data[i]
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak < 2e6, f"{peak / 1e6:.1f} MB"


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_open_their_own_files(tmp_path, h5py, start):
    write(tmp_path, h5py)
    data = ITOP(tmp_path)
    data[0]                                                      # files are open when the workers begin
    want = list(Loader(data, batch=2, seed=1))
    loader = Loader(data, batch=2, seed=1, workers=2, start_method=start)
    for a, b in zip(want, loader): assert torch.equal(a["index"], b["index"]) and torch.equal(a["depth"], b["depth"]) and torch.equal(a["joints3d"], b["joints3d"])
    loader.close()
    assert torch.equal(pickle.loads(pickle.dumps(data))[1]["depth"], data[1]["depth"])


def test_files_that_change_under_the_run(tmp_path, h5py):
    write(tmp_path, h5py)
    data = ITOP(tmp_path)
    loader = Loader(data, batch=2, check=data.changed)
    list(loader)
    assert data.changed() == []
    data.close()
    write(tmp_path, h5py, n=12)
    with pytest.raises(LoadingError, match="ITOP_side_train_depth_map.h5: .* bytes then"): next(iter(loader))
    with pytest.raises(ITOPError, match="another file than when the run began"): data[0]
    data.close(); (tmp_path / "ITOP_side_train_labels.h5").unlink()
    assert any("labels.h5: missing" in line for line in data.changed())


def test_without_h5py(tmp_path, h5py, monkeypatch):
    write(tmp_path, h5py)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ITOPError, match=r"needs h5py.*pip install 'hclab\[hdf5\]'"): ITOP(tmp_path)


def camera_frame(action, performer):
    "(40,15,3) ITOP15, x right, y down, z forward, of drawn joints of a Kinect."
    from hclab.core.skeleton import skeleton
    joints = drawn(action, performer, 40)
    order = [skeleton("NTU25").names.index(dict(torso="spine_mid", neck="spine_shoulder").get(n, n)) for n in NAMES]
    return torch.stack([joints[..., 0], -joints[..., 2], joints[..., 1]], -1)[:, order]


@pytest.mark.parametrize("action", ["walk", "squat", "sit_down"])
def test_knees_tell_a_mirror(action):
    for performer in (1, 2, 3):
        poses = camera_frame(action, performer)
        for turned in (poses, poses @ torch.tensor([[0., 0, 1], [0, 1, 0], [-1, 0, 0]])):
            score = knees_bend_forward(turned)
            assert score > .5 and abs(knees_bend_forward(turned * torch.tensor([-1., 1, 1])) + score) < 1e-6 and abs(knees_bend_forward(turned[:, ITOP15.mirror_order]) + score) < 1e-6


def test_a_mirrored_set_is_turned_back(tmp_path, h5py):
    write(tmp_path, h5py)
    stored, back = ITOP(tmp_path, segmentation=True)[1], validate(ITOP(tmp_path, segmentation=True, mirrored=True)[1])
    assert torch.equal(back["depth"], stored["depth"].flip(-1)) and torch.equal(back["instance_ids"], stored["instance_ids"].flip(-1)) and torch.equal(back["joints3d"][..., 0], -stored["joints3d"][..., 0])
    seen = back["joints3d"][0] @ back["camera"]["K"].T
    assert (seen[:, :2] / seen[:, 2:] - back["joints2d"][0]).abs().max() < .51 and float(back["camera"]["K"][0, 2]) == 159
    assert ITOP(tmp_path)[1]["camera"]["K"][0, 2] == 160, "the camera of another data set stays"
    assert torch.allclose(ITOP(tmp_path, mirrored=True).read_points(1)[:, 0], -ITOP(tmp_path).read_points(1)[:, 0])
