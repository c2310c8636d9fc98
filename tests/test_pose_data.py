"People cut out of samples: the geometry, what is left out, and batches that are functions of their number."
import numpy as np
import pytest
import torch

from hclab.core.config import ConfigError
from hclab.core.heatmap import HeatmapConfig
from hclab.data.augment import move
from hclab.tasks.pose_data import PoseDataConfig, PoseDataError, batch_of, box_around, cut_out, gather, joints_in, make_part, part_rows, training_batch

CONFIG = PoseDataConfig.for_profile("smoke")


def person(seed=0, size=(80, 100), people=1, **changes):
    g = torch.Generator().manual_seed(seed)
    joints = torch.rand(people, 14, 2, generator=g)*40 + 20
    sample = {"image": torch.rand(3, *size, generator=g), "image_size": size, "joints2d": joints, "visibility": torch.full((people, 14), 2, dtype=torch.int8), "skeleton": "LSP14",
              "boxes": torch.stack([torch.cat([j.amin(0) - 4, j.amax(0) + 4]) for j in joints])}
    return {**sample, **changes}


def test_joints_lie_on_the_same_pixels_in_crop_and_source():
    sample = person(image=torch.zeros(3, 80, 100))
    sample["image"][:, 40:44, 50:54] = 1            # a spot, its middle at (52, 42)
    sample["joints2d"][0, 0] = torch.tensor([52., 42])
    joints, visible = joints_in(sample, "LSP14")
    crop = cut_out(sample, joints[0], visible[0], sample["boxes"][0], CONFIG)
    light = crop["image"][0].float().where(crop["image"][0] > 128 + 20, torch.tensor(0.))
    y, x = light.nonzero().float().add(.5).mul((light[light > 0]/light.sum())[:, None]).sum(0)
    assert torch.allclose(torch.stack([x, y]), crop["joints"][0], atol=.6)


@pytest.mark.parametrize("profile", ["smoke", "cpu"])
def test_the_view_of_a_test_holds_the_person_in_the_middle(profile):
    config = PoseDataConfig.for_profile(profile, loose=0.0)
    data = gather([person(s) for s in range(3)], config)
    b = batch_of(data, range(3))
    middle = torch.stack([move((box[:2] + box[2:])[None]/2, m)[0] for box, m in zip(data.boxes, b["matrix"])])
    assert torch.allclose(middle, torch.tensor([config.image_size[1]/2, config.image_size[0]/2]).expand(3, 2), atol=1e-3)
    assert b["images"].shape == (3, 3, *config.image_size) and b["labelled"].all()


def test_mirrored_people_have_left_and_right_exchanged():
    data = gather([person()], CONFIG)
    marked = data.joints.clone()
    for n in range(20):
        b = training_batch(data, n, 1, HeatmapConfig(size=(16, 16), stride=4.0, sigma=1.5))
        m = b["matrix"][0]
        order = [5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 12, 13] if torch.linalg.det(m[:2, :2]) < 0 else list(range(14))
        assert torch.allclose(b["joints"][0], move(marked[0], m)[order], atol=1e-3)


def test_who_is_left_out_is_counted():
    nobody = {"image": torch.rand(3, 20, 20), "image_size": (20, 20)}
    hidden = person(visibility=torch.zeros(1, 14, dtype=torch.int8))
    far = person(boxes=torch.tensor([[10., 10, 11, 11]]))
    data = gather([person(), nobody, hidden, far, person(people=2)], CONFIG)
    assert len(data) == 3 and sum(data.left_out.values()) == 3 and data.origin == ((0, 0), (4, 0), (4, 1))
    with pytest.raises(PoseDataError, match="nobody is left: 1 where no joint is labelled"): gather([hidden], CONFIG)


def test_nan_where_nothing_is_labelled_does_no_harm():
    sample = person()
    sample["joints2d"][0, 3], sample["visibility"][0, 3] = float("nan"), 0
    data = gather([sample], CONFIG)
    b = batch_of(data, [0], HeatmapConfig(size=(16, 16), stride=4.0, sigma=1.5), seed=3)
    assert data.joints.isfinite().all() and b["target"].isfinite().all() and b["weights"].sum() < 15


