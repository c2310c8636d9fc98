"""AMASS on files written here with a body made up here: rotations, joints by forward kinematics, the error without a body; broken files."""
import math, os, tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from hclab.core.geometry import axis_angle_to_matrix, quaternion_to_matrix
from hclab.data.motion import ClipError
from hclab.data.readers.amass import AMASSError, SMPL22, SMPL24, offsets_of, read_amass, to_clip

T = 12


def body(joints=22):
    "Rest joints of a made-up person, y up, pelvis off the origin."
    skeleton, out = {22: SMPL22, 24: SMPL24}[joints], torch.zeros(joints, 3)
    steps = dict(hip=(.08, -.09, 0), knee=(.02, -.4, 0), ankle=(0, -.4, -.03), foot=(.02, -.05, .12), spine1=(0, .11, -.02), spine2=(0, .13, 0), spine3=(0, .06, 0), neck=(0, .2, 0), head=(0, .08, .05), collar=(.08, .11, 0), shoulder=(.1, .03, 0), elbow=(.26, 0, 0), wrist=(.25, 0, 0), hand=(.08, 0, 0))
    for j, (name, p) in enumerate(zip(skeleton.names, skeleton.parents)):
        if p < 0: out[j] = torch.tensor([0, -.2, .03]); continue
        out[j] = out[p] + torch.tensor(steps[name.split("_")[-1]]) * torch.tensor([-1. if name.startswith("right") else 1, 1, 1])
    return out


def content(width=156, **change):
    rng = np.random.default_rng(0)
    poses = rng.uniform(-.6, .6, (T, width)); poses[:, :3] += [math.pi / 2, 0, 0]
    return dict(poses=poses, trans=rng.uniform(-1, 1, (T, 3)), betas=np.zeros(16), gender=np.array("male"), mocap_framerate=np.array(120.), dmpls=np.zeros((T, 8))) | change


def save(folder, values):
    np.savez(folder / "01_01_poses.npz", **{k: v for k, v in values.items() if v is not None})
    return folder / "01_01_poses.npz"


@pytest.mark.parametrize("width, joints", [(66, 22), (72, 24), (156, 22), (165, 22)])
def test_rotations_and_joints(tmp_path, width, joints):
    values = content(width)
    motion = read_amass(save(tmp_path, values))
    assert motion.rotations.shape == (T, joints, 4) and motion.fps == 120 and motion.gender == "male" and len(motion.betas) == 16
    R = axis_angle_to_matrix(torch.from_numpy(values["poses"][:, :3 * joints]).view(T, joints, 3))
    assert torch.allclose(quaternion_to_matrix(motion.rotations), R.float(), atol=1e-5)
    clip, rest = to_clip(motion, body(joints)), body(joints).double()
    # forward kinematics again, joint by joint
    world, place, parents = [None] * joints, torch.zeros(T, joints, 3, dtype=torch.float64), motion.skeleton.parents
    for j, p in enumerate(parents):
        world[j] = R[:, j] if p < 0 else world[p] @ R[:, j]
        place[:, j] = torch.from_numpy(values["trans"]) + rest[0] if p < 0 else place[:, p] + world[p] @ (rest[j] - rest[p])
    assert torch.allclose(clip.joints.double(), place, atol=1e-5) and clip.skeleton is motion.skeleton and torch.equal(clip.rotations, motion.rotations) and (clip.offsets[0] == 0).all()


def test_standing_straight_has_its_head_up(tmp_path):
    poses = np.zeros((T, 156)); poses[:, 0] = math.pi / 2
    clip = to_clip(read_amass(save(tmp_path, content(poses=poses))), body())
    assert (clip.joint("head")[:, 2] > clip.joint("pelvis")[:, 2] + .5).all() and (clip.joint("left_foot")[:, 2] < clip.joint("pelvis")[:, 2] - .8).all()
    assert (clip.joint("left_hip")[:, 0] > clip.joint("right_hip")[:, 0]).all() and (clip.joint("left_foot")[:, 1] < clip.joint("left_ankle")[:, 1]).all(), "faces -y with its left at +x"


def test_without_a_body_the_error_explains(tmp_path):
    with pytest.raises(AMASSError, match="needs `body`.*licen|needs `body`.*may not ship") as e: to_clip(read_amass(save(tmp_path, content())))
    assert "J_regressor" in str(e.value) and "rotations" in str(e.value)
    motion = read_amass(save(tmp_path, content()))
    for wrong, says in ((body(24), r"\(22, 3\)"), (body() * 1000, "millimetres"), (body() * 0, "longest bone"), (body() * math.nan, "finite"), (body().T, "expected"), (body() * .1, "longest bone")):
        with pytest.raises(AMASSError, match=says): to_clip(motion, wrong)
    assert offsets_of(body().numpy(), SMPL22).shape == (22, 3)


