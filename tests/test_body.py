"""The body layer: shape, skinning, joints and normals against formulas written here, and what must hold on anybody."""
from pathlib import Path

import numpy as np
import pytest
import torch

from hclab.core.config import ConfigError
from hclab.core.geometry import axis_angle_to_matrix
from hclab.core.skeleton import skeleton
from hclab.data.body import ANCESTRIES, ASSET, Shape, body, curl, draw_shape, hats, pose_from_clip, vertex_normals
from hclab.data.figure import FIGURE
from hclab.data.grammar import generate

ROOT = Path(__file__).parents[1]
LAYOUTS = ("COCO17", "WHOLEBODY133", "H36M17", "H36M16", "NTU25", "MPII16", "ITOP15", "LSP14", "FIGURE")


@pytest.fixture(scope="module")
def people():
    "Eight people, and random poses for them."
    layer, rng = body(), np.random.default_rng(0)
    coefficients = layer.coefficients(torch.stack([draw_shape(rng).values() for _ in range(8)]))
    g = torch.Generator().manual_seed(0)
    return coefficients, axis_angle_to_matrix(.3*torch.randn(8, len(layer.mesh.bones), 3, generator=g))


def test_weights_and_masses_are_shares():
    layer = body()
    assert torch.allclose(layer.weights.sum(1), torch.ones(len(layer.weights)), atol=1e-5) and (layer.weights >= 0).all()
    assert torch.allclose(layer.joint_mass.sum(1), torch.ones(len(layer.mesh.joints)), atol=1e-5)
    assert all(p < b for b, p in enumerate(layer.mesh.parents)) and layer.mesh.parents[0] == -1
    assert int(layer.mesh.quads.max()) < len(layer.weights) and int(layer.mesh.uv_quads.max()) < len(layer.mesh.uv)


def test_the_asset_is_small_and_whose_it_is_stands_in_the_notice():
    assert ASSET.stat().st_size <= 6_000_000
    notice = (ROOT/"NOTICE").read_text(encoding="utf-8")
    assert ASSET.relative_to(ROOT).as_posix() in notice and all(word in notice for word in ("anny", "NAVER", "Apache License, Version 2.0", "MakeHuman", "CC0"))


@pytest.mark.timeout(1800)
def test_posed_bodies_are_those_of_anny_within_a_millimetre():
    "The model that the asset was baked from (`pip install hclab[bake]`; minutes to build at first): the 99th percentile over all vertices of sixteen people in random poses."
    anny = pytest.importorskip("anny")
    layer, rng, draw = body(), np.random.default_rng(7), torch.Generator().manual_seed(7)
    model = anny.Anny(topology="makehuman-full", phenotypes="all", pose_parameterization="world-orient").to(dtype=torch.float32)
    model.set_skinning_method("lbs")
    bones, values = len(layer.mesh.bones), torch.stack([draw_shape(rng).values() for _ in range(16)])
    phenotypes = dict(zip(("gender", "age", "muscle", "weight", "height", "proportions", "cupsize", "firmness", *ANCESTRIES), values.T, strict=True))
    with torch.no_grad():
        ours = layer(layer.coefficients(values), axis_angle_to_matrix(.25*torch.randn(16, bones, 3, generator=draw)))
        rest = model(pose_parameters=torch.eye(4).repeat(16, bones, 1, 1), phenotype_kwargs=phenotypes, pose_parameterization="local-ref")
        world = rest["rest_bone_poses"].clone()
        world[..., :3, :3] = ours.turns @ world[..., :3, :3]
        world[:, 1:, :3, 3], world[:, 0, :3, 3] = 0, rest["rest_bone_heads"][:, 0]      # the root's place, as ours without one given
        theirs = model(pose_parameters=world, phenotype_kwargs=phenotypes, pose_parameterization="world-orient")["vertices"]
        same = torch.cdist(layer.rest(layer.coefficients(values[:1]))[0][0], rest["rest_vertices"][0]).argmin(1)      # ours are some of theirs
    assert len(same.unique()) > .95*len(same), "each of our vertices is one of theirs"
    apart = 1000*(ours.vertices - theirs[:, same]).norm(dim=-1)
    assert np.percentile(apart.numpy(), 99) < 1.0, f"{np.percentile(apart.numpy(), 99):.2f} mm"