def test_a_person_at_the_border_has_grey_beyond_it():
    data = gather([person(boxes=torch.tensor([[-20., -20, 30, 30]]))], CONFIG)
    assert data.images[0, :, 0, 0].tolist() == [128, 128, 128]


def test_without_boxes_the_joints_span_one():
    sample = person()
    del sample["boxes"]
    box, j = gather([sample], CONFIG).boxes[0], gather([sample], CONFIG).joints[0]
    assert (j >= box[:2]).all() and (j <= box[2:]).all()
    assert box_around(torch.tensor([[0., 0], [100, 50]]), torch.tensor([True, True])).tolist() == [-16, -16, 116, 66]


def test_layouts_are_converted_and_what_is_missing_is_not_labelled():
    from hclab.core.skeleton import convert, skeleton
    coco = torch.rand(1, 17, 2)*40 + 20
    sample = person(joints2d=coco, visibility=torch.full((1, 17), 2, dtype=torch.int8), skeleton="COCO17")
    data = gather([sample], CONFIG)
    want, there, _ = convert(coco, "COCO17", "LSP14")
    assert torch.equal(data.labelled[0], there) and not data.labelled[0, skeleton("LSP14").index("neck")]


def test_parts_of_one_list_do_not_overlap():
    config = PoseDataConfig(dataset="lsp", folder="x", train=1600, val=200, test=200)
    rows = [set(part_rows(range(2000), config, part).tolist()) for part in ("train", "val", "test")]
    assert [len(r) for r in rows] == [1600, 200, 200] and len(set.union(*rows)) == 2000
    with pytest.raises(PoseDataError, match="ask for fewer"): part_rows(range(500), config, "train")


def test_pictures_of_one_video_stay_together():
    class Videos:
        pictures = [type("P", (), {"video": i//10})() for i in range(100)]
        def __len__(self): return 100
    rows = part_rows(Videos(), PoseDataConfig(dataset="mpii", folder="x", train=60, val=20, test=20), "train")
    assert len(set((np.array(rows)//10).tolist())) == 6


def test_a_batch_is_a_function_of_its_number():
    data, grid = gather([person(s) for s in range(5)], CONFIG), HeatmapConfig(size=(16, 16), stride=4.0, sigma=1.5)
    before = torch.get_rng_state()
    a, b = training_batch(data, 3, 4, grid, 1), training_batch(data, 3, 4, grid, 1)
    assert all(torch.equal(a[k], b[k]) for k in a) and torch.equal(before, torch.get_rng_state())
    assert not torch.equal(a["images"], training_batch(data, 4, 4, grid, 1)["images"])


@pytest.mark.parametrize("make, says", [(lambda: PoseDataConfig(dataset="coc"), "did you mean 'coco'"), (lambda: PoseDataConfig(dataset="coco"), "folder="), (lambda: make_part(CONFIG, "valid"), "known|did you mean"),
                                        (lambda: PoseDataConfig(train=0), "at least 1")])
def test_errors_say_what_to_do(make, says):
    with pytest.raises(ConfigError, match=says): make()


@pytest.mark.parametrize("dataset", ["lsp", "lsp_extended", "mpii", "mpii_json", "coco"])
def test_a_folder_without_the_data_is_named(tmp_path, dataset):
    with pytest.raises((ValueError, OSError), match=tmp_path.name): make_part(PoseDataConfig(dataset=dataset, folder=str(tmp_path)))


def test_a_fingerprint_is_of_the_people_and_their_order():
    data = gather([person(s) for s in range(3)], CONFIG)
    same = gather([person(s) for s in range(3)], CONFIG)
    assert data.fingerprint == same.fingerprint == data.subset([0, 1, 2]).fingerprint
    others = [data.subset([1, 0, 2]), data.subset([0, 1]), gather([person(s) for s in (0, 1, 3)], CONFIG)]
    for name in ("images", "joints", "visibility", "boxes"):
        changed = data.subset([0, 1, 2])
        getattr(changed, name)[2].view(-1)[-1] += 1
        others.append(changed)
    assert len({data.fingerprint, *(o.fingerprint for o in others)}) == 1 + len(others)
