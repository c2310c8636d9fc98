"""NTURGBD-Parsing-4K on files written here with Pillow: names, three pictures of one frame, splits by performer, sides against skeletons, and broken files."""
import numpy as np
import pytest
import torch
from PIL import Image

from hclab.core.sample import collate, validate
from hclab.data.images import ImageError
from hclab.data.loading import BadSample, Loader
from hclab.data.readers.ntu import Recording, Track
from hclab.data.readers.ntu_parsing import NTUParsing, NTUParsingError, parse_labelled, read_names, side_agreement
from hclab.data.readers.parts import MIRRORED_PARTS, PARTS

NAMES = ("S001C001P001R001A001F060", "S005C003P010R002A048F050", "S023C002P003R001A012F120")


def save(root, name, ids=None, size=(424, 512), depth=1500):
    for part in ("images", "depth", "png_annotation_v2"): (root / part).mkdir(parents=True, exist_ok=True)
    ids = np.zeros(size, np.uint8) if ids is None else ids
    Image.new("RGB", size[::-1], (51, 102, 204)).save(root / f"images/{name}.jpg", quality=95)
    counts = np.zeros(size, np.uint16); counts[3, 7] = depth
    Image.fromarray(counts).save(root / f"depth/MDepth-{name}.png")
    labels = Image.fromarray(ids, "L"); labels.putpalette([(i * 59 + 3) % 256 for i in range(768)])
    labels.save(root / f"png_annotation_v2/{name}.png")


@pytest.fixture
def root(tmp_path):
    ids = np.zeros((424, 512), np.uint8); ids[100:110, 200:210] = 46; ids[120:130, 200:210] = 58
    for name in NAMES: save(tmp_path, name, ids)
    (tmp_path / "train_list_v2.txt").write_text("".join(f"images/{n}.jpg\n" for n in NAMES[:2]))
    (tmp_path / "val_list_v2.txt").write_text(f"images/{NAMES[2]}.jpg\n")
    return tmp_path


def test_three_pictures_of_one_frame(root):
    data = NTUParsing(root, root / "train_list_v2.txt", root / "val_list_v2.txt")
    sample = validate(data[1])
    assert len(data) == 3 and sample["image"].shape == (3, 424, 512) and (sample["image"][:, 50, 50] - torch.tensor([.2, .4, .8])).abs().max() < .02
    assert float(sample["depth"][0, 3, 7]) == 1.5 and (sample["depth"] > 0).sum() == 1
    assert [PARTS[i] for i in sample["body_parts"].unique()] == ["background", "head", "right forearm"] and (sample["body_parts"][100:110, 200:210] == 20).all() and (sample["body_parts"] == 24).sum() == 100
    assert (sample["action"], sample["identity"], sample["camera_id"], sample["index"], sample["image_size"]) == (47, 9, 2, 1, (424, 512))
    assert data.records[1][1].frame == 49, "F counts from 1, skeletons from 0"
    assert data[-1]["index"] == 2
    with pytest.raises(IndexError): data[3]
    batch = collate([data[i] for i in range(3)])
    assert batch["body_parts"].shape == (3, 424, 512) and batch["depth"].shape == (3, 1, 424, 512)


def test_a_modality_that_is_not_asked_for_may_be_missing(root):
    for n in NAMES: (root / f"images/{n}.jpg").unlink()
    sample = validate(NTUParsing(root, root / "train_list_v2.txt", modalities=("depth",))[0])
    assert "image" not in sample and "depth" in sample
    with pytest.raises(FileNotFoundError, match="holds images"): NTUParsing(root, root / "train_list_v2.txt")
    for wrong in ((), ("labels",), ("image", "rgb")):
        with pytest.raises(NTUParsingError, match="one or both"): NTUParsing(root, root / "train_list_v2.txt", modalities=wrong)


def test_names():
    assert parse_labelled("images/S001C001P001R001A001F060.jpg") == parse_labelled("S001C001P001R001A001F060") == ("S001C001P001R001A001F060", (1, 1, 1, 1, 1), 59)
    for wrong in ("", "F060", "S001C001P001R001A001", "S001C001P001R001A001F0", "S001C001P001R001A001F000", "S001C004P001R001A001F060", "S001C001P001R001A001F060.bmp", "S001C001P001R001A001F060x"):
        with pytest.raises(NTUParsingError): parse_labelled(wrong)


