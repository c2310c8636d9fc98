"Pictures of dense labels, strips, scenes and features: what is drawn is what was given, an absence is never a value, and what is stored stays small."
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hclab.core.geometry import Camera, look_at
from hclab.core.sample import validate
from hclab.core.skeleton import skeleton
from hclab.viz.dense import (
    BACKGROUND, LABELS, STRIPES, Labels, boundaries, check_ids, depth_image, depth_range, iuv_image, label_image, labels, legend_labels,
    normals_image, plot_boxes, plot_depth, plot_iuv, plot_labels, plot_normals, present, stripes)
from hclab.viz.features import attention_image, fit_colours, plot_attention, plot_channels, plot_features
from hclab.viz.scene import Cloud, Mesh, decimate, depth_points, frustum, scene_figure
from hclab.viz.sheets import save_figure
from hclab.viz.strip import PANELS, Place, sample_size, sample_strip, strip_sheet
from hclab.viz.style import DEFICIENCIES, SIDES, as_seen_with, rgb
from hclab.viz.toy import ToyPerson, cast, hit_limb, toy_camera, toy_limbs, toy_mesh, toy_sample, toy_sensor, walking_joints

ROOT = Path(__file__).resolve().parents[1]
LISTS = {"body_parts": 25, "garments": 20, "surface": 25}
pytestmark = pytest.mark.usefixtures("figures_that_are_closed")


@pytest.fixture(scope="module")
def sample(): return toy_sample([ToyPerson(walking_joints(0.9, wave=1.0), shorts=True)], toy_camera(-30, image_size=(96, 72), focal=1.6), fine=1, normals=True)


@pytest.fixture(scope="module")
def group():
    return toy_sample([ToyPerson(place=(0.2, -0.4)), ToyPerson(walking_joints(3.0), (-0.5, 0.0), 40)], toy_camera(-10, 3.6, image_size=(96, 120)), fine=1)


def lightness(colour):
    "CIE L* by the definition, written for this test."
    linear = [c/12.92 if c <= 0.04045 else ((c + 0.055)/1.055)**2.4 for c in rgb(colour)]
    Y = 0.2126*linear[0] + 0.7152*linear[1] + 0.0722*linear[2]
    return 116*Y**(1/3) - 16 if Y > 0.008856 else 903.3*Y


def test_importing_these_pictures_loads_nothing_heavy():
    code = ("import sys, hclab.viz.dense, hclab.viz.strip, hclab.viz.scene, hclab.viz.features, hclab.viz.toy;"
            "print([m for m in ('torch', 'matplotlib', 'plotly', 'scipy', 'PIL') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------ lists of ids
@pytest.mark.parametrize("kind, count", LISTS.items())
def test_palettes_are_whole(kind, count):
    known = labels(kind)
    assert len(known) == len(known.names) == len(set(known.colours)) == len(set(known.names)) == count and known.names[0] == "background" and known.colours[0] == BACKGROUND


def test_ids_are_those_of_the_data_sets():
    body, lip, surface = (labels(k).names for k in LISTS)
    assert [body[i] for i in (1, 3, 4, 9, 12, 13, 16, 19, 20, 21, 24)] == ["right hip", "right foot", "left hip", "left hand", "right hand", "crotch", "left thigh", "upper spine", "head",
                                                                         "left arm", "right forearm"]
    assert [lip[i] for i in (1, 2, 5, 9, 13, 14, 15, 18, 19)] == ["hat", "hair", "upper-clothes", "pants", "face", "left arm", "right arm", "left shoe", "right shoe"]
    assert [surface[i] for i in (1, 2, 3, 4, 5, 6, 23, 24)] == ["torso back", "torso front", "right hand", "left hand", "left foot", "right foot", "right head", "left head"]


def test_the_mirror_of_each_list_is_the_published_one():
    assert labels("surface").mirror_order == (0, 1, 2, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15, 18, 17, 20, 19, 22, 21, 24, 23)    # DensePose's table of symmetries
    assert set(labels("garments").pairs) == {(14, 15), (16, 17), (18, 19)}
    raw = dict(zip((0, 1, 2, 3, 6, 7, 8, 17, 18, 19, 25, 26, 27, 32, 33, 34, 38, 39, 43, 44, 46, 49, 50, 56, 58), range(25)))             # Human3.6M's ids, and its pairs (right, left)
    pairs = {(1, 6), (2, 7), (3, 8), (25, 17), (26, 18), (27, 19), (33, 38), (34, 39), (56, 49), (58, 50)}
    assert {(j, i) for i, j in labels("body_parts").pairs} == {(raw[a], raw[b]) for a, b in pairs}


@pytest.mark.parametrize("kind", LISTS)
def test_left_is_warm_and_light_right_is_cool_and_dark(kind):
    known = labels(kind)
    warm = lambda colour: rgb(colour)[0] > rgb(colour)[2]
    for i, j in known.pairs:
        assert warm(known.colours[i]) and not warm(known.colours[j]), (known.names[i], "the family of the skeleton's side")
        assert lightness(known.colours[i]) - lightness(known.colours[j]) > 15, (known.names[i], "on a grey print")
    assert warm(SIDES["left"].colour) and not warm(SIDES["right"].colour)


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
@pytest.mark.parametrize("kind", LISTS)
def test_no_two_colours_fall_together_for_other_eyes(kind, deficiency):
    seen = np.array([rgb(as_seen_with(c, deficiency)) for c in labels(kind).colours])
    apart = np.abs(seen[:, None] - seen).max(-1) + 9*np.eye(len(seen))
    assert apart.min() > 0.03


def test_own_lists_and_unknown_ones():
    own = Labels("rooms", ("background", "left door", "right door"), ("#EEEEEE", "#FF0000", "#0000FF"))
    assert own.pairs == ((1, 2),) and own.sides == ("centre", "left", "right") and label_image(np.array([[0, 2]]), own)[0, 1].tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match="did you mean 'garments'"): labels("garment")
    with pytest.raises(ValueError, match="2 names and 1 colours"): Labels("x", ("a", "b"), ("#000000",))
    with pytest.raises(ValueError, match="twice"): Labels("x", ("a", "a"), ("#000000", "#FFFFFF"))


