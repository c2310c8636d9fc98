"Cameras against plain arithmetic, rotations against scipy, alignment against a loop; round trips and invariances by hypothesis."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hclab.core.geometry import (ALIGNMENTS, EULER_ORDERS, H36M_CAMERAS, H36M_IDS, Camera, GeometryError, axis_angle_to_matrix, denormalise_screen,
                                 euler_to_matrix, h36m_camera, matrix_to_6d, matrix_to_axis_angle, matrix_to_quaternion, normalise_screen,
                                 procrustes, quaternion_to_matrix, rotation_6d_to_matrix)

seeds = st.integers(0, 10_000)
cameras = st.sampled_from(sorted(H36M_CAMERAS))
K, I = torch.tensor([[1100., 0, 500], [0, 1100, 500], [0, 0, 1]]), torch.eye(3)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def room(seed, n=20):
    "Points in the 3 x 3 x 1.8 m where people are."
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * torch.tensor([3, 3, 1.8]) - torch.tensor([1.5, 1.5, 0])


def test_published_camera_numbers():
    c = h36m_camera("S1", 0)
    assert torch.allclose(c.centre, torch.tensor([1.8411070556640625, 4.95528466796875, 1.5634454345703125], dtype=torch.float64), atol=1e-6)
    assert abs(c.K[0, 0] - 1145.0494384765625) < 1e-4 and abs(c.distortion[3] + 0.00142447161488235) < 1e-9 and abs(c.distortion[4] + 0.0030751503072679043) < 1e-9
    q = torch.tensor([0.1407056450843811, -0.1500701755285263, -0.755240797996521, 0.6223280429840088], dtype=torch.float64)
    world = torch.tensor([.3, -.2, 1.1], dtype=torch.float64)
    w, v = q[0], -q[1:]                                            # the inverse rotation of (X - centre), as the data's own code does it
    d = world - c.centre
    uv = torch.linalg.cross(v, d)
    assert torch.allclose(c.to_camera(world), d + 2 * (w * uv + torch.linalg.cross(v, uv)), atol=1e-5)


def test_all_28_cameras_stand_where_they_should():
    assert len(H36M_CAMERAS) == 28
    for (_, camera), c in H36M_CAMERAS.items():
        x, y, z = c.centre.tolist()
        assert 1.4 < z < 1.7 and 3.9 < math.hypot(x, y) < 5.8
        assert c.image_size == ((1002, 1000) if camera in (H36M_IDS[0], H36M_IDS[3]) else (1000, 1000))
        assert abs(c.K[0, 0] / 1000 - 1.145) < .006
        u, v = c.project(torch.tensor([0, 0, 1.0])).tolist()
        assert 250 < u < 750 and 250 < v < 750 and c.project(torch.tensor([0, 0, 1.7]))[1] < v


@settings(max_examples=25, deadline=None)
@given(cameras, seeds, st.sampled_from(["opencv", "h36m"]))
def test_projection_in_plain_numbers(key, seed, formula):
    c = H36M_CAMERAS[key]
    k1, k2, p1, p2, k3 = c.distortion.tolist()
    want = []
    for X in room(seed, 4).tolist():
        x, y, z = (sum(c.R[i, j].item() * X[j] for j in range(3)) + c.t[i].item() for i in range(3))
        x, y = max(-1, min(1, x / z)), max(-1, min(1, y / z))
        r2 = x * x + y * y
        f = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
        if formula == "opencv": xd, yd = x * f + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * f + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
        else: xd, yd = x * (f + p1 * x + p2 * y) + p1 * r2, y * (f + p1 * x + p2 * y) + p2 * r2
        want.append([c.K[0, 0].item() * xd + c.K[0, 2].item(), c.K[1, 1].item() * yd + c.K[1, 2].item()])
    assert torch.allclose(c.project(room(seed, 4), formula, clamp=1.0), torch.tensor(want, dtype=torch.float64), atol=1e-9)


