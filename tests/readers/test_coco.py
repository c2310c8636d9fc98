"COCO, COCO-WholeBody and DensePose-COCO: files written here in the exact format, read back, and compared with pycocotools or with values worked by hand."
import copy
import json
import os
import pickle
import random
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from hclab.core.sample import collate, validate
from hclab.core.skeleton import skeleton
from hclab.data.images import ImageError
from hclab.data.loading import BadSample, Loader
from hclab.data.readers import coco
from hclab.data.readers.coco import COCO, COARSE, COARSE_OF, COCOError, paste, runs_to_mask, to_mask, unpack_runs, walk

tools = pytest.importorskip("pycocotools.mask", reason="pycocotools fills polygons")
from pycocotools.coco import COCO as Official  # noqa: E402

NAMES = ["nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
         "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle"]      # as cocodataset.org lists them
PERSON = {"supercategory": "person", "id": 1, "name": "person", "keypoints": NAMES, "skeleton": [[16, 14], [14, 12]]}
DOG = {"supercategory": "animal", "id": 18, "name": "dog"}


def keypoints(seed, n=17, hidden=()):
    "x, y, v as COCO stores them: whole pixels, zeros where unlabelled."
    rng = random.Random(seed)
    return [v for j in range(n) for v in ((rng.randrange(60), rng.randrange(40), 2 if j % 3 else 1) if j not in hidden else (0, 0, 0))]


def annotation(number, image, box=(10.5, 5.25, 20.0, 30.5), **more):
    return {"segmentation": [[12.0, 8.0, 28.0, 8.0, 28.0, 30.0, 12.0, 30.0]], "num_keypoints": 17, "area": 352.0, "iscrowd": 0, "keypoints": keypoints(number), "image_id": image, "bbox": list(box), "category_id": 1, "id": number} | more


def runs(mask):
    "Runs by the definition: column by column, outside first."
    found, inside = [0], False
    for v in mask.T.flatten().tolist():
        if v != inside:
            found.append(0)
            inside = v
        found[-1] += 1
    return found


CROWD = np.zeros((40, 60), bool)
CROWD[:10, 40:] = True


def scene():
    "Three images: two people and a crowd and a dog; one person; nobody."
    images = [{"license": 4, "file_name": f"{i:012}.jpg", "coco_url": f"http://images.cocodataset.org/val2017/{i:012}.jpg", "height": 40, "width": 60, "date_captured": "2013-11-19 21:22:42", "flickr_url": "", "id": i} for i in (785, 139, 7)]
    records = [annotation(442619, 785), annotation(900100000785, 785, (40, 0, 20, 10), iscrowd=1, segmentation={"counts": runs(CROWD), "size": [40, 60]}, keypoints=[0] * 51, num_keypoints=0),
               annotation(3, 139, (0, 0, 60, 40), keypoints=keypoints(3, hidden=(0, 5)), segmentation=[[1.5, 2.5, 30.0, 3.0, 20.0, 35.5], [40, 20, 55, 20, 55, 39, 40, 39]]),
               annotation(11, 785, (20, 10, 30, 25), segmentation=[[20, 10, 40, 10, 40, 20, 20, 20]], keypoints=[0] * 51, num_keypoints=0),
               {"segmentation": [[1, 1, 9, 1, 9, 9]], "area": 32.0, "iscrowd": 0, "image_id": 785, "bbox": [1, 1, 8, 8], "category_id": 18, "id": 12}]
    return copy.deepcopy({"info": {"description": "COCO 2017 Dataset", "year": 2017}, "licenses": [{"url": "", "id": 4, "name": "Attribution License"}], "images": images, "annotations": records, "categories": [PERSON, DOG]})


def put(folder, data, name="person_keypoints_val2017.json", photographs=True):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(data if isinstance(data, str) else json.dumps(data))
    if photographs and not isinstance(data, str):
        for i in data["images"]:
            if isinstance(i.get("file_name"), str) and ".." not in i["file_name"]: Image.fromarray(np.full((40, 60, 3), 100, np.uint8)).save(folder / i["file_name"], quality=95)
    return folder / name


@pytest.fixture
def val(tmp_path):
    data = scene()
    return COCO(tmp_path, put(tmp_path, data)), data


# ---- what a sample holds ----------------------------------------------------------------------------------------------------