# ------------------------------------------------------------------------------------------------ maps
@pytest.mark.parametrize("kind, key", [("body_parts", "body_parts"), ("garments", "garments"), ("instance_ids", "instance_ids")])
def test_each_pixel_has_the_colour_of_its_id(sample, kind, key):
    drawn, ids = label_image(sample[key], kind), sample[key].numpy()
    for row, column in [(r, c) for r in range(0, 96, 7) for c in range(0, 72, 5)]: assert np.allclose(drawn[row, column], rgb(labels(kind).colours[ids[row, column]]))


@pytest.mark.parametrize("ids, says", [(torch.full((3, 4), 25), "0 to 24, found \\[25\\] in 12 pixels, the first at row 0, column 0"), (torch.full((3, 4), -1), "found \\[-1\\]"),
                                       (torch.full((3, 4), 0.5), "nearest neighbour"), (torch.full((3, 4), float("nan")), "fractions or NaN"), (torch.zeros(2, 3, 4), "shape \\(2, 3, 4\\)")])
def test_an_id_outside_the_list_says_so(ids, says):
    for draw in (check_ids, plot_labels, label_image):
        with pytest.raises(ValueError, match=says): draw(ids, "body_parts")


def test_the_legend_names_what_is_there_and_nothing_else(sample):
    for kind, ids in (("body_parts", sample["body_parts"]), ("garments", sample["garments"]), ("surface", sample["iuv"][0])):
        ax = plot_labels(ids, kind)
        legend = legend_labels(ax, ids, kind)
        texts = [t.get_text() for t in legend.get_texts()]
        assert {t for t in texts if t} == {f"{i} {labels(kind).names[i]}" for i in np.unique(ids.numpy().astype(int)) if i}
        for text, patch in zip(texts, legend.get_patches()):
            if text: assert np.allclose(patch.get_facecolor()[:3], rgb(labels(kind).colours[int(text.split()[0])])), text
    twins = [t.get_text() for t in legend_labels(plot_labels(np.array([[4, 1, 6, 3, 13]])), np.array([[4, 1, 6, 3, 13]])).get_texts()]
    assert twins == ["4 left hip", "6 left foot", "1 right hip", "3 right foot", "13 crotch", ""], "twins side by side"
    assert legend_labels(plot_labels(np.zeros((2, 2))), np.zeros((2, 2))) is None and present(np.zeros((2, 2))) == []


def test_the_outline_runs_along_every_edge_once():
    ids = np.random.default_rng(0).integers(0, 3, (7, 9))
    lines = boundaries(ids)
    length = np.abs(lines[:, 1] - lines[:, 0])
    assert (length.min(1) == 0).all() and length.sum() == (ids[1:] != ids[:-1]).sum() + (ids[:, 1:] != ids[:, :-1]).sum()
    one = boundaries(np.pad([[1]], ((1, 1), (2, 2))))
    assert sorted(map(tuple, one.reshape(-1, 2).tolist())) == sorted([(1.5, 0.5), (2.5, 0.5), (1.5, 1.5), (2.5, 1.5)]*2), "around the one pixel, whose middle is (2, 1)"


