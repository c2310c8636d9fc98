"Which action is done when: recordings in, segments, a picture and numbers out, and refusals that say why."
import json

import numpy as np
import pytest
import torch
from PIL import Image

from hclab.core.config import samples_dir
from hclab.data.motion import Clip
from hclab.data.readers import bvh, ntu
from hclab.data.sequences import compose
from hclab.lab import annotate as A
from hclab.lab.cli import main
from hclab.lab.predict import PredictError
from hclab.tasks.action_detection import Proposal
from hclab.train.loop import save_model

ACTIONS = ["wave", "walk", "squat"]


def kinect(path, *bodies):
    "A Kinect's file of bodies (T,25,3) metres, y down, called 1, 2, ..."
    T = len(bodies[0])
    ntu.write_skeleton(path, [ntu.Track(str(k), torch.arange(T), joints.contiguous(), torch.full((T, 25), 2, dtype=torch.int8), torch.zeros(T, 25, 2)) for k, joints in enumerate(bodies, 1)], T)
    return path


@pytest.fixture(scope="module")
def performance(): return {layout: compose(61, ACTIONS, seed=2, layout=layout).clips[0] for layout in ("FIGURE", "NTU25", "H36M16", "COCO17")}


@pytest.fixture(scope="module")
def files(performance, tmp_path_factory):
    "The same performance as BVH and as a Kinect's file."
    folder = tmp_path_factory.mktemp("recordings")
    bvh.write_bvh(performance["FIGURE"], folder/"a.bvh")
    world = performance["NTU25"].joints
    return {"bvh": folder/"a.bvh", "kinect": kinect(folder/"a.skeleton", torch.stack([world[..., 0], -world[..., 2], world[..., 1] + 4], -1))}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return A.build_detector(A.detector_config()).eval()


def run(*words): return main(["predict", "--task", "detect", *map(str, words)])


# ------------------------------------------------------------------------------------------------ what the network is given
def test_every_kind_of_file_gives_the_same_stream(performance, files):
    "Read back from a file, the joints are those that were drawn, at every second frame; only a Kinect's head is lower."
    drawn = performance["H36M16"].joints[::2]
    wanted = drawn - drawn[:, :1]
    for kind, path in files.items():
        clip = A.read_stream(path)
        assert clip.fps == 15 and clip.skeleton.name == "H36M16" and clip.frame == "world"
        assert clip.joints[0, 0, :2].abs().max() < 1e-4 and float(clip.joints[..., 2].min()) == pytest.approx(0, abs=1e-5)
        body = [i for i, n in enumerate(clip.skeleton.names) if n != "head"] if kind == "kinect" else list(range(16))
        assert (clip.joints - clip.joints[:, :1] - wanted)[:, body].abs().max() < 2e-3, kind
    assert "stand-in" in A.read_stream(files["kinect"]).source and "stand-in" not in A.read_stream(files["bvh"]).source


@pytest.mark.parametrize("place", [0, 1, 2])
def test_of_three_people_the_one_who_moves_most(files, tmp_path, place):
    "Two stand beside him, breathing: what is said is what is said of him alone, wherever he is in the file."
    him = ntu.read_skeleton(files["kinect"]).tracks[0].joints[:150]
    breath = .01*torch.sin(torch.arange(len(him))*.2)[:, None, None]
    others = [him[:1] + breath + torch.tensor([x, 0, 0]) for x in (-1.0, 1.0)]
    path = kinect(tmp_path/"three.skeleton", *others[:place], him, *others[place:])
    alone, said = A.annotate(kinect(tmp_path/"alone.skeleton", him)), A.annotate(path)
    assert len(ntu.read_skeleton(path).tracks) == 3 and f"three.skeleton body {place + 1} " in said.clip.source
    assert torch.allclose(said.clip.joints, alone.clip.joints, atol=1e-5) and torch.allclose(said.probabilities, alone.probabilities, atol=1e-4) and len(said.segments) == len(alone.segments) > 0
    assert set(A.annotate(kinect(tmp_path/"still.skeleton", *others)).shares()) != set(alone.shares()), "of the others something else is said"


