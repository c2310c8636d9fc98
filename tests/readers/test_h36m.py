"""Human3.6M's npz files, written here as the community's scripts write them; broken and hostile ones."""
import os, tracemalloc

import numpy as np
import pytest
import torch
from drawing import drawn
from hypothesis import given, settings, strategies as st

from hclab.core.geometry import h36m_camera
from hclab.core.sample import validate
from hclab.core.skeleton import skeleton
from hclab.data.motion import ClipError
from hclab.data.readers.h36m import ACTIONS, H36MError, LAYOUTS, SUBJECTS, action_of, clip_of, clips, read_keypoints, read_positions, sample_of


@pytest.fixture(scope="module")
def walk(): return drawn("walk", 1, 40, 50.0, "H36M32").numpy()


def save(folder, tree, key="positions_3d", name="data_3d_h36m.npz", **more):
    box = np.empty((), dtype=object); box[()] = tree
    np.savez_compressed(folder / name, **{key: box}, **more)
    return folder / name


def test_clips_on_three_layouts(tmp_path, walk):
    found = read_positions(save(tmp_path, {"S9": {"Walking 1": walk, "Photo": walk + 1}, "S1": {"Eating": walk}, "S11": {"Directions": walk * np.nan, "Directions 1": walk}}))
    assert np.array_equal(found["S9"]["Walking 1"], walk) and list(found["S11"]) == ["Directions 1"]
    for layout, picks in LAYOUTS.items():
        c = clip_of(found, "S9", "Walking 1", layout)
        assert c.skeleton == skeleton(layout) and torch.equal(c.joints, torch.from_numpy(walk[:, list(picks)])) and (c.fps, c.action, c.performer) == (50, "Walking", "S9")
    assert [(c.performer, c.action) for c in clips(found, "test")] == [("S9", "Walking"), ("S9", "Photo"), ("S11", "Directions")] and [c.performer for c in clips(found)] == ["S1"]
    assert clip_of(found, "S1", "Eating").joints.numpy().base is not found["S1"]["Eating"]
    for call in (lambda: clip_of(found, "S2", "Eating"), lambda: clip_of(found, "S1", "Eatin"), lambda: clip_of(found, "S1", "Eating", "COCO17"), lambda: list(clips(found, "val")), lambda: list(clips({"S7": {}}, "test"))):
        with pytest.raises(H36MError): call()


def test_the_layouts_take_the_joints_of_the_same_name():
    for layout, picks in LAYOUTS.items(): assert [skeleton("H36M32").names[j] for j in picks] == list(skeleton(layout).names)
    assert sorted(set(range(32)) - set(LAYOUTS["H36M17"])) == [4, 5, 9, 10, 11, 16, 20, 21, 22, 23, 24, 28, 29, 30, 31]
    assert not set(SUBJECTS["train"]) & set(SUBJECTS["test"]) and len(ACTIONS) == 15


def test_actions_are_whole_words():
    assert [action_of(n) for n in ("Walking 1", "WalkTogether", "SittingDown 2", "Sitting", "WalkingDog 1")] == ["Walking", "WalkTogether", "SittingDown", "Sitting", "WalkDog"]
    for wrong in ("", "Walk 1", "walking"):
        with pytest.raises(H36MError): action_of(wrong)


@pytest.mark.parametrize("make, says", [
    (lambda w: {"S1": {"Walking": w[:, :17]}}, r"\[S1/Walking\]: shape \(40, 17, 3\)"), (lambda w: {"S1": {"Walking": w[..., :2]}}, "shape"), (lambda w: {"S1": {"Walking": w[:0]}}, "zero frames"), (lambda w: {"S1": {"Walking": w * 1000}}, "millimetres"),
    (lambda w: {"S1": {"Walking": w.astype(str)}}, "text is not converted"), (lambda w: {"S1": {"Walking": (w * 9).astype(int)}}, "floats"), (lambda w: {"S1": {"Walking": w.tolist()}}, "expected a ndarray, got list"), (lambda w: {"S1": [w]}, "expected a dict, got list"),
    (lambda w: [w], "expected a dict"), (lambda w: {}, "no recording"), (lambda w: {"S1": {}}, "no recording"), (lambda w: None, "expected a dict, got NoneType"), (lambda w: {"S1": {"Walking": w * 0}}, "size 0"), (lambda w: {1.5: w}, "key of type float")])
def test_broken_positions(tmp_path, walk, make, says):
    path = save(tmp_path, make(walk))
    with pytest.raises(H36MError, match=says) as e: read_positions(path)
    assert str(e.value).startswith(str(path))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_named(tmp_path, walk, bad):
    broken = walk.copy(); broken[17, 6, 1] = bad
    with pytest.raises(H36MError, match=r"\[S1/Walking\]: joint 6 of frame 17 is not finite"): read_positions(save(tmp_path, {"S1": {"Walking": broken}}))


