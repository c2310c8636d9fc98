"""Clothes, hair, labels and looks on people in poses: what rays see must agree, and skin must stay under cloth."""
from dataclasses import replace

import numpy as np
import open3d as o3d
import pytest
import torch

from hclab.core.config import ConfigError
from hclab.core.geometry import look_at
from hclab.data import render as rendering
from hclab.data.body import Shape, body, draw_shape, pose_from_clip
from hclab.data.cast import RenderError, Scene, ways_through
from hclab.data.chart import REGIONS, chart_of, region_of, region_shares
from hclab.data.dress import SOLE, dress, outfit
from hclab.data.grammar import generate
from hclab.data.hair import STYLES, above_hairline, hair
from hclab.data.identity import ATTRIBUTES, VIEWS, attributes, caption, identity, judged
from hclab.data.labels import BODY_PARTS, CHARTS, GARMENTS, body_parts, garment_ids, surface
from hclab.data.light import draw_light
from hclab.data.looks import LAYERS, Look, draw_look, paint
from hclab.data.pieces import cut, neutral, piece_of, put_on, refined
from hclab.data.render import shade_people
from hclab.data.wardrobe import BOTTOMS, GARMENTS as CLOTHES, TOPS, garment, sewn

SIZE = 160


def person(number, action=None, frame=10, **wear):
    "A person of the city in a frame of an action, perhaps in other clothes, and their posed body."
    layer, who = body(), identity(number)
    c = layer.coefficients(who.shape.values()[None])
    with torch.no_grad():
        if action is None: posed = layer(c)
        else:
            rotations, places = pose_from_clip(layer, c, generate(action, number, 1.2, fps=25, layout="FIGURE"))
            posed = layer(c, rotations[frame:frame + 1], places[frame:frame + 1])
    return dress(layer, replace(who.look, **wear), who.shape, posed), posed


def seen(*people, azimuth=30.0):
    "Hits of a camera that looks at people from `azimuth` degrees beside -y."
    low, high = np.min([p.vertices.min(0) for p in people], 0), np.max([p.vertices.max(0) for p in people], 0)
    middle, a = (low + high)/2, np.radians(azimuth)
    eye = middle + 3.2*np.array([np.sin(a), -np.cos(a), .12])
    camera = look_at(torch.tensor(eye), torch.tensor(middle), 1.35*SIZE, (SIZE, SIZE))
    y, x = (g.ravel() + .5 for g in np.mgrid[0:SIZE, 0:SIZE].astype(float))
    return Scene(list(people)).cast(camera.centre.numpy().astype(np.float32), ways_through(camera, x, y)), camera


# ------------------------------------------------------------------------------------------------ pieces
def test_a_cut_keeps_exactly_what_is_positive_and_its_edge_is_on_the_line():
    tights = piece_of("tights")
    value = tights.neutral @ np.array([.3, -.2, 1.0]) - .1
    part = cut(tights, value)
    inside = part.neutral @ np.array([.3, -.2, 1.0]) - .1
    assert inside.min() > -1e-6 and np.allclose(part.share.sum(1), 1)
    area = lambda p: np.linalg.norm(np.cross(p.neutral[p.triangles[:, 1]] - p.neutral[p.triangles[:, 0]], p.neutral[p.triangles[:, 2]] - p.neutral[p.triangles[:, 0]]), axis=1).sum()/2
    assert area(part) + area(cut(tights, -value)) == pytest.approx(area(tights), rel=1e-6), "the two sides make the whole"
    assert area(refined(tights)) == pytest.approx(area(tights), rel=1e-6)


def test_pieces_follow_the_body():
    _, posed = person(3, "walk")
    skin = piece_of("skin")
    assert np.allclose(put_on(skin, posed), posed.vertices[0, skin.ends[:, 0]].numpy(), atol=1e-6)
    jacket = sewn("jacket")
    apart = np.linalg.norm(put_on(jacket, posed) - jacket.between(posed.vertices[0].numpy()), axis=1)
    assert (apart <= np.linalg.norm(jacket.off, axis=1)*1.01 + 1e-6).all() and np.median(apart) > .015


