"""pyskl's pickles, written by this test and by the package, read without running them; our own file without a pickle; broken and hostile ones."""
import os, pickle, tracemalloc

import numpy as np
import pytest
import torch
from drawing import drawn, kinect
from hypothesis import given, settings, strategies as st

from hclab.core.sample import validate
from hclab.data.readers.pyskl import Annotations, Entry, PysklError, frame_sample, load_npz, read_pyskl, save_npz, to_sample, write_pyskl


@pytest.fixture(scope="module")
def body(): return kinect(drawn("walk", 1, 40)).numpy()


def raw3d(body, name="S001C001P001R001A059", **change): return dict(frame_dir=name, label=58, total_frames=40, keypoint=np.stack([body, body * 0]).astype(np.float16)) | change


def raw2d(body, name="clip"):
    xy = (body[:, :17, :2] * 200 + 500)[None].astype(np.float32)
    return dict(frame_dir=name, label=3, img_shape=(1080, 1920), original_shape=(1080, 1920), total_frames=40, keypoint=xy, keypoint_score=np.ones(xy.shape[:3], np.float16))


def put(folder, tree, protocol=4):
    (folder / "x.pkl").write_bytes(pickle.dumps(tree, protocol=protocol))
    return folder / "x.pkl"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_what_the_scripts_write(tmp_path, body, protocol):
    found = read_pyskl(put(tmp_path, dict(split=dict(xsub_train=["a"], xsub_val=["b"]), annotations=[raw3d(body, "b", label=np.int64(5)), raw3d(body, "a")]), protocol))
    assert found.layout == "NTU25" and [e.label for e in found.entries] == [5, 58] and found.of_split("xsub_train")[0].frame_dir == "a" and found.entries[0].keypoint.dtype == np.float16
    assert np.array_equal(found.entries[0].keypoint[0], body.astype(np.float16))


def test_a_sample_from_3d(tmp_path, body):
    both = raw3d(body); both["keypoint"][1, 5:9] = body[5:9].astype(np.float16) + 1
    found = read_pyskl(put(tmp_path, dict(split={}, annotations=[both, raw3d(body, "one")])))
    sample = validate(to_sample(found, found.entries[0]))
    assert sample["sequence"].shape == (2, 40, 25, 3) and sample["body_mask"].sum(1).tolist() == [40, 4] and sample["action"] == 58
    assert torch.allclose(sample["sequence"][0], torch.from_numpy(body) * torch.tensor([-1., -1, 1]), atol=2e-3)
    assert torch.equal(to_sample(found, found.entries[1], axes="camera")["sequence"][0], -to_sample(found, found.entries[1])["sequence"][0] * torch.tensor([1., 1, -1])) and len(to_sample(found, found.entries[1])["sequence"]) == 1
    for call in (lambda: to_sample(found, found.entries[0], axes="x"), lambda: frame_sample(found, found.entries[0], 0)):
        with pytest.raises(PysklError): call()
    empty = read_pyskl(put(tmp_path, dict(split={}, annotations=[raw3d(body * 0)])))
    with pytest.raises(PysklError, match="nobody in any of 40"): to_sample(empty, empty.entries[0])
    far = read_pyskl(put(tmp_path, dict(split={}, annotations=[raw3d(body, keypoint=(body * 1000)[None])])))
    with pytest.raises(PysklError, match="millimetres"): to_sample(far, far.entries[0])


def test_frames_of_2d(tmp_path, body):
    entry = raw2d(body); entry["keypoint_score"][0, 3, 7] = 0
    found = read_pyskl(put(tmp_path, dict(split={}, annotations=[entry])))
    sample = validate(frame_sample(found, found.entries[0], 3))
    assert found.layout == "COCO17" and sample["joints2d"].shape == (1, 17, 2) and sample["image_size"] == (1080, 1920) and sample["visibility"][0].tolist() == [2] * 7 + [0] + [2] * 9
    with pytest.raises(PysklError, match="2D"): to_sample(found, found.entries[0])
    with pytest.raises(PysklError, match="frames 0 to 39"): frame_sample(found, found.entries[0], 40)


