"""Human3.6M parsing on files written here with Pillow and h5py: the 25 ids by hand, lists, labels from MATLAB 7.3, and what is broken or hostile."""
import io, re, tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from hclab.core.sample import validate
from hclab.data.images import ImageError
from hclab.data.loading import BadSample, FolderWatch, Loader, LoadingError
from hclab.data.readers.h36m_parsing import H36MParsing, H36MParsingError, list_frames, parse_frame, read_part_labels, save_part_labels
from hclab.data.readers.parts import MIRRORED_PARTS, PARTS, draw_puppet, mirror_parts, puppet_motion

# (dense, stored, name), from the table in the comment of HCMoCo's loaders, typed here once more
TABLE = [(0, 0, "background"), (1, 1, "right hip"), (2, 2, "right knee"), (3, 3, "right foot"), (4, 6, "left hip"), (5, 7, "left knee"), (6, 8, "left foot"), (7, 17, "left shoulder"), (8, 18, "left elbow"), (9, 19, "left hand"),
         (10, 25, "right shoulder"), (11, 26, "right elbow"), (12, 27, "right hand"), (13, 32, "crotch"), (14, 33, "right thigh"), (15, 34, "right calf"), (16, 38, "left thigh"), (17, 39, "left calf"),
         (18, 43, "lower spine"), (19, 44, "upper spine"), (20, 46, "head"), (21, 49, "left arm"), (22, 50, "left forearm"), (23, 56, "right arm"), (24, 58, "right forearm")]
STORED = np.array([s for _, s, _ in TABLE], np.uint8).reshape(5, 5)
LINE = "protocol_1/rgb/S9/Directions 1.54138969/{:08}.png"