def test_no_joint_is_made_up(performance):
    clip = performance["H36M16"]
    with pytest.raises(PredictError, match="H36M16 has nothing to take .*left_thumb.* of NTU25 from"): A.as_stream(clip, "NTU25")
    said = A.as_stream(performance["COCO17"]).source
    assert "hip of H36M16 is left_hip and right_hip of COCO17 (mean)" in said
    with pytest.raises(PredictError, match="10 frames a second"): A.as_stream(clip.resample(10.0))
    with pytest.raises(PredictError, match="got Tensor"): A.annotate(clip.joints, A.build_detector(A.detector_config()))


def test_where_somebody_stands_does_not_matter(performance, net):
    clip = performance["H36M16"].slice(0, 60)
    moved = Clip(clip.joints + torch.tensor([3.0, -2.0, 0.7]), clip.skeleton, clip.fps, "", "")
    assert torch.allclose(A.annotate(clip, net).probabilities, A.annotate(moved, net).probabilities, atol=1e-4)


def test_drawn_streams_are_of_both_kinds_and_repeat():
    config = A.detector_config().frames.streams
    for kind in A.KINDS:
        first, again = A.drawn_stream(3, 1, config, kind), A.drawn_stream(3, 1, config, kind)
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
        assert first[0].shape[1:] == (16, 3) and len(first[0]) == len(first[1]) and first[0].isfinite().all()
        assert 0 <= int(first[1].min()) and int(first[1].max()) < len(A.occurring(config.actions))
    clean, sensed = (A.drawn_stream(3, 1, config, kind) for kind in A.KINDS)
    assert torch.equal(clean[1], sensed[1]), "the same performance"


# ------------------------------------------------------------------------------------------------ what comes out
def test_segments_words_and_shares(performance):
    clip = A.as_stream(performance["H36M16"]).slice(0, 20)
    said = A.Annotated(clip, torch.full((20, 3), 1/3), (Proposal(1, 2, 7, .5), Proposal(2, 10, 20, 1.0)), ("background", "jump", "turn_around"))
    assert [said.words(t) for t in (0, 2, 6, 7, 19)] == ["nothing that it knows", "jump, 50%", "jump, 50%", "nothing that it knows", "turn around, 100%"]
    assert said.shares() == pytest.approx({"turn_around": 50, "background": 25, "jump": 25})


def test_the_packaged_network_finds_what_is_drawn(files):
    "It was trained on others of the kind; the truth is known to the frame."
    true = compose(61, ACTIONS, seed=2)
    for path in files.values():
        said = A.annotate(path)
        assert said.probabilities.shape == (len(said.clip), len(said.classes)) and torch.allclose(said.probabilities.sum(1), torch.ones(len(said.clip)), atol=1e-4)
        right = sum((said.classes[s.label] if (s := said.at(t)) else "background") == next((x.action for x in true.segments if x.start <= 2*t < x.end), "background") for t in range(len(said.clip)))
        assert right > .5*len(said.clip)
    told = A.detector().provenance
    assert told["commit"] and told["mAP_a@0.5"] > 0 and told["test_frames"] > 4*told["chance_frames"] and A.DETECTOR.stat().st_size < 1.5e6


def test_a_picture_and_numbers(files, tmp_path, capsys):
    assert run(files["bvh"], "--out", tmp_path/"out") == 0
    assert "drawn people" in capsys.readouterr().out
    with Image.open(tmp_path/"out/a_actions.png") as shown: assert np.asarray(shown.convert("RGB")).std() > 20
    told = json.loads((tmp_path/"out/a_actions.json").read_text())
    assert told["fps"] == 15 and told["classes"][0] == "background" and told["layout"] == "H36M16" and sum(told["percent_of_frames"].values()) == pytest.approx(100, abs=.1)
    for s in told["segments"]: assert s["action"] in told["classes"] and 0 <= s["start"] < s["end"] <= told["frames"] and s["end_s"] == pytest.approx(s["end"]/15, abs=1e-3) and 0 <= s["score"] <= 1
    assert told["network"]["commit"] and sorted(p.name for p in (tmp_path/"out").iterdir()) == ["a_actions.json", "a_actions.png"]


