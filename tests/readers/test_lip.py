"LIP: lists, label maps and the CSV of poses, written here in their formats; left stays left in a mirror; broken lines and pictures cost one sample."
import io, warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from hclab.core.sample import collate, validate
from hclab.core.skeleton import skeleton
from hclab.data.images import ImageError, encode_image, encode_labels
from hclab.data.loading import BadSample, Loader
from hclab.data.readers.lip import GARMENTS, LIP, LIPError, PAIRS, mirrored_ids, read_ids, read_poses, to_joints2d

ORDER = "R_Ankle R_Knee R_Hip L_Hip L_Knee L_Ankle B_Pelvis B_Spine B_Neck B_Head R_Wrist R_Elbow R_Shoulder L_Shoulder L_Elbow L_Wrist".split()    # README
NAMES = "Background Hat Hair Glove Sunglasses UpperClothes Dress Coat Socks Pants Jumpsuits Scarf Skirt Face Left-arm Right-arm Left-leg Right-leg Left-shoe Right-shoe".split()
IDS = ["77_471474", "100034_483681", "36_453991"]
LABELS = (torch.arange(60 * 40).reshape(60, 40) * 7) % 20


def row(name, change=None):
    values = [str(v) for j in range(16) for v in (10 + j, 20 + 2 * j, j % 2)]
    for k, v in (change or {}).items(): values[k] = v
    return ",".join([name + ".jpg", *values])


def palette(labels):
    "The label map as a PNG with colours, as segmentation tools write it."
    image, out = Image.fromarray(labels.numpy().astype(np.uint8)), io.BytesIO()
    image.putpalette(list(np.random.default_rng(0).integers(0, 255, 768)))
    image.save(out, "PNG")
    return out.getvalue()


LAYOUTS = {
    "unpacked": ("TrainVal_images", "TrainVal_images", "TrainVal_parsing_annotations", "TrainVal_pose_annotations"),
    "nested": ("TrainVal_images/TrainVal_images", "TrainVal_images/TrainVal_images", "TrainVal_parsing_annotations/TrainVal_parsing_annotations", "TrainVal_pose_annotations"),
    "lists outside": ("TrainVal_images", "TrainVal_images/TrainVal_images", "TrainVal_parsing_annotations/TrainVal_parsing_annotations", "TrainVal_pose_annotations"),
    "flat": (".", ".", ".", "pose_annotations"), "all flat": (".", ".", ".", "."),
}


def write(root, split="train", layout="unpacked", rows=None, parsing=True, pose=True, labels=LABELS, encode=encode_labels):
    lists, images, segmentations, poses = (root / p for p in LAYOUTS[layout])
    for folder in (lists, images / f"{split}_images", segmentations / f"{split}_segmentations" if parsing else lists, poses if pose else lists): folder.mkdir(parents=True, exist_ok=True)
    (lists / f"{split}_id.txt").write_text("\n".join(IDS) + "\n")
    for name in IDS:
        (images / f"{split}_images" / f"{name}.jpg").write_bytes(encode_image(torch.full((3, *LABELS.shape), .5), "JPEG"))
        if parsing: (segmentations / f"{split}_segmentations" / f"{name}.png").write_bytes(encode(labels))
    if pose: (poses / f"lip_{split}_set.csv").write_text("\n".join(rows or [row(n) for n in IDS]) + "\n")
    return root


def test_names_and_order_are_the_readmes():
    plain = [n.replace("R_", "right_").replace("L_", "left_").replace("B_", "").lower() for n in ORDER]
    same = dict(spine="thorax", neck="upper_neck", head="head_top")      # LIP's words for MPII's joints
    assert [same.get(n, n) for n in plain] == list(skeleton("MPII16").names)
    words = [n.lower().replace("-", " ") for n in NAMES]
    assert [dict(upperclothes="upper clothes", pants="trousers", jumpsuits="jumpsuit").get(w, w) for w in words] == list(GARMENTS)


