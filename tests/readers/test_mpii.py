"MPII: the official MATLAB struct with its known irregularities and the JSON conversion, both written here; values of a real person as they are quoted in public."
import json, math, warnings

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given, settings, strategies as st

from hclab.core.metrics import pck2d
from hclab.core.sample import collate, validate
from hclab.data.images import ImageError, encode_image
from hclab.data.loading import BadSample, Loader
from hclab.data.readers.mpii import MPII, MPIIError, Person, open_conversion, open_release, person_box, read_conversion, read_head_boxes, read_release

EMPTY = np.zeros((0, 0))
NAMES = """r ankle, r knee, r hip, l hip, l knee, l ankle, pelvis, thorax, upper neck, head top, r wrist, r elbow, r shoulder, l shoulder, l elbow, l wrist""".split(", ")   # README of the data set
# issue 7 of microsoft/human-pose-estimation.pytorch quotes this person of 008734041.jpg from the official file, and its first joint from the JSON
QUOTED = {11: (349, 113), 10: (344, 95), 13: (370, 147), 12: (384, 140), 15: (334, 96), 14: (332, 132), 1: (361, 311), 0: (373, 374), 3: (370, 236), 2: (375, 235), 5: (371, 378), 4: (356, 314), 7: (377, 144), 6: (373, 236), 9: (366.7979, 97.0705), 8: (377.2021, 144.9295)}
SEEN = {11: 1, 10: 0, 13: 1, 12: 0, 15: 1, 14: 1, 1: 0, 0: 0, 3: 1, 2: 0, 5: 1, 4: 1, 7: 0, 6: 0}      # 8 and 9 have none
HEAD = (353, 97, 391, 145)


def struct(fields, count=1):
    out = np.empty((1, count), [(k, object) for k in fields])
    for k, v in fields.items():
        for i in range(count): out[0, i][k] = v[i]
    return out


def points(rows):
    "A struct array of (id, x, y, is_visible); an is_visible of None leaves the value out."
    i, x, y, v = zip(*rows)
    return struct(dict(x=x, y=y, id=i, is_visible=[EMPTY if f is None else f for f in v]), len(rows))


def rect(rows, scale=2.5, centre=(374, 238), head=HEAD, **change):
    return dict(zip(("x1", "y1", "x2", "y2"), ([c] for c in head))) | dict(annopoints=[struct(dict(point=[points(rows)]))], scale=[scale], objpos=[struct(dict(x=[centre[0]], y=[centre[1]]))]) | change


def people(*rects):
    "A struct array of people; fields that one lacks are empty, as in MATLAB."
    names = list(dict.fromkeys(k for r in rects for k in r))
    return struct({n: [r.get(n, [EMPTY])[0] for r in rects] for n in names}, len(rects))


def release(folder, images, train, alone=None, act=None, packed=True, **change):
    "Write the official file: `images` name -> annorect."
    n = len(images)
    cells = np.empty((n, 1), object)
    cells[:, 0] = alone or [EMPTY] * n
    annolist = struct(dict(image=[struct(dict(name=[k])) for k in images], annorect=list(images.values()), frame_sec=[5] + [EMPTY] * (n - 1), vididx=[12] + [EMPTY] * (n - 1)), n)
    fields = dict(annolist=[annolist], img_train=[np.array([train], np.uint8)], version=["12"], single_person=[cells], act=[act if act is not None else struct(dict(act_name=["curling"] * n, cat_name=["winter activities"] * n, act_id=[1] * n), n)], video_list=[EMPTY])
    scipy.io.savemat(folder / "mpii_human_pose_v1_u12_1.mat", dict(RELEASE=struct(fields | change)), do_compression=packed)
    (folder / "images").mkdir(exist_ok=True)
    for k in images: (folder / "images" / k).write_bytes(encode_image(torch.full((3, 480, 640), .5), "JPEG"))
    return folder / "mpii_human_pose_v1_u12_1.mat"


def quoted(): return [(i, *QUOTED[i], SEEN.get(i)) for i in QUOTED]


