"""The drawn world: what its notes promise of every sample, and of the same sample drawn again."""
import hashlib
import multiprocessing
from dataclasses import replace
from functools import partial

import numpy as np
import open3d as o3d
import pytest
import torch

from hclab.core.config import ConfigError
from hclab.core.metrics import cmc_map
from hclab.core.sample import validate
from hclab.core.skeleton import SKELETONS, skeleton
from hclab.data import cast, store, world
from hclab.data.augment import Rules, mirror, warp
from hclab.data.backdrops import draw_backdrop
from hclab.data.body import body
from hclab.data.dress import joints_in
from hclab.data.grammar import ACTIONS
from hclab.data.identity import ATTRIBUTES, CLOTHES, VIEWS
from hclab.data.labels import BODY_PARTS, CHARTS, GARMENTS
from hclab.data.materials import colour, painted
from hclab.data.occlusion import with_things
from hclab.data.render import Settings, render
from hclab.data.scenery import Box
from hclab.data.shards import Stored
from hclab.data.store import set_folder
from hclab.data.world import BEHIND, SETS, World, WorldConfig, WorldError, draw_sample, draw_scene, meeting, post, ready_made, round_of, stored_as, to_sample, view_of, visibility

SMALL = replace(SETS["rgbd"], size=(128, 128))


@pytest.fixture(scope="module")
def scenes():
    "A few scenes of several kinds, with their samples."
    configs = [SMALL, replace(SETS["crowd"], size=(144, 144)), replace(SETS["depth_pose"], size=(128, 128)), replace(SETS["sports"], size=(128, 128)), replace(SMALL, layout="WHOLEBODY133")]
    return [(c, i, draw_scene(c, i), validate(draw_sample(c, i))) for c in configs for i in (0, 1)]


def digest(sample) -> str:
    h = hashlib.sha256()
    for key in sorted(sample):
        value = sample[key]
        h.update(key.encode() + (value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr({k: v.tolist() for k, v in value.items()} if isinstance(value, dict) else value).encode()))
    return h.hexdigest()


def _digest_of(index): return digest(draw_sample(SMALL, index))


# ------------------------------------------------------------------------------------------------ ground truth
def test_all_maps_agree_on_who_is_where(scenes):
    for _, _, _, s in scenes:
        somebody = s["instance_ids"] > 0
        assert ((s["body_parts"] > 0) == somebody).all() and ((s["garments"] > 0) == somebody).all() and ((s["iuv"][0] > 0) == somebody).all()
        assert somebody.any() and int(s["instance_ids"].max()) <= len(s["boxes"])


def test_visible_joints_project_into_their_persons_mask(scenes):
    inside = total = 0
    for c, _, _, s in scenes:
        H, W = c.size
        for n in range(len(s["joints2d"])):
            mask = (s["instance_ids"] == n + 1).numpy()
            for (x, y), v in zip(s["joints2d"][n].numpy(), s["visibility"][n]):
                if v != 2: continue
                x0, y0 = int(x), int(y)
                total += 1
                inside += bool(mask[max(y0 - 1, 0):y0 + 2, max(x0 - 1, 0):x0 + 2].any())
    assert total > 150 and inside/total > .95, f"{inside} of {total} visible joints lie on their person (one pixel of tolerance)"


def test_joints2d_are_the_projection_of_joints3d(scenes):
    for *_, s in scenes:
        K = s["camera"]["K"].double()
        image = s["joints3d"].double() @ K.T
        assert torch.allclose(image[..., :2]/image[..., 2:], s["joints2d"].double(), atol=2e-2)


def test_depth_lies_on_the_mesh(scenes):
    for c, _, scene, _ in scenes:
        if c.sensor_depth: continue
        H, W = c.size
        for k, actor in enumerate(scene.actors[:2]):
            y, x = np.nonzero(scene.picture.instance_ids == k + 1)
            if len(x) < 20: continue
            K, z = scene.camera.K.numpy(), scene.picture.depth[y, x].astype(np.float64)
            local = np.stack([(x + .5 - K[0, 2])/K[0, 0]*z, (y + .5 - K[1, 2])/K[1, 1]*z, z], 1)
            world = scene.camera.to_world(torch.from_numpy(local)).numpy().astype(np.float32)
            mesh = o3d.t.geometry.RaycastingScene(nthreads=1)
            mesh.add_triangles(o3d.core.Tensor(actor.person.vertices), o3d.core.Tensor(actor.person.outfit.triangles.astype(np.uint32)))
            assert mesh.compute_distance(o3d.core.Tensor(world)).numpy().max() < 1e-3


def test_boxes_hold_their_masks_and_meshes(scenes):
    for _, _, scene, s in scenes:
        for n in range(len(scene.actors)):
            y, x = (s["instance_ids"] == n + 1).nonzero(as_tuple=True)
            if len(x):
                x1, y1, x2, y2 = s["visible_boxes"][n].tolist()
                assert (x1, y1, x2, y2) == (x.min(), y.min(), x.max() + 1, y.max() + 1)
                bx1, by1, bx2, by2 = s["boxes"][n].tolist()
                assert bx1 <= x1 + 1 and by1 <= y1 + 1 and bx2 >= x2 - 1 and by2 >= y2 - 1


FACE_SIDES = {**{i: 16 - i for i in range(17)}, **{i: 43 - i for i in range(17, 27)}, **{i: 66 - i for i in range(31, 36)}, 36: 45, 37: 44, 38: 43, 39: 42, 40: 47, 41: 46, 48: 54, 49: 53, 50: 52, 55: 59, 56: 58, 60: 64, 61: 63, 65: 67}


def other_side(name, names):
    "The name of the mirror image: left and right exchanged, lhip and rhip too, and the 68 points of a face by the list of who numbered them."
    if name.startswith("face_"):
        sides = FACE_SIDES | {b: a for a, b in FACE_SIDES.items()}
        return f"face_{sides.get(int(name[5:]), int(name[5:]))}"
    for a, b in (("left", "right"), ("right", "left")):
        if a in name: return name.replace(a, b)
    return swapped if name[0] in "lr" and (swapped := {"l": "r", "r": "l"}[name[0]] + name[1:]) in names else name