def test_written_files_are_pyskls(tmp_path, body):
    for tree in (dict(split=dict(a=["S1"], b=[]), annotations=[raw3d(body, "S1"), raw3d(body, "S2", keypoint=np.asfortranarray(body)[None])]), dict(split=dict(train=["clip"]), annotations=[raw2d(body)])):
        found = read_pyskl(put(tmp_path, tree))
        write_pyskl(tmp_path / "again.pkl", found)
        again = pickle.loads((tmp_path / "again.pkl").read_bytes())
        assert again["split"] == tree["split"] and len(again["annotations"]) == len(tree["annotations"])
        for a, b in zip(again["annotations"], tree["annotations"]):
            assert set(a) == set(b)
            for key in b: assert np.array_equal(a[key], b[key]) and type(a[key]) is type(b[key]) and getattr(a[key], "dtype", None) == getattr(b[key], "dtype", None), key


def test_our_own_file_needs_no_pickle(tmp_path, body):
    for tree in (dict(split=dict(a=["S1"], b=[]), annotations=[raw3d(body, "S1"), raw3d(body, "S2", keypoint=body[None, :7].astype(np.float16), total_frames=7)]), dict(split=dict(train=["clip"]), annotations=[raw2d(body)])):
        found = read_pyskl(put(tmp_path, tree))
        save_npz(tmp_path / "x.npz", found)
        with np.load(tmp_path / "x.npz", allow_pickle=False) as f: assert all(f[k].dtype != object for k in f.files)
        again = load_npz(tmp_path / "x.npz")
        assert again.split == found.split and again.layout == found.layout
        for a, b in zip(found.entries, again.entries):
            assert (a.frame_dir, a.label, a.image_size) == (b.frame_dir, b.label, b.image_size) and np.array_equal(a.keypoint, b.keypoint) and a.keypoint.dtype == b.keypoint.dtype and (a.score is None or np.array_equal(a.score, b.score))
    mixed = Annotations((Entry("a", 0, np.ones((1, 2, 25, 3), np.float16)), Entry("b", 0, np.ones((1, 2, 25, 3), np.float32))), {}, "NTU25", "mixed")
    with pytest.raises(PysklError, match="2 kinds"): save_npz(tmp_path / "x.npz", mixed)
    assert load_npz(tmp_path / "x.npz").layout == "COCO17", "a refused save leaves the old file"


@pytest.mark.parametrize("change, says", [
    (dict(keypoint=None), "array of floats"), (dict(keypoint=[[1]]), "array of floats"), (dict(keypoint=np.ones((1, 40, 25, 3), int)), "array of floats"), (dict(keypoint=np.ones((1, 40, 25, 3)).astype(str)), "array of floats"), (dict(keypoint=np.ones((40, 25, 3))), "shape"),
    (dict(keypoint=np.ones((0, 40, 25, 3))), "shape"), (dict(keypoint=np.ones((1, 40, 25, 4))), "shape"), (dict(keypoint=np.ones((1, 40, 24, 3))), "24 joints"), (dict(keypoint=np.full((1, 40, 25, 3), np.nan)), "frame 0 of person 0"), (dict(total_frames=41), "total_frames is 41"),
    (dict(total_frames="40"), "got str 40"), (dict(label="walk"), "got str walk"), (dict(label=-1), "at least 0"), (dict(label=True), "whole number"), (dict(frame_dir=7), "must be a name"), (dict(frame_dir=""), "must be a name"), (dict(keypoint_score=np.ones((1, 40, 17))), "keypoint_score"), (dict(img_shape=(1080,)), "height"),
    (dict(img_shape=("a", "b")), "whole number")])
def test_broken_annotations_are_numbered(tmp_path, body, change, says):
    path = put(tmp_path, dict(split={}, annotations=[raw3d(body, "first"), raw3d(body) | change]))
    with pytest.raises(PysklError, match=says) as e: read_pyskl(path)
    assert str(e.value).startswith(f"{path}[annotations/1]"), str(e.value)


@pytest.mark.parametrize("tree, says", [([], "got list"), ({}, "'split'"), (dict(split={}, annotations=[]), "none in it"), (dict(split=[], annotations=[{}]), "'split'"), (dict(split={}, annotations=[[]]), "expected a dict"), (dict(split={}, annotations=[{}]), "no 'frame_dir'"), (None, "NoneType")])
def test_broken_trees(tmp_path, tree, says):
    with pytest.raises(PysklError, match=says): read_pyskl(put(tmp_path, tree))


