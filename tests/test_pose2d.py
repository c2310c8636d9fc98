"2D pose: scores against pycocotools and values worked by hand, geometry there and back, strange photographs."
import io, math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hclab.core.config import ConfigError
from hclab.core.heatmap import encode
from hclab.core.metrics import MetricError
from hclab.core.skeleton import skeleton
from hclab.data.images import ImageError
from hclab.models.cpm import CPM, CPMShape
from hclab.tasks import pose2d
from hclab.tasks.pose2d import (Found, PoseConfig, build_network, counted, find, find_in_photo, groups, interval, load_pose_network, losses_on, maps_of, mean_answer, oks_ap, oks_joints, pck, pck_rows, rate, sizes, train_network, train_pose)
from hclab.tasks.pose_data import PARTS, PoseDataConfig, PoseSet
from hclab.train.loop import load_model, save_model, seeded

TINY = CPMShape.for_profile("smoke")


def people(n=6, layout="LSP14", seed=0, heads=None, loose=0.0):
    g, J = torch.Generator().manual_seed(seed), len(skeleton(layout))
    joints = torch.rand(n, J, 2, generator=g)*50 + 20
    images = (torch.rand(n, 3, 96, 96, generator=g)*255).to(torch.uint8)
    return PoseSet(images, joints, torch.full((n, J), 2, dtype=torch.int8), torch.tensor([[18., 18, 72, 72]]).expand(n, -1).clone(), torch.full((n,), .5), torch.full((n,), torch.nan) if heads is None else heads,
                   tuple((i, 0) for i in range(n)), PoseDataConfig.for_profile("smoke", layout=layout, loose=loose))


class Oracle(nn.Module):
    "Paints the maps of joints that it was told, whatever it sees."
    center_map, stride, image_size, background = False, 4, (64, 64), "none"
    def __init__(self, joints): super().__init__(); self.joints, self.told, self.weight = joints.shape[1], joints, nn.Parameter(torch.zeros(1))
    def forward(self, images): return encode(self.told[:len(images)], config=maps_of(self, (64, 64), 1.5))[0][:, None]


@pytest.mark.parametrize("loose", [0.0, .2])
def test_what_is_found_in_the_view_is_given_back_in_the_crop(loose):
    from hclab.tasks.pose_data import batch_of
    data = people(loose=loose)
    data.joints[:] = data.joints*.5 + 20
    seen = batch_of(data, range(6))["joints"]
    inside = ((seen > 6) & (seen < 58)).all(-1)
    found = find(Oracle(seen), data)
    assert inside.float().mean() > .5 and (found.joints - data.joints)[inside].abs().max() < .1 and (found.confidence[inside] > .8).all()


def test_pck_is_a_share_of_joints_and_people_without_a_torso_are_left_out():
    data = people(3)
    data.visibility[2, 9] = 0                                    # no left shoulder
    found = Found(data.joints.clone(), torch.ones(3, 14))
    found.joints[0, 0, 0] += .2*float(data.torsos[0]) + .01      # just outside
    found.joints[1, 0, 0] += .2*float(data.torsos[1]) - .01
    assert data.torsos[2].isnan() and pck(found, data).n == 2
    assert pck(found, data).value == pytest.approx(100*27/28)
    rows = pck_rows(found, data)
    assert rows["ankles"].value == pytest.approx(75) and rows["head"].value == 100 and list(rows)[-1] == "all"
    low, high = interval(found, data)
    assert low <= 100*27/28 <= high
    with pytest.raises(MetricError, match="torso size"): pck(found, data.subset([2]))


def test_pckh_is_strict_and_takes_head_boxes_where_there_are_some():
    data = people(1, heads=torch.tensor([20.]))
    found = Found(data.joints.clone(), torch.ones(1, 14))
    data.joints[0, 0] = found.joints[0, 0] = torch.tensor([10., 10.])
    found.joints[0, 0, 0] += 10.0
    assert pck(found, data, "head").value == pytest.approx(100*13/14) and "segment" not in pck(found, data, "head").protocol
    assert "head segment" in pck(found, people(1), "head").protocol
    assert float(sizes(people(1), "head")[0][0]) == pytest.approx(float((people(1).joints[0, 12] - people(1).joints[0, 13]).norm()))