def is_mirrored(s, flipped) -> int:
    "How many joints and labels of `s` changed sides; every one of them is looked up by its name, and each pixel in the column as far from the other edge."
    W, names = s["image_size"][1], skeleton(s["skeleton"]).names
    sides = [names.index(other_side(name, names)) for name in names]
    for j, k in enumerate(sides):
        assert torch.allclose(flipped["joints2d"][:, j, 0], W - s["joints2d"][:, k, 0], atol=1e-4) and torch.equal(flipped["joints2d"][:, j, 1], s["joints2d"][:, k, 1]), names[j]
        assert torch.allclose(flipped["joints3d"][:, j], s["joints3d"][:, k]*torch.tensor([-1., 1, 1]), atol=1e-6) and torch.equal(flipped["visibility"][:, j], s["visibility"][:, k]), names[j]
    changed = sum(j != k for j, k in enumerate(sides))
    for maps, known, was in ((flipped["body_parts"], BODY_PARTS, s["body_parts"]), (flipped["garments"], GARMENTS, s["garments"]), (flipped["iuv"][0].long(), CHARTS, s["iuv"][0].long())):
        meant = torch.tensor([known.index(other_side(name, ())) for name in known])
        assert torch.equal(maps, meant[was.flip(-1)])
        changed += int((meant[was] != was).any())
    u, v, part = s["iuv"][1].flip(-1), s["iuv"][2].flip(-1), s["iuv"][0].long().flip(-1)
    arms, head = (part >= 15) & (part <= 22), part >= 23
    assert torch.equal(flipped["iuv"][2], v) and torch.equal(flipped["iuv"][1][arms], u[arms]) and torch.allclose(flipped["iuv"][1][head], (.5 - u[head]) % 1, atol=1e-6)
    assert torch.allclose(flipped["iuv"][1][(part > 0) & ~arms & ~head], 1 - u[(part > 0) & ~arms & ~head], atol=1e-6)
    return changed


WHOLE = Rules(outside=2, clip_boxes=False, vanished="keep")


def test_left_stays_left_in_a_mirror(scenes):
    for c, _, _, s in scenes:
        flipped = warp(s, mirror(c.size[1]), c.size, WHOLE)
        assert is_mirrored(s, flipped) >= 15, "six pairs of joints, and of the parts, clothes and charts some"
        back = warp(flipped, mirror(c.size[1]), c.size, WHOLE)
        assert torch.allclose(back["joints2d"], s["joints2d"], atol=1e-4) and all(torch.equal(back[k], s[k]) for k in ("image", "depth", "body_parts", "garments", "visibility", "attributes", "attribute_mask")) and back["caption"] == s["caption"]


@pytest.mark.parametrize("layout", SKELETONS)
def test_joints_of_every_layout_change_sides_in_a_mirror(layout, scenes):
    for config, i, scene, _ in scenes[:3]:
        s = to_sample(replace(config, layout=layout), scene, i)
        assert is_mirrored(s, warp(s, mirror(config.size[1]), config.size, WHOLE)) >= 12


def test_attributes_joints_and_caption_name_the_same_side_in_a_mirror():
    "Which shoulder is nearer says it too: whoever is seen from the left has the left one before the right."
    left, right = ("seen from the left side", "seen from the right side")
    said = lambda s: [name for name, has, seen in zip(ATTRIBUTES, s["attributes"].tolist(), s["attribute_mask"].tolist(), strict=True) if has and seen and "seen from" in name]
    nearer = lambda s: left if s["joints3d"][0, 5, 2] < s["joints3d"][0, 6, 2] else right
    words, found = 0, set()
    for azimuth in (90., 270.):
        config = replace(SMALL, size=(96, 96), azimuth=(azimuth, azimuth), actions=("idle", "walk"))
        for i in range(8):
            s = draw_sample(config, i)
            flipped = warp(s, mirror(96), (96, 96))
            assert said(s) == [nearer(s)] and said(flipped) == [nearer(flipped)] and {*said(s), *said(flipped)} == {left, right}
            others = [n for n, name in enumerate(ATTRIBUTES) if name not in (left, right)]
            assert all(torch.equal(flipped[k][others], s[k][others]) for k in ("attributes", "attribute_mask"))
            found.add(said(s)[0])
            if "Seen from" in s["caption"]:
                words += 1
                assert f"Seen from the {said(s)[0].split()[3]}:" in s["caption"] and f"Seen from the {said(flipped)[0].split()[3]}:" in flipped["caption"]
            mask = torch.tensor([name != left for name in ATTRIBUTES])
            assert warp(s | {"attribute_mask": mask}, mirror(96), (96, 96))["attribute_mask"].tolist() == [name != right for name in ATTRIBUTES], "and what was not judged of one side is not of the other"
            assert torch.equal(warp(s, torch.eye(3, dtype=torch.float64), (96, 96))["attributes"], s["attributes"])
    assert found == {left, right} and words > 1, "captions that name the view"


def test_the_face_is_seen_from_the_front_and_not_from_the_back():
    for azimuth, view in (((0, 0), "front"), ((90, 90), "left side"), ((180, 180), "back"), ((270, 270), "right side")):
        config = replace(SMALL, azimuth=azimuth, actions=("idle",), height=(1.2, 1.6))
        scene = draw_scene(config, 3)
        assert view_of(scene.actors[0], scene.camera) == view
        s = draw_sample(config, 3)
        nose, left, right = s["visibility"][0, 0], s["joints2d"][0, 5, 0], s["joints2d"][0, 6, 0]
        if view == "front": assert nose == 2 and left > right
        if view == "back": assert nose == 1 and left < right


# ------------------------------------------------------------------------------------------------ the same again
def test_the_same_bytes_whoever_draws():
    here = [_digest_of(i) for i in (0, 5)]
    with multiprocessing.get_context("spawn").Pool(2) as pool: there = pool.map(_digest_of, [0, 5])
    assert here == there and here[0] != here[1]
    world = World(SMALL, length=6)
    assert digest(world[5]) == here[1] and digest(world[0]) == here[0], "no order, no state"
    with pytest.raises(IndexError): world[6]


def test_settings_change_what_they_name():
    base = draw_sample(SMALL, 2)
    assert digest(draw_sample(replace(SMALL, seed=1), 2)) != digest(base) and digest(draw_sample(replace(SMALL, split="test"), 2)) != digest(base)
    sensed = draw_sample(replace(SMALL, sensor_depth=True), 2)
    assert torch.equal(sensed["image"], base["image"]) and not torch.equal(sensed["depth"], base["depth"])
    other = draw_sample(replace(SMALL, layout="H36M17"), 2)
    assert other["joints2d"].shape[1] == 17 and torch.equal(other["image"], base["image"])
    noisy = draw_sample(replace(SMALL, label_noise=.5), 2)
    assert not torch.equal(noisy["attributes"], base["attributes"]) and torch.equal(noisy["image"], base["image"])


