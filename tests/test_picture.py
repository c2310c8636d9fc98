"""Normals of a picture, held against its depth: two maps of one surface, made by different code."""
from dataclasses import replace

import numpy as np
import pytest

from hclab.data.world import SETS, draw_scene

SIZE = (160, 160)
WORLDS = {"room": replace(SETS["rgbd"], size=SIZE, places=("room",)), "street": replace(SETS["rgbd"], size=SIZE, places=("street",)), "crowd": replace(SETS["crowd"], size=SIZE, places=("street",))}


@pytest.fixture(scope="module", params=list(WORLDS))
def scene(request): return draw_scene(WORLDS[request.param], 2)      # whose camera looks askew to all axes


def ways_of(camera):
    "(H,W,3) what each pixel's middle sees: directions in the camera's frame with z = 1."
    K, (H, W) = camera.K.numpy(), camera.image_size
    y, x = np.mgrid[0:H, 0:W] + .5
    return np.stack([(x - K[0, 2])/K[0, 0], (y - K[1, 2])/K[1, 1], np.ones((H, W))], -1)


def from_depth(scene):
    "Normals (H-2,W-2,3) from the differences of depth between the neighbours of a pixel, and where they mean something: one surface, no edge and no fold."
    z, who = scene.picture.depth.astype(float), scene.picture.instance_ids
    points = ways_of(scene.camera)*z[..., None]
    normal = np.cross(points[2:, 1:-1] - points[:-2, 1:-1], points[1:-1, 2:] - points[1:-1, :-2])
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
    normal *= -np.sign((normal*points[1:-1, 1:-1]).sum(-1, keepdims=True))
    near, middle = 1/np.maximum(z, 1e-6), np.s_[1:-1, 1:-1]     # 1/z is even over a plane
    bend = np.maximum(np.abs(near[1:-1, 2:] + near[1:-1, :-2] - 2*near[middle]), np.abs(near[2:, 1:-1] + near[:-2, 1:-1] - 2*near[middle]))/near[middle]
    sides = [(x[1 + dy:x.shape[0] - 1 + dy, 1 + dx:x.shape[1] - 1 + dx], x[middle]) for x in (who,) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return normal, np.all([a == b for a, b in sides], 0) & (z[middle] > 0) & (bend < .002)


def shares(scene, normals):
    "Of smooth places on people, and of the backdrop's: how many have a normal that is within 20 degrees of what depth says."
    wanted, smooth = from_depth(scene)
    close = (wanted*normals[1:-1, 1:-1]).sum(-1) > np.cos(np.radians(20))
    somebody = scene.picture.instance_ids[1:-1, 1:-1] > 0
    return close[smooth & somebody].mean(), close[smooth & ~somebody].mean()


def test_normals_are_of_unit_length_and_face_their_ray(scene):
    normals = scene.picture.normals
    length = np.linalg.norm(normals, axis=-1)
    there = length > 0
    assert np.abs(length[there] - 1).max() < 1e-5 and there[scene.picture.depth > 0].all(), "what has a depth has a normal"
    assert (normals*ways_of(scene.camera)).sum(-1)[there].max() < 1e-4, "towards the eye"


def test_normals_say_what_depth_says(scene):
    people, behind = shares(scene, scene.picture.normals)
    assert people > .98 and behind > .95, f"{people:.1%} of people, {behind:.1%} of the backdrop"
    wanted, smooth = from_depth(scene)
    smooth &= scene.picture.instance_ids[1:-1, 1:-1] > 0
    angle = np.degrees(np.arccos(np.clip((wanted*scene.picture.normals[1:-1, 1:-1]).sum(-1)[smooth], -1, 1)))
    assert smooth.sum() > 300 and np.median(angle) < 4, f"{np.median(angle):.1f} degrees in the median: vertices' normals are smooth, triangles flat"


@pytest.mark.parametrize("fault", ["world frame", "turned back", "y upwards", "x and z", "towards the surface"])
def test_wrong_normals_are_noticed(scene, fault):
    "Among them a camera whose rotation is left out, or applied the wrong way round."
    normals, R = scene.picture.normals, scene.camera.R.numpy()
    wrong = {"world frame": normals @ R, "turned back": normals @ R @ R, "y upwards": normals*[1, -1, 1], "x and z": normals[..., ::-1], "towards the surface": -normals}[fault]
    people, behind = shares(scene, wrong)
    assert people < .6 and behind < .8
