"""What issue 6 asks of the drawn world in bad times: impossible cameras, nobody to be seen, kills and full disks while a world is drawn, unreadable pictures (F13), annotations (F14), sets that name what lies
outside (F16), a set that changes under the run (F17). Whatever happened, what is read afterwards is what the world draws."""
import io as bytes_io
import json
import os
import random
import resource
import shutil
import signal
import struct
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_io_faults import in_child, litter

from hclab.core import io
from hclab.core.config import ConfigError, content_hash, use_one_thread
from hclab.core.sample import validate
from hclab.data import encode as en
from hclab.data import shards as sh
from hclab.data import store, world
from hclab.data.loading import BadSample, FolderWatch, Loader, LoadingError
from hclab.data.world import ELBOW, SETS, World, WorldConfig, WorldError, draw_sample, draw_scene, off_people

use_one_thread()
SMALL, N, ROWS = replace(SETS["rgbd"], size=(32, 32)), 9, 3


def make(folder, config=SMALL, n=N, **options):
    return store.make(folder, config, n, "hclab.data.world:draw_sample", **{"rows": ROWS, "tell": None, "start_method": "fork", "code": {"world": "one"}, "encoding": world.stored_as(config), **options})


def through_bytes(sample, config=SMALL): return en.decode(en.encode(sample, world.stored_as(config)))


def files(folder): return {p.name: p.read_bytes() for p in sorted((folder / "data").glob("*.parquet"))}


@pytest.fixture(scope="module")
def drawn():
    "The samples as they come back from a store, drawn here, one by one, without one."
    return [through_bytes(draw_sample(SMALL, i)) for i in range(N)]


@pytest.fixture(scope="module")
def model(tmp_path_factory): return make(tmp_path_factory.mktemp("whole") / "rgbd").folder


@pytest.fixture(scope="module")
def whole(model): return files(model)


@pytest.fixture
def made(model, tmp_path):
    "A finished set, a copy of one that was made."
    return sh.Stored(shutil.copytree(model, tmp_path / "rgbd", ignore=shutil.ignore_patterns(".*")))


def same(a, b): return set(a) == set(b) and all(torch.equal(v, b[k]) if isinstance(v, torch.Tensor) else all(torch.equal(x, b[k][p]) for p, x in v.items()) if isinstance(v, dict) else v == b[k] for k, v in a.items())


def is_right(stored, drawn): return len(stored) == N and all(same(stored[i], drawn[i]) for i in range(N)) and stored.verify() == []


# ---- impossible cameras, nobody -------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
IMPOSSIBLE = [(dict(azimuth=(NAN, 0.)), "two angles"), (dict(azimuth=(0., INF)), "two angles"), (dict(azimuth=(90., -90.)), "the smaller first"), (dict(height=(0., 1.)), "from 0.05 to 20"), (dict(height=(NAN, 1.)), "from 0.05"),
              (dict(focal=(0., 1.)), "from 0.3"), (dict(focal=(.3, .3), scale=(3., 3.)), "nearer, it stands in them"), (dict(scale=(.02, .02)), "farther, depth ends"), (dict(scale=("a", 1)), "give two numbers"), (dict(scale=(.5,)), "give two numbers"),
              (dict(centred=NAN), "from 0 to 2"), (dict(centred=-.1), "from 0 to 2"), (dict(size=(0, 0)), "from 16 to 4096"), (dict(size=(64.5, 64)), "whole numbers"), (dict(size=(10**9, 10**9)), "from 16 to 4096"), (dict(size=None), "give two numbers")]
NOBODY = [(dict(people=(0, 0)), "from 1 to 12"), (dict(people=(-2, 1)), "from 1 to 12"), (dict(people=(1, 13)), "from 1 to 12"), (dict(people=(1.5, 2)), "whole numbers"), (dict(identities=0), "whole number from 1"), (dict(performers=-3), "whole number from 1"),
          (dict(outfits=0), "whole number from 1"), (dict(outfits=True), "whole number from 1"), (dict(seed=-1), "whole number from 0"), (dict(places=()), "at least one of room"), (dict(places="room"), "at least one of room"), (dict(styles=()), "at least one of day"),
          (dict(actions="walk"), "at least one of walk"), (dict(missing=2), "from 0 to 1"), (dict(noise=NAN), "from 0 to 1"), (dict(noise=-.1), "from 0 to 1"), (dict(label_noise="0.1"), "from 0 to 1"), (dict(occlusion=-1), "from 0 to 1"), (dict(wear=5), "give pairs")]