def save_labels(path, ids, mode="P"):
    "Stored ids as the preparation script does: a palette of colours that have nothing to do with the ids."
    image = Image.fromarray(np.asarray(ids, np.uint8), "L")
    if mode == "P": image.putpalette([(i * 91 + 7) % 256 for i in range(768)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def save_frame(root, line, ids=STORED, colour=(200, 100, 50)):
    path = root / line
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", np.asarray(ids).shape[::-1], colour).save(path)
    save_labels(root / line.replace("/rgb/", "/seg/"), ids)


@pytest.fixture
def root(tmp_path):
    for n in (0, 25, 50): save_frame(tmp_path, LINE.format(n), colour=(n, 100, 50))
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + b"".join(LINE.format(n).encode() + b"\r\n" for n in (0, 25, 50)) + b"\r\n")
    return tmp_path


def test_the_table_of_parts(root):
    assert [n for *_, n in TABLE] == list(PARTS)
    data = H36MParsing(root, root / "list.txt")
    assert len(data) == 3
    for i in range(3):
        sample = validate(data[i])
        assert torch.equal(sample["body_parts"], torch.arange(25).view(5, 5)) and sample["image"][:, 0, 0].mul(255).round().tolist() == [25 * i, 100, 50]
        assert (sample["identity"], sample["camera_id"], sample["action"], sample["index"], sample["image_size"]) == (8, 0, 0, i, (5, 5))
    assert len(H36MParsing(root, root / "list.txt", stride=2)) == 2 and data[-1]["index"] == 2
    with pytest.raises(IndexError): data[3]


def test_grey_labels_read_the_same(root):
    save_labels(root / LINE.format(0).replace("/rgb/", "/seg/"), STORED, "L")
    data = H36MParsing(root, root / "list.txt")
    assert torch.equal(data[0]["body_parts"], data[1]["body_parts"])


def test_a_mirror_changes_sides():
    for left, right in ((4, 1), (5, 2), (6, 3), (7, 10), (8, 11), (9, 12), (16, 14), (17, 15), (21, 23), (22, 24)):
        assert MIRRORED_PARTS[left] == right and MIRRORED_PARTS[right] == left and PARTS[left][5:] == PARTS[right][6:]
    assert [i for i in range(25) if MIRRORED_PARTS[i] == i] == [0, 13, 18, 19, 20]
    puppet, K = puppet_motion("idle", 1, 3, at=(0, 3))[0], torch.tensor([[100., 0, 50], [0, 100, 50], [0, 0, 1]])
    seen = draw_puppet(puppet, K, (101, 101))["body_parts"]
    other = puppet * torch.tensor([-1., 1, 1])      # the same person in a mirror: sides exchanged by the joints' own names
    from hclab.core.skeleton import skeleton
    mirrored = draw_puppet(other[skeleton("NTU25").mirror_order], K, (101, 101))["body_parts"]
    assert (mirror_parts(seen) != mirrored).float().mean() < .002      # where two balls are equally near, either may win


def test_names_of_frames():
    assert parse_frame("protocol_1/rgb/S11/WalkingDog 1.60457274/00001250.png") == (11, "WalkDog", "60457274", 1250)
    for wrong in ("rgb/S11/Walking.60457274/1250.png", "rgb/S4/Walking.60457274/00001250.png", "rgb/S11/Walking/00001250.png", "rgb/S11/Walking.60457275/00001250.png", "rgb/S11/Flying.60457274/00001250.png", ""):
        with pytest.raises(H36MParsingError): parse_frame(wrong)


def test_lists_are_made_from_folders(root):
    save_frame(root, LINE.format(13)); save_frame(root, "protocol_1/rgb/S1/Sitting.55011271/00000100.png")
    assert list_frames(root, "test") == [LINE.format(n) for n in (0, 25, 50)] and LINE.format(13) in list_frames(root, "test", every=13)
    assert list_frames(root, "train") == ["protocol_1/rgb/S1/Sitting.55011271/00000100.png"]
    with pytest.raises(H36MParsingError, match="no frame of train"): list_frames(root / "protocol_1", "train")
    with pytest.raises(H36MParsingError, match="train or test"): list_frames(root, "val")


@pytest.mark.parametrize("text, line, says", [("", 1, "empty"), ("\n\n", 1, "empty"), ("<html>", 1, "HTML"), ("\n../rgb/S9/a.png", 2, "leaves"), ("/rgb/S9/Walking.54138969/00000000.png", 1, "absolute"), (LINE.format(0) + "\nimages/1.jpg", 2, "is not of the form"),
                                              ("a" * 2000, 1, "2,00"), ("rgb/S9/Walking.54138969/00000000.png\0", 1, "no path"), ('{"images": []}', 1, "JSON")])
def test_broken_lists_name_file_and_line(root, text, line, says):
    (root / "bad.txt").write_text(text)
    with pytest.raises(H36MParsingError, match=says) as e: H36MParsing(root, root / "bad.txt")
    assert str(e.value).startswith(f"{root / 'bad.txt'}:{line}:")


def test_a_wrong_root_is_said_at_once(root):
    with pytest.raises(FileNotFoundError, match="folder that holds protocol_1"): H36MParsing(root / "protocol_1", root / "list.txt")
    with pytest.raises(FileNotFoundError): H36MParsing(root, root / "nowhere.txt")


def jpeg(array):
    file = io.BytesIO(); Image.fromarray(array).save(file, "JPEG"); return file.getvalue()


BROKEN = dict(empty=(lambda good: b"", "empty"), cut=(lambda good: good[:60], "damaged|no picture"), page=(lambda good: b"<!DOCTYPE html>", "HTML"), jpeg=(lambda good: jpeg(STORED), "JPEG"), colour=(lambda good: None, "RGB"))


@pytest.mark.parametrize("name", BROKEN)
def test_broken_labels_name_their_file(root, name):
    change, says = BROKEN[name]
    path = root / LINE.format(25).replace("/rgb/", "/seg/")
    if (data := change(path.read_bytes())) is None: Image.new("RGB", (5, 5)).save(path)
    else: path.write_bytes(data)
    with pytest.raises(ImageError, match=says) as e: H36MParsing(root, root / "list.txt")[1]
    assert str(path) in str(e.value)


def test_unknown_ids_and_sizes(root):
    path = root / LINE.format(25).replace("/rgb/", "/seg/")
    data = H36MParsing(root, root / "list.txt")
    for ids, says in ((np.where(STORED == 46, 4, STORED), r"id 4 at row 4, column 0 \(1 such pixels\)"), (np.arange(25).reshape(5, 5), "dense ids"), (np.full((5, 5), 255), "25 such pixels"), (np.zeros((5, 6)), r"labels of \(5, 6\), but the frame has \(5, 5\)")):
        save_labels(path, ids)
        with pytest.raises(H36MParsingError, match=says) as e: data[1]
        assert str(path) in str(e.value)


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7), cut=st.booleans())
def test_nothing_but_its_own_errors_escapes(tmp_path_factory, at, bit, cut):
    root = tmp_path_factory.getbasetemp() / "flips"
    if not root.is_dir(): save_frame(root, LINE.format(0)); (root / "list.txt").write_text(LINE.format(0))
    path = root / LINE.format(0).replace("/rgb/", "/seg/")
    save_labels(path, STORED)
    good = bytearray(path.read_bytes()); at %= len(good)
    if cut: del good[at:]
    else: good[at] ^= 1 << bit
    path.write_bytes(bytes(good))
    try: sample = H36MParsing(root, root / "list.txt")[0]
    except (H36MParsingError, ImageError): return
    assert sample["body_parts"].max() <= 24 and sample["body_parts"].shape == (5, 5)


def test_the_loaders_policy(root):
    lines = [LINE.format(25 * n) for n in range(200)]
    for line in lines[3:]: save_frame(root, line)
    (root / "long.txt").write_text("\n".join(lines))
    (root / lines[7].replace("/rgb/", "/seg/")).write_bytes(b"<html>")
    data = H36MParsing(root, root / "long.txt")
    with pytest.raises(BadSample, match=re.escape(f"long.txt:8: {lines[7]}")): list(Loader(data, batch=50, shuffle=False))
    with pytest.warns(UserWarning, match="long.txt:8"): batches = list(Loader(data, batch=50, shuffle=False, on_bad="skip"))
    assert [len(b["index"]) for b in batches] == [49, 50, 50, 50]


