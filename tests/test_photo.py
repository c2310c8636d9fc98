"Joints in a photograph, by the command line: an annotated picture, numbers that a lifter reads, and refusals that say why."
import json

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
    for words, said in (((tmp_path/"nobody.png",), "no such file"), ((tmp_path/"page.jpg",), "page.jpg"), ((photo, "--box", "1,2,3"), "3 numbers"), ((photo, "--box", "a,b,c,d"), "x1,y1,x2,y2"), ((photo, "--box", "600,0,700,10"), "no area"),
                        ((photo, "--layout", "COCO17"), "lift3d"), ((photo, "--checkpoint", tmp_path/"net.safetensors"), "net.safetensors"), ((photo, "--checkpoint", tmp_path/"none.safetensors"), "no such file")):
        assert run(*words, "--out", tmp_path/"out") == 2, words
        assert said in capsys.readouterr().err, words
    assert main(["predict", "--task", "lift3d", "--box", "1,2,3,4", str(photo)]) == 2 and "pose2d" in capsys.readouterr().err
    assert not (tmp_path/"out").exists()
    with pytest.raises(PredictError, match="no such file"): pose_network(tmp_path/"none.safetensors")
