"hclab data show and list: what is written, what is refused, and that nothing half-made is left."
import re
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from hclab.core.config import samples_dir
from hclab.data.grammar import ACTIONS, generate
from hclab.data.measures import track
from hclab.data.motion import Clip
from hclab.data.readers.bvh import read_bvh
from hclab.lab import data
from hclab.lab.cli import main
from hclab.lab.data import ShowError, load_motion, on_layout, read_clips, save_motion, show_file, show_motion
from hclab.lab.motion_mixer import Desk, MixError, Take, draw, mix


@pytest.mark.parametrize("line, words", [
    (["motion", "--action", "wlak"], "did you mean 'walk'"),
    (["motion", "--performer", "-1"], "number from 0 on"),
    (["motion", "--performer", "1.5"], "number from 0 on"),
    (["motion", "--layout", "H36M71"], "did you mean 'H36M17'"),
    (["motion", "--fps", "0"], "1 to 240"),
    (["motion", "--fps", "nan"], "1 to 240"),
    (["motion", "--seconds", "1e9"], "0.1 to 600"),
    (["nowhere.bvh"], "no such file"),
    (["walk.xyz"], "no such file"),
    (["."], "name one file"),
    (["cmu", "--fps", "3"], "is a data card"),
    (["moton"], "did you mean 'motion'"),
    (["a.bvh", "--action", "walk"], "is a recording"),
])
def test_wrong_words_are_one_line_and_exit_2(line, words, capsys, tmp_path):
    assert main(["data", "show", *line, *([] if line[0] == "cmu" else ["--out", str(tmp_path/"out")])]) == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err and err.count("\n") == 1
    assert not (tmp_path/"out").exists()


def test_motion_is_drawn_by_the_command(tmp_path, capsys):
    assert main(["data", "show", "motion", "--action", "walk", "--action", "wave", "--performer", "4", "--seconds", "1", "--fps", "20", "--layout", "NTU25", "--gif", "--out", str(tmp_path/"a b")]) == 0
    said = capsys.readouterr().out
    for name in ("motion.png", "motion.html", "motion.gif"): assert str(tmp_path/"a b"/name) in said and (tmp_path/"a b"/name).stat().st_size > 1000
    with Image.open(tmp_path/"a b"/"motion.gif") as image: assert sum(frame.info["duration"] for frame in ImageSequence.Iterator(image)) == 1000
    page = (tmp_path/"a b"/"motion.html").read_text()
    assert "walk, performer 4" in page and "wave, performer 4" in page and not re.search(r"https?://", page)