def test_what_is_not_labelled_is_striped_and_keeps_the_image_around(sample):
    ids = sample["body_parts"].clone(); ids[:10] = 255
    assert np.allclose(label_image(ids, ignore=255)[:10], stripes(96, 72)[:10])
    over = label_image(sample["body_parts"], image=sample["image"], alpha=1.0)
    picture, person = sample["image"].permute(1, 2, 0).numpy(), sample["body_parts"].numpy() > 0
    assert np.allclose(over[~person], picture[~person]) and not np.allclose(over[person], picture[person], atol=0.02)
    with pytest.raises(ValueError, match="same crop"): label_image(ids, ignore=255, image=sample["image"][:, 1:])


# ------------------------------------------------------------------------------------------------ depth
@pytest.mark.parametrize("near, far", [(None, None), (0.5, 4.0), (2.4, 2.6)])
def test_no_reading_is_never_drawn_as_near_or_as_anything(near, far):
    depth = np.linspace(2, 3, 400).reshape(20, 20); depth[5:9, 3:8] = 0
    drawn, pattern = depth_image(depth, near, far), stripes(20, 20)
    assert np.allclose(drawn[depth == 0], pattern[depth == 0])
    of_scale = depth_image(np.linspace(2, 3, 400).reshape(20, 20), near, far).reshape(-1, 3)
    for tone in STRIPES: assert np.abs(of_scale - rgb(tone)).max(1).min() > 0.2, "no depth looks like a stripe"


def test_near_is_light_and_the_range_is_robust():
    depth = np.full((50, 50), 3.0); depth[:, :25] = 2.0; depth[0, 0] = 90.0
    image = depth_image(depth)
    assert image[9, 0].mean() > image[9, 40].mean() and depth_range(depth) == (2.0, 3.0)
    assert depth_range(np.zeros((2, 2))) == (0.0, 1.0) and depth_range(np.full((2, 2), 4.0))[1] > 4.0
    ax = plot_depth(depth)
    bar = ax.figure.axes[-1]
    assert "near is light" in bar.get_ylabel() and bar.yaxis_inverted() and ax.get_legend() is None
    assert "no reading" in plot_depth(np.where(depth > 2.5, 0, depth)).get_legend().get_texts()[0].get_text()


@pytest.mark.parametrize("depth, says", [(np.full((2, 2), 2000.0), "divided by 1000"), (-np.ones((2, 2)), "never negative"), (np.full((2, 2), np.nan), "without a reading is 0"), (np.ones((3, 2, 2)), "shape \\(3, 2, 2\\)")])
def test_what_is_no_depth_is_refused(depth, says):
    with pytest.raises(ValueError, match=says): depth_image(depth)
    with pytest.raises(ValueError, match="not nearer"): plot_depth(np.ones((2, 2)), near=2, far=1)


# ------------------------------------------------------------------------------------------------ surface, normals, boxes
def test_surface_has_the_hue_of_its_part_and_the_lightness_of_v():
    iuv = np.zeros((3, 3, 5)); iuv[0, 1] = 12; iuv[2, 1] = np.linspace(0, 1, 5)
    image = iuv_image(iuv)
    assert (np.diff(image[1].sum(-1)) > 0).all() and np.allclose(image[1, 2], rgb(labels("surface").colours[12])) and np.allclose(image[0], rgb(BACKGROUND))
    assert plot_iuv(iuv).images[0].get_array().shape == (3, 5, 3)
    for wrong, says in ((iuv*[[[3]], [[1]], [[1]]], "found \\[36\\]"), (iuv*[[[1]], [[1]], [[2]]], "divide stored"), (iuv[:2], "part, u, v"), (iuv*[[[.9]], [[1]], [[1]]], "nearest")):
        with pytest.raises(ValueError, match=says): plot_iuv(wrong)


def test_lines_of_u_and_v_are_drawn_where_they_are(sample):
    with_lines, without = (len(plot_iuv(sample["iuv"], lines=n).collections) for n in (8, 0))
    assert with_lines > without + 10


def test_normals_are_colours_of_directions():
    toward = {(1, 0, 0): (1, .5, .5), (0, -1, 0): (.5, 1, .5), (0, 0, -1): (.5, .5, 1)}        # right, up, towards the camera
    for normal, colour in toward.items(): assert np.allclose(normals_image(np.reshape(normal, (3, 1, 1)))[0, 0], colour)
    assert np.allclose(normals_image(np.zeros((3, 1, 1)))[0, 0], rgb(BACKGROUND)) and plot_normals(np.zeros((3, 4, 4)))
    with pytest.raises(ValueError, match="length 1"): plot_normals(np.full((3, 2, 2), 0.9))