@pytest.mark.parametrize("wrong, says", IMPOSSIBLE + NOBODY)
def test_impossible_cameras_and_worlds_without_people_are_refused_by_name(wrong, says):
    with pytest.raises(ConfigError, match=rf"WorldConfig\..*({'|'.join(wrong)}).*{says}"): replace(SMALL, **wrong)


@pytest.mark.parametrize("wrong", [-1, N, 10**30])
def test_a_number_that_is_no_samples(wrong):
    with pytest.raises(IndexError, match=f"sample {wrong} of {N}"): World(SMALL, N)[wrong]


@pytest.mark.parametrize("wrong", [1.5, "3", None, [1]])
def test_what_is_no_number(wrong):
    with pytest.raises(TypeError, match="integer"): World(SMALL, N)[wrong]


def test_what_is_no_world():
    for config, length, says in (("rgbd", 5, "ready_made"), (None, 5, "WorldConfig"), (SMALL, -1, "from 0"), (SMALL, 2.5, "from 0"), (SMALL, "9", "from 0")):
        with pytest.raises(ConfigError, match=says): World(config, length)
    assert len(World(SMALL, 0)) == 0


@pytest.mark.parametrize("settings", [dict(height=(.05, .05)), dict(height=(20., 20.)), dict(focal=(20., 20.), scale=(3., 3.)), dict(scale=(3., 3.), focal=(1.9, 1.9)), dict(scale=(.06, .06)), dict(size=(16, 640)), dict(size=(640, 16)), dict(people=(12, 12))])
def test_the_cameras_at_the_edge_of_what_may_be_asked_make_sound_samples(settings):
    for i in range(2):
        sample = validate(draw_sample(replace(SMALL, **settings), i))
        assert all(torch.isfinite(sample[k]).all() for k in ("image", "depth", "joints2d", "joints3d", "boxes")) and 0 < float(sample["image"].std())


@pytest.mark.parametrize("index", [30, 50, 97, 144])
def test_who_stands_beside_or_behind_the_camera_has_finite_labels(index):
    "In these crowds somebody does: their boxes and pixels were NaN once, and a set with them could not be made."
    config = replace(SETS["crowd"], size=(64, 64))
    scene = draw_scene(config, index)
    sample = validate(world.to_sample(config, scene, index))
    z = [(a.person.vertices @ scene.camera.R.numpy()[2] + float(scene.camera.t[2])) for a in scene.actors]
    assert index == 97 or min(v.min() for v in z) < 0, "somebody is behind the camera, or partly"
    for n, ahead in enumerate(z):
        assert torch.isfinite(sample["boxes"][n]).all() and torch.isfinite(sample["joints2d"][n]).all()
        behind = sample["joints3d"][n, :, 2] <= 0
        assert (sample["visibility"][n][behind] == 0).all() and (sample["joints2d"][n][behind] == 0).all()
        if ahead.max() < 0: assert sample["boxes"][n].tolist() == [0, 0, 0, 0] and sample["visible_boxes"][n].tolist() == [0, 0, 0, 0]
    assert off_people(scene.camera, [a.person for a in scene.actors]) >= ELBOW
    assert same(through_bytes(sample, config) | {"depth": 0, "image": 0, "iuv": 0}, sample | {"depth": 0, "image": 0, "iuv": 0}), "and a store takes it"


def test_a_camera_that_always_stands_in_somebody_is_an_error_that_names_the_sample(monkeypatch, tmp_path):
    monkeypatch.setattr(world, "off_people", lambda camera, people: .1)
    with pytest.raises(WorldError, match=r"sample 4: eight cameras stood less than 0.3 m from somebody; ask for fewer people"): draw_scene(SMALL, 4)
    with pytest.raises(store.MakeError, match=r"failed at sample 0: WorldError: sample 0: eight cameras"): make(tmp_path / "rgbd")
    assert files(tmp_path / "rgbd") == {}


def test_a_picture_in_which_nobody_is_seen_is_a_sample(tmp_path):
    config = replace(SMALL, centred=1.9)
    empty = [i for i in range(12) if not (validate(draw_sample(config, i))["instance_ids"] > 0).any()]
    assert empty
    sample = draw_sample(config, empty[0])
    assert not any(sample[k].any() for k in ("instance_ids", "body_parts", "garments", "iuv", "visible_boxes", "attribute_mask")) and (sample["visibility"] < 2).all() and sample["depth"].any()
    assert make(tmp_path / "rgbd", config, n=empty[0] + 1)[empty[0]]["visible_boxes"].tolist() == [[0, 0, 0, 0]]