def test_projection_in_normalised_units_is_the_same_picture():
    "Scaling focal lengths by 2/w and normalising the centre gives normalised pixels directly."
    c, X = h36m_camera("S9", 2), room(0)
    h, w = c.image_size
    N = c.K * 2 / w
    N[:2, 2] = normalise_screen(c.K[:2, 2], c.image_size)
    N[2] = torch.tensor([0, 0, 1])
    small = Camera(N, c.R, c.t, c.distortion, c.image_size)
    assert torch.allclose(small.project(X), normalise_screen(c.project(X), c.image_size))


@settings(max_examples=25, deadline=None)
@given(cameras, seeds)
def test_there_and_back_through_the_lens(key, seed):
    c, X = H36M_CAMERAS[key], room(seed)
    assert torch.allclose(c.to_world(c.to_camera(X)), X)
    pixels = c.project(X)
    assert torch.allclose(c.unproject(pixels, c.to_camera(X)[:, 2]), X, atol=1e-8)
    ideal = Camera(c.K, c.R, c.t, image_size=c.image_size)
    assert torch.allclose(c.undistort(pixels), ideal.project(X), atol=1e-6) and torch.allclose(ideal.undistort(pixels), pixels)


def test_clamp_moves_only_what_is_far_outside():
    c = Camera(K, I, torch.zeros(3))
    assert c.project(torch.tensor([3., 0, 1]), clamp=1.0).tolist() == [1600, 500] and c.project(torch.tensor([3., 0, 1])).tolist() == [3800, 500]


def test_behind_the_camera_there_is_no_pixel_and_gradients_stay_finite():
    c = Camera(K, I, torch.zeros(3))
    X = torch.tensor([[0., 0, 2], [0, 0, -2], [1, 1, 0]], requires_grad=True)
    assert c.in_front(X).tolist() == [True, False, False]
    pixels = c.project(X)
    assert pixels.isnan().any(-1).tolist() == [False, True, True]
    pixels[c.in_front(X)].sum().backward()
    assert X.grad.isfinite().all() and X.grad[0, 0] == 550


def test_no_inverse_of_the_lens_is_nan():
    c = Camera(K, I, torch.zeros(3), distortion=(-.5, 0, 0, 0, 0))                     # folds back at a radius of 0.82
    assert c.undistort(torch.tensor([3000., 500])).isnan().all() and c.undistort(torch.tensor([600., 500])).isfinite().all()


@pytest.mark.parametrize("text, change", [
    ("focal", dict(K=-K)), ("transposed", dict(K=K.T)), ("shape", dict(R=torch.eye(4))), ("no rotation", dict(R=I * 1.01)), ("mirrors", dict(R=-I)),
    ("shape", dict(t=torch.zeros(1, 3))), ("finite", dict(t=(0, 0, math.inf))), ("shape", dict(distortion=(0,) * 4)), ("image_size", dict(image_size=(0, 10)))])
def test_impossible_cameras_are_refused(text, change):
    with pytest.raises(GeometryError, match=text): Camera(**{**dict(K=K, R=I, t=torch.zeros(3)), **change})