# ------------------------------------------------------------------------------------------------ clothes
@pytest.mark.parametrize("name", list(CLOTHES))
def test_hems_are_clean(name):
    cloth = sewn(name)
    edges = np.sort(np.concatenate([cloth.triangles[:, [0, 1]], cloth.triangles[:, [1, 2]], cloth.triangles[:, [2, 0]]]), axis=1)
    found, count = np.unique(edges, axis=0, return_counts=True)
    assert count.max() <= 2, "no edge has three triangles"
    border = np.unique(found[count == 1])
    inside = garment(name).pattern(chart_of(cloth))[border]
    whole = piece_of(garment(name).group)
    assert np.mean(np.abs(inside) < .004) > .85 or len(whole.triangles) == len(cloth.triangles), f"{np.mean(np.abs(inside) < .004):.0%} of the border's vertices lie on the pattern's line"
    assert np.isfinite(cloth.off).all() and np.linalg.norm(cloth.off, axis=1).max() < .13


def mesh_of(vertices, triangles):
    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    scene.add_triangles(o3d.core.Tensor(vertices.astype(np.float32)), o3d.core.Tensor(triangles.astype(np.uint32)))
    return lambda starts, ways: scene.cast_rays(o3d.core.Tensor(np.concatenate([np.broadcast_to(starts, ways.shape), ways], 1).astype(np.float32)), nthreads=1)["t_hit"].numpy()


def skin_faults(who, posed, azimuth):
    """Of all pixels of a person: where the whole naked body, nothing left out, lies 4 mm and more before what is seen (a hole where skin was left out, or skin that stands out of the cloth);
    where skin is seen that clothes cover and they lie inside the body behind it (cloth that sank in)."""
    hits, _ = seen(who, azimuth=azimuth)
    skin = piece_of("skin")
    naked = mesh_of(posed.vertices[0].numpy() + [0, 0, SOLE], skin.ends[:, 0][skin.triangles])
    before = int((naked(hits.origin, hits.ways) < hits.far - .004).sum())
    layer, chart = hits.of(hits.scene.layer), hits.chart()
    covered = np.max([garment(n).pattern(chart) for n in (who.look.top, who.look.bottom, "shoes")], 0) > .012
    at = np.flatnonzero(hits.met)[(layer == LAYERS.index("skin")) & covered]
    ways, starts = hits.ways[at], hits.origin + hits.ways[at]*(hits.far[at, None] + .001)
    cloth = mesh_of(who.vertices, who.outfit.triangles[np.isin(who.outfit.layer, [LAYERS.index(k) for k in ("top", "bottom", "shoes")])])
    sunk = int((cloth(starts, ways) < naked(starts, ways) - .002).sum()) if len(at) else 0
    return np.array([before, sunk, hits.met.sum()])


@pytest.mark.parametrize("bottom, action", [*((b, a) for b in ("skirt", "trousers") for a in ("squat", "kick", "sit_down", "lunge")), *((None, a) for a in ("walk", "throw", "stretch", "reach"))])
def test_nothing_pokes_through(bottom, action):
    wear = {"bottom": bottom} if bottom else {}
    before, sunk, total = sum(skin_faults(*person(number, action, frame, **wear), azimuth) for number, azimuth in ((1, 20), (4, 200), (9, 110)) for frame in (14, 29))
    assert before/total < .001, f"{before} of {total} pixels: naked skin lies before what is seen"
    assert sunk/total < .001, f"{sunk} of {total} pixels: skin is seen through cloth"


def test_who_falls_in_a_skirt_shows_some_skin():
    "The limit that `15h_drape` tells: cloth knows nothing of the floor, nor of a body that lies on it."
    before, sunk, total = sum(skin_faults(*person(number, "fall", frame, bottom="skirt"), azimuth) for number, azimuth in ((1, 20), (4, 200), (9, 110)) for frame in (14, 29))
    assert before/total < .002 and sunk/total < .008, f"{before} and {sunk} of {total} pixels"


@pytest.mark.parametrize("style", list(STYLES))
def test_hair_stays_out_of_the_face_and_out_of_the_shirt(style):
    layer, shape = body(), Shape(female=1.0)
    with torch.no_grad(): posed = layer(layer.coefficients(shape.values()[None]))
    front, _ = seen(dress(layer, Look(hair=style), shape, posed), azimuth=0)
    plain, _ = seen(dress(layer, Look(hair="bald"), shape, posed), azimuth=0)
    face = lambda h: (h.of(h.scene.layer) == LAYERS.index("eyes")).sum()
    assert face(front) >= .8*face(plain), "hair hides the eyes"
    if style == "long":
        back, _ = seen(dress(layer, Look(hair=style), shape, posed), azimuth=180)
        chart, locks = back.chart(), back.of(back.scene.layer) == LAYERS.index("hair")
        low = chart.z < neutral().heads["neck01"][2] - .03
        assert (locks & low).sum() > 40, "long hair is seen on the back"


