"2D joints from files and arrays: what is lifted, what is refused and how, and that nothing is left half-written."
import json
import os

import numpy as np
import pytest
import torch

from hclab.core.config import ConfigError, samples_dir
from hclab.core.geometry import h36m_camera
from hclab.core.skeleton import SKELETONS, convert, skeleton
from hclab.data.grammar import generate
from hclab.lab import predict as P
from hclab.lab import poses2d as D
from hclab.lab.cli import expected, main

H36M17, COCO = skeleton("H36M17"), skeleton("COCO17")


@pytest.fixture(scope="module")
def pixels():
    "(6,17,2) pixels of a walk before a test camera of 1002 x 1000."
    clip = generate("walk", 5, 2.0, fps=3)
    return h36m_camera("S9/54138969").project(clip.joints - clip.joints[:, :1].mean(0)*torch.tensor([1., 1, 0]))


def of_layout(pixels, layout):
    "The same poses with the joints of a detector's layout; ears and nose lie at the head."
    points = {n.replace("foot", "ankle"): pixels[:, i] for i, n in enumerate(H36M17.names)}
    points |= {"pelvis": pixels[:, 0], "neck": (points["left_shoulder"] + points["right_shoulder"])/2}
    near = lambda n: pixels[:, 10] + (4 if n.startswith("left") else -4) if any(w in n for w in ("nose", "eye", "ear")) else points["left_ankle" if n.startswith("left") else "right_ankle"]
    return torch.stack([points[n] if n in points else near(n) for n in layout.names], 1)


def triplets(joints, seen=2):
    return [v for x, y in joints.tolist() for v in (x, y, seen)]


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def plain(pixels, **more):
    return {"joints2d": pixels.tolist(), "skeleton": "H36M17", "image_size": [1002, 1000], **more}


# ------------------------------------------------------------------------------------------------ what is lifted
def test_three_lines(pixels):
    from hclab.lab.predict import lift
    joints3d = lift(pixels, "H36M17", image_size=(1002, 1000))
    assert joints3d.shape == (6, 16, 3) and (joints3d[:, 0] == 0).all()
    height = joints3d[:, skeleton("H36M16").index("left_foot"), 1] - joints3d[:, skeleton("H36M16").index("head"), 1]
    assert ((1.2 < height) & (height < 2.0)).all(), "metres, y down"
    assert torch.allclose(lift(pixels[0], H36M17, (1002, 1000)), joints3d[:1], atol=1e-5) and torch.equal(lift(pixels.numpy(), "H36M17", [1002, 1000], "martinez-h36m16"), joints3d)
    flat = lambda x: torch.cat([x, torch.zeros_like(x[..., :1])], -1)
    assert (lift(pixels, "H36M17", (1002, 1000), flat)[..., 2] == 0).all(), "the given model answers"


def test_scale_of_the_picture_does_not_matter(pixels):
    a, b = P.lift(pixels, "H36M17", (1002, 1000)), P.lift(2*pixels, "H36M17", (2004, 2000))
    assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("layout", [COCO, D.BODY25, D.BODY18], ids=lambda s: s.name)
def test_detectors_layouts_give_the_same_body(pixels, layout):
    joints, have, _ = convert(of_layout(pixels, layout), layout, "H36M16")
    own = convert(pixels, H36M17, "H36M16")[0]
    body = [i for i, n in enumerate(skeleton("H36M16").names) if not any(w in n for w in ("hip", "spine", "thorax", "head"))]
    assert have.all() and torch.allclose(joints[:, body], own[:, body])
    assert (joints - own).norm(dim=-1).max() < 40, "derived joints lie near the real ones"
    D.check_joints2d(of_layout(pixels, layout), layout, (1002, 1000))


