"Heatmaps against values worked by hand, and what must be refused."
import itertools, math

import pytest
import torch

from hclab.core.heatmap import HeatmapConfig, HeatmapError, centre_map, decode, encode, flip_maps, heatmap_loss, mean_heatmap, trivial_levels

ALL = HeatmapConfig()


@pytest.mark.parametrize("background", ["none", "first", "last"])
@pytest.mark.parametrize("stride, size, sigma", [(8.0, (46, 46), 3.0), (4.0, (64, 48), 2.0), (4.0, (24, 24), 1.0)])
def test_joints_come_back_within_half_a_cell_and_exactly_with_taylor(background, stride, size, sigma):
    config = HeatmapConfig(size=size, stride=stride, sigma=sigma, background=background)
    H, W = config.image_size
    joints = torch.rand(20, 9, 2, generator=torch.Generator().manual_seed(3))*torch.tensor([W, H])
    maps, _ = encode(joints, config=config)
    assert maps.shape == (20, 9 + (background != "none"), *size)
    coarse, fine = decode(maps, config, "none")[0], decode(maps, config)[0]
    assert (coarse - joints).abs().max() <= stride/2 + 1e-3
    inner = ((joints > 1.6*stride) & (joints < torch.tensor([W, H]) - 1.6*stride)).all(-1)
    assert (fine - joints)[inner].abs().max() < .02


def test_the_port_of_cpm_in_numbers_worked_by_hand():
    port = HeatmapConfig(origin=0.0, whole_pixels=True, background="first", outside="tail")
    maps, _ = encode(torch.tensor([[[100.9, 50.2]]]), config=port)
    assert maps[0, 1, 6, 12] == pytest.approx(math.exp(-((12 - 100/8)**2 + (6 - 50/8)**2)/18), abs=1e-6)
    assert maps[0, 0, 6, 12] == pytest.approx(1 - float(maps[0, 1, 6, 12]), abs=1e-6)


def test_small_values_are_cut_where_the_sheet_says():
    maps, _ = encode(torch.tensor([[[180., 180.]]]), config=HeatmapConfig(background="none"))   # the middle of cell 22
    reach = 3*math.sqrt(-2*math.log(.0099))      # 9.11 cells
    for r, c in itertools.product(range(46), repeat=2):
        assert (maps[0, 0, r, c] > 0) == (math.hypot(r - 22, c - 22) < reach)


@pytest.mark.parametrize("background", ["none", "first", "last"])
def test_what_is_not_known_is_not_learnt(background):
    config = HeatmapConfig(background=background)
    joints = torch.tensor([[[50., 60], [float("nan"), 1e9]], [[50., 60], [70, 80]], [[50., 60], [400, 80]]])
    labelled = torch.tensor([[True, False], [True, True], [True, True]])
    maps, weights = encode(joints, labelled, config)
    assert maps.isfinite().all()
    own = weights[:, 1:] if background == "first" else weights[:, :2]
    assert own.tolist() == [[1, 0], [1, 1], [1, 0]]
    if background != "none":
        known = weights[:, 0 if background == "first" else 2]
        assert known.tolist() == [0, 1, 1], "a joint that is known to be outside says nothing against the background"
        kept = encode(joints, labelled, HeatmapConfig(background=background, partial_background=True))[1]
        assert kept[0, 0 if background == "first" else 2] == 1


def test_a_masked_channel_has_no_gradient():
    target, weights = encode(torch.tensor([[[50., 60], [0, 0]]]), torch.tensor([[True, False]]))
    maps = torch.rand(1, 3, 46, 46, requires_grad=True)
    heatmap_loss(maps, target, weights).backward()
    assert maps.grad[0, 0].abs().sum() > 0 and maps.grad[0, 1:].abs().sum() == 0


@pytest.mark.parametrize("background", ["none", "first", "last"])
def test_maps_of_the_mirrored_picture_turned_back(background):
    config = HeatmapConfig(background=background)
    joints = torch.rand(3, 14, 2, generator=torch.Generator().manual_seed(0))*368
    order = [5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 12, 13]
    mirrored = torch.stack([368 - joints[..., 0], joints[..., 1]], -1)[:, order]
    a, b = encode(joints, config=config)[0], flip_maps(encode(mirrored, config=config)[0], "LSP14", config)
    assert torch.allclose(a, b, atol=1e-5)