def test_boxes_whole_and_seen(group):
    ax = plot_boxes(group["image"], group["boxes"], group["visible_boxes"])
    drawn = {p.get_gid(): [] for p in ax.patches}
    for p in ax.patches: drawn[p.get_gid()].append((p.get_x() + .5, p.get_y() + .5, p.get_x() + .5 + p.get_width(), p.get_y() + .5 + p.get_height()))
    assert np.allclose(drawn["full"], group["boxes"]) and np.allclose(drawn["visible"], group["visible_boxes"])
    assert all(p.get_linestyle() != "-" for p in ax.patches if p.get_gid() == "full")
    area = lambda b: float((b[2] - b[0])*(b[3] - b[1]))
    assert ax.texts[1].get_text() == f"2: {100*area(group['visible_boxes'][1])/area(group['boxes'][1]):.0f} % seen"
    for wrong, says in ((dict(boxes=[[5, 5, 2, 9]]), "x1 <= x2"), (dict(boxes=group["boxes"], visible_boxes=group["boxes"][:1]), "2 boxes and 1"), (dict(boxes=np.zeros((2, 5))), "\\(N,4\\)"),
                        (dict(boxes=group["boxes"], names=["a"]), "1 names")):
        with pytest.raises(ValueError, match=says): plot_boxes(group["image"], **wrong)


# ------------------------------------------------------------------------------------------------ strips
def test_a_strip_shows_what_a_sample_has(sample):
    fig = sample_strip(sample)
    ax, = fig.axes
    heads = [t.get_text() for t in ax.texts if t.get_fontweight() == "bold"]
    assert heads == [PANELS[k].head for k in ("image", "depth", "body_parts", "garments", "iuv", "normals", "instance_ids", "joints", "boxes")]
    pictures = [np.asarray(im.get_array()) for im in ax.images]
    assert len(pictures) == 9 and np.allclose(pictures[0], sample["image"].permute(1, 2, 0)) and np.allclose(pictures[2], label_image(sample["body_parts"]))
    frames = [im.get_extent() for im in ax.images]
    assert all(a[1] <= b[0] for a, b in zip(frames, frames[1:])) and all(np.isclose(abs(f[3] - f[2])/(f[1] - f[0]), 96/72) for f in frames), "in a row, none stretched"


def test_joints_of_a_strip_lie_where_they_belong(sample):
    ax, = sample_strip(sample, panels=["joints"]).axes
    x0, x1, y1, y0 = ax.images[0].get_extent()
    bones = [line.get_xydata() for line in ax.lines if line.get_gid() == "bone"]
    layout = skeleton("H36M17")
    for (a, b), line in zip(layout.edges, bones, strict=True):
        expected = sample["joints2d"][0][[a, b]].numpy()/[72, 96]*[x1 - x0, y1 - y0] + [x0, y0]
        assert np.allclose(line, expected, atol=1e-6)


def test_missing_is_missing_and_not_black(sample):
    poor = {k: v for k, v in sample.items() if k not in ("depth", "garments")}
    fig = strip_sheet([sample, poor])
    ax, = fig.axes
    notes = [t.get_text() for t in ax.texts if t.get_text().startswith("no ")]
    assert notes == ["no depth", "no garments"] == [f"no {PANELS[k].head}" for k in ("depth", "garments")] and sum(p.get_gid() == "missing" for p in ax.patches) == 2
    assert len(ax.images) == 9 + 7 and all(np.asarray(im.get_array()).max() > 0.1 for im in ax.images)
    fig.canvas.draw()
    pixels = np.asarray(fig.canvas.buffer_rgba())[..., :3]
    note = next(t for t in ax.texts if t.get_text() == "no depth")
    x, y = ax.transData.transform(note.get_position())
    assert (pixels[len(pixels) - 1 - int(y) - 20, int(x)] == 255).all(), "white, as the page"


def test_joints_without_an_image_and_of_a_sensor_alone(sample):
    bare = {k: sample[k] for k in ("joints2d", "visibility", "skeleton", "boxes", "image_size")}
    assert len(sample_strip(bare).axes[0].images) == 2
    sensor = dict(sensor_depth=toy_sensor(sample["depth"]))
    assert len(sample_strip(sensor).axes[0].images) == 1 and sample_size(sensor) == (96, 72)


def test_two_dozen_samples_are_one_axes_and_quick(sample, group):
    fig = strip_sheet([sample, group]*12, columns=2)
    assert len(fig.axes) == 1 and len(fig.axes[0].images) == 12*9 + 12*8
    assert fig.get_figwidth() > fig.get_figheight() and all(t.get_fontsize() >= 6 for t in fig.axes[0].texts)


