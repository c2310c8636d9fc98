"Joints in a photograph, by the command line: an annotated picture, numbers that a lifter reads, and refusals that say why."
import json, struct, zlib

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs

from hclab.lab.cli import main
from hclab.lab.photo import pose_network, predict_photo
from hclab.lab.predict import PredictError
from hclab.tasks.pose2d import PoseConfig, build_network
from hclab.train.loop import save_model


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(photographs.camera()).save(tmp_path/"camera.png")
    return tmp_path/"camera.png"


def run(*words): return main(["predict", "--task", "pose2d", *map(str, words)])


def test_a_picture_and_numbers(photo, capsys):
    assert run(photo, "--box", "120,60,340,500", "--out", photo.parent/"out") == 0
    assert "mean height" in capsys.readouterr().out
    with Image.open(photo.parent/"out/camera_pose.png") as shown: assert np.asarray(shown.convert("RGB")).std() > 20
    told = json.loads((photo.parent/"out/camera_pose.json").read_text())
    assert np.array(told["joints2d"]).shape == (14, 2) and len(told["confidence"]) == len(told["names"]) == 14 and told["image_size"] == [512, 512] and told["box"] == [120, 60, 340, 500]
    assert told["network"]["commit"] and {"arm", "seed", "key"} <= set(told["network"])


def test_what_was_found_can_be_lifted(photo):
    assert run(photo, "--out", photo.parent) == 0
    told = json.loads((photo.parent/"camera_pose.json").read_text())
    told["labelled"] = [1]*14
    (photo.parent/"sure.json").write_text(json.dumps(told))
    assert main(["predict", "--task", "lift3d", "--out", str(photo.parent), str(photo.parent/"sure.json")]) == 0


def test_a_network_of_ones_own(photo):
    torch.manual_seed(0)
    own = build_network(PoseConfig.for_profile("smoke"))
    save_model(photo.parent/"own.safetensors", own)
    assert run(photo, "--checkpoint", photo.parent/"own.safetensors", "--out", photo.parent/"own") == 0
    found = predict_photo(photo, photo.parent/"again", pose_network(photo.parent/"own.safetensors"))[0]
    assert json.loads((photo.parent/"own/camera_pose.json").read_text())["joints2d"] == [[round(float(v), 2) for v in j] for j in found.joints]


def test_refusals(photo, tmp_path, capsys):
    (tmp_path/"page.jpg").write_bytes(b"<html>404</html>")
    (tmp_path/"net.safetensors").write_bytes(b"nothing")
    for words, said in (((tmp_path/"nobody.png",), "no such file"), ((tmp_path/"page.jpg",), "page.jpg"), ((photo, "--box", "1,2,3"), "3 numbers"), ((photo, "--box", "a,b,c,d"), "x1,y1,x2,y2"), ((photo, "--box", "600,0,700,10"), "no area"), ((photo, "--box", "0,0,inf,40"), "finite"), ((photo, "--box", "0,nan,30,40"), "finite"),
                        ((photo, "--layout", "COCO17"), "lift3d"), ((photo, "--checkpoint", tmp_path/"net.safetensors"), "net.safetensors"), ((photo, "--checkpoint", tmp_path/"none.safetensors"), "no such file")):
        assert run(*words, "--out", tmp_path/"out") == 2, words
        assert said in capsys.readouterr().err, words
    assert main(["predict", "--task", "lift3d", "--box", "1,2,3,4", str(photo)]) == 2 and "pose2d" in capsys.readouterr().err
    assert not (tmp_path/"out").exists()
    with pytest.raises(PredictError, match="no such file"): pose_network(tmp_path/"none.safetensors")


def png_of(width, height):
    "A PNG that says it is so large, and holds nothing."
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


VIDEO = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"\0"*400


@pytest.mark.parametrize("name, data, said", [("empty.png", b"", "empty.png"), ("film.mp4", VIDEO, "film.mp4"), ("film.jpg", VIDEO, "film.jpg"), ("huge.png", png_of(60_000, 60_000), "pixels")])
def test_f26_what_is_no_picture_is_refused(tmp_path, capsys, name, data, said):
    (tmp_path/name).write_bytes(data)
    assert run(tmp_path/name, "--out", tmp_path/"out") == 2 and said in capsys.readouterr().err and not (tmp_path/"out").exists()


@pytest.mark.parametrize("name, change", [("grey.png", lambda p: p.convert("L")), ("clear.png", lambda p: p.convert("RGBA")), ("palette.gif", lambda p: p.convert("P")), ("plain.jpg", lambda p: p)])
def test_f26_pictures_of_any_kind(tmp_path, name, change):
    change(Image.fromarray(photographs.astronaut())).save(tmp_path/name)
    assert run(tmp_path/name, "--out", tmp_path/"out") == 0
    told = json.loads((tmp_path/f"out/{name.split('.')[0]}_pose.json").read_text())
    assert told["image_size"] == [512, 512] and np.isfinite(told["joints2d"]).all()


def test_f26_of_an_animation_somebody_must_choose(tmp_path, capsys):
    first, second = (Image.fromarray(x) for x in (photographs.astronaut(), photographs.coffee()))
    first.save(tmp_path/"moving.gif", save_all=True, append_images=[second.resize(first.size)])
    assert run(tmp_path/"moving.gif", "--out", tmp_path/"out") == 2 and "a GIF of 2 frames" in capsys.readouterr().err