def test_a_file_that_changes_under_the_run_is_named(root):
    loader = Loader(H36MParsing(root, root / "list.txt"), batch=3, check=FolderWatch(root))
    next(iter(loader))
    save_labels(root / LINE.format(50).replace("/rgb/", "/seg/"), np.zeros((5, 5)))
    with pytest.raises(LoadingError, match="seg/S9/Directions 1.54138969/00000050.png"): next(iter(loader))


# ------------------------------------------------------------------------------------------------ MATLAB 7.3
def write_mat(path, maps, change=None):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w", userblock_size=512) as f:
        cells = f.create_dataset("Feat", (len(maps), 1), dtype=h5py.ref_dtype)
        for i, m in enumerate(maps): cells[i, 0] = f.create_dataset(f"#refs#/{i}", data=np.ascontiguousarray(np.asarray(m).T)).ref
        if change: change(f, cells, h5py)
    return path


def test_labels_lie_on_their_side_in_the_file(tmp_path):
    first, second = np.array([[0, 1, 2], [46, 58, 6]], np.uint8), np.array([[0, 0, 0], [32, 33, 34]], np.uint8)
    path = write_mat(tmp_path / "Walking.54138969.mat", [first, second])
    assert torch.equal(read_part_labels(path, 1), torch.from_numpy(second).long())
    files = save_part_labels(path, tmp_path / "seg" / "S9" / "Walking.54138969", every=1)
    assert [f.name for f in files] == ["00000000.png", "00000001.png"] and np.array_equal(np.array(Image.open(files[0])), first)
    assert [f.name for f in save_part_labels(path, tmp_path / "other", every=2)] == ["00000000.png"]
    for frame in (2, -1):
        with pytest.raises(H36MParsingError, match=rf"\[Feat\]:{frame}: there are frames 0 to 1"): read_part_labels(path, frame)


HOSTILE = dict(numbers=(lambda f, c, h: (f.__delitem__("Feat"), f.create_dataset("Feat", data=np.zeros((2, 1)))), "type float64"), nothing=(lambda f, c, h: f.__delitem__("Feat"), "no array of that name"),
               row=(lambda f, c, h: (f.__delitem__("Feat"), f.create_dataset("Feat", (1, 2), dtype=h.ref_dtype)), "shape"), null=(lambda f, c, h: c.__setitem__((0, 0), h.Reference()), "refers to nothing"),
               group=(lambda f, c, h: c.__setitem__((0, 0), f["#refs#"].ref), "expected one label map"), floats=(lambda f, c, h: c.__setitem__((0, 0), f.create_dataset("x", data=np.zeros((4, 4))).ref), "expected one label map"),
               cube=(lambda f, c, h: c.__setitem__((0, 0), f.create_dataset("x", data=np.zeros((4, 4, 4), np.uint8)).ref), "expected one label map"),
               huge=(lambda f, c, h: c.__setitem__((0, 0), f.create_dataset("x", (100_000, 100_000), np.uint8, chunks=(1000, 1000)).ref), "expected one label map"),
               outside=(lambda f, c, h: c.__setitem__((0, 0), f.create_dataset("x", (4, 4), np.uint8, external=[("/etc/passwd", 0, 16)]).ref), "expected one label map"),
               link=(lambda f, c, h: (f.__delitem__("Feat"), f.__setitem__("Feat", h.ExternalLink("other.mat", "Feat"))), "no array of that name"))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_label_files(tmp_path, name):
    change, says = HOSTILE[name]
    path = write_mat(tmp_path / "a.mat", [np.zeros((2, 3), np.uint8)] * 2, change)
    with pytest.raises(H36MParsingError, match=says) as e: read_part_labels(path, 0)
    assert str(e.value).startswith(str(path))


def test_cut_label_files(tmp_path):
    path = write_mat(tmp_path / "a.mat", [STORED] * 3)
    good = path.read_bytes()
    for n in (0, 100, 600, len(good) // 2, len(good) - 200):
        path.write_bytes(good[:n])
        try: found = read_part_labels(path, 2)
        except H36MParsingError as e: assert "a.mat" in str(e)
        else: assert np.array_equal(found.numpy(), STORED)


def test_a_stray_id_is_not_saved(tmp_path):
    path = write_mat(tmp_path / "a.mat", [np.array([[0, 1]], np.uint8), np.array([[0, 5]], np.uint8)])
    with pytest.raises(H36MParsingError, match=r"\[Feat\]:1: id 5"): save_part_labels(path, tmp_path / "out", every=1)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["00000000.png"]


def test_one_frame_is_read_without_the_others(tmp_path):
    path = write_mat(tmp_path / "a.mat", [np.zeros((200, 200), np.uint8)] * 300)      # 12 MB
    tracemalloc.start()
    read_part_labels(path, 150)
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak < 3e6, f"{peak / 1e6:.1f} MB"