def test_the_sample_that_does_not_fit_is_named(sample):
    for wrong, says in (({"depth": sample["depth"][:, 1:]}, "sample 1: the sizes of one sample differ"), ({"body_parts": sample["body_parts"] + 9}, "sample 1: body_parts has ids 0 to 24"),
                        ({"depth": -sample["depth"]}, "sample 1: depth down to"), ({"skeleton": "COCO17x"}, "sample 1: ")):
        with pytest.raises(ValueError, match=says): strip_sheet([sample, sample | wrong])
    for wrong, says in ((dict(samples=[]), "at least one"), (dict(samples=[sample], panels=["depht"]), "did you mean 'depth'"), (dict(samples=[sample], captions=["a", "b"]), "2 captions"), (dict(samples=[sample], columns=0), "columns=0"),
                        (dict(samples=[dict(image_size=(4, 4))]), "nothing to show|anything to show")):
        with pytest.raises(ValueError, match=says): strip_sheet(**wrong)
    import matplotlib.pyplot as plt
    assert not plt.get_fignums(), "no half-drawn figure stays open"


def test_depth_of_a_strip_spans_the_people_and_a_margin(sample):
    person = sample["instance_ids"].numpy() > 0
    near, far = np.percentile(sample["depth"][0].numpy()[person], (1, 99))
    for s, (low, high) in ((sample, (near - 0.2, far + 0.8)), ({"depth": sample["depth"]}, np.percentile(sample["depth"].numpy(), (1, 99)))):
        note, = [t.get_text() for t in sample_strip(s, panels=["depth"]).axes[0].texts if t.get_text().endswith(" m")]
        assert note == f"{low:.1f} to {high:.1f} m"


def test_a_place_keeps_the_aspect():
    place = Place(1.0, 2.0, 1.0, (50, 100))
    assert place.points((0, 0)).tolist() == [1.0, 2.25] and place.points((100, 50)).tolist() == [2.0, 2.75]


# ------------------------------------------------------------------------------------------------ scenes
def test_points_come_back_to_their_pixels_by_hand():
    K, R, t = np.array([[80.0, 0, 30], [0, 90.0, 20], [0, 0, 1]]), np.array([[0, -1.0, 0], [0, 0, -1], [1, 0, 0]]), np.array([0.1, 0.2, 0.3])
    depth = np.random.default_rng(0).uniform(1, 4, (40, 60)); depth[::3] = 0
    cloud = depth_points(depth, dict(K=torch.tensor(K), R=torch.tensor(R), t=torch.tensor(t)))
    inside = cloud.points @ R.T + t                                          # x_cam = R X + t, written out
    assert len(inside) == (depth > 0).sum()
    pixels = np.stack([80*inside[:, 0]/inside[:, 2] + 30, 90*inside[:, 1]/inside[:, 2] + 20], 1)
    assert np.allclose(pixels, cloud.pixels, atol=1e-9)
    column, row = np.floor(pixels).astype(int).T
    assert np.allclose(inside[:, 2], depth[row, column])
    assert np.allclose(depth_points(depth, dict(K=K, R=R, t=t), frame="camera").points, inside)


def test_points_come_back_through_a_lens(sample):
    base = toy_camera(-30, image_size=(96, 72), focal=1.6)
    lens = Camera(base.K, base.R, base.t, (0.15, -0.1, 0.002, -0.001, 0.02), base.image_size)
    cloud = depth_points(sample["depth"], lens, sample["image"], mask=sample["body_parts"] > 0)
    assert np.abs(lens.project(torch.from_numpy(cloud.points)).numpy() - cloud.pixels).max() < 1e-4
    assert np.allclose(cloud.colours, sample["image"].permute(1, 2, 0)[sample["body_parts"] > 0])


@pytest.mark.parametrize("wrong, says", [(dict(depth=torch.zeros(96, 72)), "no pixel has a reading"), (dict(far=0.5), "within the mask and range"), (dict(mask=torch.zeros(9, 9)), "the mask is \\(9, 9\\)"),
                                         (dict(image=torch.zeros(3, 9, 9)), "the image is \\(9, 9\\)"), (dict(camera=look_at((0, 0, 0), (1, 0, 0), 50, (10, 10))), "a crop changes the camera"),
                                         (dict(camera=dict(K=np.eye(3))), "R, t"), (dict(frame="body"), "frame='body'")])
def test_a_cloud_that_cannot_be_is_refused(sample, wrong, says):
    with pytest.raises(ValueError, match=says): depth_points(**(dict(depth=sample["depth"], camera=sample["camera"]) | wrong))


@pytest.mark.parametrize("most", [100, 1000, 5000])
def test_decimation_keeps_to_its_number_and_to_the_body(most):
    full = Mesh(*toy_mesh(ToyPerson()))
    light = decimate(full, most)
    assert most*0.5 < len(light.faces) <= most and len(light.colours) == len(light.vertices) and light.faces.max() < len(light.vertices)
    nearest = np.sqrt(((light.vertices[:, None] - full.vertices[None, ::3])**2).sum(-1)).min(1)
    assert nearest.max() < 0.2 and (most < 1000 or np.median(nearest) < 0.03)
    assert decimate(full, len(full.faces)) is full