def test_a_sample_by_hand(val):
    people, data = val
    assert len(people) == 2 and people.image_ids.tolist() == [785, 139] and people.layout == "COCO17"
    s = validate(people[0])
    assert s["image"].shape == (3, 40, 60) and (s["image"] - 100 / 255).abs().max() < .01 and s["image_size"] == (40, 60)
    assert s["boxes"].tolist() == [[10.5, 5.25, 30.5, 35.75], [20, 10, 50, 35]], "x2 = x + w; the crowd and the dog are no people"
    assert s["joints2d"][0].flatten().tolist() == [v for i, v in enumerate(data["annotations"][0]["keypoints"]) if i % 3 < 2], "whole pixels stay what they are"
    assert s["visibility"][0].tolist() == data["annotations"][0]["keypoints"][2::3] and s["visibility"][1].sum() == 0
    assert s["source"] == "COCO person_keypoints_val2017" and s["index"] == 0 and s["skeleton"] == "COCO17" and "iuv" not in s
    assert people.where(0).endswith("000000000785.jpg") and people[-1]["index"] == 1
    with pytest.raises(IndexError): people[2]
    batch = collate([people[0], people[1]])
    assert batch["boxes"].shape == (2, 2, 4) and batch["person_mask"].tolist() == [[True, True], [True, False]]


def test_the_names_are_cocos_own():
    assert list(skeleton("COCO17").names) == NAMES


def test_images_without_people_are_kept_on_request(tmp_path):
    people = COCO(tmp_path, put(tmp_path, scene()), empty=True)
    s = people[2]
    assert len(people) == 3 and people.image_ids.tolist() == [785, 139, 7] and s["boxes"].shape == (0, 4) and s["joints2d"].shape == (0, 17, 2) and (s["instance_ids"] == 0).all()


def test_masks_and_areas_agree_with_pycocotools(val, tmp_path, capsys):
    people, data = val
    official = Official(str(tmp_path / "person_keypoints_val2017.json"))
    for index in range(2):
        ids = official.getAnnIds(imgIds=int(people.image_ids[index]), catIds=[1], iscrowd=False)
        theirs = official.loadAnns(ids)
        assert [p.record["id"] for p in people.people(index)] == [a["id"] for a in theirs]
        for person, a in zip(people.people(index), theirs, strict=True):
            mine = to_mask(person.record["segmentation"], (40, 60))
            assert np.array_equal(mine, official.annToMask(a).astype(bool)) and mine.sum() == tools.area(official.annToRLE(a))
            x1, y1, x2, y2 = person.box
            assert (x2 - x1) * (y2 - y1) == pytest.approx(a["bbox"][2] * a["bbox"][3]) and sum(person.joints[:, 2] > 0) == sum(v > 0 for v in a["keypoints"][2::3])
    crowd = official.loadAnns(official.getAnnIds(imgIds=785, iscrowd=True))[0]
    assert np.array_equal(people.ignored(0).numpy(), official.annToMask(crowd).astype(bool)) and np.array_equal(people.ignored(0).numpy(), CROWD) and not people.ignored(1).any()


def test_instance_ids_and_who_wins_an_overlap(val):
    ids = val[0][0]["instance_ids"]
    want = np.zeros((40, 60), int)
    want[8:30, 12:28] = 1
    want[10:20, 20:40] = 2          # 200 pixels against 352: the smaller one is in front
    assert ids.dtype == torch.int64 and np.array_equal(ids.numpy(), want)


def test_instance_ids_are_missing_where_somebody_has_no_mask(tmp_path):
    for nothing in ([], None, "gone"):
        data = scene()
        data["annotations"][0]["segmentation"] = nothing
        if nothing == "gone": del data["annotations"][0]["segmentation"]
        people = COCO(tmp_path, put(tmp_path, data))
        assert "instance_ids" not in people[0] and "instance_ids" in people[1]
    assert "instance_ids" not in COCO(tmp_path, put(tmp_path, scene()), masks=False)[1]