@pytest.mark.parametrize("packed", [False, True])
def test_a_quoted_person(tmp_path, packed):
    release(tmp_path, {"008734041.jpg": people(rect(quoted()))}, [1], [np.uint8([[1]])], packed=packed)
    data = open_release(tmp_path)
    sample, person = validate(data[0]), data.people(0)[0]
    assert len(data) == 1 and sample["skeleton"] == "MPII16" and sample["image_size"] == (480, 640) and sample["source"] == "MPII train" and sample["index"] == 0
    for i, (x, y) in QUOTED.items(): assert sample["joints2d"][0, i].tolist() == pytest.approx([x - 1, y - 1], abs=1e-3), "counted from 0"
    assert sample["visibility"][0].tolist() == [{None: 2, 1: 2, 0: 1}[SEEN.get(i)] for i in range(16)]
    assert person.head_box == (352, 96, 390, 144) and person.apart and person.centre == (373, 237) and person.scale == 2.5
    assert data.head_sizes(0).tolist() == pytest.approx([.6 * math.sqrt(38**2 + 48**2)])
    assert sample["boxes"][0].tolist() == [373 - 250, 237 - 250, 373 + 250, 237 + 250]
    # the neck and the top of the head come from the head box: they lie on its lower and upper edge
    assert person.joints[9, 1] == pytest.approx(person.head_box[1], abs=.2) and person.joints[8, 1] == pytest.approx(person.head_box[3], abs=.2)


def test_order_of_the_joints_is_the_readmes():
    from hclab.core.skeleton import skeleton
    assert [n.replace("right_", "r ").replace("left_", "l ").replace("_", " ") for n in skeleton("MPII16").names] == NAMES


@pytest.mark.parametrize("value, flag", [(None, 2), (1, 2), (0, 1), ("1", 2), ("0", 1), (np.uint8(0), 1), (True, 2), (False, 1)])
def test_flags_in_all_spellings(tmp_path, value, flag):
    release(tmp_path, {"a.jpg": people(rect([(3, 10, 20, value)]))}, [1])
    assert open_release(tmp_path)[0]["visibility"][0].tolist() == [0] * 3 + [flag] + [0] * 12


def test_points_without_any_flag(tmp_path):
    "The field itself is absent in some images."
    bare = struct(dict(x=[5, 9], y=[6, 9], id=[0, 15]), 2)
    release(tmp_path, {"a.jpg": people(rect([(0, 1, 1, 1)]) | dict(annopoints=[struct(dict(point=[bare]))]))}, [1])
    assert open_release(tmp_path)[0]["visibility"][0].nonzero().flatten().tolist() == [0, 15] and open_release(tmp_path)[0]["joints2d"][0, 15].tolist() == [8, 8]


def test_irregular_images(tmp_path):
    "No annorect, people without points, without the field, with empty places; only labelled people of training images are samples."
    no_points = dict(scale=[3.0], objpos=[struct(dict(x=[9], y=[9]))])
    images = {"a.jpg": people(rect(quoted()), no_points, rect([(9, 5, 5, None)], scale=EMPTY)), "b.jpg": EMPTY, "c.jpg": people(no_points), "d.jpg": people(dict(scale=[EMPTY], objpos=[EMPTY])), "e.jpg": people(no_points)}
    release(tmp_path, images, [1, 1, 1, 0, 0], [np.uint8([[1, 3]])] + [EMPTY] * 4, struct(dict(act_name=["curling", EMPTY, "", "x", "x"], cat_name=[EMPTY] * 5, act_id=[7, -1, EMPTY, 3.0, 3]), 5))
    pictures = read_release(tmp_path / "mpii_human_pose_v1_u12_1.mat")
    assert [len(p.people) for p in pictures] == [3, 0, 1, 1, 1] and [p.train for p in pictures] == [True, True, True, False, False] and pictures[0].video == 12 and pictures[1].video is None
    assert [p.apart for p in pictures[0].people] == [True, False, True] and [p.activity_id for p in pictures] == [7, -1, -1, 3, 3] and pictures[0].activity == "curling" and pictures[2].activity == ""
    train, test = open_release(tmp_path), open_release(tmp_path, "test")
    assert len(train) == 1 and len(train.people(0)) == 2 and len(test) == 2
    sample = validate(train[0])
    assert sample["joints2d"].shape == (2, 16, 2) and "boxes" not in sample, "one of the two has no scale"
    assert train.head_sizes(0).shape == (2,) and torch.isfinite(train.head_sizes(0)).all()
    nobody, somebody = validate(test[0]), validate(test[1])
    assert "joints2d" not in nobody and "boxes" not in nobody and "joints2d" not in somebody and somebody["boxes"].shape == (1, 4) and math.isnan(test.head_sizes(1)[0])
    batch = collate([train[0], test[1]])
    assert batch["has_joints2d"].tolist() == [True, False]