def test_bytes_of_a_scene(sample, tmp_path):
    camera, person = toy_camera(-30, image_size=(96, 72), focal=1.6), ToyPerson()
    big = Mesh(np.random.default_rng(0).normal(size=(70_000, 3)), np.random.default_rng(1).integers(0, 70_000, (140_000, 3)), np.random.default_rng(2).random((70_000, 3)))
    cloud = Cloud(np.random.default_rng(3).normal(size=(200_000, 3)), np.random.default_rng(4).random((200_000, 3)))
    figure = scene_figure([Mesh(*toy_mesh(person)), big], [cloud, depth_points(sample["depth"], camera, sample["image"])], person.joints, "H36M17", camera)
    stored = figure.to_json()
    assert len(stored) < 420_000 and "NaN" not in stored, len(stored)
    data = json.loads(stored)["data"]
    meshes, clouds = [t for t in data if t["type"] == "mesh3d"], [t for t in data if t.get("mode") == "markers"]
    assert [t["x"]["dtype"] for t in meshes + clouds] == ["f4"]*4 and [t["i"]["dtype"] for t in meshes] == ["u2", "u2"] and [t["intensity"]["dtype"] for t in meshes] == ["u1", "u1"]
    assert [t["marker"]["color"]["dtype"] for t in clouds] == ["u1", "u1"] and "6,000 of 200,000 points" in clouds[0]["name"] and "of 140,000 faces" in meshes[1]["name"]
    page = save_figure(scene_figure(Mesh(*toy_mesh(person))), tmp_path/"body.html")
    assert page.stat().st_size < 110_000 and "://" not in page.read_text(encoding="utf-8")
    assert len(scene_figure(Mesh(*toy_mesh(person)), most_faces=500).to_json()) < 25_000


def test_a_scene_has_equal_axes_and_turns_without_a_mirror(sample):
    for up in ("z", "-y"):
        figure = scene_figure(joints3d=sample["joints3d"], skeleton="H36M17", up=up)
        room = figure.layout.scene
        assert np.ptp([room.aspectratio[a]/np.ptp(room[f"{a}axis"].range) for a in "xyz"]) < 0.01
    left = next(t for t in figure.data if t.name and t.name.startswith("left"))
    right = next(t for t in figure.data if t.name and t.name.startswith("right"))
    assert np.nanmean(left.x) > np.nanmean(right.x), "who faces the camera has the left side on the right"
    with pytest.raises(ValueError, match="empty"): scene_figure()
    with pytest.raises(ValueError, match="come together"): scene_figure(joints3d=sample["joints3d"])
    with pytest.raises(ValueError, match="Mesh objects"): scene_figure(meshes=np.zeros((3, 3)))
    with pytest.raises(ValueError, match="limits"): scene_figure(joints3d=sample["joints3d"], skeleton="H36M17", limits=np.zeros((3, 2)))


def test_meshes_that_cannot_be():
    for wrong, says in (((np.zeros((3, 3)), np.array([[0, 1, 3]])), "name 0 to 3"), ((np.zeros((3, 2)), np.zeros((0, 3))), "shape \\(3, 2\\)"), ((np.zeros((4, 3)), np.array([[0, 1, 2, 3]])), "quads into triangles"),
                        ((np.zeros((3, 3)), np.array([[0, 1, 2]]), np.full((3, 3), 200.0)), "\\[0,1\\]"), ((np.zeros((3, 3)), np.array([[0, 1, 2]]), np.zeros((2, 3))), "\\(3,3\\)")):
        with pytest.raises(ValueError, match=says): Mesh(*wrong)


def test_the_frustum_points_where_the_camera_looks():
    camera = look_at((2, 0, 1), (0, 0, 1), 100, (80, 60))
    lines = frustum(camera, reach=0.5)
    assert np.allclose(lines[:4, 0], (2, 0, 1)) and np.allclose(lines[:4, 1, 0], 1.5) and np.allclose(sorted(set(lines[:4, 1, 2].round(6))), (0.8, 1.2)), "80 rows of 0.5/100 m each"


# ------------------------------------------------------------------------------------------------ features
def features(n=500, channels=12, seed=0):
    "Rows with three clear directions of unequal weight, each with a tail."
    g = np.random.default_rng(seed)
    return (g.exponential(size=(n, 3))*(3.0, 2.0, 1.2)) @ np.linalg.qr(g.normal(size=(channels, channels)))[0][:3] + 0.05*g.normal(size=(n, channels))