def test_every_format_gives_the_same_answer(pixels, tmp_path):
    coco = of_layout(pixels, COCO)
    annotations = [{"id": 10 + i, "image_id": 1, "keypoints": triplets(p)} for i, p in enumerate(coco)]
    np.savez(tmp_path/"a.npz", joints2d=pixels.numpy(), skeleton="H36M17", image_size=np.array([1002, 1000]))
    np.savez(tmp_path/"seen.npz", joints2d=pixels.numpy().astype(np.float16), skeleton=np.array("H36M17"), image_size=(1002, 1000), labelled=np.ones((6, 17), dtype=np.int8))
    people = {"version": 1.3, "people": [{"person_id": [-1], "pose_keypoints_2d": triplets(p, 0.7), "face_keypoints_2d": []} for p in of_layout(pixels, D.BODY25)]}
    files = {"plain": (plain(pixels), {}), "bare": ({"joints2d": pixels.tolist()}, dict(layout="H36M17", image_size=(1002, 1000))), "one": (plain(pixels[0]), {}),
             "coco": ({"images": [{"id": 1, "height": 1002, "width": 1000}], "annotations": annotations, "categories": [{"keypoints": list(COCO.names)}]}, {}),
             "results": (annotations, dict(image_size=(1002, 1000))), "openpose": (people, dict(image_size=(1002, 1000)))}
    answers = {name: P.predict_poses2d(write(tmp_path/f"{name}.json", value), tmp_path/"out", **more) for name, (value, more) in files.items()}
    answers |= {name: P.predict_poses2d(tmp_path/f"{name}.npz", tmp_path/"out") for name in ("a", "seen")}
    truth = P.lift(pixels, "H36M17", (1002, 1000))
    for name in ("plain", "bare", "a"): assert torch.allclose(answers[name][1], truth, atol=1e-4), name
    assert torch.allclose(answers["seen"][1], truth, atol=0.02) and torch.allclose(answers["coco"][1], answers["results"][1])
    assert torch.allclose(answers["coco"][1], answers["openpose"][1], atol=1e-3)
    assert answers["coco"][0].labels[2] == "annotation 12 of image 1"
    stored = json.loads((tmp_path/"out/coco_3d.json").read_text())
    assert stored["unit"] == "m" and stored["frame"] == "camera" and stored["layout"] == "H36M16" and stored["names"] == list(skeleton("H36M16").names) and stored["root"] in stored["names"]
    assert stored["derived_joints"] == ["hip", "spine", "thorax", "head"] and "left_eye" not in stored["used_joints"]
    assert np.allclose([p["joints3d"] for p in stored["poses"]], answers["coco"][1], atol=1e-4)


def test_pictures_of_different_size(pixels, tmp_path):
    coco = of_layout(pixels[:2], COCO)
    value = {"images": [{"id": 1, "height": 1002, "width": 1000}, {"id": 2, "height": 501, "width": 500}],
             "annotations": [{"image_id": 2, "keypoints": triplets(coco[0]/2)}, {"image_id": 1, "keypoints": triplets(coco[0])}, {"image_id": 1, "area": 3}]}
    poses, joints, *_ = P.predict_poses2d(write(tmp_path/"a.json", value), tmp_path)
    assert len(poses) == 2 and torch.allclose(joints[0], joints[1], atol=1e-4)


def test_order_is_judged_on_drawn_people_and_never_wrongly():
    for action in ("walk", "squat", "sit_down", "pick_up", "wave"):
        clip = generate(action, 9, 2.0, fps=3)
        for name in ("S9/54138969", "S11/60457274"):
            at = h36m_camera(name).project(clip.joints - clip.joints[:, :1].mean(0)*torch.tensor([1., 1, 0]))
            for pose in at: D.check_order(pose[None], H36M17)
            for other in ("COCO17", "MPI3DHP17"):
                with pytest.raises(D.Poses2DError, match="in the order of H36M17"): D.check_order(at, SKELETONS[other])