def test_the_mean_heatmap_is_the_best_constant():
    joints = torch.rand(16, 3, 2, generator=torch.Generator().manual_seed(0))*368
    target, weights = encode(joints, torch.rand(16, 3, generator=torch.Generator().manual_seed(1)) > .3)
    best = mean_heatmap(target, weights)
    level = trivial_levels(target, weights)["constant"]
    for seed in range(5):
        other = best + .01*torch.randn(best.shape, generator=torch.Generator().manual_seed(seed))
        assert heatmap_loss(other.expand_as(target), target, weights) > level


def test_the_centre_map_has_the_size_of_the_maps():
    assert centre_map(torch.tensor([[184., 184]]), (368, 368)).shape == (1, 1, 46, 46)
    assert centre_map(torch.tensor([[48., 48]]), (96, 96)).shape == (1, 1, 12, 12)
    assert centre_map(torch.tensor([[48., 20]]), (96, 96))[0, 0].argmax() in (2*12 + 5, 2*12 + 6)


def test_the_batch_before_can_be_written_over():
    joints = torch.rand(4, 3, 2)*368
    maps, _ = encode(joints)
    again, _ = encode(joints.flip(0), into=maps)
    assert again.data_ptr() == maps.data_ptr() and torch.equal(again, encode(joints.flip(0))[0])
    with pytest.raises(HeatmapError, match="into is"): encode(joints[:2], into=maps)


@pytest.mark.parametrize("make, says", [
    (lambda: encode(torch.zeros(3, 2)), "first dimension"),
    (lambda: encode(torch.zeros(1, 3, 2, dtype=torch.int64)), "float"),
    (lambda: encode(torch.full((1, 3, 2), float("inf"))), "joint 0 of person 0"),
    (lambda: encode(torch.zeros(1, 3, 2), torch.ones(1, 3)), "visibility > 0"),
    (lambda: decode(torch.full((1, 4, 46, 46), float("nan"))), "NaN"),
    (lambda: decode(torch.zeros(1, 4, 45, 46)), "45"),
    (lambda: decode(torch.zeros(1, 4, 46, 46), refine="tailor"), "taylor"),
    (lambda: heatmap_loss(torch.zeros(1, 4, 46, 46), torch.zeros(1, 4, 46, 46), torch.zeros(1, 3)), "weights"),
    (lambda: centre_map(torch.tensor([184., 184]), (368, 368)), "centres"),
])
def test_errors_say_what_to_do(make, says):
    with pytest.raises(HeatmapError, match=says): make()


def test_a_batch_of_256_is_read_in_one_call():
    maps, _ = encode(torch.rand(256, 17, 2)*192, config=(config := HeatmapConfig(size=(64, 48), stride=4.0, sigma=2.0, background="none")))
    joints, sure = decode(maps, config)
    assert joints.shape == (256, 17, 2) and sure.shape == (256, 17)


@pytest.mark.parametrize("config", [HeatmapConfig(), HeatmapConfig(size=(64, 48), stride=4.0, sigma=1.5, background="none", threshold=0.0), HeatmapConfig(size=(24, 24), stride=4.0, sigma=1.5, background="first", outside="tail")])
def test_maps_are_the_product_to_the_last_bit_and_hold_no_faint_numbers(config):
    "Cutting rows and columns before they are multiplied spares the slow numbers and changes nothing that a threshold keeps."
    H, W = config.image_size
    joints = torch.rand(6, 5, 2, generator=torch.Generator().manual_seed(0))*torch.tensor([W, H])
    rows, columns = (torch.exp((torch.arange(n) - joints[..., k, None]/config.stride + config.origin).square()/(-2*config.sigma**2)) for k, n in ((1, config.size[0]), (0, config.size[1])))
    whole = rows[..., None]*columns[..., None, :]
    maps = encode(joints, config=config)[0][:, config.first():config.first() + 5]
    if config.threshold: assert torch.equal(maps, torch.where(whole > config.threshold, whole, 0))
    else: assert (maps - whole).abs().max() < 1.2e-19 and (whole[whole > 0] < torch.finfo().tiny).any() and maps[maps > 0].min() >= torch.finfo().tiny