def test_lookup_and_arguments_teach():
    with pytest.raises(GeometryError, match="S11"): h36m_camera("S12", 0)
    with pytest.raises(GeometryError, match="54138969"): h36m_camera("S1/54138968")
    with pytest.raises(GeometryError, match="opencv"): h36m_camera("S1", 0).project(room(0), formula="open_cv")
    with pytest.raises(GeometryError, match="depth must have shape"): h36m_camera("S1", 0).unproject(torch.zeros(3, 2), torch.ones(2))
    with pytest.raises(GeometryError, match="choose another up"): Camera.look_at((0, 0, 1), (0, 0, 4), 1000, (10, 10))


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_look_at(seed):
    eye, target = draw(seed, 2, 3)
    c = Camera.look_at(eye, target, 900, (480, 640))
    assert torch.allclose(c.centre, eye) and torch.allclose(c.project(target), torch.tensor([320., 240], dtype=torch.float64))
    assert torch.allclose(c.to_camera(target)[2], (target - eye).norm())
    assert c.project(target + torch.tensor([0, 0, 1e-3]))[1] < 240                      # up is up


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 3000), st.integers(1, 3000))
def test_screen_round_trip(seed, h, w):
    x = draw(seed, 5, 2) * 1000
    assert torch.allclose(denormalise_screen(normalise_screen(x, (h, w)), (h, w)), x)
    gap = (normalise_screen(x, (h, w))[0] - normalise_screen(x, (h, w))[1]) / (x[0] - x[1])
    assert torch.allclose(gap, torch.full((2,), 2 / w, dtype=torch.float64))             # both axes on one scale


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_rotations_against_scipy(seed):
    theirs = Rotation.random(20, rng=np.random.default_rng(seed))
    R = torch.as_tensor(theirs.as_matrix())
    assert torch.allclose(matrix_to_quaternion(R), torch.as_tensor(theirs.as_quat(canonical=True, scalar_first=True)), atol=1e-9)
    assert torch.allclose(quaternion_to_matrix(3 * torch.as_tensor(theirs.as_quat(scalar_first=True))), R)
    assert torch.allclose(matrix_to_axis_angle(R), torch.as_tensor(theirs.as_rotvec()), atol=1e-7)
    assert torch.allclose(axis_angle_to_matrix(torch.as_tensor(theirs.as_rotvec())), R)
    assert torch.allclose(rotation_6d_to_matrix(matrix_to_6d(R)), R)


@pytest.mark.parametrize("order", EULER_ORDERS)
def test_euler_against_scipy(order):
    angles = draw(1, 30, 3) * 100
    want = torch.as_tensor(Rotation.from_euler(order, angles.numpy(), degrees=True).as_matrix())
    assert torch.allclose(euler_to_matrix(angles, order, degrees=True), want) and torch.allclose(euler_to_matrix(angles.deg2rad(), order), want)


@pytest.mark.parametrize("order", ["XX", "XXY", "zyx", "XYW", ""])
def test_unknown_euler_order(order):
    with pytest.raises(GeometryError, match="unknown order"): euler_to_matrix(torch.zeros(3), order)


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_any_six_numbers_are_a_rotation(seed):
    R = rotation_6d_to_matrix(draw(seed, 7, 6))
    assert torch.allclose(R @ R.mT, torch.eye(3, dtype=R.dtype).expand(7, 3, 3)) and torch.allclose(torch.linalg.det(R), torch.ones(7, dtype=R.dtype))


@pytest.mark.parametrize("angle", [0, 1e-12, 1e-5, 1e-3, math.pi - 1e-6, math.pi])
@pytest.mark.parametrize("axis", range(3))
def test_axis_angle_at_its_ends(angle, axis):
    v = torch.zeros(3, dtype=torch.float64)
    v[axis] = angle
    assert torch.allclose(axis_angle_to_matrix(v), torch.as_tensor(Rotation.from_rotvec(v.numpy()).as_matrix()), atol=1e-12)
    assert torch.allclose(matrix_to_axis_angle(axis_angle_to_matrix(v)).abs(), v, atol=1e-9)
    assert torch.autograd.gradcheck(axis_angle_to_matrix, v.requires_grad_(), atol=1e-5)