def test_train_and_val_and_several_files(tmp_path):
    data = scene()
    one, two = copy.deepcopy(data), copy.deepcopy(data)
    one["images"], one["annotations"] = data["images"][:1], [a for a in data["annotations"] if a["image_id"] == 785]
    two["images"], two["annotations"] = data["images"][1:], [a for a in data["annotations"] if a["image_id"] == 139]
    both = COCO(tmp_path, put(tmp_path, two, "b.json"), put(tmp_path, one, "a.json"))
    assert both.image_ids.tolist() == [139, 785] and both[1]["source"] == "COCO a" and both[1]["boxes"].shape == (2, 4) and both[0]["source"] == "COCO b"
    with pytest.raises(COCOError, match="image 785 has people in 2"): COCO(tmp_path, tmp_path / "a.json", put(tmp_path, one, "c.json"))
    for a in two["annotations"]: del a["keypoints"]
    put(tmp_path, two, "b.json")
    with pytest.raises(COCOError, match="a.json has COCO17.*layout="): COCO(tmp_path, tmp_path / "a.json", tmp_path / "b.json")
    assert "joints2d" not in COCO(tmp_path, tmp_path / "a.json", tmp_path / "b.json", layout="")[0]
    with pytest.raises(COCOError, match="one or more"): COCO(tmp_path)
    with pytest.raises(COCOError, match="did you mean 'COCO17'"): COCO(tmp_path, tmp_path / "a.json", layout="COCO71")


def test_instances_files_have_no_joints(tmp_path):
    data = scene()
    for a in data["annotations"]: a.pop("keypoints", None)
    data["categories"] = [{"supercategory": "person", "id": 1, "name": "person"}, DOG]
    s = COCO(tmp_path, put(tmp_path, data, "instances_val2017.json"))[0]
    assert "joints2d" not in s and "skeleton" not in s and s["boxes"].shape == (2, 4)


# ---- whole bodies -----------------------------------------------------------------------------------------------------------

def whole(number, image, **more):
    "A record with what COCO-WholeBody adds: place k of all 133 at (k / 4, k / 5)."
    spot = lambda first, n, v: [x for k in range(first, first + n) for x in (k / 4, k / 5, v)]
    limbs = {"foot_kpts": spot(17, 6, 2), "face_kpts": spot(23, 68, 1.0), "lefthand_kpts": spot(91, 21, 0.1866542398929596), "righthand_kpts": [0.0] * 63,
             "foot_valid": True, "face_valid": True, "lefthand_valid": True, "righthand_valid": False, "face_box": [1.0, 2.0, 3.0, 4.0], "lefthand_box": [5.0, 6.0, 7.0, 8.0], "righthand_box": [0.0, 0.0, 0.0, 0.0]}
    return annotation(number, image, keypoints=spot(0, 17, 2), **(limbs | more))


@pytest.fixture
def bodies(tmp_path):
    data = scene()
    data["annotations"] = [whole(1, 785), whole(2, 785, righthand_kpts=[9.0, 9.0, 0.5] * 21, foot_kpts=[3, 3, 1] + [0, 0, 0] * 5, face_kpts=[1.0, 1.0, 0.0] * 68)]
    return COCO(tmp_path, put(tmp_path, data, "coco_wholebody_val_v1.0.json"))


def test_the_133_joints_stand_in_their_order(bodies):
    s = bodies[0]
    assert s["skeleton"] == "WHOLEBODY133" and s["joints2d"].shape == (2, 133, 2)
    assert torch.allclose(s["joints2d"][0, :112], torch.stack([torch.arange(112) / 4, torch.arange(112) / 5], -1)), "body, feet, face, left hand"
    names = skeleton("WHOLEBODY133").names
    assert [names[i] for i in (0, 17, 22, 23, 91, 112)] == ["nose", "left_big_toe", "right_heel", "face_0", "left_hand_root", "right_hand_root"]


def test_flags_of_whole_bodies(bodies):
    v = bodies[0]["visibility"]
    assert (v[0, :112] == 2).all() and (v[0, 112:] == 0).all(), "a confidence of 0.19 is a label"
    assert v[1, 17:23].tolist() == [1, 0, 0, 0, 0, 0] and (v[1, 23:91] == 0).all()
    assert (v[1, 112:] == 0).all() and (bodies[0]["joints2d"][1, 112:] == 0).all(), "what is called invalid is unlabelled, whatever stands there"


def test_boxes_of_faces_and_hands(bodies, val):
    found = bodies.limb_boxes(0)
    assert found["face"][0].tolist() == [[1, 2, 4, 6]] * 2 and found["lefthand"][0][0].tolist() == [5, 6, 12, 14] and found["righthand"][1].tolist() == [False, False] and found["face"][1].all()
    with pytest.raises(COCOError, match="COCO-WholeBody"): val[0].limb_boxes(0)


