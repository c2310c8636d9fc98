"The store of samples: what is exact and what is rounded, the same bytes from any number of workers, sets that grow, are listed and removed."
import hashlib
import importlib.util
import io
import json
import pickle
import struct
import subprocess
import sys
import types
import zlib
from dataclasses import dataclass, replace

import nbclient
import nbformat
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hclab.core.config import use_one_thread
from hclab.core.sample import FIELDS, SampleError, validate
from hclab.data import encode as en
from hclab.data import shards as sh
from hclab.data import store
from hclab.data.loading import Loader

use_one_thread()  # workers are forked here
DISC, SMALL = "hclab.data.encode:disc_sample", en.Discs(size=48)


def made(folder, config=SMALL, n=40, sample_of=DISC, **options):
    return store.make(folder, config, n, sample_of, **{"rows": 8, "tell": None, "start_method": "fork", **options})


def files(folder):
    return {p.name: p.read_bytes() for p in sorted((folder / "data").iterdir())}


def same(a, b):
    "Equality that sees types and NaN."
    if isinstance(a, torch.Tensor): return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict): return set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


# ---- one sample ----------------------------------------------------------------------------------------------------------

@st.composite
def samples(draw):
    "Any subset of all keys, with any number of people, bodies and frames, none included."
    n, m, t, h, w = draw(st.integers(0, 3)), draw(st.integers(0, 2)), draw(st.integers(0, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    real = lambda *shape: torch.tensor(rng.uniform(0, 1, shape), dtype=torch.float32)
    whole = lambda high, *shape: torch.tensor(rng.integers(0, high, shape), dtype=torch.int64)
    corners = lambda: torch.cat([real(n, 2) * 9, 9 + real(n, 2) * 9], 1)
    joints = real(n, 17, 2) * 300 + 17
    visibility = whole(3, n, 17).to(torch.int8)
    joints[visibility == 0] = float("nan")  # an unlabelled joint may be anything
    groups = [
        {"image": whole(256, 3, h, w).float() / 255}, {"depth": (whole(9000, 1, h, w).double() * 0.001).float()}, {"instance_ids": whole(max(1, n), h, w)}, {"body_parts": whole(25, h, w)},
        {"garments": whole(20, h, w)}, {"iuv": torch.cat([whole(25, 1, h, w).float(), whole(256, 2, h, w).float() / 255])}, {"boxes": corners(), "visible_boxes": corners()},
        {"joints2d": joints, "joints3d": real(n, 17, 3), "visibility": visibility, "skeleton": "COCO17"},
        {"camera": {"K": torch.tensor([[500.5, 0, 3], [0, 499.25, 4], [0, 0, 1]]), "R": torch.eye(3), "t": real(3), "distortion": real(5)}},
        {"sequence": real(m, t, 17, 3), "body_mask": real(m, t) > 0.5, "frame": "world", "fps": 29.97, "skeleton": "COCO17", "segments": [(0, t, 3)] * (t > 0)},
        {"action": 7}, {"identity": 0, "outfit": 1, "camera_id": 3}, {"attributes": real(5).round(), "attribute_mask": real(5) > 0.5}, {"caption": "a “quoted”, lived-in señor\n"}, {"image_size": (h, w)},
        {"source": "drawn/train", "index": 2**40}]
    return {k: v for group in groups if draw(st.booleans()) for k, v in group.items()}


@settings(max_examples=150, deadline=None)
@given(st.lists(samples(), min_size=1, max_size=4))
def test_what_is_stored_comes_back_exactly_and_what_is_missing_stays_missing(batch):
    "Pictures whose values the format can hold, through bytes and through a whole shard."
    rows = [en.encode(s, en.Encoding(image="png")) for s in batch]
    data = sh.shard_bytes(rows)
    for sample, row, back in zip(batch, rows, sh.read_rows(data), strict=True):
        stored = {k: data[v] if isinstance(v, slice) else v for k, v in back.items()}
        for found in (en.decode(row), en.decode(stored)):
            wrong = [k for k in {*sample, *found} if k not in found or k not in sample or not same(sample[k], found[k])]
            assert not wrong, (wrong, sample, found)


def test_every_key_of_the_contract_has_a_column():
    keys = {c.key for c in en.COLUMNS.values()} - {""}
    assert keys == set(FIELDS)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.sampled_from([0.001, 0.0005, 0.002]))
def test_depth_is_rounded_by_half_a_step_and_a_reading_stays_a_reading(seed, unit):
    rng = np.random.default_rng(seed)
    depth = torch.tensor(rng.uniform(0, 30, (1, 12, 9)) * rng.integers(0, 2, (1, 12, 9)), dtype=torch.float32)
    depth[0, 0, :3] = torch.tensor([1e-6, unit / 3, min(100, 65535 * unit)])
    row = en.encode({"depth": depth}, en.Encoding(depth_unit=unit))
    back = en.decode(row)["depth"]
    picture = Image.open(io.BytesIO(row["depth"]))
    assert picture.mode == "I;16" and np.array_equal(np.asarray(picture), np.maximum(np.rint(depth[0].double().numpy() / unit), depth[0].numpy() > 0))  # any reader, by the rule
    assert ((back > 0) == (depth > 0)).all() and (back - depth).abs()[depth > unit].max() <= unit / 2 + 4e-6


@pytest.mark.parametrize("key, value, words", [
    ("depth", torch.full((1, 4, 4), 70.0), "70.000 m, at most 65.535 m.*depth_unit=0.002"), ("instance_ids", torch.full((4, 4), 256), "id 256, at most 255"),
    ("image", torch.zeros(3, 0, 4), "0 x 4 pixels"), ("depth", torch.full((1, 4, 4), 101.0), r"0 to 100 m"), ("image", torch.full((3, 4, 4), 2.0), "values up to 255")])
def test_what_the_format_cannot_hold_is_refused(key, value, words):
    with pytest.raises((en.EncodingError, SampleError), match=words):
        en.encode({key: value})


def test_what_depth_unit_the_message_names_is_enough():
    far = torch.full((1, 4, 4), 99.9)
    with pytest.raises(en.EncodingError) as e:
        en.encode({"depth": far})
    unit = float(str(e.value).split("depth_unit=")[1].split(")")[0])
    assert (en.decode(en.encode({"depth": far}, en.Encoding(depth_unit=unit)))["depth"] - far).abs().max() <= unit / 2 + 1e-5


@pytest.mark.parametrize("data, words", [(b"", "0 bytes"), (b"<html>", "no whole"), ("cut", "no whole"), ("grey", "mode L"), ("tiff", "no whole")])
def test_bytes_that_are_no_picture_of_their_key(data, words):
    row = en.encode(en.disc_sample(SMALL, 0))
    out = io.BytesIO()
    if data == "cut": data = row["image"][:len(row["image"]) // 2]
    elif data in ("grey", "tiff"):
        Image.new("L", (48, 48)).save(out, "PNG" if data == "grey" else "TIFF")
        data = out.getvalue()
    with pytest.raises(en.EncodingError, match=f"image: .*{words}"):
        en.decode(row | {"image": data})


def test_a_bomb_is_refused_before_it_is_unpacked():
    "The head of a PNG can promise 30,000 x 30,000 pixels in thirty bytes."
    out = io.BytesIO()
    Image.new("RGB", (3, 3)).save(out, "PNG")
    head = struct.pack(">4sIIBBBBB", b"IHDR", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = out.getvalue()[:12] + head + struct.pack(">I", zlib.crc32(head)) + out.getvalue()[33:]
    with pytest.raises(en.EncodingError, match="image: .*exceeds limit"):
        en.decode({"image": data})


def test_a_caller_may_change_a_sample_in_place(tmp_path):
    stored = made(tmp_path / "discs", n=8)
    first = stored[3]
    copy = {k: v.clone() for k, v in first.items() if isinstance(v, torch.Tensor)}
    for value in first.values():
        if isinstance(value, torch.Tensor): value.zero_()
    first["camera"]["K"].zero_()
    again = stored[3]
    assert all(torch.equal(again[k], v) for k, v in copy.items()) and again["camera"]["K"][0, 0] == 48


# ---- a set ---------------------------------------------------------------------------------------------------------------

def test_the_workers_do_not_change_a_byte(tmp_path):
    one, two, other = (made(tmp_path / name, en.Discs(size=48, people=2, depth_every=2), workers=w, start_method=start) for name, w, start in (("a", 1, "fork"), ("b", 2, "fork"), ("c", 3, "spawn")))
    assert files(one.folder) == files(two.folder) == files(other.folder) and len(files(one.folder)) == 5
    assert one.card.shards == two.card.shards == other.card.shards
    for i in (0, 7, 8, 39):
        expected = en.decode(en.encode(en.disc_sample(en.Discs(size=48, people=2, depth_every=2), i)))
        assert all(same(expected[k], v) for k, v in two[i].items()) and set(expected) == set(two[i]) and ("depth" in two[i]) == (i % 2 == 0)


def test_a_set_grows_and_never_shrinks(tmp_path):
    folder = tmp_path / "discs"
    made(folder, n=20)
    short = files(folder)
    longer = made(folder, n=33)
    assert len(longer) == len(sh.Stored(folder)) == 33 and len(set(short) & set(files(folder))) == 2 and len(files(folder)) == 5
    before = {p.name: p.stat().st_ino for p in (folder / "data").iterdir()}
    few = made(folder, n=5)
    assert len(few) == 5 and len(sh.Stored(folder)) == 33 and before == {p.name: p.stat().st_ino for p in (folder / "data").iterdir()}
    with pytest.raises(IndexError, match="sample 5 of discs"): few[5]
    assert files(made(tmp_path / "whole", n=33).folder) == files(folder)


def test_a_smaller_set_on_the_way_to_a_larger_one_loses_nothing(tmp_path):
    folder, asked = tmp_path / "discs", []
    made(folder, n=40)
    (folder / "set.json").unlink()
    sh.SetCard("discs", DISC, {"Discs": SMALL.to_dict()}, 80, 8, en.Encoding().to_dict(), store.generator_code(DISC)).write(folder)  # 80 were begun, 40 are there
    few = made(folder, n=10, approve=lambda e: asked.append(e) or True)
    assert len(few) == 10 and not asked and len(files(folder)) == 5 and len(few.card.shards) == 2 and few[9]["index"] == 9
    assert len(made(folder, n=40, approve=lambda e: asked.append(e) or True)) == 40 and not asked


def test_another_config_is_another_folder(tmp_path):
    a, b = store.set_folder("discs", SMALL, tmp_path), store.set_folder("discs", replace(SMALL, seed=1), tmp_path)
    assert a != b and a == store.set_folder("discs", en.Discs(size=48), tmp_path)
    made(a, n=4)
    with pytest.raises(store.StoreError, match="another config.*set_folder"): made(a, replace(SMALL, seed=1), n=4)
    assert made(a, n=4)[2]["index"] == 2


@pytest.mark.parametrize("change, words", [(dict(encoding=en.Encoding(image="png")), "encoding differs"), (dict(rows=4), "rows differs"), (dict(code={"m": "2"}), "the generator changed .*m"),
                                           (dict(sample_of=f"{__name__}:other_disc"), "sample_of differs")])
def test_what_was_made_otherwise_is_made_anew(tmp_path, change, words):
    lines = []
    made(tmp_path / "discs", n=12)
    again = made(tmp_path / "discs", n=12, tell=lines.append, **change)
    assert any(__import__("re").search(words, line) for line in lines), lines
    assert len(again) == 12 and again.verify() == [] and sorted(files(again.folder)) == sorted(again.card.shards)


def other_disc(config, index): return en.disc_sample(config, index + 100)


def test_the_fingerprint_follows_the_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "drawn_for_test.py").write_text("from hclab.core.skeleton import skeleton\ndef draw(config, i): return 1\n")
    first = store.generator_code("drawn_for_test:draw")
    assert set(first) == {"drawn_for_test", "hclab.core.skeleton", *([m for m in first if m.startswith("hclab.core")])} and "hclab.data.store" not in first
    (tmp_path / "drawn_for_test.py").write_text("# why\nfrom hclab.core.skeleton import skeleton\n\ndef draw(config, i):\n    return 1\n")
    assert store.generator_code("drawn_for_test:draw") == first, "comments and layout are not code"
    (tmp_path / "drawn_for_test.py").write_text("from hclab.core.skeleton import skeleton\ndef draw(config, i): return 2\n")
    changed = store.generator_code("drawn_for_test:draw")
    assert {m for m in first if first[m] != changed[m]} == {"drawn_for_test"}
    assert "hclab.core.sample" in store.generator_code(DISC) and "hclab.data.store" not in store.generator_code("hclab.data.store:make")


def test_a_changed_asset_makes_a_set_anew_and_never_mixes_with_the_old_one(tmp_path, monkeypatch):
    "Samples of a body that was baked anew: in a finished set, in a half-made one, and while it is made."
    asset = tmp_path / "assets" / "body.safetensors"
    asset.parent.mkdir()
    monkeypatch.setattr(store, "ASSETS", asset.parent)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "drawn_of_asset.py").write_text(f"""
from pathlib import Path
from hclab.data.encode import disc_sample
here = Path({str(tmp_path)!r})
def draw(config, i):       # reads hclab/assets/body.safetensors anew for each sample, as a new process would
    if (here/"stop").exists() and i == 20: raise ValueError("stopped")
    if (here/"bake").exists() and i == 20: (here/"assets"/"body.safetensors").write_text((here/"bake").read_text())
    return disc_sample(config, i + int((here/"assets"/"body.safetensors").read_text()))
""")
    folder, lines, task = tmp_path / "set", [], "drawn_of_asset:draw"
    def work(): return made(folder, sample_of=task, workers=1, tell=lines.append)
    def is_of(stored, number): return all(torch.equal(stored[i]["joints2d"], en.disc_sample(SMALL, i + number)["joints2d"]) for i in range(40))
    asset.write_text("100")
    (tmp_path / "stop").write_text("")
    with pytest.raises(store.MakeError, match="stopped"): work()
    assert len(files(folder)) == 2 and "not finished" in store.why_not(folder, SMALL, 40, task, rows=8)
    (tmp_path / "stop").unlink()
    asset.write_text("200")                       # between two halves
    assert "hclab/assets/body.safetensors" in store.why_not(folder, SMALL, 40, task, rows=8)
    stored = work()
    assert is_of(stored, 200) and any("made anew" in line and "body.safetensors" in line for line in lines) and store.why_not(folder, SMALL, 40, task, rows=8) == ""
    asset.write_text("300")                       # of a finished set
    assert "outdated" in store.why_not(folder, SMALL, 40, task, rows=8) and is_of(work(), 300)
    (tmp_path / "bake").write_text("500")
    asset.write_text("400")                       # while it is made
    with pytest.raises(store.StoreError, match="body.safetensors changed while"): work()
    with pytest.raises(store.StoreError, match="not finished"): sh.Stored(folder)
    assert is_of(work(), 500)


def test_the_body_is_part_of_the_drawn_sets(monkeypatch, tmp_path):
    from hclab.lab.drawn_sets import SAMPLE_OF
    from hclab.lab.sources import sources
    for code in (store.generator_code(SAMPLE_OF), sources(SAMPLE_OF, "WorldConfig")):
        assert store.asset_code(code)["hclab/assets/body.safetensors"] == hashlib.sha256((store.ASSETS / "body.safetensors").read_bytes()).hexdigest()[:12]
    monkeypatch.setattr(store, "ASSETS", tmp_path)
    assert store.asset_code(code) == {}


def test_what_is_stored_and_what_is_asked(tmp_path):
    folder = tmp_path / "discs"
    assert store.why_not(folder, SMALL, 9, DISC, rows=8) == "nothing is stored"
    made(folder, n=9)
    for change, words in ((dict(), ""), (dict(n=5), ""), (dict(n=10), "only 9 are stored"), (dict(encoding=en.Encoding(image="png")), "encoding differs"), (dict(code={"m": "2"}), "the generator changed"), (dict(config=replace(SMALL, seed=1)), "another config")):
        why = store.why_not(**{"folder": folder, "config": SMALL, "n": 9, "sample_of": DISC, "rows": 8, **change})
        assert words in why and bool(words) == bool(why)


@dataclass(frozen=True)
class OfACell(en.Discs): "Settings as a notebook defines them."


def test_what_stands_in_a_notebook_is_said_to_be_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))      # a kernel's has no file
    with pytest.raises(store.StoreError, match="the function of this notebook.*mine:draw"): made(tmp_path / "own", sample_of="__main__:draw", start_method="spawn")
    monkeypatch.setattr(OfACell, "__module__", "__main__")
    with pytest.raises(store.StoreError, match="the settings OfACell of this notebook.*'mine:disc_sample'"): made(tmp_path / "own", OfACell(), start_method="spawn")
    assert not (tmp_path / "own").exists()