@pytest.mark.parametrize("gender", ["female", b"female", "b'female'"])
@pytest.mark.parametrize("kind", ["<U10", "S10", object])
def test_gender_is_stored_in_many_ways(tmp_path, gender, kind):
    if kind == "S10" and isinstance(gender, str): gender = gender.encode()
    if kind == "<U10" and isinstance(gender, bytes): gender = str(gender)
    assert read_amass(save(tmp_path, content(gender=np.array(gender, dtype=kind)))).gender == "female"


def test_the_later_name_of_the_rate(tmp_path): assert read_amass(save(tmp_path, content(mocap_framerate=None, mocap_frame_rate=np.array(60)))).fps == 60


def nan(x): x = x.copy(); x[5, 1] = np.nan; return x


@pytest.mark.parametrize("change, says", [
    (lambda v: dict(poses=None), r"\[poses\]: missing; it has betas, gender"), (lambda v: dict(trans=None), r"\[trans\]: missing"), (lambda v: dict(betas=None), r"\[betas\]"), (lambda v: dict(mocap_framerate=None), "mocap_framerate"), (lambda v: dict(gender=None), "gender"),
    (lambda v: dict(poses=v["poses"][:, :63]), "63 numbers"), (lambda v: dict(poses=v["poses"][0]), "axes"), (lambda v: dict(poses=v["poses"].reshape(T, 52, 3)), "axes"), (lambda v: dict(poses=v["poses"][:0], trans=v["trans"][:0]), "0 frames"), (lambda v: dict(poses=v["poses"].astype(str)), "text"),
    (lambda v: dict(poses=nan(v["poses"])), r"\[poses\]: row 5 is not finite"), (lambda v: dict(trans=nan(v["trans"])), "row 5"), (lambda v: dict(poses=np.degrees(v["poses"])), "degrees"), (lambda v: dict(trans=v["trans"] * 1000), "millimetres"), (lambda v: dict(trans=v["trans"][1:]), "a row for each"),
    (lambda v: dict(trans=v["trans"][:, :2]), "a row for each"), (lambda v: dict(gender=np.array("other")), "male, female or neutral"), (lambda v: dict(gender=np.zeros(3)), "gender"), (lambda v: dict(mocap_framerate=np.array(0.)), "0 frames a second"), (lambda v: dict(mocap_framerate=np.array(np.nan)), "nan frames"),
    (lambda v: dict(mocap_framerate=np.array("120")), "text"), (lambda v: dict(mocap_framerate=np.array([120.])), "axes"), (lambda v: dict(betas=np.full(16, 1e300)), "shapes of people")])
def test_broken_files_name_file_and_key(tmp_path, change, says):
    values = content()
    path = save(tmp_path, values | change(values))
    with pytest.raises(AMASSError, match=says) as e: read_amass(path)
    assert str(e.value).startswith(str(path))


class Hostile:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.mkdir, (self.path,)


def test_hostile_and_truncated_files(tmp_path):
    for key in ("poses", "gender", "mocap_framerate"):
        with pytest.raises(AMASSError, match="mkdir"): read_amass(save(tmp_path, content(**{key: np.array(Hostile(tmp_path / "trace"), dtype=object)})))
    assert not (tmp_path / "trace").exists()
    data = save(tmp_path, content()).read_bytes()
    for n in (0, 50, 3000, len(data) - 30):
        (tmp_path / "cut.npz").write_bytes(data[:n])
        with pytest.raises(AMASSError): read_amass(tmp_path / "cut.npz")
    with pytest.raises(FileNotFoundError): read_amass(tmp_path / "none.npz")


def test_markers_of_later_releases_are_not_read(tmp_path): assert read_amass(save(tmp_path, content(markers_latent=np.zeros((40, 3)), labels=np.array([{1, 2}], dtype=object)))).fps == 120


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_nothing_but_its_own_error_escapes(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    raw = bytearray(save(folder, content(66)).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))): raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (folder / "fuzz.npz").write_bytes(raw)
    try: to_clip(read_amass(folder / "fuzz.npz"), body())
    except (AMASSError, ClipError): pass


def test_memory(tmp_path):
    values = content(156, poses=np.zeros((20_000, 156)), trans=np.zeros((20_000, 3)))
    path, stored = save(tmp_path, values), values["poses"].nbytes + values["trans"].nbytes
    del values
    tracemalloc.start()
    read_amass(path)
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak < 1.3 * stored, f"{peak / stored:.2f} times the file's arrays"
