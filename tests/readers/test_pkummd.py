"""PKU-MMD on files written here: bodies, labels, splits, and broken files."""
import tracemalloc

import pytest
import torch
from drawing import drawn, kinect
from hypothesis import given, settings, strategies as st

from hclab.core.sample import SampleError, validate
from hclab.data.readers.pkummd import ACTIONS, PKUError, parse_name, read_bodies, read_labels, read_split, split_of, to_sample


def text(first, second): return "\n".join(" ".join(f"{v:.6f}" for v in row) for row in torch.cat([first.flatten(1), second.flatten(1)], 1).tolist()) + "\n"


def put(folder, data, name="0002-L.txt"):
    (folder / name).write_text(data)
    return folder / name


@pytest.fixture(scope="module")
def people(): return kinect(drawn("walk", 1, 50)), kinect(drawn("squat", 2, 50), (1, 3, 0))


def test_two_bodies_with_segments(tmp_path, people):
    first, second = people[0], people[1].clone(); second[30:] = 0
    first = first.clone(); first[7, 3] = 0
    sample = validate(to_sample(put(tmp_path, text(first, second)), put(tmp_path, "34,20,40,2\n1,2,10,1\n", "label.txt")))
    assert sample["segments"] == [(2, 10, 0), (20, 40, 33)] and sample["camera_id"] == 0 and sample["fps"] == 30 and sample["frame"] == "camera"
    assert torch.allclose(sample["sequence"], torch.stack([first, second]) * torch.tensor([-1., -1, 1]), atol=1e-6)
    assert (~sample["body_mask"][0]).nonzero().flatten().tolist() == [7] and sample["body_mask"][1].sum() == 30


def test_a_second_body_that_never_comes_is_left_out(tmp_path, people):
    sample = validate(to_sample(put(tmp_path, text(people[0], people[0] * 0)), put(tmp_path, "", "label.txt")))
    assert len(sample["sequence"]) == 1 and sample["segments"] == []


def test_nobody_and_one_frame(tmp_path, people):
    with pytest.raises(PKUError, match="no whole body in any of 50"): to_sample(put(tmp_path, text(people[0] * 0, people[0] * 0)), put(tmp_path, "", "l.txt"))
    assert read_bodies(put(tmp_path, text(people[0][:1], people[1][:1])))[0].shape == (2, 1, 25, 3)


@pytest.mark.parametrize("change, at, says", [
    (lambda s: "", 1, "no frame"), (lambda s: s[:-200], 50, "cut"), (lambda s: s.replace(" ", " 1 ", 1), 1, "got 151"), (lambda s: s.replace("\n", "\nNaN", 1), 2, "not a number"), (lambda s: "inf " + s.split(" ", 1)[1], 1, "not a number"),
    (lambda s: "left " + s.split(" ", 1)[1], 1, "'left'"), (lambda s: "3785.5 " + s.split(" ", 1)[1], 1, "millimetres"), (lambda s: "1 " * 40_000, 1, "65,000"), (lambda s: "<html>", 1, "got 1")])
def test_broken_skeleton_files(tmp_path, people, change, at, says):
    data = text(*people)
    if says == "not a number" and at == 2: data = data.replace("\n" + data.split("\n")[1].split()[0], "\n", 1)
    path = put(tmp_path, change(data))
    with pytest.raises(PKUError, match=says) as e: read_bodies(path)
    assert str(e.value).startswith(f"{path}:{at}: "), str(e.value)


@pytest.mark.parametrize("data, says", [("0,1,2,1", "label 0"), ("52,1,2,1", "label 52"), ("1,5,5,1", "begins at frame 5"), ("1,9,5,1", "begins"), ("1,2,3", "four whole"), ("1,2,3,4,5", "four whole"), ("1,2,3,0", "confidence"), ("1,2,3.5,1", "four whole"),
                                        ("a,2,3,1", "four whole"), ("1,-2,3,1", "four whole"), ("1,2,51,1", "video has 50"), ("1,2," + "9" * 40 + ",1", "four whole")])
def test_broken_labels(tmp_path, data, says):
    path = put(tmp_path, "3,0,4,1\n" + data, "label.txt")
    with pytest.raises(PKUError, match=says) as e: read_labels(path, 50)
    assert str(e.value).startswith(f"{path}:2: ")


def test_labels_beyond_the_end_can_be_cut(tmp_path):
    path = put(tmp_path, "3, 40, 60, 2\r\n", "label.txt")
    assert read_labels(path, 50, cut=True) == [(2, 40, 50, 2)] and read_labels(path) == [(2, 40, 60, 2)]
    with pytest.raises(PKUError, match="lasts to frame 60"): read_labels(path, 40, cut=True)


def test_names_and_splits(tmp_path):
    assert parse_name("x/0291-R.skeleton") == (291, "R") and [split_of(f"0002-{v}") for v in "LMR"] == ["test", "train", "train"]
    for wrong in ("0291.txt", "291-R.txt", "0291-X.txt", "0291-RGB.avi"):
        with pytest.raises(PKUError): parse_name(wrong)
    good = "Training videos: \n0002-L, 0002-M\n\nValidataion videos: \n0291-L, 0291-M"
    assert read_split(put(tmp_path, good, "s.txt")) == dict(train=("0002-L", "0002-M"), test=("0291-L", "0291-M")) == read_split(put(tmp_path, good.replace("Validataion", "Validation").replace("\n", "\r\n"), "s.txt"))
    for wrong, says in (("", "no train"), (good.split("V")[0], "no test"), (good.replace("0291-L", "0002-L"), "for training and for testing")):
        with pytest.raises(PKUError, match=says): read_split(put(tmp_path, wrong, "s.txt"))
    assert len(set(ACTIONS)) == 51 and ACTIONS[13] == "handshaking"


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.lists(st.sampled_from(["0", "1.5", "nan", "-inf", "1e40", "x", "\n", "\x00"]), max_size=3))
def test_nothing_but_its_own_error_escapes(tmp_path_factory, label, words):
    folder = tmp_path_factory.getbasetemp()
    path = put(folder, " ".join(["1"] * (150 - len(words)) + words))
    (folder / "label.txt").write_text(label, encoding="utf-8")
    try: validate(to_sample(path, folder / "label.txt"))
    except (PKUError, SampleError) as e: assert not isinstance(e, SampleError), str(e)
    try: read_split(folder / "label.txt")
    except PKUError: pass


def test_memory_is_at_most_twice_what_is_returned(tmp_path, people):
    path = put(tmp_path, text(people[0].repeat(40, 1, 1), people[1].repeat(40, 1, 1)))
    tracemalloc.start()
    bodies, _ = read_bodies(path)
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak < 2 * bodies.numel() * 4