def test_a_garment_that_workers_do_not_know_says_where_it_belongs(tmp_path):
    from hclab.data.wardrobe import GARMENTS
    from hclab.data.world import WorldConfig
    GARMENTS["cape"] = GARMENTS["tshirt"]
    try: config = WorldConfig(size=(32, 32), wear=(("top", "cape"),))
    finally: del GARMENTS["cape"]
    with pytest.raises(store.MakeError, match="cape.*fresh process, which imports hclab.data.world and no more"): made(tmp_path / "capes", config, n=2, sample_of="hclab.data.world:draw_sample", workers=1)


def test_the_estimate_comes_before_the_work(tmp_path):
    seen, lines = [], []
    with pytest.raises(store.MakeError, match="not approved"): made(tmp_path / "discs", n=40, approve=lambda e: seen.append(e), tell=lines.append)
    (estimate,) = seen
    assert estimate.missing == 40 and estimate.workers == 2 and files(tmp_path / "discs") == {} and any("40 samples: about" in line for line in lines)
    stored = made(tmp_path / "discs", n=40)
    assert 0.7 < estimate.bytes / stored.card.bytes < 1.5, "three samples and their overhead tell the size of forty"


def test_progress_on_a_terminal_and_in_a_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "EVERY", 0.0)
    lines = []
    made(tmp_path / "log", n=24, tell=lines.append)
    assert any("of 24" in line and "/s" in line and "left" in line for line in lines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    made(tmp_path / "terminal", n=24, tell=print)
    assert "24/24" in capsys.readouterr().err


def test_progress_in_a_notebook_is_one_line():
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("""from hclab.data import store
store.EVERY = 0
with store.progress("people", 30, print) as report:
    for made in range(1, 31): report(made)""")])
    nbclient.NotebookClient(page, kernel_name="python3").execute()
    assert [o.output_type for o in page.cells[0].outputs] == ["display_data"] and "people: 30 made in" in page.cells[0].outputs[0].data["text/plain"]


