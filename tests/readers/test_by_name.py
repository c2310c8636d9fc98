"2D pose data by their names: each data set in its exact format on disk, asked for as `PoseDataConfig(dataset=...)`, down to a batch."
import numpy as np
import pytest
import test_coco
import test_lsp
import test_mpii
import torch

from hclab.tasks.pose_data import PARTS, PoseDataConfig, batch_of, make_parts


def leeds(folder): test_lsp.write(folder, test_lsp.lsp(), 4, range(1, 2001))


def leeds_extended(folder): test_lsp.write(folder, test_lsp.extended(), 5, range(1, 10001))


def mpii(folder): test_mpii.release(folder, {f"{k:09}.jpg": test_mpii.people(test_mpii.rect(test_mpii.quoted())) for k in range(9)}, [1]*9, [np.uint8([[1]])]*9)


def mpii_json(folder):
    for split in ("train", "valid"): test_mpii.conversion(folder, [test_mpii.entry() for _ in range(5)], split)


def coco(folder):
    (folder/"annotations").mkdir()
    for year in ("train2017", "val2017"):
        images = [{"file_name": f"{i:012}.jpg", "height": 40, "width": 60, "id": i} for i in range(1, 8)]
        data = test_coco.scene() | {"images": images, "annotations": [test_coco.annotation(i, i) for i in range(1, 8)]}
        (folder/"annotations"/test_coco.put(folder/year, data, f"person_keypoints_{year}.json").name).write_text((folder/year/f"person_keypoints_{year}.json").read_text())


@pytest.mark.parametrize("name, make, layout, joints, more", [("lsp", leeds, "LSP14", 14, {"split": "official"}), ("lsp", leeds, "LSP14", 14, {}), ("lsp_extended", leeds_extended, "LSP14", 14, {}),
                                                              ("mpii", mpii, "MPII16", 16, {}), ("mpii_json", mpii_json, "MPII16", 16, {}), ("coco", coco, "COCO17", 17, {}), ("mpii", mpii, "LSP14", 14, {})])
def test_people_by_name(tmp_path, name, make, layout, joints, more):
    make(tmp_path)
    config = PoseDataConfig.for_profile("smoke", dataset=name, folder=str(tmp_path), layout=layout, train=4, val=2, test=3, least=1, loose=0.0, **more)
    parts = make_parts(config)
    assert [len(parts[p]) for p in PARTS] == [4, 2, 3]
    for people in parts.values():
        batch = batch_of(people, range(len(people)))
        assert batch["images"].shape == (len(people), 3, *config.image_size) and batch["joints"].shape == (len(people), joints, 2)
        assert batch["labelled"].any(1).all() and torch.isfinite(batch["joints"][batch["labelled"]]).all()
    again = make_parts(config)
    assert all(torch.equal(parts[p].joints, again[p].joints) and parts[p].origin == again[p].origin for p in PARTS)
    if name == "lsp" and not more or name == "lsp_extended": assert not {o for p in ("val", "test") for o in parts[p].origin} & set(parts["train"].origin)