WRONG = {
    "id 16": (rect([(16, 1, 1, 1)]), "joint 16"), "id -1": (rect([(-1, 1, 1, 1)]), "joint -1"), "id 1.5": (rect([(1.5, 1, 1, 1)]), "joint 1.5"), "id text": (rect([("3", 1, 1, 1)]), "joint '3'"), "twice": (rect([(3, 1, 1, 1), (3, 2, 2, 1)]), "joint 3 .left_hip. comes twice"),
    "NaN": (rect([(3, np.nan, 1, 1)]), "nan where a finite number"), "infinite": (rect([(3, 1, np.inf, 1)]), "inf where"), "text": (rect([(3, "620", 1, 1)]), "'620' where a finite number"), "no x": (rect([(3, EMPTY, 1, 1)]), "x: array"), "a row": (rect([(3, np.array([[1., 2]]), 1, 1)]), "x: array"),
    "flag 2": (rect([(3, 1, 1, 2)]), "is_visible is 2"), "flag text": (rect([(3, 1, 1, "yes")]), "is_visible is 'yes'"), "flags": (rect([(3, 1, 1, np.array([[0, 1]]))]), "is_visible is array"), "head": (rect([(3, 1, 1, 1)], head=(391, 97, 353, 145)), "head box 391"),
    "scale 0": (rect([(3, 1, 1, 1)], scale=0), "scale 0"), "scale text": (rect([(3, 1, 1, 1)], scale="2.5"), "'2.5'"), "objpos": (rect([(3, 1, 1, 1)], objpos=[7]), "one struct"), "two": (rect([(3, 1, 1, 1)], objpos=[struct(dict(x=[1, 2], y=[1, 2]), 2)]), "2 values"),
    "no y": (rect([(3, 1, 1, 1)], objpos=[struct(dict(x=[1]))]), "objpos.y"), "annopoints": (rect([(3, 1, 1, 1)], annopoints=["none"]), "annopoints"), "points": (rect([(3, 1, 1, 1)], annopoints=[struct(dict(point=[5.0]))]), "point"), "point": (rect([(3, 1, 1, 1)], annopoints=[struct(dict(point=[struct(dict(x=[1]))]))]), "needs x, y and id"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_record_costs_one_sample(tmp_path, name):
    wrong, says = WRONG[name]
    good = people(rect([(3, 10, 20, 1)]))
    path = release(tmp_path, {"a.jpg": good, "b.jpg": people(rect([(3, 1, 1, 1)]), wrong), "c.jpg": good}, [1, 1, 1])
    data = open_release(tmp_path)
    assert len(data) == 3 and validate(data[0]) and validate(data[2])
    with pytest.raises(MPIIError, match=says) as e: data[1]
    assert str(e.value).startswith(f"{path}:annolist(2).annorect(2)") and data.where(1).startswith(f"{path}:annolist(2)")
    with pytest.raises(BadSample, match="annolist.2"): list(Loader(data, 3, shuffle=False))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batch, = Loader(data, 3, shuffle=False, on_bad="skip", max_skip_rate=.5)
    assert batch["index"].tolist() == [0, 2] and "annolist(2).annorect(2)" in str(caught[0].message)


@pytest.mark.parametrize("change, says", [(dict(img_train=[np.uint8([[1]])]), "2, 1, 2, 2 entries"), (dict(img_train=["11"]), "are expected"), (dict(annolist=[EMPTY]), "0, 2, 2, 2 entries"), (dict(act=[EMPTY]), "entries")])
def test_a_wrong_file_is_an_error_at_once(tmp_path, change, says):
    good = people(rect([(3, 10, 20, 1)]))
    path = release(tmp_path, {"a.jpg": good, "b.jpg": good}, [1, 1], **change)
    with pytest.raises(MPIIError, match=says) as e: read_release(path)
    assert str(e.value).startswith(f"{path}:RELEASE")


def test_names_of_images_and_odd_splits(tmp_path):
    good = people(rect([(3, 10, 20, 1)]))
    for name in ("../secret.jpg", "/etc/passwd", "a\\b.jpg", ".."):
        path = release(tmp_path, {"a.jpg": good}, [1])
        scipy.io.savemat(path, dict(RELEASE=struct(dict(annolist=[struct(dict(image=[struct(dict(name=[name]))], annorect=[good]))], img_train=[1], single_person=[struct(dict(x=[1]))], act=[struct(dict(act_id=[1]))]))))
        assert isinstance(read_release(path)[0], MPIIError) and "no plain name" in str(read_release(path)[0])
    release(tmp_path, {"a.jpg": good, "b.jpg": good}, [1, 7])
    assert "img_train(2): 7" in str(open_release(tmp_path).pictures[1]) and len(open_release(tmp_path, "test")) == 1, "nobody knows where it belongs"
    release(tmp_path, {"a.jpg": good, "b.jpg": people(rect([(16, 1, 1, 1)]))}, [1, 1])
    with pytest.raises(MPIIError, match="Known: train, test|known: train, test"): open_release(tmp_path, "val")
    with pytest.raises(MPIIError, match="mpii_human_pose_v1_u12_2.zip"): open_release(tmp_path / "images")
    with pytest.raises(MPIIError, match="no image"): open_release(tmp_path, "test")
    for content in (dict(other=1), dict(RELEASE=5.0), dict(RELEASE=struct(dict(annolist=[EMPTY])))):
        scipy.io.savemat(path, content)
        with pytest.raises(MPIIError): read_release(path)


def test_images_that_are_missing_or_damaged(tmp_path):
    good = people(rect([(3, 10, 20, 1)]))
    release(tmp_path, {"a.jpg": good, "b.jpg": good}, [1, 1])
    data = open_release(tmp_path)
    (tmp_path / "images" / "a.jpg").unlink()
    whole = (tmp_path / "images" / "b.jpg").read_bytes()
    with pytest.raises(FileNotFoundError, match="a.jpg"): data[0]
    for content in (b"", whole[:len(whole) // 2], b"<html>404</html>"):
        (tmp_path / "images" / "b.jpg").write_bytes(content)
        with pytest.raises(ImageError, match="b.jpg"): data[1]
    with pytest.raises(BadSample, match=r"images.*a\.jpg, .*annolist\(1\)"): list(Loader(data, 2, shuffle=False))


# ------------------------------------------------------------------------------------------------ JSON
def entry(**change):
    return dict(joints_vis=[1] * 16, joints=[list(map(float, QUOTED[i])) for i in range(16)], image="008734041.jpg", scale=2.5, center=[374.0, 238.0]) | change


def conversion(folder, entries, split="train", boxes=None, text=None):
    (folder / "annot").mkdir(exist_ok=True); (folder / "images").mkdir(exist_ok=True)
    (folder / "annot" / f"{split}.json").write_text(json.dumps(entries) if text is None else text)
    (folder / "images" / "008734041.jpg").write_bytes(encode_image(torch.full((3, 480, 640), .5), "JPEG"))
    if boxes is not None: scipy.io.savemat(folder / "annot" / f"gt_{split}.mat", dict(headboxes_src=boxes, jnt_missing=np.zeros((16, boxes.shape[-1])), pos_gt_src=np.zeros((16, 2, boxes.shape[-1]))))
    return folder / "annot" / f"{split}.json"


def test_both_forms_agree(tmp_path):
    release(tmp_path, {"008734041.jpg": people(rect(quoted()))}, [1])
    conversion(tmp_path, [entry()], boxes=np.array(HEAD, float).reshape(2, 2, 1))
    a, b = open_release(tmp_path), open_conversion(tmp_path)
    one, two = validate(a[0]), validate(b[0])
    assert torch.equal(one["joints2d"], two["joints2d"]) and torch.equal(one["boxes"], two["boxes"]) and torch.equal(a.head_sizes(0), b.head_sizes(0))
    assert (one["visibility"] == 1).sum() == 7 and (two["visibility"] == 2).all() and two["source"] == "MPII train (JSON)"
    wrong = one["joints2d"] + torch.tensor([.5 * .6 * math.hypot(38, 48), 0])
    assert pck2d(wrong - torch.tensor([.1, 0]), one["joints2d"], one["visibility"] > 0, b.head_sizes(0), "head", .5).value == 100
    assert pck2d(wrong + torch.tensor([.1, 0]), one["joints2d"], one["visibility"] > 0, b.head_sizes(0), "head", .5).value == 0


def test_unlabelled_joints_and_missing_centres(tmp_path):
    joints = [[-1.0, -1.0]] * 16; joints[10] = [7.0, 8.0]
    conversion(tmp_path, [entry(joints=joints, joints_vis=[int(i == 10) for i in range(16)]), entry(center=[-1, -1], scale=-1)])
    data = open_conversion(tmp_path)
    assert data[0]["visibility"][0].nonzero().flatten().tolist() == [10] and data[0]["joints2d"][0, 10].tolist() == [6, 7] and (data[0]["joints2d"][0, :10] == 0).all()
    assert "boxes" not in validate(data[1]) and "joints2d" in data[1] and math.isnan(data.head_sizes(0)[0])


def test_the_test_part_has_no_joints(tmp_path):
    conversion(tmp_path, [dict(image="008734041.jpg", scale=2.5, center=[374.0, 238.0])], "test")
    sample = validate(open_conversion(tmp_path, "test")[0])
    assert "joints2d" not in sample and sample["boxes"].shape == (1, 4)


def test_boxes_as_hrnet_makes_them():
    person = Person(np.zeros((16, 2)), np.zeros(16), (100.0, 50.0), 2.0)
    assert person_box(person) == (-100, -150, 300, 250)
    x1, y1, x2, y2 = person_box(person, grow=1.25, shift=15)
    assert ((x1 + x2) / 2, (y1 + y2) / 2) == (100, 50 + 15 * 2) and x2 - x1 == y2 - y1 == 200 * 2 * 1.25


NAN = float("nan")
@pytest.mark.parametrize("wrong, place, says", [
    (entry(joints=[[1, 1]] * 15), ".joints", "15 joints"), (entry(joints=[[1, 1]] * 17), ".joints", "17 joints"), (entry(joints=[[1, 1]] * 3 + [[NAN, 1]] + [[1, 1]] * 12), r".joints\[3\]", "NaN"), (entry(joints=[["620", 1]] * 16), r".joints\[0\]", "'620'"), (entry(joints=[[1]] * 16), r".joints\[0\]", "1 values"),
    (entry(joints="none"), ".joints", "'none'"), (entry(joints=[None] * 16), r".joints\[0\]", "None"), (entry(joints_vis=[1] * 15), ".joints_vis", "15 values"), (entry(joints_vis=[2] * 16), r".joints_vis\[0\]", "0 or 1"), (entry(joints_vis=["1"] * 16), ".joints_vis", "'1'"), (entry(scale="3.02"), ".scale", "'3.02'"),
    (entry(scale=0), ".scale", "more than 0"), (entry(scale=None), ".scale", "NaN"), (entry(center=[1]), ".center", "1 values"), (entry(center=[float("inf"), 1]), ".center", "NaN"), (entry(center=[10**400, 1]), ".center", "finite"), (entry(image=7), ".image", "no plain name"), (entry(image="../a.jpg"), ".image", "no plain name"), (dict(image="a.jpg"), "", "no 'center'"), ([1], "", "a person is expected"), (None, "", "a person")])
def test_a_wrong_entry_costs_one_sample(tmp_path, wrong, place, says):
    path = conversion(tmp_path, [entry(), wrong, entry()])
    data = open_conversion(tmp_path)
    assert len(data) == 3 and validate(data[0]) and validate(data[2])
    with pytest.raises(MPIIError, match=f":1{place}.*{says}") as e: data[1]
    assert str(e.value).startswith(f"{path}:1") and data.where(1).startswith(f"{path}:1")


@pytest.mark.parametrize("text", ["", "[]", "{}", "[", "<!DOCTYPE html>", "[" * 10**6, '[{"image": "a", "image": "b"}]', "[1e999]", "\x00", "null", '"text"'])
def test_json_that_is_none(tmp_path, text):
    path = conversion(tmp_path, [], text=text)
    with pytest.raises(MPIIError, match="train.json"): open_conversion(tmp_path)
    path.write_bytes(b"\xff\xfe\x00[")
    with pytest.raises(MPIIError, match="train.json"): open_conversion(tmp_path)


def test_a_name_with_nan_in_it_stays(tmp_path):
    conversion(tmp_path, [entry(image="a NaN b.jpg")])
    assert open_conversion(tmp_path).pictures[0].name == "a NaN b.jpg"


@pytest.mark.parametrize("boxes, says", [(np.ones((2, 2, 3)), "x1 < x2"), (np.stack([np.array([[1., 1], [5, 5]])] * 2, -1), "2 head boxes for 1"), (np.ones((4, 1)), "shape"), (np.array([1, 1, np.nan, 5]).reshape(2, 2, 1), "no box")])
def test_head_boxes_that_do_not_fit(tmp_path, boxes, says):
    conversion(tmp_path, [entry()], boxes=boxes)
    with pytest.raises(MPIIError, match=says): open_conversion(tmp_path)


def test_head_boxes_of_many(tmp_path):
    boxes = np.array([[[11., 101, 201], [12, 102, 202]], [[15, 105, 205], [16, 106, 206]]])      # corner, axis, person
    conversion(tmp_path, [entry()] * 3, boxes=boxes)
    assert read_head_boxes(tmp_path / "annot" / "gt_train.mat").tolist() == [[10, 11, 14, 15], [100, 101, 104, 105], [200, 201, 204, 205]]


def test_requests_that_make_no_sense(tmp_path):
    for split in ("val", "valid"):
        with pytest.raises(MPIIError, match="did you mean 'valid'|is not there"): open_conversion(tmp_path, split)
    with pytest.raises(MPIIError, match="no image"): MPII([], tmp_path)
    conversion(tmp_path, [entry()])
    data = open_conversion(tmp_path)
    assert [s["index"] for s in data] == [0] and data[-1]["index"] == 0
    with pytest.raises(IndexError): data[1]


json_values = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5), lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["x", "image", "joints"]), v, max_size=3), max_leaves=6)


@settings(max_examples=80, deadline=None)
@given(key=st.sampled_from(["joints", "joints_vis", "image", "scale", "center"]), value=json_values, at=st.integers(0, 15))
def test_nothing_but_its_own_error_escapes(tmp_path_factory, key, value, at):
    folder = tmp_path_factory.getbasetemp()
    changed = entry()
    if key in ("joints", "joints_vis") and at: changed[key] = changed[key][:at] + [value] + changed[key][at + 1:]
    else: changed[key] = value
    try: found = read_conversion(conversion(folder, [changed]))
    except MPIIError: return
    assert isinstance(found[0], MPIIError) or np.isfinite(found[0].people[0].joints).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_flipped_bytes_of_the_official_file(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    path = release(folder, {"a.jpg": people(rect(quoted()))}, [1], packed=False)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))): raw[data.draw(st.integers(128, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try: found = read_release(path)
    except MPIIError: return
    for picture in found: assert isinstance(picture, MPIIError) or all(np.isfinite(p.joints).all() for p in picture.people)