# ------------------------------------------------------------------------------------------------ what is refused
def refused(call, *words):
    with pytest.raises(ConfigError) as e: call()
    for word in words: assert word in str(e.value), str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("change, words", [
    (lambda p: (p[:, :16], "H36M17", (1002, 1000)), ("has 16 joints and H36M17 has 17", "H36M16, MPII16")),
    (lambda p: (p[:, :5], "H36M17", (1002, 1000)), ("no known layout has 5 joints",)),
    (lambda p: (p, "COCO17", (1002, 1000)), ("said to be COCO17", "H36M17")),
    (lambda p: (p[:, torch.arange(17).roll(5)], "H36M17", (1002, 1000)), ("H36M17", "order")),
    (lambda p: (p, "h36m17", (1002, 1000)), ("did you mean 'H36M17'",)),
    (lambda p: (p/1000, "H36M17", (1002, 1000)), ("normalised",)),
    (lambda p: (p/500 - 1, "H36M17", (1002, 1000)), ("normalised",)),
    (lambda p: (p, "H36M17", None), ("size is missing", "--width")),
    (lambda p: (p, "H36M17", 1000), ("(height, width)",)),
    (lambda p: (p, "H36M17", (1002, 0.5)), ("(height, width)",)),
    (lambda p: (p, "H36M17", (float("nan"), 3)), ("(height, width)",)),
    (lambda p: (p, "H36M17", (240, 320)), ("far outside", "height comes first")),
    (lambda p: (torch.where(torch.arange(17)[None, :, None] == 4, torch.nan, p), "H36M17", (1002, 1000)), ("left_hip", "no mask")),
    (lambda p: (p*torch.inf, "H36M17", (1002, 1000)), ("infinite",)),
    (lambda p: (p[:0], "H36M17", (1002, 1000)), ("no poses",)),
    (lambda p: (p[..., :1], "H36M17", (1002, 1000)), ("expected (N, 17, 2)",)),
    (lambda p: (p[None], "H36M17", (1002, 1000)), ("expected (N, 17, 2)",)),
    (lambda p: ([["a"]], "H36M17", (1002, 1000)), ("no array of numbers",)),
    (lambda p: (None, "H36M17", (1002, 1000)), ("joints2d",))])
def test_arrays_that_are_refused(pixels, change, words):
    refused(lambda: P.lift(*change(pixels)), *words)


BAD = {
    "": ("is empty",), "{": ("not the JSON",), "["*100_000: ("levels deep",), "3": ("none of the keys",), "null": ("none of the keys",), "{}": ("none of the keys",), "[]": ("no annotations",), "[3]": ("annotation 0 is int",),
    '{"joints2d": [[[1, NaN]]]}': ("not a finite",), '{"joints2d": [[[1, 1e999]]]}': ("not a finite",), '{"joints2d": [[[1, ' + "9"*400 + "]]]}": ("no array of numbers",),
    '{"joints2d": 3, "joints2d": 3}': ("given twice",), '{"joints2d": []}': ("shape",), '{"joints2d": {}}': ("no array",), '{"joints2d": "aa"}': ("no array",), '{"joints2d": [[1, 2], [3]]}': ("no array",),
    '{"joints2d": [[1, 2], [3, 4]], "skeleton": 3}': ("skeleton is int",), '{"joints2d": [[1, 2], [3, 4]]}': ("name the layout",), '{"joints2d": [[1, 2], [3, 4]], "skeleton": "H36M17"}': ("2 joints a pose and H36M17 has 17",),
    '{"annotations": 3}': ("annotations is int",), '{"annotations": [{"keypoints": 3}]}': ("keypoints of annotation 0 is int",), '{"annotations": [{"keypoints": [1, 2]}]}': ("three a joint",), '{"annotations": [{"keypoints": ["1", 2, 3]}]}': ("no number: '1'",),
    '{"annotations": [{"keypoints": [true, 2, 3]}]}': ("no number",), '{"annotations": [{"keypoints": [1, 2, 3]}], "images": 3}': ("images is int",), '{"annotations": [{"keypoints": [1e12, 2, 3]}]}': ("above 1e9",), '{"annotations": [{}]}': ("no annotations with keypoints",),
    '{"people": []}': ("no people",), '{"people": 3}': ("people is int",), '{"people": [3]}': ("person 0 is int",), '{"people": [{}]}': ("person 0 is NoneType",),
}