def test_the_table_of_the_mirror():
    table = mirrored_ids().tolist()
    assert table == [*range(14), 15, 14, 17, 16, 19, 18] and PAIRS == ((14, 15), (16, 17), (18, 19))
    assert torch.equal(mirrored_ids()[mirrored_ids()[LABELS.flip(-1)].flip(-1)], LABELS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_samples_in_every_layout_of_folders(tmp_path, layout, split):
    data = LIP(write(tmp_path, split, layout), split)
    assert len(data) == 3 and data.ids == IDS
    for i in range(3):
        sample = validate(data[i])
        assert torch.equal(sample["garments"], LABELS) and sample["image_size"] == (60, 40) and sample["skeleton"] == "MPII16" and sample["index"] == i and sample["source"] == f"LIP {split}"
        assert sample["joints2d"][0].tolist() == [[10 + j, 20 + 2 * j] for j in range(16)], "x, then y"
        assert sample["visibility"][0].tolist() == [2 - j % 2 for j in range(16)], "v = 1 means occluded"
        assert IDS[i] in data.where(i) and data.where(i).endswith(f".csv:{i + 1}")


def test_a_palette_is_not_taken_for_colours(tmp_path):
    assert torch.equal(LIP(write(tmp_path, encode=palette))[1]["garments"], LABELS)


def test_what_is_missing_is_missing(tmp_path):
    (tmp_path / "a").mkdir(); (tmp_path / "b").mkdir(); (tmp_path / "c").mkdir()
    only_parsing, only_poses = validate(LIP(write(tmp_path / "a", pose=False))[0]), validate(LIP(write(tmp_path / "b", parsing=False))[0])
    assert "joints2d" not in only_parsing and "garments" in only_parsing and "garments" not in only_poses and "joints2d" in only_poses
    batch = collate([only_parsing, only_poses])
    assert batch["has_garments"].tolist() == [True, False] and batch["has_joints2d"].tolist() == [False, True]
    with pytest.raises(LIPError, match="TrainVal_parsing_annotations.zip"): LIP(write(tmp_path / "c", pose=False, parsing=False))
    data = LIP(write(tmp_path / "c", rows=[row(IDS[2])]))
    assert "joints2d" not in data[0] and "joints2d" in data[2] and ".csv" not in data.where(0) and data.where(2).endswith(".csv:1")


def test_the_test_part(tmp_path):
    (tmp_path / "Testing_images" / "testing_images").mkdir(parents=True)
    (tmp_path / "Testing_images" / "test_id.txt").write_text(IDS[0] + "\n")
    (tmp_path / "Testing_images" / "testing_images" / f"{IDS[0]}.jpg").write_bytes(encode_image(torch.zeros(3, 20, 30), "JPEG"))
    sample = validate(LIP(tmp_path, "test")[0])
    assert set(sample) == {"image", "image_size", "source", "index"}


def test_joints_without_labels_and_outside_of_the_picture(tmp_path):
    joints, visibility = to_joints2d(row("a", {0: "nan", 1: "nan", 2: "nan", 3: "-12", 4: "900", 6: "NaN", 7: " nan", 8: "nan"}).split(",", 1)[1], "here")
    assert visibility[0, :4].tolist() == [0, 1, 0, 1] and joints[0, 0].tolist() == [0, 0] and joints[0, 1].tolist() == [-12, 900]
    assert validate(LIP(write(tmp_path, rows=[row(n, {3: "-12", 4: "900"}) for n in IDS]))[0])


WRONG = {"47 values": (row(IDS[1]).rsplit(",", 1)[0], "47 values"), "49 values": (row(IDS[1]) + ",0", "49 values"), "nothing": (IDS[1] + ".jpg", "1 values"), "a word": (row(IDS[1], {4: "left"}), "value 5 .right_knee.: 'left'"), "empty": (row(IDS[1], {4: ""}), "'' is no number"), "inf": (row(IDS[1], {4: "inf"}), "'inf'"),
         "1e999": (row(IDS[1], {4: "1e999"}), "'1e999'"), "half a joint": (row(IDS[1], {4: "nan"}), "joint 1 .right_knee. is 11,nan,1"), "v = 2": (row(IDS[1], {5: "2"}), "v is 2"), "v = -1": (row(IDS[1], {5: "-1"}), "v is -1"), "far": (row(IDS[1], {3: "1e7"}), "1e.07 px"), "decimal commas": (row(IDS[1], {3: "1,5"}), "49 values")}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_line_costs_one_sample(tmp_path, name):
    line, says = WRONG[name]
    data = LIP(write(tmp_path, rows=[row(IDS[0]), line, row(IDS[2])]))
    validate(data[0]); validate(data[2])
    with pytest.raises(LIPError, match=says) as e: data[1]
    assert str(e.value).startswith(str(tmp_path / "TrainVal_pose_annotations" / "lip_train_set.csv") + ":2")
    with pytest.raises(BadSample, match=r"100034_483681\.jpg, .*csv:2"): list(Loader(data, 3, shuffle=False))
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        batch, = Loader(data, 3, shuffle=False, on_bad="skip", max_skip_rate=.5)
    assert batch["index"].tolist() == [0, 2]


@pytest.mark.parametrize("rows, says", [([row(IDS[0]), row(IDS[1]), row(IDS[0])], ":3: .* twice, first in line 1"), (["<!DOCTYPE html>"], ":1: "), ([row("../../x")], "no name of an image"), (["x" * 5000], ":1: a line of more"), (["", "  "], "empty"), ([row("1_2")], "belongs to another split")])
def test_a_wrong_csv_is_an_error_at_once(tmp_path, rows, says):
    with pytest.raises(LIPError, match=says) as e: LIP(write(tmp_path, rows=rows))
    assert "lip_train_set.csv:" in str(e.value)


@pytest.mark.parametrize("text, says", [("", "empty"), ("1_2\n3_4\n\n1_2\n", ":4: 1_2 comes twice, first in line 1"), ("/etc/passwd", "no name"), ("a/b", "no name"), ("..", "no name"), ("\0" * 10, "no name"), ("1_2\n" + "9" * 5000, ":2: a line")])
def test_wrong_lists(tmp_path, text, says):
    (tmp_path / "train_id.txt").write_text(text)
    with pytest.raises(LIPError, match=says): read_ids(tmp_path / "train_id.txt")


def test_lists_of_other_machines(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf1_2\r\n3_4.jpg\r\n")
    assert read_ids(tmp_path / "a.txt") == ["1_2", "3_4"]


@pytest.mark.parametrize("content, error, says", [(lambda: encode_labels(LABELS.clone().fill_(20)), LIPError, "id 20; LIP has 0 to 19"), (lambda: encode_labels(LABELS[1:]), LIPError, "59 x 40 labels for an image of 60 x 40"), (lambda: encode_labels(LABELS.T.contiguous()), LIPError, "40 x 60 labels"),
                                                  (lambda: encode_image(torch.rand(3, 60, 40)), ImageError, "picture of labels"), (lambda: b"", ImageError, "empty"), (lambda: encode_labels(LABELS)[:80], ImageError, "damaged|cut"), (lambda: encode_image(torch.rand(3, 60, 40), "JPEG"), ImageError, "JPEG")])
def test_wrong_labels_cost_one_sample(tmp_path, content, error, says):
    data = LIP(write(tmp_path))
    (data.parsing / f"{IDS[1]}.png").write_bytes(content())
    with pytest.raises(error, match=says) as e: data[1]
    assert f"{IDS[1]}.png" in str(e.value)
    validate(data[0])


def test_missing_pictures_and_folders(tmp_path):
    data = LIP(write(tmp_path))
    (data.images / f"{IDS[0]}.jpg").unlink(); (data.parsing / f"{IDS[1]}.png").unlink()
    for i, name in enumerate((f"{IDS[0]}.jpg", f"{IDS[1]}.png")):
        with pytest.raises(FileNotFoundError, match=name): data[i]
    with pytest.raises(LIPError, match="no val_id.txt"): LIP(tmp_path, "val")
    with pytest.raises(LIPError, match="did you mean 'val'"): LIP(tmp_path, "vali")
    with pytest.raises(IndexError): data[3]


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=300), at=st.integers(0, 47), word=st.text(max_size=8))
def test_nothing_but_its_own_error_escapes(tmp_path_factory, text, at, word):
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    for content in (text, row("1_2", {at: word})):
        path.write_text(content, encoding="utf-8", errors="ignore")
        for read in (read_ids, read_poses):
            try: found = read(path)
            except LIPError: continue
            for _, values in found.values() if isinstance(found, dict) else ():
                try: assert torch.isfinite(to_joints2d(values, "here")[0]).all()
                except LIPError: pass