def test_pckh_leaves_out_the_points_between_others():
    "MPII's sixteen: with only pelvis (6) and thorax (7) wrong, fourteen of fourteen are right."
    data = people(2, "MPII16", heads=torch.tensor([20., 30.]))
    found = Found(data.joints.clone(), torch.ones(2, 16))
    found.joints[:, 6:8] += 100.0
    score = pck(found, data, "head")
    assert score.value == 100 and score.protocol.endswith("without pelvis and thorax") and interval(found, data, "head") == (100, 100)
    assert pck_rows(found, data, "head")["all"].value == 100 and pck(found, data, "head", joints=[6, 7, 8]).value == pytest.approx(100/3)
    found.joints[0, 8, 0] += 10.01          # half of 20 is too far
    assert pck(found, data, "head").value == pytest.approx(100*27/28)
    assert pck(found, data, "torso").value == pytest.approx(100*(28 - (10.01 > .2*float(data.torsos[0])))/32) and "without" not in pck(found, data, "torso").protocol
    assert counted("LSP14", "head") == (list(range(14)), "") and counted("MPII16", "torso") == (list(range(16)), "")


@pytest.mark.parametrize("layout", ["COCO17", "LSP14"])
def test_oks_ap_is_the_share_of_people_above_the_threshold(layout):
    "With one answer a person and equal scores, AP at a threshold is worked out here from the formula of OKS."
    data, g = people(12, layout), torch.Generator().manual_seed(1)
    found = Found(data.joints + torch.randn(data.joints.shape, generator=g)*torch.linspace(0, 8, 12)[:, None, None], torch.linspace(1, .5, 12)[:, None].expand(-1, data.joints.shape[1]))
    at, sigmas = oks_joints(layout)
    area = float(54*54/.25*.53)
    similarity = [np.mean([math.exp(-float(((found.joints[n, j] - data.joints[n, j])/.5).square().sum())/(2*area*(2*s)**2)) for j, s in zip(at, sigmas)]) for n in range(12)]
    def ap(limit):      # 101 recall points, precision made to fall (COCO)
        hit = np.array([s >= limit for s in similarity])
        recall, precision = hit.cumsum()/12, hit.cumsum()/np.arange(1, 13)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        return np.mean([precision[i] if (i := np.searchsorted(recall, r)) < 12 else 0 for r in np.linspace(0, 1, 101)])
    scores = oks_ap(found, data)
    assert scores["AP50"].value == pytest.approx(100*ap(.5), abs=1e-6) and scores["AP75"].value == pytest.approx(100*ap(.75), abs=1e-6)
    assert scores["AP"].value == pytest.approx(100*np.mean([ap(t) for t in np.linspace(.5, .95, 10)]), abs=1e-6)
    assert len(at) == (17 if layout == "COCO17" else 12)


def test_groups_of_every_layout_hold_what_they_say():
    for layout in ("LSP14", "MPII16", "COCO17"):
        for name, at in groups(layout).items():
            if name != "head": assert len(at) == 2 and all(name[:-1] in skeleton(layout).names[j] or name == "hips" for j in at), (layout, name)


def test_the_mean_heatmap_is_the_same_for_everybody_in_the_view():
    data = people(5)
    found, levels = mean_answer(data, data, maps_of(CPM(14, 1, False, TINY), (64, 64), 1.5))
    assert (found.joints - found.joints[:1]).abs().max() < 1e-3 and levels["constant"] < levels["zero"]


def test_nobody_labelled_is_no_floor_and_no_score():
    data, grid = people(3), maps_of(CPM(14, 1, False, TINY), (64, 64), 1.5)
    nobody = people(3)
    nobody.visibility[:] = 0
    with pytest.raises(MetricError, match="nobody of the 3 people in train has a labelled joint"): mean_answer(nobody, data, grid)
    with pytest.raises(MetricError, match="nobody of the 3 people in test"): mean_answer(data, nobody, grid)
    found = Found(data.joints, torch.ones(3, 14))
    with pytest.raises(MetricError, match="LSP14 has 12 of them"): oks_ap(found, nobody)
    for normaliser in ("torso", "head"):
        with pytest.raises(MetricError, match=f"has a {normaliser} size"): pck(found, nobody, normaliser)