def by_hand(a, b, kind):
    "One pose pair with numpy: Kabsch by singular values, with the sign, then the scale by least squares."
    a0, b0 = a - a.mean(0), b - b.mean(0)
    U, _, Vt = np.linalg.svd(a0.T @ b0)
    R = Vt.T @ np.diag([1, 1, np.sign(np.linalg.det(U @ Vt))]) @ U.T
    turned = a0 @ R.T
    return (turned * ((turned * b0).sum() / (turned**2).sum() if kind == "similarity" else 1)) + b.mean(0)


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(ALIGNMENTS))
def test_procrustes_against_a_loop(seed, kind):
    a, b = draw(seed, 2, 8, 16, 3)
    ours = procrustes(a, b, kind)
    for x, y, z in zip(a.numpy(), b.numpy(), ours.numpy(), strict=True):
        assert np.abs(z - by_hand(x, y, kind)).max() < 1e-9
        R = Rotation.align_vectors(y - y.mean(0), x - x.mean(0))[0].as_matrix()         # a second opinion on the rotation
        assert np.abs(procrustes(torch.as_tensor(x), torch.as_tensor(y), kind, return_transform=True)[1].rotation.numpy() - R).max() < 1e-6


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(.1, 10))
def test_procrustes_forgives_exactly_a_similarity(seed, scale):
    b = draw(seed, 4, 16, 3)
    R = rotation_6d_to_matrix(draw(seed + 1, 6))
    assert torch.allclose(procrustes(scale * b @ R.T + draw(seed + 2, 3), b), b, atol=1e-9)
    assert torch.allclose(procrustes(b @ R.T + draw(seed + 2, 3), b, "rigid"), b, atol=1e-9)
    aligned, move = procrustes(draw(seed + 3, 4, 16, 3), b, return_transform=True)
    assert torch.allclose(torch.linalg.det(move.rotation), torch.ones(4, dtype=torch.float64))
    assert torch.allclose(procrustes(aligned, b), aligned, atol=1e-8)                    # nothing is left to gain


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_no_other_similarity_is_nearer(seed):
    a, b = draw(seed, 2, 16, 3)
    best = (procrustes(a, b) - b).square().sum()
    for i in range(20):
        near = procrustes(a, b) @ axis_angle_to_matrix(.05 * draw(seed + i, 3)).T * (1 + .05 * draw(seed - i, 1)) + .01 * draw(seed + i, 3)
        assert (near - b).square().sum() >= best - 1e-9


def test_mirror_images_are_not_forgiven():
    b = draw(0, 16, 3)
    a = b * torch.tensor([-1., 1, 1])
    assert (procrustes(a, b) - b).norm(dim=-1).mean() > .2
    assert torch.linalg.det(procrustes(a, b, return_transform=True)[1].rotation) > 0


@pytest.mark.parametrize("kind", ALIGNMENTS)
def test_degenerate_poses_stay_finite(kind):
    b, point = draw(0, 16, 3), torch.full((16, 3), .7, dtype=torch.float64)
    line, plane = torch.linspace(-1, 1, 16, dtype=torch.float64)[:, None] * b[0], b * torch.tensor([1., 1, 0])
    for x in (point, line, plane, b):
        for y in (point, line, plane, b): assert procrustes(x, y, kind).isfinite().all()
    assert torch.allclose(procrustes(point, b, kind), b.mean(0).expand(16, 3))
    R = rotation_6d_to_matrix(draw(3, 6))
    assert torch.allclose(procrustes(line @ R.T + 1, line, kind), line) and torch.allclose(procrustes(plane @ R.T + 1, plane, kind), plane)
    assert torch.allclose(procrustes(b, point), point)                                   # the nearest size is none


def test_weights_leave_joints_out():
    a, b = draw(5, 2, 3, 16, 3)
    w = torch.ones(3, 16)
    assert torch.allclose(procrustes(a, b, weights=w), procrustes(a, b))
    w[:, 10:] = 0
    assert torch.allclose(procrustes(a, b, weights=w)[:, :10], procrustes(a[:, :10], b[:, :10]))
    assert torch.allclose(procrustes(a, b, weights=w[0])[:, :10], procrustes(a[:, :10], b[:, :10]))


def test_procrustes_refuses():
    b = draw(0, 16, 3)
    with pytest.raises(GeometryError, match="expand"): procrustes(b, b[:5])
    with pytest.raises(GeometryError, match="finite"): procrustes(b * math.nan, b)
    with pytest.raises(GeometryError, match="rigid"): procrustes(b, b, "ridgid")
    assert procrustes(b.float(), b.float()).dtype == torch.float32