def test_skinning_is_the_weighted_mean_of_what_each_bone_would_do(people):
    layer, (coefficients, turns) = body(), people
    posed = layer(coefficients[:1], turns[:1])
    rest, _, heads = (x[0].double() for x in layer.rest(coefficients[:1]))
    world, at = [], []
    for b, p in enumerate(layer.mesh.parents):
        own = turns[0, b].double()
        world.append(own if p < 0 else world[p] @ own)
        at.append(heads[0] if p < 0 else at[p] + world[p] @ (heads[b] - heads[p]))
    for v in range(0, len(rest), 397):
        want = sum(float(w)*(world[b] @ (rest[v] - heads[b]) + at[b]) for b, w in enumerate(layer.weights[v]) if w > 0)
        assert torch.allclose(posed.vertices[0, v].double(), want, atol=1e-5), v


def test_no_turn_is_the_rest_pose_and_a_turn_of_the_root_is_rigid(people):
    layer, (coefficients, turns) = body(), people
    still = layer(coefficients)
    assert torch.allclose(still.vertices, layer.rest(coefficients)[0], atol=1e-6)
    turn, shift = axis_angle_to_matrix(torch.tensor([.3, -1.0, .6])), torch.tensor([1.0, 2.0, .5])
    moved, posed = turns.clone(), layer(coefficients, turns)
    moved[:, 0] = turn @ moved[:, 0]
    other = layer(coefficients, moved, posed.heads[:, 0] @ turn.T + shift)
    for name in ("vertices", "heads", "anchors"): assert torch.allclose(getattr(other, name), getattr(posed, name) @ turn.T + shift, atol=2e-5), name
    for layout in LAYOUTS: assert torch.allclose(layer.joints(other, layout), layer.joints(posed, layout) @ turn.T + shift, atol=2e-5)


def test_gradients_reach_shape_and_pose():
    layer = body()
    values = Shape().values()[None].requires_grad_()
    angles = torch.zeros(1, len(layer.mesh.bones), 3, requires_grad=True)
    with torch.no_grad(): target = layer.joints(layer(layer.coefficients(Shape(height=.5, weight=.8).values()[None])), "H36M17")
    layer.joints(layer(layer.coefficients(values), axis_angle_to_matrix(angles)), "H36M17").sub(target).square().sum().backward()
    assert values.grad[0, 4] < 0 and torch.isfinite(values.grad).all(), "taller would be nearer"
    used = [layer.mesh.bones.index(b) for b in ("upperarm01.L", "upperleg01.R", "spine03", "root")]
    assert torch.isfinite(angles.grad).all() and (angles.grad[0, used].norm(dim=-1) > 0).all()


def test_shape_is_found_again_from_joints_by_descent():
    layer = body()
    with torch.no_grad(): target = layer.joints(layer(layer.coefficients(Shape(height=.42, female=1.0).values()[None])), "FIGURE")
    c = layer.coefficients(Shape().values()[None]).detach().requires_grad_()
    optimiser = torch.optim.Adam([c], .05)
    for _ in range(60):
        optimiser.zero_grad()
        loss = (layer.joints(layer(c), "FIGURE") - target).norm(dim=-1).mean()
        loss.backward(); optimiser.step()
    assert loss < .004, f"{1000*float(loss):.1f} mm"


def test_left_is_left_in_every_layout():
    layer = body()
    posed = layer(layer.coefficients(Shape().values()[None]))     # faces -y: its left is +x
    for layout in LAYOUTS:
        s = FIGURE if layout == "FIGURE" else skeleton(layout)
        joints = layer.joints(posed, layout)[0]
        for left, right in s.pairs:
            assert joints[left, 0] > joints[right, 0] - 1e-3, (layout, s.names[left])
            assert (joints[left]*torch.tensor([-1, 1, 1]) - joints[right]).norm() < .015, (layout, s.names[left], "mirror")


def test_joints_lie_inside_the_body_or_on_it():
    layer = body()
    posed = layer(layer.coefficients(Shape().values()[None]))
    for layout in LAYOUTS:
        joints = layer.joints(posed, layout)[0]
        nearest = torch.cdist(joints, posed.vertices[0]).amin(1)
        assert nearest.max() < .13, (layout, int(nearest.argmax()))


def test_landmarks_of_the_face_are_on_the_face_and_in_order():
    layer = body()
    face = layer.joints(layer(layer.coefficients(Shape().values()[None])), "WHOLEBODY133")[0, 23:91]
    x, z = face[:, 0], face[:, 2]
    assert (x[:17].diff() > 0).all(), "the jaw runs from the right ear to the left one"
    assert z[8] == z[:17].min() and (x[17:27].diff() > 0).all() and (z[27:31].diff() < 0).all()
    assert (z[17:27] > z[36:48].max()).all() and z[48:68].max() < z[31:36].min() and z[8] < z[48:68].min()
    assert x[36:42].max() < 0 < x[42:48].min() and z[[37, 38, 43, 44]].min() > z[[40, 41, 46, 47]].max()