SMOKE = PoseConfig.for_profile("smoke")
def shorter(steps=3, decay=.96, every=100_000, **changes): return replace(SMOKE, loop=replace(SMOKE.loop, steps=steps, batch=3, log_every=steps, save_every=steps, decay=decay, decay_every=every), **changes)


@pytest.fixture(scope="module")
def parts(): return {part: replace(people(n, seed=n), origin=tuple((100*n + i, 0) for i in range(n))) for part, n in zip(PARTS, (6, 4, 5))}


@pytest.fixture(scope="module")
def trained(parts):
    "An arm, and whose batches it asked for."
    asked, real = [], pose2d.training_batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pose2d, "training_batch", lambda data, *rest: asked.append(data) or real(data, *rest))
        return train_pose(build_network, shorter(), 1, None, parts, lambda net: ("trunk",)), asked


def test_an_arm_says_of_each_part_what_is_true_of_it(parts, trained):
    result, asked = trained
    model, (train, val, test), grid = result["model"], parts.values(), maps_of(result["model"], (64, 64), 1.5)
    assert asked and all(data is train for data in asked)
    seen = {part: find(model, data) for part, data in parts.items()}
    score = {part: pck(seen[part], data).value for part, data in parts.items()}
    assert len(set(score.values())) == 3, "else nothing is shown"
    assert (result["val_pck"], result["test_pck"]) == (score["val"], score["test"]) and (result["test_pck_low"], result["test_pck_high"]) == interval(seen["test"], test)
    with seeded(1): fresh = build_network(shorter())
    assert result["untrained_val_pck"] == pck(find(fresh, val), val).value and result["test_oks_ap"] == oks_ap(seen["test"], test)["AP"].value
    floors = {part: mean_answer(data, test, grid) for part, data in parts.items()}
    assert len({levels["constant"] for _, levels in floors.values()}) == 3
    assert result["floor_losses"] == floors["train"][1] and result["floor_loss"] == floors["train"][1]["constant"] and result["floor_pck"] == pck(floors["train"][0], test).value
    assert (result["train_people"], result["test_people"]) == (6, 5) and result["people"] == {part: data.fingerprint for part, data in parts.items()}
    assert set(result["unmoved"]) == {n for n, _ in model.named_parameters() if n.startswith("trunk")}


def test_the_loss_of_an_arm_is_that_of_its_last_stage_on_test_people(parts, trained):
    "Squared error a picture, from maps and targets; a number that a verdict can be made of."
    from hclab.tasks.pose_data import batch_of
    result, _ = trained
    model, test = result["model"].eval(), parts["test"]
    b = batch_of(test, range(5), maps_of(model, (64, 64), 1.5))
    with torch.no_grad(): apart = ((model(b["images"]) - b["target"][:, None]).square().sum((3, 4))*b["weights"][:, None]).sum(2).mean(0)
    assert isinstance(result["test_loss"], float) and result["test_loss"] == pytest.approx(float(apart[-1]), rel=1e-4)
    assert list(result["test_losses"].values()) == pytest.approx(apart.tolist(), rel=1e-4) and apart[0] != apart[-1]
    deep = train_pose(build_network, shorter(1, stages=11), 0, None, parts)
    assert deep["test_loss"] == deep["test_losses"]["stage11"], "the last, not the last by the alphabet"