@pytest.mark.parametrize("seed", range(3))
def test_long_hair_falls_beside_the_head_and_not_over_the_shoulders_like_a_cape(seed):
    for style in ("bob", "long"):
        places = hair(style, seed)[1].neutral
        assert np.abs(places[:, 0]).max() < .145, "shoulders are .19 wide and more, to either side"


def test_the_hairline_is_where_hair_begins():
    for seed in (0, 3):
        for piece in hair("short", seed)[:1]: assert np.mean(above_hairline(piece.neutral, seed) > -1e-3) > .98   # the line jumps around the ears


# ------------------------------------------------------------------------------------------------ labels
def test_labels_agree_with_each_other_on_everybody():
    for number, action, azimuth in ((0, "walk", 0), (2, "throw", 70), (5, "squat", 180), (7, "wave", 290)):
        who, _ = person(number, action)
        hits, _ = seen(who, azimuth=azimuth)
        chart = hits.chart()
        parts, garments, iuv = body_parts(chart), garment_ids(chart, hits.of(hits.scene.worn)), surface(chart)
        assert parts.min() >= 1 and parts.max() <= 24 and garments.min() >= 1 and garments.max() <= 19 and iuv[:, 0].min() >= 1 and iuv[:, 1:].min() >= 0 and iuv[:, 1:].max() <= 1
        side_of = lambda names, ids: np.array([("left" in names[i]) - ("right" in names[i]) for i in ids])
        a, b, c = side_of(BODY_PARTS, parts), side_of(CHARTS, iuv[:, 0].astype(int)), side_of([g.replace("-", " ") for g in GARMENTS], garments)
        for x, y in ((a, b), (a, c), (b, c)): assert not (x*y < 0).any(), "one map says left where another says right"
        head = np.array(["head" in CHARTS[int(i)] for i in iuv[:, 0]])
        assert np.mean(head == (parts == BODY_PARTS.index("head"))) > .999
        layer = hits.of(hits.scene.layer)
        assert set(garments[layer == LAYERS.index("hair")]) <= {GARMENTS.index("hair")} and set(garments[layer == LAYERS.index("shoes")]) <= {18, 19}
        assert set(garments[layer == LAYERS.index("top")]) <= {GARMENTS.index(garment(who.look.top).label)}


def test_left_is_left_in_the_picture_of_somebody_who_faces_the_camera():
    who, posed = person(3)
    hits, camera = seen(who, azimuth=0)
    x = np.tile(np.arange(SIZE), SIZE)[hits.met]
    chart = hits.chart()
    for names, ids in ((BODY_PARTS, body_parts(chart)), (CHARTS, surface(chart)[:, 0].astype(int))):
        left, right = (np.isin(ids, [i for i, n in enumerate(names) if n.startswith(side)]) for side in ("left", "right"))
        assert x[left].mean() > SIZE/2 > x[right].mean(), "the person's left is on the viewer's right"


def test_visible_joints_lie_on_the_person():
    layer = body()
    for number, action in ((1, "walk"), (6, "reach"), (8, "kick")):
        who, posed = person(number, action)
        hits, camera = seen(who, azimuth=40)
        mask = hits.met.reshape(SIZE, SIZE)
        joints = layer.joints(posed, "COCO17")[0] + torch.tensor([0, 0, SOLE])
        pixels = camera.project(joints.double()).numpy()
        depth = np.where(mask, hits.far.reshape(SIZE, SIZE), np.inf)
        for (px, py), z in zip(pixels, camera.to_camera(joints.double())[:, 2].numpy()):
            if 2 <= px < SIZE - 2 and 2 <= py < SIZE - 2:
                window = depth[int(py) - 2:int(py) + 3, int(px) - 2:int(px) + 3]
                assert np.isfinite(window).any(), "a joint of the body projects beside its person"
                assert window.min() < z + .03, "a joint lies in front of all of the person's surface"


def test_regions_cover_all_bones_and_vertices():
    assert {region_of(b) for b in body().mesh.bones} == set(REGIONS)
    assert np.allclose(region_shares().sum(1), 1, atol=1e-5)


# ------------------------------------------------------------------------------------------------ looks and words
def test_colours_are_albedos():
    rng = np.random.default_rng(0)
    chart = chart_of(piece_of("tights"))
    for _ in range(12):
        shape = draw_shape(rng)
        look = draw_look(rng, shape)
        for k in range(len(LAYERS)):
            colour, gloss = paint(look, shape, np.full(len(chart.places), k), chart)
            assert .003 <= colour.min() and colour.max() <= .9 and gloss.min() >= 0 and np.isfinite(colour).all()