@pytest.mark.parametrize("wrong, words", [(dict(sample_of="disc_sample"), "module:function"), (dict(sample_of="hclab.nowhere:f"), "hclab.nowhere"), (dict(sample_of="hclab.data.encode:disk_sample"), "disc_sample"),
                                          (dict(n=0), "n=0"), (dict(workers=0), "workers=0")])
def test_wrong_orders(tmp_path, wrong, words):
    with pytest.raises((store.StoreError, store.MakeError), match=words): made(tmp_path / "discs", **wrong)


@pytest.mark.parametrize("name", ["", "../x", "a b", "a/b", ".hidden", "ünnamed"])
def test_names_that_no_set_may_have(name, tmp_path):
    with pytest.raises(store.StoreError, match="cannot name a set"): store.set_folder(name, SMALL, tmp_path)


# ---- reading ---------------------------------------------------------------------------------------------------------------

def test_a_row_is_found_in_any_order_and_in_another_process(tmp_path, monkeypatch):
    monkeypatch.setattr(sh, "KEPT", 2)  # shards come and go
    stored = made(tmp_path / "discs", n=50)
    order = np.random.default_rng(0).permutation(50).tolist() * 2
    assert [stored[i]["index"] for i in order] == order and len(stored._shards) == 2
    copy = pickle.loads(pickle.dumps(stored))
    assert copy[np.int64(49)]["caption"] == "1 disc(s), number 49" and copy.where(49).endswith("row 1") and copy._shards.keys() != stored._shards.keys()
    for index in (50, -1): pytest.raises(IndexError, stored.__getitem__, index)
    with pytest.raises(en.EncodingError, match="joints2d"): sh.Stored(stored.folder, keys=("joint2d",))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_deals_from_a_set(tmp_path, workers):
    loader = Loader(made(tmp_path / "discs", n=20), 4, seed=1, workers=workers, start_method="fork" if workers else None)
    batches = list(loader)
    loader.close()
    assert sorted(int(i) for b in batches for i in b["index"]) == list(range(20)) and batches[0]["image"].shape == (4, 3, 48, 48) and batches[0]["has_depth"].all()


