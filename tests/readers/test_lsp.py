"LSP and LSP-extended: two files of one name, written here in their exact shapes, and what happens when one is taken for the other."
import warnings

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given, settings, strategies as st

from hclab.core.metrics import torso_size
from hclab.core.sample import collate, validate
from hclab.core.skeleton import skeleton
from hclab.data.images import ImageError, encode_image
from hclab.data.loading import BadSample, Loader
from hclab.data.readers.lsp import LSP, LSPError, read_joints, to_joints2d

README = "right ankle, right knee, right hip, left hip, left knee, left ankle, right wrist, right elbow, right shoulder, left shoulder, left elbow, left wrist, neck, head top"
PHOTO = encode_image(torch.full((3, 60, 80), .5), "JPEG")


def place(image, joint): return image % 71 + joint + .25, 3 * joint + image % 13 + .5      # different for each, with fractions as in the files


def lsp(n=2000):
    joints = np.zeros((3, 14, n))
    for j in range(14): joints[0, j], joints[1, j] = np.array([place(i, j) for i in range(n)]).T
    joints[2] = (np.arange(14)[:, None] + np.arange(n)) % 5 == 0         # 1 = occluded
    return joints


def extended(n=10000):
    joints = np.zeros((14, 3, n))
    for j in range(14): joints[j, :2] = np.array([place(i, j) for i in range(n)]).T
    joints[:, 2] = (np.arange(14)[:, None] + np.arange(n)) % 5 != 0      # 1 = labelled
    joints[:, :2] = np.where(joints[:, 2:] == 1, joints[:, :2], -7)
    return joints


def write(folder, joints, digits, images=(), **kw):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(folder / "joints.mat", dict(joints=joints), **kw)
    for i in images: (folder / "images" / f"im{i:0{digits}}.jpg").write_bytes(PHOTO)
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leeds")
    return write(folder / "lsp", lsp(), 4, (1, 2, 1000, 1001, 2000)), write(folder / "lspet", extended(), 5, (1, 2, 10000), do_compression=True)


def test_order_of_the_joints_is_the_readmes():
    assert [n.replace("_", " ") for n in skeleton("LSP14").names] == README.split(", ")


def test_every_number_of_lsp(both):
    train, test, all_of_it = LSP(both[0]), LSP(both[0], "test"), LSP(both[0], "all")
    assert (len(train), len(test), len(all_of_it)) == (1000, 1000, 2000)
    for data, index, image in ((train, 0, 0), (train, 1, 1), (train, 999, 999), (test, 0, 1000), (test, -1, 1999), (all_of_it, 1000, 1000)):
        sample = validate(data[index])
        assert sample["joints2d"][0].tolist() == [list(place(image, j)) for j in range(14)] and sample["image_size"] == (60, 80) and sample["skeleton"] == "LSP14"
        assert sample["visibility"][0].tolist() == [1 if (j + image) % 5 == 0 else 2 for j in range(14)], "1 means occluded, and all are labelled"
        assert data.image_path(index).name == f"im{image + 1:04}.jpg" and sample["index"] == index % len(data)
    assert train[0]["source"] == "LSP train" and test[0]["source"] == "LSP test"


def test_every_number_of_the_extended_set(both):
    data = LSP(both[1], dataset="lsp_extended")
    assert len(data) == 10000 and data[0]["source"] == "LSP-extended train"
    for image in (0, 1, 9999):
        sample = validate(data[image])
        labelled = [(j + image) % 5 != 0 for j in range(14)]
        assert sample["visibility"][0].tolist() == [2 * m for m in labelled], "1 means labelled, 0 that nothing is known"
        assert sample["joints2d"][0].tolist() == [list(place(image, j)) if m else [0, 0] for j, m in enumerate(labelled)]
        assert data.image_path(image).name == f"im{image + 1:05}.jpg"
    batch = collate([data[0], LSP(both[0])[0]])
    assert batch["joints2d"].shape == (2, 1, 14, 2) and torso_size(batch["joints2d"][:, 0]).shape == (2,)


def test_one_is_not_taken_for_the_other(both):
    with pytest.raises(LSPError, match=r"shape \(14, 3, 10000\); lsp has .* the file of lsp_extended"): LSP(both[1])
    with pytest.raises(LSPError, match=r"shape \(3, 14, 2000\); lsp_extended has .* the file of lsp,"): LSP(both[0], dataset="lsp_extended")
    rows = np.column_stack([np.ones((14, 2)), np.arange(14) % 2])
    assert to_joints2d(rows, "lsp", "")[1].tolist() == [[2, 1] * 7] and to_joints2d(rows, "lsp_extended", "")[1].tolist() == [[0, 2] * 7]