def test_what_the_loop_is_handed_follows_settings_and_seed(parts, monkeypatch):
    notes = []
    def fit(model, data, loss, config, **more):
        notes.append({"begin": {n: t.clone() for n, t in model.state_dict().items()}, "batch": data(1), "optimiser": more["make_optimiser"](model), **more})
        return [{"step": config.steps, **more["evaluate"](model)}]
    monkeypatch.setattr(pose2d, "fit", fit)
    config = shorter(40, .5, 16, optimiser="sgd", course="steps", warmup=0.0)
    for seed in (0, 0, 1): train_pose(build_network, config, seed, None, parts, lambda net: ("trunk",))
    a, same, other = notes
    drawn = [n for n, t in a["begin"].items() if t.ndim == 4]
    assert all(torch.equal(a["begin"][n], same["begin"][n]) and not torch.equal(a["begin"][n], other["begin"][n]) for n in drawn)
    assert all(torch.equal(a["batch"][n], same["batch"][n]) and not torch.equal(a["batch"][n], other["batch"][n]) for n in ("images", "joints", "target"))
    assert a["settings"] == config and other["seed"] == 1 and [a["schedules"]["lr"](s) for s in (0, 15, 16, 39)] == pytest.approx([5e-3, 5e-3, 2.5e-3, 1.25e-3])
    groups = [{"size": sum(p.numel() for p in g["params"]), "lr_scale": g["lr_scale"], "momentum": g["momentum"], "weight_decay": g["weight_decay"]} for g in a["optimiser"].param_groups]
    free = {kind: sum(t.numel() for n, t in a["begin"].items() if n.endswith(kind) and not n.startswith("trunk")) for kind in ("weight", "bias")}
    assert groups == [dict(size=free["weight"], lr_scale=4, momentum=.9, weight_decay=1e-4), dict(size=free["bias"], lr_scale=8, momentum=.9, weight_decay=1e-4)]


def test_the_batches_of_a_loss_do_not_matter(parts, trained):
    a, b = (losses_on(trained[0]["model"], parts["train"], 1.5, n) for n in (2, 64))
    assert a == pytest.approx(b, rel=1e-5)


def test_a_network_that_names_no_optimiser_was_trained_by_adamw(tmp_path):
    net = build_network(SMOKE)
    values = {k: v for k, v in net.config.to_dict().items() if k not in ("optimiser", "course")}
    net.config = type("Old", (), {"to_dict": lambda self: values})()
    save_model(tmp_path/"old.safetensors", net)
    assert load_pose_network(tmp_path/"old.safetensors").config == SMOKE
    assert load_model(tmp_path/"old.safetensors", lambda given: build_network(PoseConfig.from_dict(given))).config.optimiser == "sgd"


@pytest.mark.parametrize(("changes", "says"), [
    (dict(warmup=-.1), "PoseConfig.warmup=-0.1; it is a share"), (dict(warmup=1.5), "warmup=1.5"), (dict(weight_decay=-1.0), "weight_decay=-1.0; it must be 0"), (dict(weight_decay=math.inf), "weight_decay=inf"),
    (dict(optimiser="adam"), "did you mean 'adamw'"), (dict(course="stairs"), "did you mean 'steps'"), (dict(loop=replace(SMOKE.loop, steps=0)), "loop.steps=0; it must be at least 1"), (dict(loop=replace(SMOKE.loop, steps=-5)), "loop.steps=-5"),
    (dict(loop=replace(SMOKE.loop, decay_every=0)), "loop.decay_every=0"), (dict(loop=replace(SMOKE.loop, lr=0.0)), "loop.lr=0.0; it must be more"), (dict(loop=replace(SMOKE.loop, lr=math.nan)), "loop.lr=nan")])
def test_trainings_that_could_not_be_meant_are_refused(changes, says):
    with pytest.raises(ConfigError, match=says): replace(SMOKE, **changes)


def test_training_lowers_the_loss_and_leaves_frozen_layers_alone():
    config = PoseConfig.from_dict({**PoseConfig.for_profile("smoke").to_dict(), "loop": {**PoseConfig.for_profile("smoke").loop.to_dict(), "steps": 24, "log_every": 8, "batch": 4}})
    torch.manual_seed(0)
    net, data = build_network(config), people(4)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    curve = train_network(net, data, data, config, frozen=("trunk", "first.0"))
    assert curve[-1]["stage2"] < curve[0]["stage2"] and "val_pck" in curve[-1]
    assert {n.startswith(("trunk", "first.0")) for n, p in net.named_parameters() if torch.equal(p, before[n])} == {True}
    assert rate(config)["lr"](0) == 0 and rate(config)["lr"](24) == 0 and [row["lr"] for row in curve] == [rate(config)["lr"](s) for s in (7, 15, 23)]
    with pytest.raises(ConfigError, match="no weight"): train_network(net, data, data, config, frozen=("thrunk",))
    with pytest.raises(ConfigError, match="every weight"): train_network(net, data, data, config, frozen=("trunk", "first", "later"))