def test_only_wanted_keys_are_decoded(tmp_path):
    stored = made(tmp_path / "discs", n=4)
    some = sh.Stored(stored.folder, keys=("joints2d", "boxes"))
    assert set(some[1]) == {"joints2d", "boxes", "skeleton"} and set(sh.Stored(stored.folder, keys=())[1]) == set()
    assert validate(some[1]) is not None and set(some.row(1)) == {"joints2d", "boxes", "skeleton"}
    depth = sh.Stored(stored.folder, keys=("depth",))
    assert set(depth.row(1)) == {"depth", "depth_unit"} and torch.equal(depth[1]["depth"], stored[1]["depth"])


def test_a_shard_without_a_column_is_read_as_samples_without_the_key(tmp_path):
    "Shards of an older version lack the columns that came later."
    rows = [en.encode(en.disc_sample(SMALL, i)) for i in range(3)]
    table = pq.read_table(io.BytesIO(sh.shard_bytes(rows))).drop_columns(["iuv", "caption"]).append_column("from_the_future", [[1, 2, 3]])
    out = io.BytesIO()
    pq.write_table(table, out, compression="none", use_dictionary=False)
    found = sh.read_rows(out.getvalue())
    assert all(set(found[i]) == set(rows[i]) - {"iuv", "caption"} for i in range(3))
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")  # and one that another program wrote is read as well, only not in place
    data = out.getvalue()
    for key in ("image", "depth"): assert [data[v] if isinstance(v, slice) else v for v in (r[key] for r in sh.read_rows(data))] == [r[key] for r in rows]


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")
def test_the_datasets_library_reads_the_same_samples(tmp_path, monkeypatch):
    import datasets
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    stored = made(tmp_path / "discs", en.Discs(size=48, people=2, depth_every=2), n=20)
    table = stored.to_datasets()
    features = table.features
    assert len(table) == 20 and isinstance(features["depth"], datasets.Image) and isinstance(features["image"], datasets.Image) and features["caption"].dtype == "string"
    row = table[4]
    assert row["depth"].mode == "I;16" and np.array_equal(np.asarray(row["body_parts"]), stored[4]["body_parts"].numpy()) and np.allclose(row["joints2d"], stored[4]["joints2d"].numpy())
    raw = table
    for key in en.PICTURES: raw = raw.cast_column(key, datasets.Image(decode=False))
    for i in (3, 4, 19):
        back = en.decode(raw[i])
        assert set(back) == set(stored[i]) and all(same(v, back[k]) for k, v in stored[i].items())
    folder = datasets.load_dataset(str(stored.folder), split="train", cache_dir=str(tmp_path / "other"))  # the folder names its files itself
    assert len(folder) == 20 and folder[4]["caption"] == stored[4]["caption"]