def test_a_network_of_ones_own(files, net, tmp_path):
    save_model(tmp_path/"own.safetensors", net)
    assert run(files["kinect"], "--checkpoint", tmp_path/"own.safetensors", "--out", tmp_path/"out") == 0
    mine = A.annotate(files["kinect"], A.detector(tmp_path/"own.safetensors"))
    assert torch.allclose(mine.probabilities, A.annotate(files["kinect"], net).probabilities, atol=1e-5)


# ------------------------------------------------------------------------------------------------ what is refused
def test_bad_files(files, performance, tmp_path, capsys):
    lines = files["bvh"].read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("Frame Time"))
    def motion(name, frames, **changes):
        head = [changes.get("count", f"Frames: {len(frames)}") if line.startswith("Frames:") else line for line in lines[:at + 1]]
        (tmp_path/name).write_text("\n".join([*head, *frames]) + "\n")
        return tmp_path/name
    world = performance["NTU25"].joints[:20]
    wrong = kinect(tmp_path/"joints.skeleton", world + torch.tensor([0, 3.0, 0]))
    wrong.write_text(wrong.read_text().replace("\n25\n", "\n24\n", 1))
    (tmp_path/"nobody.skeleton").write_text("3\n0\n0\n0\n")
    (tmp_path/"page.bvh").write_text("<html>404</html>")
    (tmp_path/"bytes.skeleton").write_bytes(bytes(range(256))*40)
    (tmp_path/"bomb.bvh").write_text("HIERARCHY\nROOT a\n{\n" + "".join(f"OFFSET 0 0 0\nJOINT b{k}\n{{\n" for k in range(5000)))
    (tmp_path/"body.asf").write_text(":version 1.10\n")
    (tmp_path/"names.bvh").write_text(files["bvh"].read_text().replace("left_knee", "lk"))
    (tmp_path/"folder.bvh").mkdir()
    nan = lines[at + 1].split(); nan[3] = "nan"
    for path, said in ((tmp_path/"no.bvh", "no such file"), (tmp_path/"folder.bvh", "no such file"), (motion("zero.bvh", []), "zero frames"), (motion("nan.bvh", [" ".join(nan)]), "not finite"), (motion("short.bvh", lines[at + 1:at + 13]), "shorter|longer"), (motion("cut.bvh", lines[at + 1:at + 40], count="Frames: 5000"), "truncated"),
                       (wrong, "24 joints"), (tmp_path/"nobody.skeleton", "no body"), (tmp_path/"page.bvh", "HIERARCHY"), (tmp_path/"bytes.skeleton", "number of frames"), (tmp_path/"bomb.bvh", "deep"), (tmp_path/"names.bvh", "names follow none"), (tmp_path/"body.asf", ".amc"),
                       (files["bvh"].with_suffix(".fbx"), "no such file"), (__file__, "readable: .bvh, .amc, .skeleton")):
        assert run(path, "--out", tmp_path/"out") == 2, path
        words = capsys.readouterr().err
        assert any(part in words for part in said.split("|")) and "Traceback" not in words, (path, words)
    assert not (tmp_path/"out").exists()


def test_an_amc_file_needs_its_body(tmp_path, capsys):
    (tmp_path/"alone.amc").write_text("1\nroot 0 0 0 0 0 0\n")
    assert run(tmp_path/"alone.amc") == 2 and "ASF" in capsys.readouterr().err