def test_annotated_actions_are_wrong_as_often_as_asked_and_nothing_else_is():
    true = replace(SMALL, size=(16, 16), actions=("walk", "wave", "jump", "squat"))
    asked, names = .3, list(ACTIONS)
    pairs = [(draw_sample(replace(true, label_noise=asked), i), draw_sample(true, i)) for i in range(60)]
    wrong = [(a["action"], b["action"]) for a, b in pairs if a["action"] != b["action"]]
    assert abs(len(wrong) - 60*asked) < 3*(60*asked*(1 - asked))**.5, "a binomial's three standard deviations"
    assert {names[a["action"]] for a, _ in pairs} <= set(true.actions) and len({a for a, _ in wrong}) > 1, "others of the same world"
    for a, b in pairs:
        assert a["caption"] == b["caption"] and names[b["action"]].replace("_", " ") in b["caption"]
        assert all(torch.equal(a[k], b[k]) for k in ("image", "depth", "joints2d", "attribute_mask")) and a["identity"] == b["identity"]
        validate(a)
    assert [draw_sample(replace(true, label_noise=asked), i)["action"] for i in range(8)] == [a["action"] for a, _ in pairs[:8]]
    always = replace(true, label_noise=1.0)
    assert all(draw_sample(always, i)["action"] != draw_sample(true, i)["action"] for i in range(8))
    alone = replace(always, actions=("walk",))
    assert len({draw_sample(alone, i)["action"] for i in range(6)} - {names.index("walk")}) > 1, "one action has no other: any of the grammar"


def test_a_missing_modality_is_a_missing_key():
    config = replace(SMALL, missing=1.0)
    missing = [{"image", "depth"} - set(draw_sample(config, i)) for i in range(6)]
    assert all(len(m) == 1 for m in missing) and len({next(iter(m)) for m in missing}) == 2


def test_splits_share_nobody_however_few_there_are():
    "Counted one by one: each person of a city is in one split, each split has somebody, and many are shared out as 70, 10 and 20 %."
    for count in (*range(1, 61), 100, 150, 300, 999, 1000, 10_000, 123_457):
        parts = {}
        for split, least in (("train", 1), ("val", 3), ("test", 2)):
            if count >= least: parts[split] = list(WorldConfig(split=split, identities=count, performers=count).of(count)); continue
            for name in ("identities", "performers"):
                with pytest.raises(ConfigError, match=rf"{name}={count} leaves nobody for split='{split}'; give at least {least}"): WorldConfig(split=split, **{name: count})
            with pytest.raises(ConfigError, match=f"{count} people leave nobody"): WorldConfig(split=split).of(count)
        assert all(parts.values()) and sorted(sum(parts.values(), [])) == list(range(count)), count
        if count >= 3: assert all(abs(len(parts[split]) - share*count) <= 1.5 for split, share in (("train", .7), ("val", .1), ("test", .2))), count
    of = lambda split, count: WorldConfig(split=split).of(count)
    assert [of(s, 1000) for s in ("train", "val", "test")] == [range(700), range(700, 800), range(800, 1000)] and [of(s, 40) for s in ("train", "val", "test")] == [range(28), range(28, 32), range(32, 40)]
    for wrong in (0, -1, 2.5, True, "7"):
        with pytest.raises(ConfigError, match="whole number"): WorldConfig().of(wrong)


