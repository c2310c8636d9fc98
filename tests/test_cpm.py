"CPM against the facts sheet, shape by shape, and what it must refuse."
import pytest
import torch
from torch import nn

from hclab.core.heatmap import HeatmapConfig, encode
from hclab.models.cpm import CPM, CPMShape, NormedConv, count_macs, intermediate_loss, map_layers, outputs, receptive_field

TINY = CPMShape.for_profile("smoke")


def count(*args):
    with torch.device("meta"): return sum(p.numel() for p in CPM(*args).parameters())


@pytest.mark.parametrize("args, number", [((14, 6, True), 31_219_866), ((14, 6, False), 31_142_426), ((9, 6, True), 30_826_876), ((9, 6, False), 30_749_436), ((14, 1, False), 4_386_095)])
def test_parameters_of_the_sheet(args, number): assert count(*args) == number


def test_later_stages_share_one_trunk(): assert count(14, 3, True) - count(14, 2, True) == 4_829_615 and count(14, 2, True) - count(14, 1, True) == 4_829_615 + 2_685_696


def test_macs_and_maps_at_the_papers_size():
    assert round(count_macs(lambda: CPM(14, 6), (1, 3, 368, 368), (1, 1, 46, 46))/1e9) == 175
    with torch.device("meta"): maps = CPM(14, 6)(torch.empty(2, 3, 368, 368), torch.empty(2, 1, 46, 46))
    assert maps.shape == (2, 6, 15, 46, 46)


@pytest.mark.parametrize("profile", ["cpu", "smoke"])
@pytest.mark.parametrize("stage", [1, 2])
def test_one_pixel_reaches_as_far_as_the_sum_says(profile, stage):
    "NaN passes every layer, so it marks what depends on a pixel."
    shape = CPMShape.from_dict({**CPMShape.for_profile(profile).to_dict(), "image_size": [384, 384]})
    net = CPM(2, stage, False, shape=shape).eval()
    image = torch.full((1, 3, 384, 384), .5)
    image[0, :, 192, 192] = float("nan")
    with torch.no_grad(): touched = net(image)[0, -1, 0].isnan().any(0).nonzero().flatten()
    reach = int(touched[-1] - touched[0])*shape.stride      # from the first cell that sees it to the last
    assert receptive_field(shape, stage) - 2*shape.stride < reach < receptive_field(shape, stage)


def test_loss_of_a_masked_joint_is_zero_in_every_stage():
    goal, weights = encode(torch.tensor([[[20., 20], [30, 30]]]), torch.tensor([[True, False]]), HeatmapConfig(size=(16, 16), stride=4.0, sigma=1.5))
    maps = torch.rand(1, 3, 3, 16, 16)
    a = intermediate_loss(maps, goal, weights)
    maps[:, :, 1:] = 1e5
    b = intermediate_loss(maps, goal, weights)
    assert list(a) == ["stage1", "stage2", "stage3"] and all(torch.equal(a[k], b[k]) for k in a)


def test_each_stage_has_a_gradient_of_its_own():
    net = CPM(3, 2, False, shape=TINY)
    terms = intermediate_loss(net(torch.rand(1, 3, 64, 64)), torch.rand(1, 4, 16, 16), torch.ones(1, 4))
    terms["stage1"].backward(retain_graph=True)
    assert not any(p.grad is not None and p.grad.any() for p in net.later.parameters()) and all(p.grad.any() for p in net.first[:2].parameters())
    terms["stage2"].backward()
    assert all(p.grad.any() for p in net.later[0].mixing[-1:].parameters())


def test_normalised_is_what_a_relu_follows():
    "And one picture is answered alike beside any other, once trained."
    net = CPM(3, 3, False, shape=TINY)
    normed, relus = ([m for m in net.modules() if isinstance(m, kind)] for kind in (nn.BatchNorm2d, nn.ReLU))
    assert len(normed) == len(relus) and not any(isinstance(layer, NormedConv) for layer in outputs(net))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in CPM(3, 2, False, shape=CPMShape.from_dict({**TINY.to_dict(), "norm": False})).modules())
    x = torch.rand(4, 3, 64, 64)
    net(x)
    net.eval()
    assert torch.allclose(net(x)[:1], net(x[:1]), atol=1e-5)


def test_the_centre_map_is_what_tells_two_people_apart():
    torch.manual_seed(0)
    net, image = CPM(3, 2, True, shape=TINY).eval(), torch.rand(1, 3, 64, 64)
    centre = torch.zeros(1, 1, 16, 16); other = centre.clone(); other[0, 0, 8, 8] = 1
    a, b = net(image, centre), net(image, other)
    assert torch.equal(a[:, 0], b[:, 0]) and not torch.equal(a[:, 1], b[:, 1])


@pytest.mark.parametrize("init", ["he", "gaussian", "torch"])
def test_begins_near_nothing(init):
    torch.manual_seed(0)
    shape = TINY if init != "torch" else CPMShape.from_dict({**TINY.to_dict(), "norm": False})     # whose last layer is too large for what is normalised
    with torch.no_grad(): maps = CPM(14, 2, False, shape=shape, init=init)(torch.rand(2, 3, 64, 64))
    if init == "he": maps[:, :, -1] -= 1      # the background begins at 1
    assert maps.abs().max() < .5


def test_dropout_only_while_training():
    net, x = CPM(3, 1, False, shape=TINY, dropout=.5), torch.rand(1, 3, 64, 64)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_eleven_layers_depend_on_the_number_of_maps():
    with torch.device("meta"): a, b = CPM(14, 6), CPM(9, 6)
    differ = {n.rsplit(".", 1)[0] for (n, p), q in zip(a.named_parameters(), b.parameters()) if p.shape != q.shape}
    assert set(map_layers(a)) == differ and len(differ) == 11


@pytest.mark.parametrize("make, says", [
    (lambda: CPM(14, 0), "at least one"), (lambda: CPM(init="hee"), "did you mean 'he'"), (lambda: CPMShape(trunk_kernels=(8, 9, 9)), "odd"), (lambda: CPMShape(pools=(True,)), "one each"),
    (lambda: CPM(3, 1, False, shape=TINY)(torch.rand(3, 64, 64)), "B, 3, H, W"), (lambda: CPM(3, 1, False, shape=TINY)(torch.rand(1, 3, 63, 64)), "multiples of 4"),
    (lambda: CPM(3, 2, False, shape=TINY)(torch.rand(1, 3, 64, 64), torch.rand(1, 1, 16, 16)), "takes no centre map"), (lambda: intermediate_loss(torch.rand(1, 4, 16, 16), torch.rand(1, 4, 16, 16), torch.ones(1, 4)), "stages"),
])
def test_errors_say_what_to_do(make, says):
    with pytest.raises(ValueError, match=says): make()
