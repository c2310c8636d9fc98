"""Left is left: in every format the left wrist lies on the left of somebody who looks where the toes point, or where the walk goes."""
import pytest
import torch
from formats import FORMATS

from hclab.core.config import samples_dir
from hclab.data.readers import asfamc, bvh, deepmimic, uiprmd


def ahead(clip, toes=()):
    "(3,) where the person looks, without using left and right: from ankle to toe, or from the first place of the root to the last."
    way = (clip.joint(toes[1]) - clip.joint(toes[0])).mean(0) if toes else clip.joints[-1, clip.skeleton.root] - clip.joints[0, clip.skeleton.root]
    way = way * torch.tensor([1.0, 1, 0])
    assert way.norm() > .05, "this clip does not say where its person looks"
    return way / way.norm()


def to_the_left(clip, wrists, toes=()):
    "How many metres the left wrist lies further to the left than the right one, mean over the frames."
    left = torch.linalg.cross(torch.tensor([0.0, 0, 1]), ahead(clip, toes))
    return float(((clip.joint(wrists[0]) - clip.joint(wrists[1])) @ left).mean())


@pytest.mark.parametrize("name", FORMATS)
def test_the_left_wrist_is_on_the_left(name, tmp_path):
    f = FORMATS[name]
    assert to_the_left(f.read(f.write(tmp_path, 40)), f.wrists, f.toes) > .15


def test_the_test_notices_a_mirror():
    f = FORMATS["deepmimic"]
    import dataclasses, pathlib, tempfile
    with tempfile.TemporaryDirectory() as folder: clip = f.read(f.write(pathlib.Path(folder), 5))
    mirrored = dataclasses.replace(clip, joints=clip.joints * torch.tensor([-1.0, 1, 1]), rotations=None, offsets=None)
    assert to_the_left(mirrored, f.wrists, f.toes) < -.15


RECORDED = {
    "cmu/cmu_12_01_walk.bvh": lambda p: (bvh.read_bvh(p).slice(1, None), ("LeftHand", "RightHand"), ()),
    "cmu/02_01.amc": lambda p: (asfamc.read_asfamc(p.with_name("02.asf"), p), ("lwrist", "rwrist"), ("ltibia", "lfoot")),
    "motions/cmu_expmap38_30hz.npz": lambda p: (next(deepmimic.read_expmap38(p)), ("lwrist", "rwrist"), ("lankle", "ltoe")),
    "motions/mocap_joints20_30hz.npz": lambda p: (next(deepmimic.read_mocap20(p)), ("lwrist", "rwrist"), ("lankle", "ltoe")),
    "uiprmd/original/correct/m01_s01_e01_positions.txt.gz": lambda p: (uiprmd.read_uiprmd(p).clip, ("left_hand", "right_hand"), ("left_foot", "left_toes")),
    "uiprmd/uiprmd_kinect22_s01-08.npz": lambda p: (next(uiprmd.read_uiprmd_npz(p)).clip, ("left_hand", "right_hand"), ("left_foot", "left_toes")),
}


@pytest.mark.parametrize("name", RECORDED)
def test_in_recordings_too(name):
    path = samples_dir() and samples_dir() / name
    if not (path and path.is_file()): pytest.skip(f"HCLAB_SAMPLES does not hold {name}")
    assert to_the_left(*RECORDED[name](path)) > .15