def test_backbones_take_the_place_of_cpm():
    config = PoseConfig.for_profile("smoke", network="resnet18")
    net = build_network(config)
    found = find(net, people(2), flip=True)
    assert found.joints.shape == (2, 14, 2) and found.joints.isfinite().all()
    with pytest.raises(ConfigError, match="image_size"): PoseConfig.for_profile("smoke", data=PoseDataConfig())


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return CPM(14, 2, True, TINY).eval()


def stored(array, mode=None, format="PNG", **options):
    out, picture = io.BytesIO(), Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(out, format, **options)
    return out.getvalue()


@pytest.mark.parametrize("note, turn", [(6, 1), (3, 2), (8, 3)])
def test_exif_notes_are_obeyed(net, note, turn):
    upright = (np.random.default_rng(0).random((60, 90, 3))*255).astype(np.uint8)
    exif = Image.Exif(); exif[0x0112] = note
    a, b = find_in_photo(net, stored(upright)), find_in_photo(net, stored(np.ascontiguousarray(np.rot90(upright, turn)), exif=exif))
    assert torch.equal(a.image, b.image) and torch.equal(a.joints, b.joints)


def test_grey_rgba_and_16_bit_are_read_as_rgb(net):
    array = (np.random.default_rng(0).random((50, 40, 3))*255).astype(np.uint8)
    rgb = find_in_photo(net, stored(array))
    assert torch.equal(find_in_photo(net, stored(array, "RGBA")).joints, rgb.joints)
    grey = find_in_photo(net, stored(array, "L"))
    assert torch.equal(grey.image[0], grey.image[1]) and grey.joints.isfinite().all()
    assert find_in_photo(net, stored((np.random.default_rng(0).random((50, 40))*65535).astype(np.uint16))).image.shape == (3, 50, 40)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (8, 8)])
def test_tiny_and_long_pictures_have_an_answer(net, size):
    pose = find_in_photo(net, torch.rand(3, *size))
    assert pose.joints.shape == (14, 2) and pose.joints.isfinite().all()


def test_joints_are_in_pixels_of_the_photograph():
    told = torch.rand(1, 14, 2, generator=torch.Generator().manual_seed(0))*48 + 8
    pose = find_in_photo(Oracle(told), torch.rand(3, 640, 320), box=(100, 200, 164, 264), margin=1.0)
    assert torch.allclose(pose.joints, told[0] + torch.tensor([100., 200]), atol=.05)


@pytest.mark.parametrize("work, error, says", [
    (lambda n: find_in_photo(n, b""), ImageError, "empty"), (lambda n: find_in_photo(n, b"<html>no</html>"), ImageError, "HTML"), (lambda n: find_in_photo(n, stored(np.zeros((9, 9, 3), np.uint8))[:40]), ImageError, "damaged|no picture"),
    (lambda n: find_in_photo(n, torch.rand(3, 50, 50), box=(10, 10, 10, 20)), ValueError, "no area"), (lambda n: find_in_photo(n, torch.rand(3, 50, 50), box=(60, 10, 70, 20)), ValueError, "no area"),
    (lambda n: find_in_photo(n, torch.rand(1, 50, 50)), ValueError, "3,H,W"), (lambda n: find_in_photo(n, torch.rand(3, 50, 50), layout="COCO17"), ValueError, "14 joints")])
def test_what_is_no_photograph_is_refused(net, work, error, says):
    with pytest.raises(error, match=says): work(net)


def test_an_animation_and_a_missing_file(net, tmp_path):
    frames = [Image.fromarray((np.random.default_rng(i).random((20, 20, 3))*255).astype(np.uint8)) for i in range(3)]
    frames[0].save(tmp_path/"a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="frames"): find_in_photo(net, tmp_path/"a.gif")
    with pytest.raises(OSError): find_in_photo(net, tmp_path/"nowhere.jpg")


@pytest.mark.parametrize("profile", ["gpu", "paper"])
def test_large_profiles_are_the_papers_network(profile):
    with torch.device("meta"):
        net = build_network(PoseConfig.for_profile(profile))
        assert sum(p.numel() for p in net.parameters()) == 31_142_426
        assert net(torch.zeros(1, 3, 368, 368)).shape == (1, 6, 15, 46, 46)