def test_hats_are_linear_between_the_modelled_bodies_and_the_ends_are_pure():
    values = torch.stack([Shape(**{k: v}).values() for k, v in (("muscle", 0), ("muscle", 1), ("muscle", .5), ("muscle", .25))])
    assert hats(values)[:, 10:13].tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [.5, .5, 0]]
    assert torch.allclose(hats(torch.stack([draw_shape(np.random.default_rng(k)).values() for k in range(20)])).sum(1), torch.full((20,), 9.0), atol=1e-5)


def test_people_are_as_tall_as_people_are():
    rng, layer = np.random.default_rng(1), body()
    shapes = [s for s in (draw_shape(rng) for _ in range(200)) if s.age > .66]
    z = layer(layer.coefficients(torch.stack([s.values() for s in shapes]))).vertices[..., 2]
    tall, women = (z.amax(1) - z.amin(1)).numpy(), np.array([s.female > .5 for s in shapes])
    assert 1.56 < np.median(tall[women]) < 1.70 and 1.70 < np.median(tall[~women]) < 1.84 and .04 < tall[women].std() < .11


def test_a_clip_moves_the_body_and_its_limbs_point_where_the_clip_says():
    layer = body()
    c = layer.coefficients(Shape(female=1.0).values()[None])
    clip = generate("walk", 2, 2.0, fps=25, layout="FIGURE")
    rotations, places = pose_from_clip(layer, c, clip)
    posed = layer(c, rotations, places)
    joints = layer.joints(posed, "FIGURE")
    for a, b in (("left_hip", "left_knee"), ("right_knee", "right_ankle"), ("left_shoulder", "left_elbow"), ("right_elbow", "right_wrist")):
        way = lambda x, a=a, b=b: torch.nn.functional.normalize(x[:, FIGURE.index(b)] - x[:, FIGURE.index(a)], dim=-1)
        assert torch.rad2deg(torch.acos((way(joints)*way(clip.joints)).sum(-1).clamp(-1, 1))).max() < .2, (a, b)
    assert -.02 < float(posed.vertices[..., 2].amin(1).min()) and float(posed.vertices[..., 2].amin(1).max()) < .05, "feet near the floor"


def test_curl_bends_fingers_towards_the_palm():
    layer = body()
    c = layer.coefficients(Shape().values()[None])
    turns = torch.eye(3).repeat(1, len(layer.mesh.bones), 1, 1)
    for bone, turn in curl(layer, 2.0).items(): turns[0, bone] = turn
    names = list(layer.mesh.joints)
    tip = {k: [names.index(f"body:{91 + 21*k + 4*f + 4}") for f in range(1, 5)] for k in (0, 1)}
    for k in (0, 1):
        open_, bent = (layer.own_joints(layer(c, t))[0] for t in (None, turns))
        wrist = open_[names.index(f"body:{91 + 21*k}")]
        assert ((bent[tip[k]] - wrist).norm(dim=1) < (open_[tip[k]] - wrist).norm(dim=1) - .01).all()
        thumb = open_[names.index(f"body:{91 + 21*k + 4}")]
        assert ((bent[tip[k]] - thumb).norm(dim=1) < (open_[tip[k]] - thumb).norm(dim=1)).all(), "towards the thumb, so towards the palm"


def test_normals_point_outwards():
    layer = body()
    posed = layer(layer.coefficients(Shape().values()[None]))
    tights = layer.mesh.quads_of("tights")
    normal, used = vertex_normals(posed.vertices[0], tights), tights.unique()
    assert torch.allclose(normal[used].norm(dim=1), torch.ones(len(used)), atol=1e-4)
    out = posed.vertices[0] + .02*normal
    torso = used[(layer.weights[used][:, [layer.mesh.bones.index(b) for b in ("spine02", "spine03", "spine01")]].sum(1) > .6)]
    middle = posed.vertices[0, torso].mean(0)
    assert ((out[torso] - middle)[:, :2].norm(dim=1) > (posed.vertices[0, torso] - middle)[:, :2].norm(dim=1)).float().mean() > .97


@pytest.mark.parametrize("wrong, says", [
    (lambda: Shape(weight=1.5), "Shape.weight=1.5"), (lambda: Shape(age=float("nan")), "Shape.age=nan"), (lambda: Shape(african=0, asian=0, caucasian=0), "are all 0"),
    (lambda: body()(torch.zeros(2, 7)), r"must be \(N,48\)"), (lambda: body()(torch.zeros(2, 48), torch.eye(3).repeat(3, 104, 1, 1)), "rotations must be"),
    (lambda: body().mesh.quads_of("trousers"), "no group 'trousers'")])
def test_what_does_not_fit_is_said(wrong, says):
    with pytest.raises((ConfigError, ValueError), match=says): wrong()