def test_colours_do_not_depend_on_order_sign_or_rotation():
    rows = features()
    colours = fit_colours(rows)
    order = np.random.default_rng(1).permutation(len(rows))
    assert np.abs(fit_colours(rows[order])(rows) - colours(rows)).max() < 1e-9
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(12, 12)))[0]
    for matrix in (turn, -np.eye(12), np.diag([-1.0, *[1]*11])): assert np.abs(fit_colours(rows @ matrix)(rows @ matrix) - colours(rows)).max() < 1e-6
    assert (colours.explained[:-1] >= colours.explained[1:]).all() and colours.explained.sum() > 0.99
    single = rows.astype(np.float32)
    assert np.abs(fit_colours(single)(single) - colours(rows)).max() < 1e-3


def test_the_directions_are_those_of_an_svd_with_the_tail_upwards():
    rows = features(seed=5)
    colours, centred = fit_colours(rows), rows - rows.mean(0)
    svd = np.linalg.svd(centred, full_matrices=False)[2][:3]
    assert np.allclose(np.abs((svd*colours.directions).sum(1)), 1, atol=1e-9)
    assert ((centred @ colours.directions.T)**3).mean(0).min() > 0


def test_a_solver_that_turns_its_signs_changes_nothing(monkeypatch):
    rows = features()
    before, eigh = fit_colours(rows)(rows), np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda m: (eigh(m)[0], -eigh(m)[1]))
    assert np.allclose(fit_colours(rows)(rows), before)


def test_background_spends_no_colour_and_one_fit_is_shared():
    person = features(300)
    grid = np.concatenate([person, np.full((300, 12), 50.0)]).T.reshape(12, 20, 30)
    mask = np.arange(600).reshape(20, 30) < 300
    masked, unmasked = fit_colours(grid, mask), fit_colours(grid)
    assert np.allclose(masked.directions, fit_colours(person).directions)
    assert unmasked(person).std(0)[0] < 0.1 < masked(person).std(0)[0], "without a mask the first colour is the background"
    shared = fit_colours([grid, grid[:, :10]], [mask, mask[:10]])
    assert np.allclose(shared.directions, masked.directions), "twice the same people: the same directions"
    fig = plot_features([grid, grid], [mask, mask], [np.zeros((3, 40, 60))]*2)
    drawn = [np.asarray(ax.images[0].get_array()) for ax in fig.axes[2:]]
    assert np.allclose(drawn[0], drawn[1]) and np.allclose(drawn[0][~mask], rgb(BACKGROUND))


def test_flat_and_broken_features():
    flat = np.ones((10, 5))
    assert np.allclose(fit_colours(flat)(flat), 0.5)
    for wrong, says in ((np.ones((10, 2)), "fill three colours"), (np.ones(4), "shape \\(4,\\)"), (np.full((10, 4), np.inf), "NaN or infinite"), (np.ones((2, 8)), "at least 4")):
        with pytest.raises(ValueError, match=says): fit_colours(wrong)
    with pytest.raises(ValueError, match="7 channels"): fit_colours(features())(np.ones((3, 7)))
    with pytest.raises(ValueError, match="one of each"): plot_features([np.ones((4, 3, 3))]*2, [np.ones((3, 3))])


def test_attention_lights_what_is_looked_at():
    image, weights = torch.full((3, 40, 40), 0.5), torch.zeros(4, 4)
    weights[1, 2] = 1.0
    seen = attention_image(weights, image)
    assert seen[15, 25].mean() > seen[35, 5].mean() and np.ptp(seen[35, 5]) < 1e-9 < np.ptp(seen[15, 25]), "grey where nothing is looked at"
    assert "1 of 16 cells" in plot_attention(weights, image).get_xlabel() and "8 of 16" in plot_attention(torch.ones(4, 4), image).get_xlabel()
    for wrong, says in ((weights - 1, "softmax first"), (0*weights, "all attention weights are 0"), (weights[None], "pick a head")):
        with pytest.raises(ValueError, match=says): plot_attention(wrong, image)


def test_channels_share_one_scale_and_the_strongest_are_shown():
    maps = np.random.default_rng(0).normal(size=(20, 6, 6))*np.arange(1, 21)[:, None, None]
    fig = plot_channels(maps, most=4, columns=2)
    shown = [ax for ax in fig.axes if ax.images]
    assert [ax.get_title() for ax in shown] == ["16", "17", "18", "19"] or sorted(int(ax.get_title()) for ax in shown) == sorted(np.argsort(maps.var((1, 2)))[-4:].tolist())
    assert len({ax.images[0].norm.vmax for ax in shown}) == 1 and all(ax.images[0].norm.vmin == -ax.images[0].norm.vmax for ax in shown)