def test_one_frame(tmp_path, walk): assert len(clip_of(read_positions(save(tmp_path, {"S1": {"Walking": walk[:1]}})), "S1", "Walking")) == 1


class Hostile:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.mkdir, (self.path,)


def test_hostile_files_leave_no_trace(tmp_path, walk):
    for tree in ({"S1": {"Walking": Hostile(tmp_path / "trace")}}, Hostile(tmp_path / "trace"), {"S1": {"Walking": walk}, "S5": [Hostile(tmp_path / "trace")]}):
        with pytest.raises(H36MError, match="mkdir.*Nothing of it was run"): read_positions(save(tmp_path, tree))
        with pytest.raises(H36MError, match="mkdir"): read_keypoints(save(tmp_path, tree, "positions_2d", metadata=np.array(1)))
    assert not (tmp_path / "trace").exists()


def test_files_of_another_kind(tmp_path):
    for data in (b"", b"PK\x03\x04", b"x" * 1000):
        (tmp_path / "x.npz").write_bytes(data)
        with pytest.raises(H36MError): read_positions(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", a=1)
    with pytest.raises(H36MError, match="no array called 'positions_3d'; it holds a"): read_positions(tmp_path / "x.npz")
    with pytest.raises(FileNotFoundError): read_positions(tmp_path / "none.npz")


def pixels(walk, subject, layout): return [h36m_camera(subject, c).project(torch.from_numpy(np.concatenate([walk, walk[-1:]])[:, list(LAYOUTS[layout])]).double(), formula="h36m").float().numpy() for c in range(4)]


@pytest.mark.parametrize("layout", ["H36M17", "H36M16"])
def test_samples_with_pixels(tmp_path, walk, layout):
    found = read_positions(save(tmp_path, {"S1": {"Walking": walk}}))
    path = save(tmp_path, {"S1": {"Walking": pixels(walk, "S1", layout)}}, "positions_2d", "2d.npz", metadata=np.array({"num_joints": int(layout[-2:]), "keypoints_symmetry": [[4], [1]]}, dtype=object))
    keys = read_keypoints(path)
    assert keys.joints == int(layout[-2:])
    for c in range(4):
        s, lens = validate(sample_of(found, keys, "S1", "Walking", c, 39, layout)), h36m_camera("S1", c)
        assert (s["joints3d"][..., 2] > 1).all() and torch.allclose(lens.project_camera(s["joints3d"].double(), formula="h36m").float(), s["joints2d"], atol=.01)
        assert s["image_size"] == lens.image_size and s["action"] == ACTIONS.index("Walking")
    other = dict(H36M17="H36M16", H36M16="H36M17")[layout]
    with pytest.raises(H36MError, match="ask for"): sample_of(found, keys, "S1", "Walking", 0, 0, other)
    with pytest.raises(H36MError, match="frames 0 to 39"): sample_of(found, keys, "S1", "Walking", 0, 40, layout)
    validate(sample_of(found, None, "S1", "Walking", 0, 0, other))


@pytest.mark.parametrize("change, says", [(lambda p: p[:3], "3 cameras"), (lambda p: p[0], "expected a list|cameras|expected"), (lambda p: [x[:, :15] for x in p], "shape"), (lambda p: [x * np.nan for x in p], "not finite"), (lambda p: [p[0], p[1], p[2], p[3][:, :16]], "num_joints")])
def test_broken_keypoints(tmp_path, walk, change, says):
    path = save(tmp_path, {"S1": {"Walking": change(pixels(walk, "S1", "H36M17"))}}, "positions_2d", metadata=np.array({"num_joints": 17}, dtype=object))
    with pytest.raises(H36MError, match=says): read_keypoints(path)
    for told in (16, None, "17", [17], {}):
        with pytest.raises(H36MError, match="num_joints|metadata"): read_keypoints(save(tmp_path, {"S1": {"Walking": pixels(walk, "S1", "H36M17")}}, "positions_2d", metadata=np.array({"num_joints": told}, dtype=object)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nothing_but_its_own_error_escapes(tmp_path_factory, walk, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.npz"
    box = np.empty((), dtype=object); box[()] = {"S1": {"Walking": walk[:3]}}
    np.savez(path, positions_3d=box)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))): raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[:data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    try:
        for _ in clips(read_positions(path)): pass
    except (H36MError, ClipError): pass


def test_memory(tmp_path, walk):
    path = save(tmp_path, {"S1": {"Walking": np.tile(walk, (100, 1, 1)), "Eating": np.tile(walk, (100, 1, 1))}})
    size = 2 * 4000 * 32 * 12
    tracemalloc.start()
    kept = read_positions(path)
    assert tracemalloc.get_traced_memory()[1] < 1.6 * size
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    clip = next(clips(kept, "train", "H36M32"))
    peak = tracemalloc.get_traced_memory()[1] - before; tracemalloc.stop()
    assert peak < 2 * clip.joints.numel() * 4