# ---- what there is -----------------------------------------------------------------------------------------------------------

def test_sets_are_listed_and_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("HCLAB_HOME", str(tmp_path))
    assert store.stored_sets() == [] and store.set_lines() == []
    with pytest.raises(store.StoreError, match="nothing is stored"): store.remove("discs")
    a, b = made(store.set_folder("discs", SMALL), n=12), made(store.set_folder("discs", en.Discs(size=40)), en.Discs(size=40), n=4)
    (store.sets_root() / "half" / "data").mkdir(parents=True)
    (b.folder / "set.json").write_text("{}")
    states = {s.name: (s.samples, s.state.split(" ")[0], s.bytes) for s in store.stored_sets()}
    assert states[a.folder.name] == (12, "complete", a.card.bytes) and states["half"] == (0, "not", 0) and "damaged" in next(s.state for s in store.stored_sets() if s.folder == b.folder)
    assert len(store.set_lines()) == 3 and "12 samples" in "\n".join(store.set_lines())
    for name in ("discs", "", "nothing", "../sets"):
        with pytest.raises(store.StoreError): store.remove(name)
    assert store.remove(a.folder.name) == a.folder and not a.folder.exists() and store.remove("discs") == b.folder and [s.name for s in store.stored_sets()] == ["half"]
    assert json.loads(json.dumps(a.card.config)) == {"Discs": SMALL.to_dict()}


def test_the_command_line_lists_and_removes(tmp_path, monkeypatch, capsys):
    from hclab.lab.cli import main
    monkeypatch.setenv("HCLAB_HOME", str(tmp_path / "a home"))
    stored = made(store.set_folder("discs", SMALL), n=12)
    assert main(["data", "list"]) == 0 and f"{stored.folder.name}" in capsys.readouterr().out
    assert main(["data", "rm", "disks"]) == 1 and stored.folder.name in capsys.readouterr().err and stored.folder.exists()
    assert main(["data", "rm", "discs"]) == 0 and not stored.folder.exists()
    assert str(stored.folder) in capsys.readouterr().out and main(["data", "list"]) == 0


def test_a_script_without_a_guard_is_told_so_instead_of_waiting_for_itself(tmp_path):
    script = tmp_path/"mine.py"
    script.write_text(f"from hclab.data.encode import Discs\nfrom hclab.data.store import make\nmake({str(tmp_path/'set')!r}, Discs(size=48), 40, {DISC!r}, rows=8)\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode and "under if __name__ == '__main__'" in done.stderr