def test_wrong_words(files, tmp_path, capsys):
    (tmp_path/"net.safetensors").write_bytes(b"nothing")
    for words, said in ((("--camera", "S9/0"), "--checkpoint"), (("--layout", "COCO17"), "lift3d"), (("--width", "9"), "lift3d"), (("--method", "semgcn"), "lift3d"), (("--box", "1,2,3,4"), "pose2d"), (("--checkpoint", tmp_path/"net.safetensors"), "net.safetensors"), (("--checkpoint", tmp_path/"no.safetensors"), "no such file"),
                        (("--checkpoint", A.ASSETS/"semgcn-h36m16.safetensors"), "no network that detects actions")):
        assert run(files["bvh"], *words, "--out", tmp_path/"out") == 2, words
        assert said in capsys.readouterr().err, words
    assert main(["predict", "--task", "detekt", str(files["bvh"])]) == 2 and "detect" in capsys.readouterr().err
    assert not (tmp_path/"out").exists()


# ------------------------------------------------------------------------------------------------ the app, without a browser
def upload(app, **files):
    from datetime import UTC, datetime
    app.c["upload"].value = tuple({"name": name, "type": "", "size": len(content), "content": memoryview(content), "last_modified": datetime.now(UTC)} for name, content in files.items())


@pytest.fixture(scope="module")
def app(performance):
    pytest.importorskip("ipywidgets")
    from hclab.lab.annotate_stream import AnnotateStream
    clip = A.as_stream(performance["H36M16"])
    return AnnotateStream(recordings={"all": (clip, [(0.0, 1.0, "wave")]), "a part": (clip.slice(0, 60), []), "too short": (clip.slice(0, 5), [])})


def test_the_app_follows_the_frame_and_the_choice(app):
    app.c["recording"].value = "all"
    left = lambda: next(list(t.x) for t in app.view.data if str(t.name).startswith("left"))
    first, said = left(), app.said["all"]
    assert "drawn as: wave" in app.c["now"].value
    for frame in (75, 150, len(said.clip) - 1):
        app.c["frame"].value = frame
        assert app.clock.data[2].x == pytest.approx((frame/15,)*2) and left() != first and said.words(frame) in app.c["now"].value and "drawn as" not in app.c["now"].value
    app.c["recording"].value = "a part"
    assert app.c["frame"].value == 0 and app.c["frame"].max == app.c["play"].max == 59 and app.clock.layout.xaxis.range == (0, 4.0) and len(app.clock.data[1].x) == len(app.said["a part"].segments) and not app.clock.data[0].x
    app.c["recording"].value = "too short"
    assert 'role="alert"' in app.c["says"].value and "longer recording" in app.c["says"].value and app.c["recording"].value == app.shown == "a part"


def test_the_app_takes_files_and_says_what_is_none(app, files):
    content = files["kinect"].read_bytes()
    upload(app, **{"../mine.skeleton": content})
    assert app.shown == app.c["recording"].value == "mine.skeleton" and len(app.said["mine.skeleton"].clip) == len(A.read_stream(files["kinect"]))
    for name, said in (("a.txt", "readable: .bvh, .amc, .skeleton"), ("b.bvh", "HIERARCHY"), ("c.skeleton", "number of frames"), ("d.amc", "ASF")):
        upload(app, **{name: b"<b>no</b>\n"})
        assert 'role="alert"' in app.c["says"].value and said in app.c["says"].value and "hclab-streams" not in app.c["says"].value and app.shown == "mine.skeleton" and name not in app.c["recording"].options
    upload(app, **{"07.asf": b":version 1.10\n"})
    assert "now its motion" in app.c["says"].value and app.shown == "mine.skeleton"
    with pytest.raises(ValueError, match="no recordings"):
        type(app)(recordings={})


# ------------------------------------------------------------------------------------------------ real people, where they are at hand
@pytest.mark.skipif(not (samples_dir() and (samples_dir()/"cmu/02_03.amc").is_file()), reason="HCLAB_SAMPLES holds no cmu/02_03.amc")
def test_real_people_walk_and_run(app):
    cmu = samples_dir()/"cmu"
    for name in ("02_01.amc", "cmu_12_01_walk.bvh"): assert A.annotate(cmu/name).shares()["walk"] > 80
    upload(app, **{name: (cmu/name).read_bytes() for name in ("02_03.amc", "02.asf")})
    assert app.shown == "02_03.amc" and next(iter(app.said["02_03.amc"].shares())) == "run"