@pytest.mark.parametrize("text", BAD, ids=lambda t: t[:40].replace("/", "") or "empty")
def test_files_that_are_refused(text, tmp_path, capsys):
    path = write(tmp_path/"in.json", text)
    assert main(["predict", "--task", "lift3d", "--out", str(tmp_path/"out"), "--width", "1000", "--height", "1002", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("hclab: ") and err.count("\n") == 1 and len(err) < 700 and "in.json" in err, err
    for word in BAD[text]: assert word in err, err
    assert sorted(os.listdir(tmp_path)) == ["in.json"], "nothing was written"


def test_contradictions_are_refused(pixels, tmp_path):
    read = lambda value, **more: (lambda: D.read_poses2d(write(tmp_path/"a.json", value), **more).check())
    refused(read(plain(pixels), layout="COCO17"), "the file says H36M17", "COCO17")
    refused(read(plain(pixels), image_size=(480, 640)), "(1002, 1000)", "(480, 640)")
    refused(read(plain(pixels, names=list(H36M17.names[::-1]))), "joint 0 is 'right_wrist' in the file and 'hip'")
    refused(read(plain(pixels, names=["a"])), "names 1 joints")
    refused(read(plain(pixels, labelled=[1, 2])), "labelled is no array")
    refused(read(plain(pixels, image_size="wide")), "(height, width)")
    refused(read({"joints2d": pixels.tolist(), "skeleton": "H36M17"}), "size is missing")
    value = {"images": [{"id": 1, "height": 9, "width": 9}], "annotations": [{"image_id": 1, "keypoints": triplets(p)} for p in of_layout(pixels, COCO)]}
    refused(read(value), "far outside a picture of width 9")
    value["categories"] = [{"keypoints": list(COCO.names[::-1])}]
    refused(read(value), "joint 0 is 'right_ankle' in the file and 'nose'")
    refused(read([{"image_id": 1, "keypoints": triplets(pixels[0])}], image_size=(1002, 1000)), "said to be COCO17")


def test_unlabelled_joints_are_named_or_left_out(pixels, tmp_path, capsys):
    coco = of_layout(pixels, COCO)
    rows = [{"id": 70 + i, "keypoints": triplets(p)} for i, p in enumerate(coco)]
    for joint in (0, 1): rows[2]["keypoints"][3*joint + 2] = 0                 # nose and left eye: H36M16 does not need them
    rows[4]["keypoints"][3*9:3*10] = [0, 0, 0]
    path = write(tmp_path/"a.json", rows)
    line = ["predict", "--task", "lift3d", "--out", str(tmp_path/"out"), "--width", "1000", "--height", "1002", str(path)]
    assert main(line) == 2
    assert "annotation 74 of image ? (1 of 6) has no left_wrist" in capsys.readouterr().err and not (tmp_path/"out").exists()
    assert main([*line, "--complete-only"]) == 0
    stored = json.loads((tmp_path/"out/a_3d.json").read_text())
    assert stored["left_out"] == 1 and [p["pose"] for p in stored["poses"]] == [f"annotation {70 + i} of image ?" for i in (0, 1, 2, 3, 5)]
    for row in rows: row["keypoints"][3*9 + 2] = 0
    write(path, rows)
    assert main([*line, "--complete-only"]) == 2 and "none of the 6 poses" in capsys.readouterr().err


def test_hostile_archives(tmp_path, pixels, capsys):
    (tmp_path/"text.npz").write_text("not a zip")
    np.savez(tmp_path/"other.npz", keypoints=pixels.numpy())
    np.savez(tmp_path/"objects.npz", joints2d=np.array([object], dtype=object), allow_pickle=True)
    np.savez(tmp_path/"complex.npz", joints2d=pixels.numpy()*1j, skeleton="H36M17", image_size=(1002, 1000))
    np.savez(tmp_path/"nosize.npz", joints2d=pixels.numpy(), skeleton="H36M17")
    np.savez_compressed(tmp_path/"bomb.npz", joints2d=np.zeros((2**26,), dtype=np.float64))
    for name in ("text", "other", "objects", "complex", "nosize", "bomb"):
        assert main(["predict", "--task", "lift3d", "--out", str(tmp_path/"out"), str(tmp_path/f"{name}.npz")]) == 2, name
        err = capsys.readouterr().err
        assert f"{name}.npz" in err and err.count("\n") == 1, err
    assert not (tmp_path/"out").exists()


# ------------------------------------------------------------------------------------------------ the command
def test_relative_output_and_a_second_run(pixels, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path/"a.json", plain(pixels))
    for _ in range(2): assert main(["predict", "--task", "lift3d", "--out", "deep/er", "a.json"]) == 0
    assert sorted(os.listdir("deep/er")) == ["a_3d.json", "a_3d.png"] and json.loads((tmp_path/"a.json").read_text()) == plain(pixels), "the input is not overwritten"
    assert "6 poses of H36M17" in capsys.readouterr().out
    assert main(["predict", "--task", "lift3d", "--out", ".", "a.json"]) == 0 and json.loads((tmp_path/"a.json").read_text()) == plain(pixels)


def test_nothing_is_half_written_when_the_disk_fails(pixels, tmp_path, monkeypatch, capsys):
    import hclab.core.io as io
    def fail(*_): raise OSError(28, "No space left on device")
    write(tmp_path/"a.json", plain(pixels))
    monkeypatch.setattr(io.os, "replace", fail)
    assert main(["predict", "--task", "lift3d", "--out", str(tmp_path/"out"), str(tmp_path/"a.json")]) == 1
    assert "space" in capsys.readouterr().err and os.listdir(tmp_path/"out") == []


@pytest.mark.parametrize("line, words", [
    (["x.bvh", "--camera", "S9/1"], "no such file"), (["x.bvh", "--camera", "S9/7"], "known: 54138969"), (["a.json", "--camera", "S9/1"], "--camera is for recordings"), (["a.bvh", "--layout", "COCO17"], "are for 2D joints"), (["a.json", "--width", "3"], "both --width and --height"),
    (["a.json", "--checkpoint", "nowhere.safetensors"], "no such file"), (["a.json", "--checkpoint", "a.json", "--method", "martines"], "did you mean 'martinez'"), (["a.json", "--method", "lcn"], "--checkpoint"),
    (["a.json", "--checkpoint", "a.json"], "is no martinez network"), (["."], "no reader"), (["a.json", "--layout", "COCO18"], "unknown joint layout")])
def test_wrong_options_exit_2(line, words, pixels, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path/"a.json", {"joints2d": pixels.tolist(), "image_size": [1002, 1000]})
    assert main(["predict", "--task", "lift3d", *line]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1, err
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_bad_camera_exits_2(tmp_path, capsys):
    (tmp_path/"a.bvh").write_text("HIERARCHY")
    for camera in ("S9/7", "S99/54138969", "", "S9"): assert main(["predict", "--task", "lift3d", "--camera", camera, "--out", str(tmp_path/"out"), str(tmp_path/"a.bvh")]) == 2, camera
    assert "camera" in capsys.readouterr().err and not (tmp_path/"out").exists()
    if samples_dir() is None: pytest.skip("HCLAB_SAMPLES is not set: no recording for the good camera")
    assert main(["predict", "--task", "lift3d", "--camera", "S9/0", "--out", str(tmp_path/"out"), str(samples_dir()/"cmu/cmu_12_01_walk.bvh")]) == 0 and "S9/54138969" in capsys.readouterr().out


def test_only_our_own_errors_are_one_line():
    from hclab.core.geometry import GeometryError
    from hclab.lab.arms import ArmsFailed
    for error in (ConfigError("x"), GeometryError("x"), ArmsFailed("x"), D.Poses2DError("x"), FileNotFoundError("x"), ImportError("x")): assert expected(error)
    for error in (ValueError("bug"), TypeError("bug"), KeyError("bug"), RuntimeError("bug"), IndexError("bug"), AssertionError("bug")): assert not expected(error)


def test_a_slip_of_ours_is_a_traceback(monkeypatch, tmp_path, pixels):
    def slip(*_): raise ValueError("not enough values to unpack")
    monkeypatch.setattr(P, "picture2d", slip)
    write(tmp_path/"a.json", plain(pixels))
    with pytest.raises(ValueError, match="unpack"): main(["predict", "--task", "lift3d", "--out", str(tmp_path/"out"), str(tmp_path/"a.json")])
    assert not (tmp_path/"out").exists()