# ------------------------------------------------------------------------------------------------ the toy that all of it is tried on
def test_toy_samples_keep_the_contract(sample, group):
    for s in (sample, group): validate({k: v for k, v in s.items() if k != "normals"})
    again = toy_sample([ToyPerson(walking_joints(0.9, wave=1.0), shorts=True)], toy_camera(-30, image_size=(96, 72), focal=1.6), fine=1, normals=True)
    assert all(torch.equal(again[k], sample[k]) for k in ("image", "depth", "body_parts", "iuv", "joints2d")), "same input, same bytes"


def test_toy_rays_meet_the_sphere_where_geometry_says():
    from hclab.viz.toy import Limb
    ball = Limb(np.zeros(3), np.array([0, 0, 1e-9]), 0.5, 0.5, 1.0, ((1, 1),), ((1, 1),), (1, 2))
    t, _, n = hit_limb(ball, np.array([[3.0, 0, 0], [3.0, 0.3, 0], [3.0, 0.6, 0]]), np.array([[-1.0, 0, 0]]*3))
    assert np.allclose(t[:2], (2.5, 3 - 0.4)) and np.isinf(t[2]) and np.allclose(n[0], (1, 0, 0)) and np.allclose(n[1], (0.8, 0.6, 0))
    tube = Limb(np.array([0, 0, -5.0]), np.array([0, 0, 5.0]), 0.2, 0.2, 0.5, ((1, 1),), ((1, 1),), (1, 2))
    t, share, n = hit_limb(tube, np.array([[3.0, 0, 1.0], [0, 3.0, 1.0]]), np.array([[-1.0, 0, 0], [0, -1.0, 0]]))
    assert np.allclose(t, (2.9, 2.8)) and np.allclose(share, 0.6) and np.allclose(n, ((1, 0, 0), (0, 1, 0))), "half as thick from front to back"


def test_toy_points_lie_on_the_toy_and_the_mesh_too(sample):
    person = ToyPerson(walking_joints(0.9, wave=1.0), shorts=True)
    cloud = depth_points(sample["depth"], sample["camera"], mask=sample["body_parts"] > 0)

    def outside(points):
        "Distance to the nearest limb whose cross-section is round, minus its radius there."
        found = np.full(len(points), np.inf)
        for limb in toy_limbs(person):
            s = np.linspace(0, 1, 400)[:, None]
            axis, radius = (limb.a + s*(limb.b - limb.a))/(limb.flat, 1, 1), (limb.ra + s*(limb.rb - limb.ra))[:, 0]
            found = np.minimum(found, (np.linalg.norm(points[:, None]/(limb.flat, 1, 1) - axis, axis=-1) - radius).min(1))
        return found

    assert np.abs(outside(person.to_body(cloud.points[::11]))).max() < 2e-3
    assert outside(person.to_body(toy_mesh(person)[0][::9])).max() < 6e-3


def test_left_is_left_in_every_map():
    front, back = (toy_sample([ToyPerson(walking_joints(0.0))], toy_camera(azimuth, image_size=(96, 72)), fine=1) for azimuth in (0.0, 180.0))
    column = lambda mask: float(mask.nonzero()[:, 1].float().mean())
    for s, sign in ((front, 1), (back, -1)):
        for key, kind in (("body_parts", "body_parts"), ("garments", "garments")):
            for i, j in labels(kind).pairs:
                if (s[key] == i).sum() > 5 and (s[key] == j).sum() > 5: assert sign*(column(s[key] == i) - column(s[key] == j)) > 0, (key, i)
        for i, j in labels("surface").pairs:
            if (s["iuv"][0] == i).sum() > 5 and (s["iuv"][0] == j).sum() > 5: assert sign*(column(s["iuv"][0] == i) - column(s["iuv"][0] == j)) > 0, i
    assert (front["iuv"][0] == 2).sum() > 0 == (front["iuv"][0] == 1).sum() and (back["iuv"][0] == 1).sum() > 0 == (back["iuv"][0] == 2).sum()


def test_sensor_holes_are_zero_and_readings_are_near_the_truth(sample):
    read = toy_sensor(sample["depth"], seed=3)
    assert torch.equal(read, toy_sensor(sample["depth"], seed=3)) and (read[sample["depth"] > 4.6] == 0).all()
    ok = read > 0
    assert (read - sample["depth"])[ok].abs().max() < 0.2 and cast([], np.zeros((2, 3)), np.ones((2, 3)))["t"].tolist() == [np.inf]*2


def test_every_panel_is_of_this_room():
    "A picture of a sample must not need the data room: viz lies below it."
    for name in ("toy", "dense", "strip", "scene", "features"):
        text = (ROOT/"hclab"/"viz"/f"{name}.py").read_text(encoding="utf-8")
        assert "hclab.data" not in text and "..data" not in text
    assert set(LABELS) == {*LISTS, "instance_ids"}