def test_splits_by_performer_and_by_setup(root):
    lists = root / "train_list_v2.txt", root / "val_list_v2.txt"
    names = lambda **kw: [f.name for _, f in read_names(*lists, **kw)]
    assert names() == list(NAMES)
    assert names(protocol="xsub120") == [NAMES[0]] and names(protocol="xsub120", split="test") == list(NAMES[1:])      # performer 1 trains, 3 and 10 test
    assert names(protocol="xset120", split="test") == list(NAMES)      # odd setups test
    with pytest.raises(NTUParsingError, match="none of 3 frames"): names(protocol="xset120")
    with pytest.raises(ValueError, match="belong to NTU RGB.D 120"): names(protocol="xsub60")


@pytest.mark.parametrize("text, line, says", [("", 1, "empty"), ("images/a.jpg", 1, "does not end with"), (f"images/{NAMES[0]}.jpg\n\nimages/{NAMES[0]}.jpg", 3, "comes twice, also in .*:1"), (f"../images/{NAMES[0]}.jpg", 1, "leaves"), ("<html>", 1, "HTML")])
def test_broken_lists_name_file_and_line(root, text, line, says):
    (root / "bad.txt").write_text(text)
    with pytest.raises(NTUParsingError, match=says) as e: NTUParsing(root, root / "bad.txt")
    assert str(e.value).startswith(f"{root / 'bad.txt'}:{line}:")


def test_broken_pictures(root):
    data = NTUParsing(root, root / "train_list_v2.txt")
    save(root, NAMES[1], np.full((424, 512), 4, np.uint8))
    with pytest.raises(NTUParsingError, match=rf"png_annotation_v2/{NAMES[1]}.png: id 4 .*none of the 25"): data[1]
    save(root, NAMES[1]); Image.new("RGB", (1920, 1080)).save(root / f"images/{NAMES[1]}.jpg")
    with pytest.raises(NTUParsingError, match=rf"train_list_v2.txt:2: {NAMES[1]}: .*image has \(1080, 1920\)"): data[1]
    save(root, NAMES[1]); Image.new("L", (512, 424)).save(root / f"depth/MDepth-{NAMES[1]}.png")
    with pytest.raises(ImageError, match=f"MDepth-{NAMES[1]}.png"): data[1]
    save(root, NAMES[1]); (root / f"png_annotation_v2/{NAMES[1]}.png").unlink()
    with pytest.raises(BadSample, match=f"train_list_v2.txt:2: {NAMES[1]}"): list(Loader(data, batch=2, shuffle=False))


def recording(places):
    "One body of 3 frames whose joints lie at `places`: name -> (x, y) in the depth picture; the others nowhere near."
    from hclab.core.skeleton import skeleton
    pixels = torch.full((3, 25, 2), -50.)
    for name, xy in places.items(): pixels[:, skeleton("NTU25").names.index(name)] = torch.tensor(xy, dtype=torch.float32)
    return Recording(None, 3, (Track("1", torch.arange(3), torch.zeros(3, 25, 3), torch.full((3, 25), 2, dtype=torch.int8), pixels, pixels),))


def test_whose_left():
    parts = torch.zeros(60, 80, dtype=torch.int64)
    parts[10:20, 10:20], parts[10:20, 60:70], parts[40:50, 10:20] = PARTS.index("left hand"), PARTS.index("right hand"), PARTS.index("left foot")
    place = dict(left_hand=(15, 15), right_hand=(64, 12), left_ankle=(12, 45), right_elbow=(30, 30))
    assert side_agreement(parts, recording(place), 1) == (3, 0)                                             # nothing is labelled near the elbow
    assert side_agreement(torch.tensor(MIRRORED_PARTS)[parts], recording(place), 1) == (0, 3)
    assert side_agreement(parts, recording(place | dict(left_hand=(64, 15))), 1) == (2, 1)
    assert side_agreement(parts, recording(dict(left_hand=(24, 15))), 1, reach=6) == (1, 0) and side_agreement(parts, recording(dict(left_hand=(24, 15))), 1, reach=3) == (0, 0)
    assert side_agreement(parts, recording(place), 7) == (0, 0)