def test_all_actions_are_on_the_sheet_by_default(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(data, "_write", lambda rows, *rest: seen.extend(rows))
    show_motion(tmp_path, seconds=0.5)
    assert [(s.action, s.performer) for s in seen] == [(a, n) for a in ACTIONS for n in data.PERFORMERS]


def test_help_loads_no_torch_and_a_reader_is_imported_when_needed():
    code = ("import sys; from hclab.lab.cli import main; main(['data', 'show', '--help']); import hclab.lab.cli; print('torch' in sys.modules, file=sys.stderr)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == "False"
    for suffix, where in data.READERS.items(): assert callable(data.find_reader("x" + suffix)), where


def test_list_names_readers_actions_and_samples(tmp_path, monkeypatch, capsys):
    (tmp_path/"sub").mkdir()
    (tmp_path/"sub"/"one.bvh").write_text("")
    monkeypatch.setenv("HCLAB_SAMPLES", str(tmp_path))
    monkeypatch.setitem(data.READERS, ".gone", "hclab.data.readers.gone:read")
    assert main(["data", "list"]) == 0
    said = capsys.readouterr().out
    assert all(a in said for a in ACTIONS) and "1 file, e.g. sub/one.bvh" in said and "(missing here)" in said
    monkeypatch.delenv("HCLAB_SAMPLES")
    assert main(["data", "list"]) == 0 and "HCLAB_SAMPLES is not set" in capsys.readouterr().out


def test_a_broken_recording_leaves_nothing(tmp_path, capsys):
    (tmp_path/"broken.bvh").write_text("HIERARCHY\nROOT a\n{\nOFFSET 0 x 0\n")
    assert main(["data", "show", str(tmp_path/"broken.bvh"), "--out", str(tmp_path/"out")]) == 2
    assert "broken.bvh:4" in capsys.readouterr().err and not (tmp_path/"out").exists()


def test_several_people_of_one_file_move_together(tmp_path, monkeypatch):
    pair = [generate("wave", n, 1.0, fps=30) for n in (1, 2)]
    monkeypatch.setitem(data.READERS, ".pair", "hclab.lab.data:load_motion")
    monkeypatch.setattr(data, "load_motion", lambda path: pair)
    (tmp_path/"two.pair").write_text("x")
    shown = show_file(tmp_path/"two.pair", tmp_path)
    assert len(shown.notes) == 2 and "person 2 head" in shown.files["player"].read_text()
    with pytest.raises(ShowError, match="differ in length"):
        pair[1] = pair[1].slice(0, 10)
        show_file(tmp_path/"two.pair", tmp_path)


def test_missing_joints_are_gaps_and_a_hopeless_layout_is_refused():
    s = on_layout(generate("walk", 1, 1.0, fps=20), "COCO17")
    assert np.isnan(s.joints[:, s.skeleton.index("left_eye")]).all() and np.isfinite(s.joints[:, s.skeleton.index("left_knee")]).all()
    lone = generate("walk", 1, 1.0, fps=20)
    lone = Clip(lone.joints, replace(lone.skeleton, name="OWN", names=tuple(f"j{i}" for i in range(len(lone.skeleton))), pairs=()), 20.0, "walk", 1)
    with pytest.raises(ShowError, match="too few of the joints"): on_layout(lone, "H36M17")


# ------------------------------------------------------------------------------------------------ kept motion
def test_kept_motion_comes_back_bit_by_bit(tmp_path):
    clip = draw(Take("squat", performer=6, seconds=1.5))
    back = load_motion(save_motion(clip, tmp_path/"a.motion.npz"))
    assert torch.equal(back.joints, clip.joints) and (back.fps, back.action, back.performer, back.skeleton) == (clip.fps, clip.action, clip.performer, clip.skeleton)


def test_hostile_archives_are_refused(tmp_path):
    good = save_motion(generate("walk", 1, 1.0), tmp_path/"good.motion.npz").read_bytes()
    files = {"half": good[:len(good)//2], "empty": b"", "text": b"not an archive"}
    for name, content in files.items(): (tmp_path/f"{name}.motion.npz").write_bytes(content)
    with zipfile.ZipFile(tmp_path/"bomb.motion.npz", "w", zipfile.ZIP_DEFLATED) as z: z.writestr("joints.npy", b"\0"*(data.LARGEST + 1))
    np.savez(tmp_path/"objects.motion.npz", **{k: np.array([print], dtype=object) for k in data.NEEDED})
    kept = dict(np.load(tmp_path/"good.motion.npz"))
    np.savez(tmp_path/"double.motion.npz", **{**kept, "joints": kept["joints"].astype(np.float64)})
    np.savez(tmp_path/"shape.motion.npz", **{**kept, "joints": kept["joints"][:, :5]})
    np.savez(tmp_path/"parents.motion.npz", **{**kept, "layout": np.str_("OWN"), "parents": np.full(len(kept["names"]), 3)})
    for name in (*files, "bomb", "objects", "double", "shape", "parents"):
        with pytest.raises(ShowError, match=rf"{name}\.motion\.npz"): read_clips(tmp_path/f"{name}.motion.npz")


# ------------------------------------------------------------------------------------------------ the mixer, without a browser
def bones(clip, a, b): return torch.stack([(clip.joints[a:b, p] - clip.joints[a:b, c]).norm(dim=-1) for p, c in clip.skeleton.edges])


@pytest.mark.parametrize("blend", [0.0, 0.01, 0.4, 1.0])
def test_segments_cover_the_mix_and_hold_the_takes(blend):
    takes = [draw(Take("walk", seconds=1.0)), draw(Take("wave", seconds=1.5)), draw(Take("idle", seconds=1.0))]
    mixed = mix(takes, blend)
    assert mixed.segments[0][0] == 0 and mixed.segments[-1][1] == len(mixed.clip)
    assert all(a[1] == b[0] for a, b in zip(mixed.segments, mixed.segments[1:], strict=False))
    parts = [(a, b) for a, b, action in mixed.segments if action != "transition"]
    assert [b - a for a, b in parts] == [len(t) for t in takes]
    root = mixed.clip.joints[:, mixed.clip.skeleton.root, :2]
    assert float((root[1:] - root[:-1]).norm(dim=-1).max()) < 0.15, "nobody is moved over the floor in one frame"
    for (a, b), take in zip(parts, takes, strict=True):     # a take is turned and moved as a whole, so its inner distances stay
        assert torch.allclose(bones(mixed.clip, a, b), bones(take, 0, len(take)), atol=1e-4)


def test_the_desk_refuses_and_keeps_what_it_had(tmp_path):
    desk = Desk()
    with pytest.raises(MixError, match="no clip"): desk.add(0, 1)
    with pytest.raises(MixError, match="empty"): desk.join()
    desk.draw(seconds=1.0)
    desk.add(0, 0.5)
    joined = desk.join().clip
    with pytest.raises(ValueError, match="no action"): desk.draw(action="fly")
    assert desk.clip is joined and desk.take.action == "walk"
    with pytest.raises(MixError, match="write a"): desk.save(tmp_path/"x.txt")
    desk.draw(action="wave")
    assert load_motion(desk.save(tmp_path/"x.motion.npz")).action == "wave", "what is on the stage is what is saved"


def test_a_mix_is_written_as_bvh_and_read_back(tmp_path):
    desk = Desk(Take("walk", seconds=1.0))
    desk.draw()
    desk.add(0, 1)
    desk.draw(action="squat")
    desk.add(0, 1)
    mixed = desk.join()
    assert mixed.clip.rotations is not None, "the grammar's figure turns its joints, and so does the bridge"
    back = read_bvh(desk.save(tmp_path/"mine.bvh"), unit_metres=0.01)
    assert len(back) == len(mixed.clip) and back.fps == pytest.approx(30, rel=1e-4)
    for name in ("left_ankle", "right_wrist"):
        assert (back.joint(name) - mixed.clip.joint(name)).norm(dim=-1).max() < 2e-3, name


@pytest.mark.skipif(samples_dir() is None, reason="HCLAB_SAMPLES is not set: real recordings are not at hand")
@pytest.mark.parametrize("name, frames", [("cmu/01_01.amc", 2), ("cmu/cmu_12_01_walk.bvh", 1), ("uiprmd/original/correct/m01_s01_e01_positions.txt.gz", 1)])
def test_recordings_are_shown(name, frames, tmp_path):
    shown = show_file(samples_dir()/name, tmp_path, seconds=2)
    assert shown.files["sheet"].stat().st_size > 5000 and "read as: " in shown.notes[0] and len(shown.notes) >= frames


@pytest.mark.skipif(samples_dir() is None, reason="HCLAB_SAMPLES is not set: real recordings are not at hand")
def test_a_recording_is_found_as_the_list_names_it_and_stands_on_its_feet():
    folder = "uiprmd/original/correct/"
    whole, bare, angles = (read_clips(name)[0] for name in (folder + "m01_s01_e01_positions.txt.gz", "m01_s01_e01_positions.txt.gz", folder + "m01_s01_e01_angles.txt.gz"))
    assert torch.equal(whole.joints, bare.joints) and torch.equal(whole.joints, angles.joints)
    feet = torch.cat([track(whole, "left_ankle"), track(whole, "right_ankle")], 1)
    assert (feet.amax(0) - feet.amin(0)).max() < .2, "in a squat both feet stay"


@pytest.mark.parametrize("name, words", [("film.mp4", "hold no joints"), ("01.asf", "without motion"), ("notes.doc", "readable: .bvh, .amc"), ("m01_s01_e01_angles.txt", "m01_s01_e01_positions.txt is not beside it")])
def test_what_holds_no_motion_says_so(name, words, tmp_path):
    (tmp_path/name).write_text("x")
    with pytest.raises(ShowError, match=re.escape(words)): read_clips(tmp_path/name)


def test_a_layout_may_be_small_letters_or_the_figures_own():
    clip = generate("walk", 3, 1.0, layout="FIGURE")
    assert on_layout(clip, "coco17").skeleton.name == "COCO17" and on_layout(clip, "FIGURE").skeleton.name == "FIGURE"


def test_an_amc_without_its_body_is_refused(tmp_path):
    (tmp_path/"01_01.amc").write_text("#!OML\n")
    with pytest.raises(ShowError, match=r"expected 01\.asf beside it, found none"): read_clips(tmp_path/"01_01.amc")


def test_drawn_sets_are_made_shown_and_removed(tmp_path, monkeypatch, capsys):
    from hclab.data.world import SETS
    from hclab.lab.cli import DRAWN_SETS
    assert tuple(SETS) == DRAWN_SETS
    monkeypatch.setenv("HCLAB_HOME", str(tmp_path/"home"))
    small = ["-p", "size=(48,48)", "-p", "actions=idle"]
    assert main(["data", "make", "rgbd", "--n", "3", "--workers", "1", *small]) == 0 and "3 samples" in capsys.readouterr().out
    assert main(["data", "show", "rgbd", "--n", "3", *small, "--out", str(tmp_path/"show")]) == 0
    assert (tmp_path/"show/rgbd.png").stat().st_size > 5000 and "rgbd.png" in capsys.readouterr().out
    assert main(["data", "list"]) == 0
    stored = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip().startswith("rgbd-")]
    assert len(stored) == 1 and main(["data", "rm", stored[0]]) == 0
    for wrong, says in ((["data", "make", "rgb"], "no set 'rgb'"), (["data", "make", "rgbd", "-p", "splt=test"], "did you mean"), (["data", "show", "rgbd", "-p", "scale=big"], "give two numbers")):
        assert main(wrong) == 2, wrong
        assert says in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ sheets of drawn sets
TINY = ["size=(32,32)", "actions=idle"]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    "Two stored samples of a tiny world, made without processes; and the titles of the sheets that are shown."
    from hclab.data import store
    from hclab.data.encode import encode
    from hclab.data.shards import write_shard
    from hclab.data.world import draw_sample
    from hclab.lab import drawn_sets
    from hclab.viz import strip
    monkeypatch.setenv("HCLAB_HOME", str(tmp_path/"home"))
    config = drawn_sets.changed("rgbd", TINY)
    job, titles, sheet = store._job(**drawn_sets._asked("rgbd", config, 2)), [], strip.strip_sheet
    (job.folder/"data").mkdir(parents=True)
    write_shard(job.folder/"data", 0, [encode(draw_sample(config, i), job.encoding) for i in range(2)])
    store._finish(job, store.finished_shards(job)[0])
    def remembered(samples, title, **options):
        titles.append(title)
        return sheet(samples, title=title, **options)
    monkeypatch.setattr(strip, "strip_sheet", remembered)
    def show(n):
        drawn_sets.show_set("rgbd", n, tmp_path/"show", TINY)
        return titles[-1]
    return job.folder, show


def again(folder, **changes):
    "Write the card of a set with other values."
    from hclab.data.shards import SetCard
    replace(SetCard.read(folder), **changes).write(folder)


def test_a_sheet_shows_what_is_stored_if_it_is_long_enough(kept, monkeypatch):
    from hclab.lab import drawn_sets
    folder, show = kept
    assert show(3) == "rgbd: samples 0 to 2 (drawn now: only 2 are stored)"
    monkeypatch.setattr(drawn_sets, "World", None)      # nothing can be drawn
    assert show(2) == "rgbd: samples 0 to 1 (stored)" and show(1) == "rgbd: sample 0 (stored)"


def test_a_sheet_does_not_pass_off_a_set_of_older_code_as_the_present_one(kept):
    from hclab.data.shards import SetCard
    folder, show = kept
    code = SetCard.read(folder).code
    again(folder, code={**code, "hclab.data.looks": "older"})
    assert show(1) == "rgbd: sample 0 (drawn now: what is stored is outdated: the generator changed (hclab.data.looks))"
    again(folder, code={k: v for k, v in code.items() if not k.startswith("hclab/assets")})
    assert "the generator changed (hclab/assets/body.safetensors)" in show(1)


def test_a_sheet_is_drawn_where_a_set_was_interrupted_or_damaged(kept):
    folder, show = kept
    (shard,) = (folder/"data").iterdir()
    shard.write_bytes(shard.read_bytes()[:-9] + b"otherwise")
    assert show(1) == "rgbd: sample 0 (drawn now: a file of what is stored is missing or damaged)"
    shard.unlink()
    assert "a file of what is stored is missing or damaged" in show(1)
    again(folder, complete=False, shards={})            # as `make` leaves it when it is killed
    assert show(1) == "rgbd: sample 0 (drawn now: what is stored is not finished)"
    (folder/"set.json").write_text("{")
    assert show(1) == "rgbd: sample 0 (drawn now: the card of what is stored cannot be read)"


@pytest.mark.parametrize("n", ["0", "-3", "1000000"])
def test_a_sheet_of_none_or_of_too_many_is_refused_before_anything_is_drawn(n, tmp_path, monkeypatch, capsys):
    from hclab.lab import drawn_sets
    monkeypatch.setattr(drawn_sets, "samples_of", None)
    assert main(["data", "show", "rgbd", "--n", n, "--out", str(tmp_path/"show")]) == 2
    err = capsys.readouterr().err
    assert f"n={n}" in err and ("at least 1" in err or "at most" in err) and "Traceback" not in err and err.count("\n") == 1 and not (tmp_path/"show").exists()


@pytest.mark.parametrize("size", [(256, 256), (256, 128), (64, 320), (700, 100)])
def test_no_picture_is_smaller_on_the_sheet_than_it_is(size, tmp_path, monkeypatch):
    "Stripes one pixel wide, black and white: where a picture is shrunk they become grey."
    from hclab.lab import drawn_sets
    H, W = size
    stripes = torch.zeros(3, H, W)
    stripes[:, :, ::2] = 1
    monkeypatch.setattr(drawn_sets, "samples_of", lambda name, config, n: ([{"image": stripes, "image_size": size}]*n, "striped"))
    sheet = np.asarray(Image.open(drawn_sets.show_set("rgbd", 1, tmp_path, [f"size=({H},{W})"])["sheet"]).convert("L")).astype(int)
    row = sheet[int(.6*len(sheet))]         # across the picture, below the heads
    changes = np.abs(np.diff((row > 127).astype(int))).sum()
    assert len(row) >= W and changes >= W - 3, f"{changes} changes between black and white of {W - 1} are left"