def test_names_and_splits_agree(tmp_path, body):
    with pytest.raises(PysklError, match="second recording"): read_pyskl(put(tmp_path, dict(split={}, annotations=[raw3d(body), raw3d(body)])))
    for split in (dict(a="abc"), dict(a=[1]), dict(a=None)):
        with pytest.raises(PysklError, match=r"\[split/a\]"): read_pyskl(put(tmp_path, dict(split=split, annotations=[raw3d(body)])))
    found = read_pyskl(put(tmp_path, dict(split=dict(train=["gone"]), annotations=[raw3d(body)])))
    with pytest.raises(PysklError, match="1 recordings have no annotation, the first is 'gone'"): found.of_split("train")
    with pytest.raises(PysklError, match="did you mean 'train'"): found.of_split("trian")


class Hostile:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.mkdir, (self.path,)


def test_hostile_files_leave_no_trace(tmp_path, body):
    trap = Hostile(tmp_path / "trace")
    for tree in (trap, dict(split=trap, annotations=[raw3d(body)]), dict(split={}, annotations=[raw3d(body), raw3d(body, "b", label=trap)]), dict(split={}, annotations=[raw3d(body, keypoint=trap)])):
        for protocol in (2, 4):
            with pytest.raises(PysklError, match="mkdir.*Nothing of it was run"): read_pyskl(put(tmp_path, tree, protocol))
    np.savez(tmp_path / "x.npz", layout=np.array(trap, dtype=object))
    with pytest.raises(PysklError, match="mkdir"): load_npz(tmp_path / "x.npz")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("change", [dict(people=np.array([2, 2])), dict(frames=np.array(["a"])), dict(people=np.array([-2])), dict(people=np.array([2.])), dict(layout=np.array("COCO18")), dict(layout=np.array(3)), dict(layout=np.array("COCO17")), dict(names=np.array([1])), dict(names=np.array(["a", "b"])),
                                    dict(image_sizes=np.zeros((1, 3), int)), dict(labels=np.array([-1])), dict(frames=np.array([2**62])), dict(keypoints=np.ones((80, 25, 3)) * np.nan), dict(scores=np.ones((3, 25))), {"split/a": np.array([[1]])}, dict(keypoints=None)])
def test_our_own_file_is_checked_too(tmp_path, body, change):
    good = dict(layout=np.array("NTU25"), names=np.array(["a"]), labels=np.array([1]), people=np.array([2]), frames=np.array([40]), image_sizes=np.zeros((1, 2), int), keypoints=np.ones((80, 25, 3), np.float16))
    np.savez(tmp_path / "x.npz", **good); load_npz(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", **{k: v for k, v in (good | change).items() if v is not None})
    with pytest.raises(PysklError): load_npz(tmp_path / "x.npz")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nothing_but_its_own_error_escapes(tmp_path_factory, body, data):
    path = tmp_path_factory.getbasetemp() / "fuzz"
    leaves = st.one_of(st.none(), st.booleans(), st.integers(-5, 50), st.text(max_size=5), st.just(np.ones((1, 2, 25, 3))), st.just(np.ones((2, 2))), st.floats())
    annotation = st.fixed_dictionaries({}, optional={k: leaves for k in ("frame_dir", "label", "total_frames", "keypoint", "keypoint_score", "img_shape")})
    tree = data.draw(st.one_of(leaves, st.fixed_dictionaries(dict(split=st.one_of(leaves, st.dictionaries(st.text(max_size=3), leaves, max_size=2)), annotations=st.lists(st.one_of(annotation, leaves), max_size=3)))))
    path.write_bytes(pickle.dumps(tree))
    try: read_pyskl(path)
    except PysklError: pass
    np.savez(path.with_suffix(".npz"), **{k: np.array(data.draw(st.one_of(st.integers(-3, 9), st.lists(st.integers(-1, 3), max_size=3), st.text(max_size=3)))) for k in ("layout", "names", "labels", "people", "frames", "image_sizes", "keypoints")})
    try: load_npz(path.with_suffix(".npz"))
    except PysklError: pass


def test_memory(tmp_path, body):
    many = [raw3d(body, str(i), keypoint=np.tile(body, (2, 5, 1, 1)), total_frames=200) for i in range(50)]
    path, size = put(tmp_path, dict(split={}, annotations=many)), 50 * 2 * 200 * 25 * 12
    del many
    tracemalloc.start()
    kept = read_pyskl(path)
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert len(kept.entries) == 50 and peak < 1.3 * size, f"{peak / size:.2f} times the data"