def test_patterns_stick_to_the_cloth(monkeypatch):
    "The same places of the same triangles in two poses: the renderer paints them the same, though they are elsewhere in the world."
    look, painted = dict(top="longsleeve", pattern="checks", top_colour="red", top_second="white", bottom="skirt"), []
    def remembered(*args):
        painted.append(paint(*args))
        return painted[-1]
    monkeypatch.setattr(rendering, "paint", remembered)
    here, _ = seen(person(3, "walk", **look)[0])
    there = replace(here, scene=Scene([person(3, "kick", 20, **look)[0]]))     # triangles and places on them as they were met before
    assert np.linalg.norm(here.between(here.scene.vertices) - there.between(there.scene.vertices), axis=1).mean() > .05
    assert (here.chart().places == there.chart().places).all() and (here.chart().regions == there.chart().regions).all()
    sun = np.tile(np.float32([0, -.6, .8]), (here.met.sum(), 1))
    for hits in (here, there): shade_people(hits, draw_light(np.random.default_rng(0)), sun, np.ones(len(sun), np.float32), 1/300)
    assert all((a == b).all() for a, b in zip(*painted)), "colour or gloss changed with the pose"
    top = painted[0][0][here.of(here.scene.layer) == LAYERS.index("top")]
    assert np.ptp(top[:, 1]) > .3, "red and white are both seen"


def test_clothes_differ_from_what_is_beside_them():
    for number in range(60):
        look = identity(number).look
        assert look.top_colour != look.bottom_colour and look.top in TOPS and look.bottom in BOTTOMS
    assert len({identity(n).look for n in range(60)}) == 60


def test_a_person_is_the_same_again_and_changes_only_clothes():
    for n in range(20):
        a, b = identity(n), identity(n, clothes=2)
        assert identity(n) == a and a.shape == b.shape and (a.look.skin, a.look.hair, a.look.hair_colour, a.look.iris, a.look.beard, a.look.seed) == (b.look.skin, b.look.hair, b.look.hair_colour, b.look.iris, b.look.beard, b.look.seed)
    assert identity(0, seed=1) != identity(0)
    with pytest.raises(ConfigError, match="counted from 0"): identity(-1)


def test_attributes_are_consistent_and_captions_tell_them():
    for n in range(40):
        who = identity(n)
        for view in VIEWS:
            a = dict(zip(ATTRIBUTES, attributes(who, view)))
            assert sum(a[f"{k} sleeves"] for k in ("short", "long", "no")) == 1 and sum(a[k] for k in BOTTOMS) == 1 and sum(a[f"seen from the {v}"] for v in VIEWS) == 1
            assert sum(a[b] for b in ("teenager", "adult", "old")) == 1 and sum(a[f"{k} hair"] for k in ("no", "short", "medium", "long")) == 1
        text = caption(who, "back", "sit_down", template=n % 4)
        assert text[0].isupper() and text.endswith(".") and "sit down" in text and "_" not in text
    assert not judged({}, "front").any()
    for word in ("african", "asian", "caucasian"): assert not any(word in name for name in ATTRIBUTES)


# ------------------------------------------------------------------------------------------------ errors
@pytest.mark.parametrize("wrong, says", [(lambda: garment("shrit"), "did you mean"), (lambda: hair("mohican"), "no hair style"), (lambda: Look(pattern="dots"), "Look.pattern='dots'"),
                                         (lambda: cut(piece_of("tights"), -np.ones(len(piece_of("tights").ends))), "nothing is left"), (lambda: piece_of("socks"), "no group 'socks'")])
def test_unknown_words_are_said(wrong, says):
    with pytest.raises((ConfigError, ValueError), match=says): wrong()


def test_a_scene_of_nobody_and_a_broken_pose():
    empty = Scene([])
    hits = empty.cast(np.zeros(3, np.float32), np.ones((5, 3), np.float32))
    assert not hits.met.any() and empty.free(np.zeros((4, 3)), np.ones(3)).all()
    who, _ = person(0)
    object.__setattr__(who, "vertices", np.full_like(who.vertices, np.nan))
    with pytest.raises(RenderError, match="not finite"): Scene([who])


def test_outfits_of_the_same_cut_are_shared():
    a, b = Look(top_colour="red", seed=6), Look(top_colour="green", seed=12)
    assert outfit(a) is outfit(b)
