"Backbones and heads: maps where the stride says, nothing from the network, errors that say what to do."
import socket

import pytest
import torch

from hclab.core.io import save_tensors
from hclab.models.backbones import BACKBONES, Backbone, BackboneError, features, load_weights, timm_name
from hclab.models.heads import HeadError, HeatmapHead, PoseNet


@pytest.mark.parametrize("name", [n for n in BACKBONES if not n.startswith("hrnet")])
def test_every_name_has_maps_at_its_strides(name):
    with torch.device("meta"):
        have = features(name, (96, 64))
        out = Backbone(name, tuple(have), (96, 64))(torch.empty(2, 3, 96, 64))
    assert list(out) == list(have) and all(tuple(x.shape) == (2, have[s].channels, 96//s, 64//s) for s, x in out.items())


def test_known_sizes():
    count = lambda *a: sum(p.numel() for p in Backbone(*a).parameters())
    with torch.device("meta"):
        assert count("resnet18", (32,)) == 11_689_512 - 513_000      # torchvision's number without its classifier
        assert [f.channels for f in features("hrnet_w18").values()][1:] == [18, 36, 72, 144]
        assert count("vit_tiny", (16,), (224, 224)) == 5_717_416 - 193_000 - 384    # DeiT-Tiny without its classifier and last normalisation


def test_nothing_is_downloaded(monkeypatch):
    def refuse(*a, **k): raise AssertionError("asked for the network")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    Backbone("resnet18", (8,), (64, 64))
    for wrong in ("imagenet", "pretrained"):
        with pytest.raises(BackboneError, match="downloads nothing"): Backbone("resnet18", (8,), (64, 64), weights=wrong)
    for wrong in ("hf-hub:timm/resnet18.a1_in1k", "timm/resnet18", "resnet18.a1_in1k"):
        with pytest.raises(BackboneError, match="downloads nothing"): timm_name(wrong)


def test_weights_from_a_file(tmp_path):
    one, other = (Backbone("resnet18", (8,), (64, 64)).eval() for _ in range(2))
    x = torch.rand(1, 3, 64, 64)
    assert not torch.equal(one(x)[8], other(x)[8])
    save_tensors(tmp_path/"w.safetensors", one.net.state_dict())
    assert "taken" in load_weights(other, tmp_path/"w.safetensors") and torch.equal(one(x)[8], other(x)[8])
    with pytest.raises(BackboneError, match="missing or of another shape"): Backbone("resnet18", (16,), (64, 64), weights=tmp_path/"w.safetensors")
    with pytest.raises(BackboneError, match="no file"): Backbone("resnet18", (8,), (64, 64), weights=tmp_path/"nowhere.safetensors")
    torch.save({}, tmp_path/"p.pth")
    with pytest.raises(ValueError, match="safetensors"): Backbone("resnet18", (8,), (64, 64), weights=tmp_path/"p.pth")


def test_pictures_are_normalised_inside():
    net = Backbone("resnet18", (8,), (64, 64)).eval()
    x = torch.rand(1, 3, 64, 64)
    by_hand = (x - torch.tensor([.485, .456, .406])[:, None, None])/torch.tensor([.229, .224, .225])[:, None, None]
    assert torch.allclose(net(x)[8], net.net(by_hand)[0], atol=1e-5)


@pytest.mark.parametrize("name, stride", [("resnet18", 32), ("hrnet_w18", 4), ("vit_tiny", 16)])
def test_pose_networks_paint_at_stride_4(name, stride):
    with torch.device("meta"):
        net = PoseNet(name, 17, (96, 64), background=True)
        assert net.at == stride and net(torch.empty(2, 3, 96, 64)).shape == (2, 1, 18, 24, 16)


def test_a_head_begins_almost_empty():
    torch.manual_seed(0)
    assert HeatmapHead(64, 3)(torch.rand(2, 64, 4, 4)).abs().max() < .2


@pytest.mark.parametrize("make, says", [
    (lambda: Backbone("resnet"), "known|did you mean"), (lambda: Backbone("resnet18", (3,)), "it has 2, 4, 8, 16, 32"), (lambda: Backbone("vit_tiny", (16,), (60, 64)), "multiples"),
    (lambda: Backbone("resnet18", (32,), (64, 64))(torch.rand(1, 1, 64, 64)), "RGB"), (lambda: Backbone("resnet18", (32,), (64, 64))(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), "255"),
    (lambda: HeatmapHead(8, 3, factor=3), "doubles"), (lambda: PoseNet("resnet18", 3, (64, 64), stride=5), "cannot be made")])
def test_errors_say_what_to_do(make, says):
    with pytest.raises((BackboneError, HeadError), match=says): make()