@pytest.mark.parametrize("name", list(SETS))
def test_ready_made_sets_keep_the_contract(name):
    small = ready_made(name, size=tuple(s//2 for s in SETS[name].size))
    s = validate(draw_sample(small, 7))
    assert s["skeleton"] == small.layout and small.people[0] <= len(s["joints2d"]) <= small.people[1] and s["caption"]
    assert is_mirrored(s, warp(s, mirror(small.size[1]), small.size, WHOLE)) >= 15
    if name == "person_crops": assert .6 < (s["boxes"][0, 3] - s["boxes"][0, 1])/small.size[0] < 1.3


def test_people_of_a_crowd_do_not_stand_in_each_other():
    scene = draw_scene(replace(SETS["crowd"], size=(64, 64), people=(6, 6)), 0)
    middles = np.array([(a.person.vertices[:, :2].min(0) + a.person.vertices[:, :2].max(0))/2 for a in scene.actors])
    apart = np.linalg.norm(middles[:, None] - middles[None], axis=-1)[np.triu_indices(6, 1)]
    assert len(scene.actors) == 6 and apart.min() > .7


def test_visibility_by_hand():
    depth = np.full((10, 10), 2.0, np.float32); depth[:, 5:] = 1.0; depth[0] = 0
    joints = np.array([[0, 0, 2.0], [0, 0, 2.05], [0, 0, 2.0], [0, 0, 1.0 + BEHIND*.9], [0, 0, 5.0], [0, 0, -1.0], [0, 0, 1.5]])
    pixels = np.array([[2.5, 5.5], [2.5, 5.5], [7.5, 5.5], [7.5, 5.5], [3.2, .5], [3.0, 5.0], [-1.0, 5.0]])
    assert visibility(joints, pixels, depth).tolist() == [2, 2, 1, 2, 2, 0, 0]


def test_joints_of_all_layouts_are_those_of_the_posed_body():
    scene = draw_scene(SMALL, 1)
    for layout in ("COCO17", "H36M17", "NTU25", "WHOLEBODY133"):
        joints = joints_in(body(), scene.actors[0].person, layout)
        low, high = scene.actors[0].person.vertices.min(0), scene.actors[0].person.vertices.max(0)
        assert (joints > low - .05).all() and (joints < high + .05).all()


@pytest.mark.parametrize("wrong, says", [
    (dict(split="tset"), "did you mean"), (dict(people=(0, 2)), "from 1 to 12"), (dict(people=(3, 2)), "from 1 to 12"), (dict(size=(8, 8)), "from 16 to 4096"), (dict(scale=(.9, .1)), "the smaller first"),
    (dict(wear=("top",)), "give pairs"), (dict(wear=(("hat", "red"),)), "WorldConfig.wear"), (dict(wear=(("top", "jaket"),)), "did you mean"), (dict(places=("mars",)), "WorldConfig.places"), (dict(styles=("noon",)), "WorldConfig.styles"), (dict(actions=("fly",)), "WorldConfig.actions"), (dict(layout="COCO18"), "unknown skeleton"), (dict(height=(-1, 2)), "WorldConfig.height"), (dict(occlusion=1.5), "WorldConfig.occlusion"), (dict(covered=(.6, .1)), "WorldConfig.covered"), (dict(covered=(0, 1.2)), "WorldConfig.covered"), (dict(reach=(.5, 3)), "WorldConfig.reach")])
def test_what_cannot_be_drawn_is_said(wrong, says):
    with pytest.raises(ValueError, match=says): WorldConfig(**wrong)


def test_an_unknown_set_is_said():
    with pytest.raises(ConfigError, match="no set 'rgb'"): ready_made("rgb")


def test_everybody_wears_what_is_asked():
    "And stands as they would have stood otherwise."
    asked = replace(SMALL, size=(64, 64), wear=(("top", "jacket"), ("top_colour", "navy"), ("bottom", "shorts")))
    for i in (0, 4):
        plain, other = draw_scene(replace(asked, wear=()), i).actors[0], draw_scene(asked, i).actors[0]
        assert (other.who.look.top, other.who.look.top_colour, other.who.look.bottom) == ("jacket", "navy", "shorts") and other.who.shape == plain.who.shape
        assert other.action == plain.action and np.allclose(other.person.joints, plain.person.joints, atol=.05)
        s = draw_sample(asked, i)
        assert 7 in s["garments"] and 5 not in s["garments"] and "jacket" in s["caption"]
    assert WorldConfig.from_dict({**asked.to_dict(), "wear": [["top", "tank"]]}).wear == (("top", "tank"),)


def test_an_added_colour_and_garment_change_nobody_else(monkeypatch):
    from hclab.data import identity as people, looks, wardrobe
    before = [people.identity(n) for n in range(12)]
    monkeypatch.setitem(looks.CLOTH, "mint", (.28, .62, .45))
    monkeypatch.setitem(wardrobe.GARMENTS, "smock", wardrobe.GARMENTS["tshirt"])
    assert [people.identity(n) for n in range(12)] == before
    asked = replace(SMALL, size=(64, 64), wear=(("top", "smock"), ("top_colour", "mint")))
    with pytest.raises(ConfigError, match=r"SLEEVES\['smock'\]"): draw_sample(asked, 0)
    monkeypatch.setitem(people.SLEEVES, "smock", "short")
    s = draw_sample(asked, 0)
    assert "mint" in s["caption"] and s["attributes"][people.ATTRIBUTES.index("green top")] == 1


# ------------------------------------------------------------------------------------------------ people seen again
REID = ready_made("reid", size=(128, 64), actions=("idle", "walk"), noise=0.0)


@pytest.fixture(scope="module")
def met():
    "Three people before six cameras in two outfits."
    return [validate(draw_sample(REID, i)) for i in range(36)]


def eye_of(s): return -s["camera"]["R"].double().T @ s["camera"]["t"].double()


def seen_from(s):
    "Degrees from where the hips face to the camera, from the joints and the camera of a sample: 0 sees the face, 90 the left side."
    R, t = s["camera"]["R"].double(), s["camera"]["t"].double()
    left, right = ((s["joints3d"][0, j].double() - t) @ R for j in (11, 12))
    ahead, way = torch.linalg.cross(left - right, torch.tensor([0., 0, 1], dtype=torch.float64)), eye_of(s) - (left + right)/2
    turn = lambda v: torch.atan2(v[0], -v[1])
    return float(torch.rad2deg(turn(way) - turn(ahead))) % 360


def apart(a, b): return abs((a - b + 180) % 360 - 180)


def same_directions(a, b):
    "Pixels of picture a and of picture b that look the same way into the world, where both show the place: (n,2) rows and columns of each. For cameras at one point it takes no more than this."
    (H, W), K, L = a["image_size"], a["camera"]["K"].double(), b["camera"]["K"].double()
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    ways = torch.stack([x + .5, y + .5, torch.ones(H, W)], -1).reshape(-1, 3).double() @ torch.linalg.inv(K).T @ a["camera"]["R"].double()
    there = ways @ b["camera"]["R"].double().T @ L.T
    u, v = (there[:, :2]/there[:, 2:]).floor().long().T
    inside = (there[:, 2] > 0) & (u >= 0) & (u < W) & (v >= 0) & (v < H)
    at, to = torch.stack([y.flatten(), x.flatten()], 1)[inside], torch.stack([v, u], 1)[inside]
    place = (a["instance_ids"][tuple(at.T)] == 0) & (b["instance_ids"][tuple(to.T)] == 0)
    return at[place], to[place]


def test_everybody_comes_before_every_camera_in_every_outfit_as_often():
    "Counted in what was drawn: two rounds of the product, and no more."
    config = replace(REID, size=(16, 16), identities=5, outfits=2, cameras=2)
    for split, people in (("train", [0, 1, 2]), ("test", [4])):
        part = replace(config, split=split)
        rounds = [[(s["identity"], s["outfit"], s["camera_id"]) for s in (draw_sample(part, k*round_of(part) + i) for i in range(round_of(part)))] for k in range(2)]
        for took in rounds: assert sorted(took) == [(p, o, c) for p in people for o in range(2) for c in range(2)]
    pictures = [draw_sample(part, i)["joints3d"] for i in (0, round_of(part))]
    assert not torch.allclose(*pictures), "another take is another moment"


def test_any_number_of_samples_is_of_use():
    "Of all its people but the last, each was seen by all cameras; as soon as one outfit is done the next begins; nobody is a take ahead of anybody."
    config = ready_made("reid", identities=20, outfits=3, cameras=4)
    meetings = [meeting(config, i) for i in range(2*round_of(config) + 7)]
    assert len({(m.identity, m.outfit, m.camera, m.take) for m in meetings}) == len(meetings)
    for n in (1, 4, 5, 12, 13, 100, len(meetings)):
        before = meetings[:n]
        groups = [[m for m in before if (m.identity, m.outfit, m.take) == g] for g in {(m.identity, m.outfit, m.take) for m in before}]
        assert sum(len({m.camera for m in g}) < 4 for g in groups) <= 1, "all cameras but for the group that is under way"
        often = [sum(m.identity == p for m in before) for p in config.of(20)]
        assert max(often) - min(often) <= 12 and round_of(config) == 14*3*4


def test_a_camera_stays_where_it_is_and_others_are_elsewhere(met):
    "Read from the cameras and joints of the samples: centre, height and focal length are one for all, and the side from which people are seen."
    of = {c: [s for s in met if s["camera_id"] == c] for c in range(6)}
    for mine in of.values():
        assert len(mine) == 6 and len({s["identity"] for s in mine}) == 3
        for s in mine: assert torch.allclose(eye_of(s), eye_of(mine[0]), atol=1e-4) and torch.equal(s["camera"]["K"], mine[0]["camera"]["K"]) and apart(seen_from(s), seen_from(mine[0])) < 12
    eyes, angles, focal = [eye_of(of[c][0]) for c in of], [seen_from(of[c][0]) for c in of], [float(of[c][0]["camera"]["K"][0, 0])/128 for c in of]
    for a in range(6):
        assert REID.height[0] <= float(eyes[a][2]) <= REID.height[1] and REID.focal[0] <= focal[a] <= REID.focal[1]
        for b in range(a): assert (eyes[a] - eyes[b]).norm() > .1 and apart(angles[a], angles[b]) > 15 and focal[a] != focal[b]
    assert len({VIEWS[int((angle + 45)//90) % 4] for angle in angles}) == 4, "from all four sides"
    high = [float(s["boxes"][0, 3] - s["boxes"][0, 1])/128 for s in met]
    assert REID.scale[0] - .03 < min(high) and max(high) < REID.scale[1] + .03 and max(high) - min(high) > .08, "as high in the picture as asked, from wherever they are seen"
    for azimuth in (90., 270.):
        s = draw_sample(replace(REID, size=(32, 16), azimuth=(azimuth - 10, azimuth + 10)), 1)
        assert apart(seen_from(s), azimuth) < 15, "degrees count as without cameras that stay: 90 sees the left side"


def test_a_camera_sees_one_place_in_one_light_with_one_exposure(met):
    "A camera that only turns shows the same colours and distances in the same directions; other cameras don't. People are left out, and their shadows by medians: over the pixels of a pair of pictures, and over the pairs of a camera."
    def differ(a, b):
        at, to = same_directions(a, b)
        if len(at) < 300: return None
        pick = lambda s, p: s["image"][:, p[:, 0], p[:, 1]]
        far = lambda s, p: s["depth"][0, p[:, 0], p[:, 1]].double()*(torch.cat([p[:, [1]] + .5, p[:, [0]] + .5, torch.ones(len(p), 1)], 1).double() @ torch.linalg.inv(s["camera"]["K"].double()).T).norm(dim=1)
        d, e = far(a, at), far(b, to)
        both = (d > 0) & (e > 0)
        change = pick(a, at) - pick(b, to)
        return float(change.abs().mean(0).median()), float((d/e - 1)[both].abs().median()), float(change.median(1).values.abs().max())
    other = [d for i, a in enumerate(met[:12]) for b in met[:i] if a["camera_id"] != b["camera_id"] and (d := differ(a, b))]
    assert other and min(d[0] for d in other) > .05 and min(d[1] for d in other) > .05
    for camera in range(6):
        mine = [s for s in met if s["camera_id"] == camera]
        colours, depths, casts = np.array([d for i, a in enumerate(mine) for b in mine[:i] if (d := differ(a, b))]).T
        assert len(depths) > 5 and depths.max() < .02, "one place"
        assert np.median(colours) < .02 and np.median(casts) < .006, "one light; no channel is brighter or darker: one exposure and one white balance"


def test_who_is_seen_again_is_the_same_person_from_another_side():
    config = replace(REID, size=(96, 48))
    scenes = [draw_scene(config, i) for i in range(6)]
    who = {s.actors[0].who for s in scenes}
    assert len(who) == 1 and len({s.camera_id for s in scenes}) == 6 and len({(s.actors[0].action, s.actors[0].performer, round(float(s.actors[0].person.joints.sum()), 3)) for s in scenes}) == 6
    samples = [to_sample(config, s, i) for i, s in enumerate(scenes)]
    views = [n for n, name in enumerate(ATTRIBUTES) if "seen from" in name]
    looks = [n for n, name in enumerate(ATTRIBUTES) if "seen from" not in name]
    for s in samples[1:]: assert torch.equal(s["attributes"][looks], samples[0]["attributes"][looks])
    assert len({tuple(s["attributes"][views].tolist()) for s in samples}) > 2
    for s in samples: assert s["attributes"][ATTRIBUTES.index(f"seen from the {VIEWS[int((seen_from(s) + 45)//90) % 4]}")] == 1 or min(seen_from(s) % 90, 90 - seen_from(s) % 90) > 33, "but at a corner"


def test_clothes_change_with_the_knob_and_only_then(met):
    "Worn clothes are compared; a person keeps shape, skin, eyes and hair."
    def worn(config, n):
        return {(m.identity, m.outfit, m.camera, m.take): world.dressed(config, m.identity, m.outfit) for m in (meeting(config, i) for i in range(n))}
    outfit = lambda who: tuple(getattr(who.look, name) for name in CLOTHES)
    one, two = replace(REID, outfits=1), REID
    for (p, o, _, _), who in worn(one, 60).items(): assert o == who.outfit == 0 and who == world.dressed(two, p, 0)
    for (p, o, _, _), who in worn(two, 240).items():
        first = world.dressed(two, p, 0)
        assert who.outfit == o and replace(who.look, **{k: getattr(first.look, k) for k in CLOTHES}) == first.look and who.shape == first.shape and (outfit(who) != outfit(first)) == bool(o)
    shares = {share: {p for p in range(200) if world.dressed(replace(two, change_clothes=share), p, 1).outfit} for share in (0., .3, .6, 1.)}
    assert not shares[0.] and len(shares[1.]) == 200 and shares[.3] < shares[.6], "who changes at a third still changes at more"
    for share in (.3, .6): assert abs(len(shares[share]) - 200*share) < 3*(200*share*(1 - share))**.5
    for i in (6, 9):
        a, b = draw_sample(REID, i), draw_sample(replace(REID, change_clothes=0.0), i)
        assert (a["outfit"], b["outfit"]) == (1, 0) and a["identity"] == b["identity"] and a["camera_id"] == b["camera_id"] and a["action"] == b["action"] and not torch.equal(a["image"], b["image"])
        assert torch.allclose(a["joints3d"], b["joints3d"], atol=.1), "they stand as they would have stood"
    assert [s["outfit"] for s in met] == [i//6 % 2 for i in range(36)]


def test_without_cameras_outfits_are_drawn_and_the_knob_takes_them_back():
    plain = replace(SMALL, size=(32, 32), outfits=3)
    drawn, kept = ([draw_sample(replace(plain, change_clothes=share), i) for i in range(7)] for share in (1.0, 0.0))
    assert {s["outfit"] for s in drawn} == {0, 1, 2} and {s["outfit"] for s in kept} == {0} and not any("camera_id" in s for s in drawn)
    for a, b in zip(drawn, kept): assert (a["identity"], a["action"]) == (b["identity"], b["action"]) and (a["outfit"] > 0 or digest(a) == digest(b))
    assert all(draw_sample(SMALL, i)["outfit"] == 0 for i in range(2))


def test_splits_share_cameras_and_nobody():
    parts = {split: [draw_sample(replace(REID, size=(16, 16), identities=6, cameras=2, split=split), i) for i in range(4)] for split in ("train", "val", "test")}
    who = {split: {s["identity"] for s in samples} for split, samples in parts.items()}
    assert not (who["train"] & who["val"] or who["train"] & who["test"] or who["val"] & who["test"]) and all(who.values())
    for samples in parts.values():
        for s in samples: assert torch.allclose(eye_of(s), eye_of(parts["train"][s["camera_id"]]), atol=1e-4)
    assert [s["source"] for s in (parts["val"][0], parts["test"][0])] == ["world/val", "world/test"]


def _met_again(index): return digest(draw_sample(replace(REID, size=(48, 24)), index))


def test_before_cameras_the_same_bytes_whoever_draws_and_in_any_order():
    post.cache_clear()
    here = {i: _met_again(i) for i in (13, 0, 7, 1)}
    with multiprocessing.get_context("spawn").Pool(2) as pool: there = pool.map(_met_again, [0, 1, 7, 13])
    assert there == [here[i] for i in (0, 1, 7, 13)] and len(set(there)) == 4
    more = replace(REID, cameras=9, places=list(REID.places), seed=0)
    assert np.array_equal(post(REID, 4).eye, post(more, 4).eye) and post(more, 4).backdrop.style == post(REID, 4).backdrop.style, "more cameras leave the others where they are"
    assert not np.array_equal(post(REID, 4).eye, post(replace(REID, seed=1), 4).eye)
    assert len({post(more, c).backdrop.kind for c in range(3)}) == 3 and len({(post(more, c).backdrop.kind, post(more, c).backdrop.style) for c in range(9)}) == 9
    assert WorldConfig.from_dict(more.to_dict()) == replace(more) and set_folder("reid", more) != set_folder("reid", replace(more, cameras=8)) != set_folder("reid", replace(more, cameras=8, change_clothes=.5))


def test_queries_and_gallery_are_made_from_stored_keys_alone(tmp_path):
    config = replace(REID, size=(32, 16), identities=4, cameras=3)
    store.make(tmp_path/"reid", config, round_of(config), "hclab.data.world:draw_sample", workers=1, tell=None, start_method="fork", code={"world": "one"}, encoding=stored_as(config))
    stored = Stored(tmp_path/"reid", keys=("identity", "camera_id", "outfit"))
    keys = [stored[i] for i in range(len(stored))]
    assert all(set(k) >= {"identity", "camera_id", "outfit"} and "image" not in k for k in keys) and len(keys) == 12
    who, camera, outfit = (torch.tensor([k[name] for k in keys]) for name in ("identity", "camera_id", "outfit"))
    perfect = (who[:, None] != who[None]).double()
    for changed in (0, 1):
        query, gallery = (outfit == 0) & (camera == 0), (outfit == changed) & (camera != 0)
        scores = cmc_map(perfect[query][:, gallery], who[query], who[gallery], camera[query], camera[gallery], ranks=(1,))
        assert scores["rank-1"].n == len(config.of(4)) == 2 and float(scores["rank-1"]) == float(scores["mAP"]) == 100, "every query has its answers before other cameras"


def test_a_crowd_and_things_before_cameras_that_stay():
    config = replace(REID, size=(64, 64), people=(2, 3), occlusion=1.0, covered=(.2, .4), cameras=3, sensor_depth=True)
    for i in (0, 1, 2):
        s, alone = validate(draw_sample(config, i)), draw_sample(replace(config, occlusion=0.0), i)
        assert 2 <= len(s["joints2d"]) <= 3 and torch.equal(s["joints3d"], alone["joints3d"]) and s["camera_id"] == i and s["hidden"][0] >= alone["hidden"][0]
        assert torch.allclose(eye_of(s), torch.from_numpy(post(config, i).eye), atol=1e-4)


@pytest.mark.parametrize("wrong, says", [(dict(cameras=-1), "cameras=-1; give a whole number from 0"), (dict(cameras=2.0), "WorldConfig.cameras"), (dict(cameras=True), "WorldConfig.cameras"), (dict(change_clothes=1.5), "change_clothes=1.5; give a number from 0 to 1"),
                                         (dict(change_clothes="all"), "WorldConfig.change_clothes"), (dict(cameras=3, reach=(3.0, 19.0)), "places go to 20 m"), (dict(cameras=1, focal=(12.0, 12.0)), "shorter focal length")])
def test_cameras_that_cannot_be_are_said(wrong, says):
    with pytest.raises(ConfigError, match=says): WorldConfig(**wrong)


def test_a_place_without_room_for_a_camera_and_a_world_without_cameras_are_said(monkeypatch):
    with pytest.raises(ConfigError, match="cameras=0.*give cameras=6"): meeting(WorldConfig(), 0)
    monkeypatch.setattr(world.Backdrop, "clear", lambda *_: False)
    with pytest.raises(WorldError, match="camera 1: eight places .* ask for other places"): post(replace(REID, seed=77), 1)


# who and where, as they were drawn before there were cameras that stay: person, action, performer, place, style, people, camera's centre and focal length
DRAWN = {"rgbd": (274, "squat", 24, "street", "evening", 1, [.130, 2.028, 1.342], 70.461), "person_crops": (274, "squat", 24, "street", "evening", 1, [.118, 1.836, 1.342], 76.861),
         "crowd": (125, "drink", 1, "field", "day", 4, [-.643, -3.935, .956], 104.193), "sports": (274, "jump", 24, "field", "overcast", 1, [3.997, 2.922, 1.763], 115.760),
         "depth_pose": (274, "squat", 24, "room", "overcast", 1, [-4.291, -.252, 1.763], 115.760), "domains": (274, "squat", 24, "field", "overcast", 1, [.130, 2.028, 1.342], 70.461),
         "without cameras": (82, "stretch", 13, "street", "lamp", 1, [.257, -2.206, 1.342], 70.461)}


@pytest.mark.parametrize("name", DRAWN)
def test_knobs_that_are_off_draw_nothing(name):
    "Sample 7 of each set is who it always was: no setting takes a random number that it does not need."
    config = SETS.get(name) or WorldConfig(size=(256, 128), scale=(.8, .96), centred=.04, identities=300, outfits=2)
    scene = draw_scene(replace(config, size=tuple(n//4 for n in config.size)), 7)
    first = scene.actors[0]
    assert (first.who.number, first.action, first.performer, scene.place, scene.style, len(scene.actors)) == DRAWN[name][:6]
    assert scene.camera.centre.tolist() == pytest.approx(DRAWN[name][6], abs=2e-3) and float(scene.camera.K[0, 0]) == pytest.approx(DRAWN[name][7], abs=2e-3)


# ------------------------------------------------------------------------------------------------ things in front
BEHIND_THINGS = [(replace(SMALL, occlusion=1.0), i) for i in (0, 1, 6, 8, 9)] + [(replace(SETS["crowd"], size=(144, 144), people=(3, 3), occlusion=1.0), 1), (replace(SETS["depth_pose"], size=(128, 128), sensor_depth=False, occlusion=1.0), 2)]


@pytest.fixture(scope="module")
def hidden():
    "Scenes with a thing and the same without: (config, scene, sample, scene without, sample without)."
    out = []
    for config, i in BEHIND_THINGS:
        plain = replace(config, occlusion=0.0)
        out.append((config, draw_scene(config, i), validate(draw_sample(config, i)), draw_scene(plain, i), draw_sample(plain, i)))
    return out


def stopped_by(things, scene, points):
    "(n,) bool: a box or ball lies between the camera and the points (n,3), by halving no formula: small steps along each way."
    eye = scene.camera.centre.numpy()
    steps = eye + (points[:, None] - eye)*np.linspace(.02, 1, 600)[None, :, None]
    out = np.zeros(len(points), bool)
    for s in things:
        if hasattr(s, "axes"): inside = (np.abs((steps - s.centre) @ s.axes.T) < s.half).all(-1)
        else: inside = (((steps - s.centre)/s.half)**2).sum(-1) < 1
        out |= inside.any(1)
    return out


def test_what_a_thing_leaves_alone_is_as_before(hidden):
    for _, scene, s, _, plain in hidden:
        assert scene.things
        gone = (plain["instance_ids"] > 0) & (s["instance_ids"] == 0)
        assert gone.any() and ((s["instance_ids"] == plain["instance_ids"]) | gone).all(), "a thing makes nobody and moves nobody"
        for key in ("body_parts", "garments"): assert torch.equal(s[key][~gone], plain[key][~gone]) and not s[key][gone].any()
        assert torch.allclose(s["iuv"][:, ~gone], plain["iuv"][:, ~gone], atol=1e-5) and not s["iuv"][:, gone].any()
        for key in ("joints2d", "joints3d", "boxes", "attributes"): assert torch.equal(s[key], plain[key]), key
        assert all(torch.equal(s["camera"][k], plain["camera"][k]) for k in s["camera"]) and s["caption"] == plain["caption"] and s["action"] == plain["action"] and s["identity"] == plain["identity"]


def test_a_thing_is_nearer_than_what_it_hides_and_touches_nobody(hidden):
    for _, scene, s, _, plain in hidden:
        gone = (plain["instance_ids"] > 0) & (s["instance_ids"] == 0)
        assert (s["depth"][0][gone] < plain["depth"][0][gone] - BEHIND).all()
        changed = (s["depth"] != plain["depth"]) & (plain["depth"] > 0)
        assert (s["depth"][changed] < plain["depth"][changed]).all(), "and than all else behind it"
        for actor in scene.actors:
            for t in scene.things:
                inside = (np.abs((actor.person.vertices - t.centre) @ t.axes.T) < t.half).all(1) if hasattr(t, "axes") else (((actor.person.vertices - t.centre)/t.half)**2).sum(1) < 1
                assert not inside.any()
        low = min(float(t.centre[2] - t.half[2]) for t in scene.things)
        assert -.01 < low < .12, "it stands on the floor"


def test_a_covered_joint_is_occluded_and_a_free_one_is_not_changed(hidden):
    hid = 0
    for _, scene, s, _, plain in hidden:
        boxes = [t for t in scene.things if hasattr(t, "axes")]
        leafy = [t for t in scene.things if not hasattr(t, "axes")]
        for n in range(len(scene.actors)):
            world = scene.camera.to_world(s["joints3d"][n].double()).numpy()
            covered, maybe = stopped_by(boxes, scene, world), stopped_by([replace(t, half=t.half*1.15) for t in leafy], scene, world)
            for j, (now, was) in enumerate(zip(s["visibility"][n].tolist(), plain["visibility"][n].tolist())):
                x, y = s["joints2d"][n, j].tolist()
                edge = (s["instance_ids"] > 0)[max(int(y) - 1, 0):int(y) + 2, max(int(x) - 1, 0):int(x) + 2].any() if was else True
                if covered[j] and not edge: assert now == 1 if was else now == 0; hid += was == 2
                if not covered[j] and not maybe[j] and not (plain["depth"] != s["depth"])[0, max(int(y) - 1, 0):int(y) + 2, max(int(x) - 1, 0):int(x) + 2].any(): assert now == was
                assert now <= was, "nothing becomes visible"
    assert hid > 10, f"{hid} joints were seen before and are covered"


def test_boxes_of_what_is_seen_and_hidden_shares_are_those_of_the_masks(hidden):
    for config, scene, s, before, plain in hidden:
        shares = scene.picture.hidden
        for n in range(len(scene.actors)):
            mask = s["instance_ids"] == n + 1
            y, x = mask.nonzero(as_tuple=True)
            assert s["visible_boxes"][n].tolist() == ([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0])
            if len(scene.actors) == 1: assert abs(1 - float(shares[n]) - int(mask.sum())/int((plain["instance_ids"] == 1).sum())*(1 - float(before.picture.hidden[n]))) < 1e-5
            assert before.picture.hidden[n] <= shares[n] <= 1
        seen = (plain["instance_ids"] == 1).sum()
        share = 1 - int((s["instance_ids"] == 1).sum())/int(seen)
        assert config.covered[0] - .05 < share < config.covered[1] + .05, share


def test_hidden_shares_of_a_crowd_are_those_of_each_cast_alone():
    config = ready_made("crowd", size=(96, 96), people=(5, 7), occlusion=1.0)
    hid = 0
    for i in range(3):
        scene = draw_scene(config, i)
        y, x = (g.ravel() + .5 for g in np.mgrid[0:96, 0:96])
        for n, actor in enumerate(scene.actors):
            alone = int(cast.Scene([actor.person]).cast(scene.camera.centre.numpy().astype(np.float32), cast.ways_through(scene.camera, x, y)).met.sum())
            shown = int((scene.picture.instance_ids == n + 1).sum())
            assert abs(scene.picture.hidden[n] - (1 - shown/alone if alone else 1)) <= 2/max(alone, 1), "two pixels at the edge"
            hid += .05 < scene.picture.hidden[n] < .95
        assert torch.equal(to_sample(config, scene, i)["hidden"], torch.from_numpy(scene.picture.hidden))
    assert hid > 3, f"{hid} of the people are hidden in part"


def test_rays_that_reach_nobody_of_a_crowd_meet_nobody_alone():
    "Open3D must not be asked about no ray at all."
    crowd = cast.Scene([a.person for a in draw_scene(ready_made("crowd", size=(32, 32), people=(2, 2)), 0).actors])
    past = crowd.cast(np.array([0, 0, 50], np.float32), np.tile(np.array([0, 0, 1], np.float32), (9, 1)))
    assert crowd.met_alone(past).tolist() == [0, 0] and crowd.met_alone(past.only(past.far).only(past.far)).tolist() == [0, 0]


def test_pictures_hold_things_as_often_and_as_large_as_asked():
    config = replace(SMALL, size=(64, 64), occlusion=.5, covered=(.3, .3))
    scenes = [draw_scene(config, i) for i in range(40)]
    often = sum(bool(s.things) for s in scenes)
    assert 10 <= often <= 30, "half of forty, give or take three standard deviations"
    shares = np.array([s.picture.hidden[0] for s in scenes if s.things])
    assert abs(np.median(shares) - .3) < .02 and np.mean(np.abs(shares - .3) < .08) > .9
    assert not any(draw_scene(replace(config, occlusion=0.0), i).things for i in range(3))


def test_without_things_no_byte_changes_and_with_them_the_same_bytes_again():
    for i in (0, 6):
        assert digest(draw_sample(replace(SMALL, occlusion=0.0, covered=(.2, .3)), i)) == digest(draw_sample(SMALL, i))
        there = [digest(draw_sample(replace(SMALL, occlusion=1.0), i)) for _ in range(2)]
        assert there[0] == there[1] != digest(draw_sample(SMALL, i))
    assert len({set_folder("rgbd", replace(SMALL, **change)).name for change in ({}, dict(occlusion=.5), dict(occlusion=.5, covered=(.2, .3)))}) == 3, "each is a set of its own"


def test_a_thing_shades_the_floor_and_the_person_and_lights_nothing():
    "Beside the same picture without it; the sun comes over the camera's shoulder and past the thing, and no pixel is drawn finer, so that light is all that differs."
    scene = draw_scene(replace(SMALL, places=("street",), styles=("day",)), 4)
    people, camera = [a.person for a in scene.actors], scene.camera
    eye, middle = camera.centre.numpy(), people[0].vertices.mean(0)
    backdrop = draw_backdrop(np.random.default_rng(0), "street", "day", eye)
    way = np.append((eye - middle)[:2], 0)/np.linalg.norm((eye - middle)[:2])
    sun = np.array([way[0] - way[1], way[1] + way[0], .8])/np.sqrt(2.64)
    backdrop = replace(backdrop, light=(light := replace(backdrop.light, direction=sun)), scenery=replace(backdrop.scenery, light=light))
    crate = Box(partial(painted, base=colour("#808080")), (*(middle + sun*1.1)[:2], .6), (.3, .3, .6), float(np.arctan2(sun[1], sun[0])))
    free, other = (render(people, camera, b, np.random.default_rng(0), Settings(refine=0, noise=0)) for b in (backdrop, with_things(backdrop, [crate])))
    same = free.depth == other.depth
    change = other.image.astype(int).mean(-1) - free.image.astype(int).mean(-1)
    on, off = same & (other.instance_ids == 1), same & (other.instance_ids == 0)
    assert (change[on] < -8).sum() > 30 and (change[off] < -8).sum() > 30, "a shadow on the person, and one on the ground"
    assert (change[same] > 6).sum() <= 3, "nothing becomes brighter"


def test_walls_come_as_near_as_reach_allows_and_the_default_draws_nothing_for_it():
    far, near = replace(SMALL, size=(48, 48), places=("room",)), replace(SMALL, size=(48, 48), places=("room",), reach=(1.3, 1.3))
    depth = lambda c: np.array([np.median(draw_sample(c, i)["depth"][draw_sample(c, i)["instance_ids"][None] == 0]) for i in range(6)])
    assert (depth(near) < depth(far)).all(), "the same rooms, smaller"
    assert digest(draw_sample(replace(far, reach=(3.0, 3.0)), 1)) == digest(draw_sample(far, 1))
    mixed = [draw_sample(replace(near, reach=(1.3, 3.0)), i)["depth"] for i in range(2)]
    assert all(torch.equal(a, draw_sample(replace(near, reach=(1.3, 3.0)), i)["depth"]) for i, a in enumerate(mixed))


def test_domains_shows_every_place_in_every_light():
    config = replace(SETS["domains"], size=(16, 16))
    found = {(s.place, s.style) for s in (draw_scene(config, i) for i in range(90))}
    assert len({place for place, _ in found}) == 4 and len({style for _, style in found}) == 5 and len(found) >= 17, "of twenty"