@pytest.mark.parametrize("kind", ["f4", "u1", "i2"])
def test_other_kinds_of_numbers(tmp_path, kind):
    joints = lsp(3).astype(kind)
    found = read_joints(write(tmp_path, joints, 4) / "joints.mat")
    assert found.shape == (3, 14, 3) and np.array_equal(found, joints.transpose(2, 1, 0))


@pytest.mark.parametrize("joints, says", [(np.zeros((3, 13, 2000)), "13"), (np.zeros((2, 14, 2000)), r"\(2, 14, 2000\)"), (np.zeros((3, 14)), r"\(3, 14\)"), (np.zeros((3, 14, 0)), "shape|no variable"), ("text", "str"), (7.0, "float"), (lsp(50), "split='all'"), (lsp(1), "split='all'")])
def test_wrong_files(tmp_path, joints, says):
    with pytest.raises(LSPError, match=says) as e: LSP(write(tmp_path, joints, 4))
    assert str(e.value).startswith(str(tmp_path / "joints.mat"))


def test_wrong_requests(tmp_path, both):
    assert len(LSP(write(tmp_path, lsp(50), 4), "all")) == 50
    for call in (lambda: LSP(both[0], "val"), lambda: LSP(both[1], "test", "lsp_extended"), lambda: LSP(both[0], dataset="lspet")):
        with pytest.raises(LSPError): call()
    with pytest.raises(FileNotFoundError): LSP(tmp_path / "nowhere")
    with pytest.raises(IndexError): LSP(both[0])[1000]
    scipy.io.savemat(tmp_path / "joints.mat", dict(points=lsp(2)))
    with pytest.raises(LSPError, match="no variable 'joints'"): LSP(tmp_path)


@pytest.mark.parametrize("axis, value, dataset, says", [(0, np.nan, "lsp", "labelled at"), (1, np.inf, "lsp", "labelled at"), (1, 1e200, "lsp", "labelled at"), (2, 2, "lsp", "third number of 2"), (2, np.nan, "lsp", "third number of nan"), (2, -1, "lsp_extended", "third number of -1"), (0, np.nan, "lsp_extended", "labelled at")])
def test_a_wrong_joint_costs_one_sample(tmp_path, axis, value, dataset, says):
    joints = lsp() if dataset == "lsp" else extended(3)
    if dataset == "lsp": joints[axis, 2, 1] = value
    else: joints[2, axis, 1] = value
    data = LSP(write(tmp_path, joints, 4 if dataset == "lsp" else 5, (1, 2, 3)), dataset=dataset)
    image = "im0002" if dataset == "lsp" else "im00002"
    with pytest.raises(LSPError, match=f"joints.mat:{image}: joint 2 .*{says}"): data[1]
    validate(data[0]); validate(data[2])
    with pytest.raises(BadSample, match=image): list(Loader(data, 3, shuffle=False))


def test_an_unlabelled_joint_may_hold_anything(tmp_path):
    joints = extended(2)
    joints[0, 0, 0] = np.nan
    assert joints[0, 2, 0] == 0 and (validate(LSP(write(tmp_path, joints, 5, (1, 2)), dataset="lsp_extended")[0])["joints2d"][0, 0] == 0).all()


def test_images_that_are_missing_or_damaged(tmp_path):
    data = LSP(write(tmp_path, lsp(4), 4, (1, 2, 3)), "all")
    (tmp_path / "images" / "im0001.jpg").write_bytes(PHOTO[:len(PHOTO) // 2]); (tmp_path / "images" / "im0002.jpg").write_bytes(b"<html>")
    for index, error in ((0, ImageError), (1, ImageError), (3, FileNotFoundError)):
        with pytest.raises(error, match=f"im000{index + 1}.jpg"): data[index]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batch, = Loader(data, 4, shuffle=False, on_bad="skip", max_skip_rate=.9)
    assert batch["index"].tolist() == [2] and len(caught) == 3 and all(f"im000{i}.jpg" in str(w.message) for i, w in zip((1, 2, 4), caught))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nothing_but_its_own_error_escapes(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    path = write(folder, lsp(2), 4, do_compression=data.draw(st.booleans())) / "joints.mat"
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))): raw[data.draw(st.integers(100, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        for rows in read_joints(path): to_joints2d(rows, "lsp", "")
    except LSPError: pass