def test_the_body_alone_of_whole_bodies(tmp_path, bodies):
    assert COCO(tmp_path, tmp_path / "coco_wholebody_val_v1.0.json", layout="COCO17")[0]["joints2d"].shape == (2, 17, 2)


# ---- surface ----------------------------------------------------------------------------------------------------------------

def block(row, column):
    "One of 14 coarse masks: a 64 x 64 block of the 256 x 256."
    mask = np.zeros((256, 256), np.uint8)
    mask[64 * row:64 * row + 64, 64 * column:64 * column + 64] = 1
    return {"counts": tools.encode(np.asfortranarray(mask))["counts"].decode(), "size": [256, 256]}


def dense(number, image, **more):
    masks = [block(n // 4, n % 4) if n < 13 else [] for n in range(14)]
    points = {"dp_x": [0.0, 255.0, 127.5], "dp_y": [0.0, 255.0, 51.0], "dp_I": [1.0, 24.0, 7.0], "dp_U": [0.0, 1.0, .25], "dp_V": [.5, .125, 1.0], "dp_masks": masks}
    return annotation(number, image, (10, 4, 40, 32), **(points | more))


def test_surface_points_by_hand(tmp_path):
    data = scene()
    data["annotations"] = [annotation(1, 785), dense(2, 785)]
    people = COCO(tmp_path, put(tmp_path, data, "densepose_minival2014.json"))
    (s,) = people.surfaces(0)
    assert s.person == 1 and s.points.tolist() == [[10, 4], [50, 36], [30, pytest.approx(10.4)]], "255 is the right edge of the box"
    assert s.charts.tolist() == [1, 24, 7] and s.uv.tolist() == [[0, .5], [1, .125], [.25, 1]] and s.coarse.shape == (256, 256)
    for n in range(14): assert (s.coarse[64 * (n // 4):64 * (n // 4) + 64, 64 * (n % 4):64 * (n % 4) + 64] == (n + 1 if n < 13 else 0)).all()
    pasted = paste(s.coarse, people[0]["boxes"][1], (40, 60))
    want = np.zeros((40, 60), int)
    for n in range(13): want[4 + 8 * (n // 4):12 + 8 * (n // 4), 10 + 10 * (n % 4):20 + 10 * (n % 4)] = n + 1
    assert np.array_equal(pasted.numpy(), want), "a block of 64 of 256 is a quarter of the box"


def test_a_pixel_takes_the_label_under_its_middle():
    pasted = paste(torch.ones(256, 256, dtype=torch.int64), (10.4, 3.6, 20.4, 9.6), (40, 60))
    rows, columns = pasted.nonzero().T
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (10, 19, 4, 9) and pasted.sum() == 60, "10.5 lies in the box, 3.5 does not"


def test_charts_and_coarse_parts_say_the_same():
    "The table of the data format, typed again: coarse part -> charts."
    table = {"torso": (1, 2), "right_hand": (3,), "left_hand": (4,), "left_foot": (5,), "right_foot": (6,), "right_upper_leg": (7, 9), "left_upper_leg": (8, 10), "right_lower_leg": (11, 13), "left_lower_leg": (12, 14),
             "left_upper_arm": (15, 17), "right_upper_arm": (16, 18), "left_lower_arm": (19, 21), "right_lower_arm": (20, 22), "head": (23, 24)}
    assert tuple(table) == COARSE and len(COARSE_OF) == 25 and COARSE_OF[0] == 0
    for part, charts in table.items(): assert all(COARSE[COARSE_OF[c] - 1] == part for c in charts)


@pytest.mark.parametrize("change, words", [(dict(dp_x=[1, 2]), "dp_x has 2"), (dict(dp_I=[1, 2, 25]), "0 to 24"), (dict(dp_I=[1, 2, 2.5]), "whole"), (dict(dp_U=[0, 0, 1.5]), "dp_U holds 0 to 1.5"), (dict(dp_y=[0, -1, 3]), "dp_y"), (dict(dp_V="x"), "dp_V"),
                                           (dict(dp_masks=[[]] * 13), "14 are expected"), (dict(dp_masks={}), "14 are expected"), (dict(dp_masks=[[]] * 13 + [{"counts": "1", "size": [256, 256]}]), "pixels in all"), (dict(dp_masks=[[]] * 13 + ["x"]), r"dp_masks\[13\]")])
def test_wrong_surfaces_are_named(change, words, tmp_path):
    data = scene()
    data["annotations"] = [dense(2, 785, **change)]
    people = COCO(tmp_path, put(tmp_path, data))
    with pytest.raises(COCOError, match=rf"person_keypoints_val2017.json:annotations\[0\] \(id 2\): .*{words}"): people.surfaces(0)
    assert "boxes" in people[0] and len(people.problems()) == 1


# ---- masks ------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(20))
def test_runs_agree_with_pycocotools(seed):
    rng = np.random.default_rng(seed)
    h, w = rng.integers(1, 50, 2)
    mask = np.kron(rng.random((-(-h // 3), -(-w // 3))) > rng.random(), np.ones((3, 3), bool))[:h, :w] if seed else np.ones((h, w), bool)
    packed = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    for counts in (packed["counts"].decode(), runs(mask)): assert np.array_equal(runs_to_mask({"size": [int(h), int(w)], "counts": counts}, (h, w)), mask)
    assert unpack_runs(packed["counts"].decode()) == runs(mask)


@pytest.mark.parametrize("seed", range(10))
def test_polygons_agree_with_pycocotools(seed):
    rng = np.random.default_rng(seed)
    polygons = [rng.uniform(-5, 65, 2 * rng.integers(3, 9)).tolist() for _ in range(rng.integers(1, 4))]
    want = sum(tools.decode(tools.frPyObjects([p], 40, 60))[..., 0] for p in polygons) > 0
    assert np.array_equal(to_mask(polygons, (40, 60)), want)


def test_damaged_runs_are_refused_not_passed_to_c():
    "Each of these made pycocotools 2.0.11 crash, or return more pixels than there are."
    good = tools.encode(np.asfortranarray((np.random.default_rng(0).random((40, 60)) > .5).astype(np.uint8)))["counts"].decode()
    rng = random.Random(0)
    for text in ("", "ooooo", "\xff\xff\xff\xff", "1", "o" * 100, good[:-1], good + "1", good.replace(good[9], "~"), "漢"):
        with pytest.raises(COCOError): to_mask({"size": [40, 60], "counts": text}, (40, 60))
    refused = 0
    for _ in range(300):
        text = list(good)
        text[rng.randrange(len(text))] = chr(rng.randrange(40, 120))
        try: assert to_mask({"size": [40, 60], "counts": "".join(text)}, (40, 60)).shape == (40, 60)
        except COCOError: refused += 1
    assert refused > 200


@pytest.mark.parametrize("wrong", [{"size": [40, 60], "counts": [2400, -1, 1]}, {"size": [40, 60], "counts": [2**62]}, {"size": [40, 60], "counts": [1.5, 2398.5]}, {"size": [60, 40], "counts": [2400]}, {"size": [2**31 - 1] * 2, "counts": "1"}, {"counts": [2400]}, {"size": [40, 60]},
                                   [[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [[0, 0, 1e9, 1e9, 0, 9]], [["0", 0, 9, 9, 0, 9]], [[0, 0, None, 9, 0, 9]], "polygon", 7, [7], [[10**400, 0, 1, 1, 2, 2]]], ids=str)
def test_wrong_segmentations(wrong, tmp_path):
    data = scene()
    data["annotations"][0]["segmentation"] = wrong
    began = time.monotonic()
    with pytest.raises(COCOError, match=r"annotations\[0\] \(id 442619\): "): COCO(tmp_path, put(tmp_path, data))[0]
    assert time.monotonic() - began < 2


# ---- F14: annotations that can't be right -----------------------------------------------------------------------------------

def at(data, *path): return data if not path else at(data[path[0]], *path[1:])


EARLY = {  # noticed when the files are indexed
    "no id": (("annotations", 2), lambda r: r.pop("id"), "annotations[2]: no 'id'"), "id in words": (("annotations", 2), lambda r: r.update(id="3"), "annotations[2]: id is '3' (str)"), "id clash": (("annotations", 3), lambda r: r.update(id=442619), "annotations[3]: id 442619 is already that of annotations[0]"),
    "image id clash": (("images", 1), lambda r: r.update(id=785), "images[1]: id 785 is already that of images[0]"), "unknown image": (("annotations", 0), lambda r: r.update(image_id=5), "annotations[0]: image_id 5 is not among"), "no image": (("annotations", 0), lambda r: r.pop("image_id"), "annotations[0]: no 'image_id'"),
    "true is no id": (("annotations", 0), lambda r: r.update(id=True), "annotations[0]: id is 'True' (bool)"), "huge id": (("annotations", 0), lambda r: r.update(id=10**30), "annotations[0]: id is"), "crowd 2": (("annotations", 1), lambda r: r.update(iscrowd=2), "annotations[1]: iscrowd is 2"),
    "bomb": (("images", 0), lambda r: r.update(width=10**9, height=10**9), "images[0]: 1,000,000,000 x"), "height 0": (("images", 0), lambda r: r.update(height=0), "images[0]: height"), "width as text": (("images", 0), lambda r: r.update(width="60"), "images[0]: width is '60' (str)"), "no size": (("images", 0), lambda r: r.pop("width"), "images[0]: no 'width'"), "float size": (("images", 0), lambda r: r.update(width=60.5), "images[0]: width"),
    "out of the folder": (("images", 0), lambda r: r.update(file_name="../../etc/passwd"), "images[0]: file_name '../../etc/passwd' leads out"), "absolute": (("images", 0), lambda r: r.update(file_name="/etc/passwd"), "leads out"), "no name": (("images", 0), lambda r: r.pop("file_name"), "images[0]: file_name"),
    "name is a number": (("images", 0), lambda r: r.update(file_name=7), "images[0]: file_name"), "no person": (("categories",), lambda r: r.pop(0), "categories: none is named 'person'"), "16 names": (("categories", 0), lambda r: r["keypoints"].pop(), "categories[0]: 16 joints"),
    "another order": (("categories", 0), lambda r: r["keypoints"].reverse(), "categories[0]: 17 joints"), "no categories": ((), lambda r: r.pop("categories"), "no list categories"), "a list of lists": (("annotations",), lambda r: r.insert(0, [1]), "annotations[0] is list"),
    "annotations in words": ((), lambda r: r.update(annotations="none"), "expected ["),
}
LATE = {  # noticed when the sample is read
    "no box": (lambda r: r.pop("bbox"), "no 'bbox'"), "negative box": (lambda r: r.update(bbox=[5, 5, -1, 5]), "must not be negative"), "box of 3": (lambda r: r.update(bbox=[5, 5, 1]), "3 values"), "box in words": (lambda r: r.update(bbox=["5", 5, 1, 1]), "bbox[0] is '5' (str)"), "box none": (lambda r: r.update(bbox=None), "bbox is None"),
    "far box": (lambda r: r.update(bbox=[1e300, 0, 1, 1]), "bbox[0]"), "NaN joint": (lambda r: r["keypoints"].__setitem__(3, float("nan")), "not a finite number"), "infinite joint": (lambda r: r["keypoints"].__setitem__(3, float("-inf")), "not a finite number"), "16 joints": (lambda r: r.update(keypoints=r["keypoints"][:48]), "48 values; 51 numbers"),
    "no joints": (lambda r: r.pop("keypoints"), "no 'keypoints'"), "flag 3": (lambda r: r["keypoints"].__setitem__(2, 3), "flag of point 0 is 3"), "flag 1.5": (lambda r: r["keypoints"].__setitem__(2, 1.5), "0, 1 or 2"), "joint in words": (lambda r: r["keypoints"].__setitem__(0, "12"), "keypoints[0] is '12' (str)"), "joint true": (lambda r: r["keypoints"].__setitem__(0, True), "keypoints[0] is 'True' (bool)"),
    "huge whole number": (lambda r: r["keypoints"].__setitem__(0, 10**400), "keypoints[0]"), "nested": (lambda r: r.update(extra=[[[[[[[[[1]]]]]]]]]), "levels deep"),
}


@pytest.mark.parametrize("name", EARLY)
def test_wrong_files_are_named_at_once(name, tmp_path):
    path, change, words = EARLY[name]
    data = scene()
    change(at(data, *path))
    with pytest.raises(COCOError) as e: COCO(tmp_path, put(tmp_path, data, photographs=False))
    assert str(e.value).startswith(str(tmp_path / "person_keypoints_val2017.json") + ":") and words in str(e.value)


@pytest.mark.parametrize("name", LATE)
def test_wrong_records_are_named_when_read(name, tmp_path):
    change, words = LATE[name]
    data = scene()
    change(data["annotations"][3])
    people = COCO(tmp_path, put(tmp_path, data))
    with pytest.raises(COCOError) as e: people[0]
    assert str(e.value).startswith(f"{tmp_path / 'person_keypoints_val2017.json'}:annotations[3] (id 11): ") and words in str(e.value)
    assert people[1]["index"] == 1 and [words in line for line in people.problems()] == [True]


def test_a_key_that_is_given_twice(tmp_path):
    text = json.dumps(scene()).replace('"bbox": [20, 10', '"bbox": [1, 1, 1, 1], "bbox": [20, 10')
    put(tmp_path, scene())
    with pytest.raises(COCOError, match=r"annotations\[3\].*'bbox' is given twice"): COCO(tmp_path, put(tmp_path, text))[0]
    with pytest.raises(COCOError, match="'images' comes twice"): COCO(tmp_path, put(tmp_path, '{"images": [], "images": []}'))


@pytest.mark.parametrize("wrong, words", [(dict(lefthand_valid="yes"), "lefthand_valid is 'yes'"), (dict(face_kpts=[0] * 201), "201 values; 204"), (dict(foot_kpts=[1, 2, -1] * 6), "flag of point 0 is -1"), (dict(righthand_kpts=[1, 2, 9] * 21), "flag of point 0 is 9")])
def test_wrong_whole_bodies(wrong, words, tmp_path):
    data = scene()
    data["annotations"] = [whole(1, 785, **wrong)]
    with pytest.raises(COCOError, match=rf"annotations\[0\] \(id 1\): .*{words}"): COCO(tmp_path, put(tmp_path, data))[0]
    data["annotations"] = [whole(1, 785), annotation(2, 785)]
    with pytest.raises(COCOError, match=r"annotations\[1\] \(id 2\): no 'foot_kpts'"): COCO(tmp_path, put(tmp_path, data))[0]


@pytest.mark.parametrize("data", [b"", b"\n", b"\0" * 64, b"<!DOCTYPE html>", b"[]", b"{", b"{}", b'"x"', b"7", b"PK\x03\x04" + b"\0" * 40, b"9" * 100_000, b"{" * 50_000, b"[" * 1_000_000, b'{"images": ' + b"[" * 1_000_000, b'{"images": [' + b'{"a":' * 1_000_000, b'{"annotations": [{"a": "' + b"x" * 5_000_000, b'{"images": [], "annotations": [], "categories": []} x',
                                  b'{"images": [{"id": 1]', b'{"images": [1', b'{"info": tru', b'{"a" 1}', b'{1: 2}'], ids=lambda d: repr(d[:24]))
def test_files_of_another_kind(data, tmp_path):
    (tmp_path / "val.json").write_bytes(data)
    began = time.monotonic()
    with pytest.raises(COCOError, match="val.json"): COCO(tmp_path, tmp_path / "val.json")
    assert time.monotonic() - began < 5


def test_cuts_and_flips_anywhere(tmp_path):
    path = put(tmp_path, scene())
    good, rng = path.read_bytes(), random.Random(0)
    for i in range(150):
        data = bytearray(good[:rng.randrange(len(good))] if i % 3 == 0 else good)
        if i % 3: data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            people = COCO(tmp_path, path)
            for index in range(len(people)): validate(people[index])
            assert i % 3, "a part passed for the whole"
        except (COCOError, ImageError) as e: assert str(tmp_path) in str(e)
        except OSError as e: assert str(tmp_path) in str(e)     # a flipped letter in the name of a photograph


# ---- the index --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 1000])
@pytest.mark.parametrize("indent", [None, 4])
def test_pieces_of_any_size_give_the_same_records(piece, indent, tmp_path, monkeypatch):
    data = scene()
    data["images"][1]["file_name"] = "Zoë – 動き.jpg"
    data["info"] = {"text": 'a \\ "quoted" [brace} ünï', "number": 12345.678e-3, "none": None}
    data = {"version": 1234567890} | data | {"revision": 987.654321e-15, "size": 1e-9}
    path = tmp_path / "val.json"
    path.write_text(json.dumps(data, indent=indent, ensure_ascii=indent is None), encoding="utf-8")
    monkeypatch.setattr(coco, "PIECE", piece)
    raw, seen = path.read_bytes(), {"images": [], "annotations": [], "categories": []}
    for name, number, _, start, stop in walk(path):
        assert number == len(seen[name])
        seen[name].append(json.loads(raw[start:stop]))
    assert all(seen[name] == data[name] for name in seen)
    assert COCO(tmp_path, path).where(1).endswith("Zoë – 動き.jpg")


def test_byte_order_mark_and_other_orders(tmp_path):
    data = scene()
    text = json.dumps({"categories": data["categories"], "annotations": data["annotations"], "x": 5, "images": data["images"]})
    put(tmp_path, data)
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\n")
    assert torch.equal(COCO(tmp_path, tmp_path / "a.json")[0]["boxes"], COCO(tmp_path, tmp_path / "person_keypoints_val2017.json")[0]["boxes"])


def test_a_large_file_is_not_held(tmp_path, monkeypatch):
    "16,000 people in 11 MB: building takes a few pieces of memory, and what stays is a small part of the file."
    monkeypatch.setattr(coco, "PIECE", 1 << 18)
    record = json.dumps(annotation(0, 0, segmentation=[[float(v) for v in range(60)]]))
    head = json.dumps([{"id": i, "file_name": f"{i:012}.jpg", "height": 40, "width": 60} for i in range(8000)])
    with open(tmp_path / "big.json", "w") as f:
        f.write(f'{{"images": {head}, "annotations": [' + ", ".join(record.replace('"image_id": 0', f'"image_id": {i // 2}').replace('"id": 0}', f'"id": {i}}}') for i in range(16_000)) + '], "categories": [{"id": 1, "name": "person"}]}')
    size = (tmp_path / "big.json").stat().st_size
    tracemalloc.start()
    try:
        people = COCO(tmp_path, tmp_path / "big.json", masks=False)
        kept, peak = tracemalloc.get_traced_memory()
    finally: tracemalloc.stop()
    assert size > 11e6 and len(people) == 8000 and kept < size / 5 and peak < size / 2, (size, kept, peak)
    assert [p.record["id"] for p in people.people(7999)] == [15_998, 15_999]


def test_a_file_that_changes_is_noticed(val, tmp_path):
    people, data = val
    people[0]
    path = tmp_path / "person_keypoints_val2017.json"
    path.write_text(json.dumps(data, indent=1))
    with pytest.raises(COCOError, match="changed since it was indexed"): people[0]


def test_it_can_be_sent_to_workers(val):
    again = pickle.loads(pickle.dumps(val[0]))
    assert torch.equal(again[0]["joints2d"], val[0][0]["joints2d"])


# ---- photographs ------------------------------------------------------------------------------------------------------------

def test_photographs_that_do_not_fit(val, tmp_path):
    people, _ = val
    photo = tmp_path / "000000000785.jpg"
    Image.new("RGB", (40, 60)).save(photo)
    with pytest.raises(COCOError, match=r"000000000785.jpg: 40 x 60 pixels .* says 60 x 40"): people[0]
    photo.write_text("<html>")
    with pytest.raises(ImageError, match="000000000785.jpg"): people[0]
    photo.unlink()
    with pytest.raises(OSError, match="000000000785.jpg"): people[0]
    assert len(people.problems()) == 1 and "no such photograph" in people.problems()[0] and people.problems(most=0) == []


def test_exif_is_not_followed(val, tmp_path):
    "COCO was annotated on the stored pixels: a note to turn by 180 degrees must not move them under the joints."
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(tmp_path / "000000000785.jpg", exif=exif, quality=95)
    assert val[0][0]["image"][:, :15].mean() > .9


def test_the_policy_for_bad_samples(tmp_path):
    "A broken photograph stops the loader with its path, or is skipped where that is allowed."
    data = scene()
    data["images"] = [data["images"][0] | dict(id=i, file_name=f"{i}.jpg") for i in range(20)]
    data["annotations"] = [annotation(i, i) for i in range(20)]
    people = COCO(tmp_path, put(tmp_path, data))
    (tmp_path / "13.jpg").write_bytes(b"")
    with pytest.raises(BadSample, match=r"sample 13 .*13\.jpg.*it is empty"): list(Loader(people, 4))
    with pytest.warns(UserWarning, match="skipped sample 13"): assert sum(len(b["index"]) for b in Loader(people, 4, on_bad="skip", max_skip_rate=.1)) == 19


def test_it_is_read_without_pycocotools_where_no_polygon_is_filled(tmp_path):
    put(tmp_path, scene())
    code = f"import sys; sys.modules['pycocotools'] = None\nfrom hclab.data.readers.coco import COCO\nd = COCO({str(tmp_path)!r}, {str(tmp_path / 'person_keypoints_val2017.json')!r}, masks=False)\nprint(len(d), d[0]['boxes'].shape[0], int(d.ignored(0).sum()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.split() == ["2", "2", "200"]