# ---- kills, full disks ------------------------------------------------------------------------------------------------------

def test_a_world_that_is_killed_while_it_is_drawn_goes_on_and_is_the_same(tmp_path, whole, drawn):
    folder, rng, kills, kept = tmp_path / "rgbd", random.Random(3), 0, set()
    for _ in range(12):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            try: make(folder)
            finally: os._exit(0)
        time.sleep(rng.uniform(.05, .5))
        os.kill(pid, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0: break
        kills += 1
        found = files(folder) if (folder / "data").is_dir() else {}
        assert kept <= set(found) and all(whole[name] == data for name, data in found.items()), "a shard that is there is right, and stays"
        kept = set(found)
        if len(kept) == len(whole): break
        with pytest.raises(sh.StoreError, match="make it"): sh.Stored(folder)
    assert kills
    assert is_right(make(folder), drawn) and files(folder) == whole and litter(folder) == []


def test_a_disk_that_fills_while_a_world_is_drawn_leaves_whole_shards(tmp_path, whole, drawn):
    folder, smallest = tmp_path / "rgbd", min(map(len, whole.values()))

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (smallest + 1, smallest + 1))
        try: make(folder)
        except io.DiskFull as e: return 0 if "bytes are free" in str(e) and e.needed > 0 else 3
        return 4
    assert in_child(work) == 0
    assert all(whole[name] == data for name, data in files(folder).items()) and litter(folder) == []
    with pytest.raises(sh.StoreError, match="make it"): sh.Stored(folder)
    assert is_right(make(folder), drawn) and files(folder) == whole


def test_a_sample_that_cannot_be_drawn_is_named_and_costs_its_shard_only(tmp_path, whole, drawn, monkeypatch):
    plain = world.draw_scene

    def broken(config, index):
        if index == 4: raise FloatingPointError("a knee has no such angle")
        return plain(config, index)
    monkeypatch.setattr(world, "draw_scene", broken)
    with pytest.raises(store.MakeError, match=r"failed at sample 4: FloatingPointError: a knee has no such angle") as e: make(tmp_path / "rgbd", workers=1)
    assert e.value.index == 4 and list(files(tmp_path / "rgbd")) == list(whole)[:1]
    monkeypatch.setattr(world, "draw_scene", plain)
    assert is_right(make(tmp_path / "rgbd"), drawn)


# ---- F13, F14: what a shard holds is no sample ------------------------------------------------------------------------------

def jpeg(size=(32, 32), mode="RGB"):
    out = bytes_io.BytesIO()
    Image.new(mode, size).save(out, "JPEG")
    return out.getvalue()


def bomb():
    out = bytes_io.BytesIO()
    Image.new("RGB", (3, 3)).save(out, "PNG")
    head = struct.pack(">4sIIBBBBB", b"IHDR", 20_000, 20_000, 8, 2, 0, 0, 0)
    return out.getvalue()[:12] + head + struct.pack(">I", zlib.crc32(head)) + out.getvalue()[33:]


def forged(stored, change, at=4):
    "A set whose every sum is right and of which row `at` was changed by whoever made it."
    folder = stored.folder
    rows = [dict(stored.row(i)) for i in range(N)]
    change(rows[at])
    for path in (folder / "data").iterdir(): path.unlink()
    shards = dict(sh.write_shard(folder / "data", k, rows[k*ROWS:(k + 1)*ROWS]) for k in range(N//ROWS))
    replace(stored.card, shards=shards).write(folder)
    return sh.Stored(folder)


def put(**values): return lambda row: row.update(values)
def cut(key): return lambda row: row.update({key: row[key][:len(row[key])//2]})
def edit(key, change): return lambda row: row.update({key: change(row[key].copy())})
def drop(*keys): return lambda row: [row.pop(k) for k in keys]
def at(place, value):
    def change(array): array[place] = value; return array
    return change


UNREADABLE = {"empty": put(image=b""), "cut": cut("image"), "cut depth": cut("depth"), "cut labels": cut("body_parts"), "a page": put(image=b"<!DOCTYPE html><title>404</title>"), "1 x 1": put(image=jpeg((1, 1))), "a bomb": put(image=bomb()),
              "depth in colour": put(depth=jpeg()), "labels as JPEG": put(garments=jpeg(mode="L")), "another size": put(image=jpeg((32, 31))), "a size of one map": put(instance_ids=en.encode(draw_sample(replace(SMALL, size=(24, 24)), 0), world.stored_as(SMALL))["instance_ids"])}
WRONG = {"a key that others need": drop("skeleton"), "part of a camera": drop("camera_K"), "NaN joint": edit("joints3d", at((0, 3), np.nan)), "infinite box": edit("boxes", at((0, 0), np.inf)), "box upside down": edit("boxes", lambda b: b[:, [2, 3, 0, 1]]),
         "16 joints of 17": edit("joints2d", lambda j: j[:, :16]), "visibility 7": edit("visibility", at((0, 0), 7)), "attribute 3": edit("attributes", at(0, 3.)), "no such layout": put(skeleton="COCO18"), "action -1": put(action=-1), "broken shapes": put(shapes="{"), "deep shapes": put(shapes="["*10**6),
         "shapes of nothing": put(shapes=json.dumps({"boxes": [7, 7]})), "unit of depth": put(depth_unit=-1.), "people that disagree": edit("boxes", lambda b: np.concatenate([b, b])), "millimetres": edit("joints3d", lambda j: j*1000)}


@pytest.mark.parametrize("how", [*UNREADABLE, *WRONG])
def test_a_row_that_is_no_sample_is_named_and_the_others_are_read(made, drawn, how):
    stored = forged(made, {**UNREADABLE, **WRONG}[how])
    with pytest.raises(sh.StoreError, match=r"rgbd/data/000001-\w+\.parquet row 1: ") as e: stored[4]
    assert len(str(e.value)) < 1500 and stored.verify() == []
    assert all(same(stored[i], drawn[i]) for i in range(N) if i != 4)
    with pytest.raises(BadSample, match=r"rgbd/data/000001-\w+\.parquet row 1"): list(Loader(stored, 3))


def test_what_pillow_turns_is_not_turned_here(made):
    "A picture with EXIF's order to turn it would not lie on its labels any more: it is upright or refused, never askew."
    def turn(row):
        out, exif = bytes_io.BytesIO(), Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (32, 24), (255, 0, 0)).save(out, "JPEG", exif=exif)
        row["image"] = out.getvalue()
    with pytest.raises(sh.StoreError, match="row 1"): forged(made, turn)[4]


# ---- F16: nothing outside ----------------------------------------------------------------------------------------------------

CARDS = {"a file above": lambda v: v | {"shards": {"../../secret.parquet": next(iter(v["shards"].values()))} | dict(list(v["shards"].items())[1:])}, "an absolute path": lambda v: v | {"shards": {"/etc/passwd": next(iter(v["shards"].values()))} | dict(list(v["shards"].items())[1:])},
         "shards in another order": lambda v: v | {"shards": dict(list(v["shards"].items())[::-1])}, "one shard twice": lambda v: v | {"shards": {k: list(v["shards"].values())[0] for k in v["shards"]}}, "a shard less": lambda v: v | {"shards": dict(list(v["shards"].items())[:-1])},
         "more samples": lambda v: v | {"n": 10**15}, "samples in words": lambda v: v | {"n": "nine"}, "no samples": lambda v: v | {"n": 0}, "rows": lambda v: v | {"rows": 0}, "half the truth": lambda v: v | {"complete": "yes"}, "a key more": lambda v: v | {"colour": 1},
         "a key less": lambda v: {k: x for k, x in v.items() if k != "code"}, "shards as a list": lambda v: v | {"shards": list(v["shards"])}, "shards without sums": lambda v: v | {"shards": {k: {} for k in v["shards"]}}}


@pytest.mark.parametrize("how", CARDS)
def test_a_card_that_somebody_else_wrote_is_refused_though_its_sum_is_right(made, how):
    folder = made.folder
    values = json.loads((folder / "set.json").read_text())
    values.pop("digest")
    values = CARDS[how](values)
    (folder / "set.json").write_text(json.dumps(values | {"digest": content_hash(values, 64)}))
    with pytest.raises(sh.StoreError, match=r"set\.json: .*make the set again"): sh.Stored(folder)


def test_a_set_is_removed_without_what_its_links_point_to(tmp_path):
    folder, outside = make(tmp_path / "sets/rgbd", n=3).folder, tmp_path / "outside"
    outside.mkdir(); (outside / "precious.txt").write_text("kept")
    (folder / "data/more").symlink_to(outside); (folder / "link.txt").symlink_to(outside / "precious.txt")
    store.remove("rgbd", tmp_path / "sets")
    assert not folder.exists() and (outside / "precious.txt").read_text() == "kept"


def test_a_set_whose_name_leads_elsewhere_is_refused(tmp_path):
    for name in ("../rgbd", "/rgbd", "a/b", "", "rgbd\0", "rgbd "):
        with pytest.raises(sh.StoreError, match="cannot name a set"): store.set_folder(name, SMALL, tmp_path)


# ---- F17: a world that changes under the run, a cache that is never poisoned -------------------------------------------------

def test_a_world_of_other_settings_never_lands_in_the_same_folder(tmp_path, made, whole, drawn):
    changes = dict(seed=1, split="test", noise=.02, sensor_depth=True, label_noise=.2, occlusion=.5, covered=(.2, .3), wear=(("top", "jacket"),), actions=("walk",), missing=.1, people=(1, 2), size=(33, 32))
    folders = {store.set_folder("rgbd", replace(SMALL, **{k: v}), tmp_path) for k, v in changes.items()} | {store.set_folder("rgbd", SMALL, tmp_path)}
    assert len(folders) == len(changes) + 1 and store.set_folder("rgbd", WorldConfig.from_dict(json.loads(json.dumps(SMALL.to_dict()))), tmp_path) in folders
    folder = made.folder
    for change in (dict(seed=1), dict(occlusion=1.)):
        with pytest.raises(sh.StoreError): make(folder, replace(SMALL, **change))
    assert is_right(sh.Stored(folder), drawn) and files(folder) == whole


def test_a_world_whose_code_changed_is_drawn_anew(made, whole, drawn, monkeypatch):
    folder, plain, lines = made.folder, world.to_sample, []
    monkeypatch.setattr(world, "to_sample", lambda config, scene, index: plain(config, scene, index) | {"identity": 7})
    other = make(folder, code={"world": "two"}, tell=lines.append)
    assert all(other[i]["identity"] == 7 for i in range(N)) and any("the generator changed (world)" in line for line in lines)
    monkeypatch.setattr(world, "to_sample", plain)
    assert is_right(make(folder), drawn) and files(folder) == whole


SWAPS = {"deleted": lambda path, other: path.unlink(), "of another world": lambda path, other: path.write_bytes(next(iter(files(other).values()))), "cut": lambda path, other: path.write_bytes(path.read_bytes()[:-100]), "appended": lambda path, other: path.write_bytes(path.read_bytes() + b"x"), "touched": lambda path, other: os.utime(path, (1, 1))}


@pytest.fixture(scope="module")
def other(tmp_path_factory): return make(tmp_path_factory.mktemp("other") / "rgbd", replace(SMALL, seed=9), n=ROWS).folder


@pytest.mark.parametrize("how", SWAPS)
def test_a_set_that_changes_under_the_run_is_named_and_never_read_wrongly(tmp_path, made, whole, drawn, other, how):
    stored = made
    loader = Loader(stored, 3, check=FolderWatch(tmp_path / "rgbd/data", stored.manifest()))
    assert len(list(loader)) == N//3
    name = stored.names[1]
    SWAPS[how](tmp_path / "rgbd/data" / name, other)
    if how == "touched":      # the same bytes with another time are the same set
        assert is_right(stored, drawn)
        return
    with pytest.raises(LoadingError, match=f"the data changed before epoch 1: {name}"): list(loader)
    for i in range(N):
        if i//ROWS == 1:
            with pytest.raises(sh.StoreError, match=name): stored[i]
        else: assert same(stored[i], drawn[i])
    assert is_right(make(tmp_path / "rgbd"), drawn) and files(tmp_path / "rgbd") == whole


@pytest.mark.parametrize("name", SETS)
def test_every_ready_made_set_fits_into_its_store(name):
    "Streets are longer than 16 bits of a millimetre."
    config = replace(SETS[name], size=(48, 48))
    for i in range(6):
        sample = draw_sample(config, i)
        back = through_bytes(sample, config)
        assert (back["depth"] - sample["depth"]).abs().max() <= world.stored_as(config).depth_unit/2 + 1e-6
