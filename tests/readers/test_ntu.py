"""NTU RGB+D on files written here, by hand and from drawn people: bodies, lost joints, choice of people, names, splits, and broken files."""
import tracemalloc

import pytest
import torch
from drawing import drawn, kinect, skeleton_text as text
from hypothesis import given, settings, strategies as st

from hclab.core.sample import collate, validate
from hclab.data.motion import ClipError
from hclab.data.readers.ntu import ACTIONS, MUTUAL, NTUError, PROTOCOLS, main_bodies, parse_name, read_missing, read_skeleton, split_of, to_clip, to_sample, write_skeleton

NAME = "S001C002P003R002A013.skeleton"


def two(n): return torch.full((n, 25), 2)


def put(folder, data, name=NAME):
    (folder / name).write_text(data)
    return folder / name


@pytest.fixture(scope="module")
def person(): return kinect(drawn("walk", 1, 40))


GOOD = None


@pytest.fixture(scope="module", autouse=True)
def good(person):
    global GOOD
    GOOD = text([("72057594037931101", 0, person[:3], two(3))], 3)
    return GOOD


def test_a_line_by_hand(tmp_path):
    joint = "0.2181153 0.1725972 3.785547 277.419 191.8218 1036.233 519.1677 -0.2059419 0.05349901 0.9692109 -0.1239193 2"
    path = put(tmp_path, "1\n1\n72057594037931101 0 1 1 1 1 0 0.02764709 0.05745083 2\n25\n" + "\n".join([joint] * 25) + "\n")
    (track,) = read_skeleton(path).tracks
    assert track.body_id == "72057594037931101" and track.frames.tolist() == [0] and track.states.eq(2).all()
    assert torch.allclose(track.joints[0, 7], torch.tensor([-0.2181153, -0.1725972, 3.785547])) and torch.allclose(track.pixels[0, 3], torch.tensor([1036.233, 519.1677])) and torch.allclose(track.depth_pixels[0, 3], torch.tensor([277.419, 191.8218]))


def test_the_turn_keeps_left_left(tmp_path, person):
    clip = to_clip(read_skeleton(put(tmp_path, text([("1", 0, person, two(40))], 40))))
    original = drawn("walk", 1, 40) + torch.tensor([0., 3, -1])
    assert torch.allclose(clip.joints, original, atol=1e-5) and clip.fps == 30 and clip.performer == "P003" and clip.action == "tear up paper" and "0 of 1000 joints filled" in clip.source


@pytest.mark.parametrize("change", [lambda s: s.replace("\n", "\r\n"), lambda s: s.replace("\n", "\n\n"), lambda s: s.replace(" ", "\t"), lambda s: s.replace(" ", "   "), lambda s: s.rstrip()])
def test_line_ends_and_spaces_do_not_matter(tmp_path, change):
    plain = read_skeleton(put(tmp_path, GOOD)).tracks[0]
    (tmp_path / "a b é.skeleton").write_bytes(change(GOOD).encode())
    other = read_skeleton(tmp_path / "a b é.skeleton")
    assert torch.equal(plain.joints, other.tracks[0].joints) and other.name is None


def test_nobody_one_two_and_three(tmp_path, person):
    nobody = read_skeleton(put(tmp_path, "2\n0\n0\n"))
    assert nobody.frames == 2 and nobody.tracks == ()
    for use in (to_sample, to_clip, main_bodies):
        with pytest.raises(NTUError, match="no body in any of 2 frames.*missing skeletons"): use(nobody)
    second = kinect(drawn("squat", 2, 30), (1, 3, 0)) ; still = kinect(drawn("idle", 3, 40), (-1, 3, 0))
    path = put(tmp_path, text([("9", 0, still, two(40)), ("7", 0, person, two(40)), ("8", 10, second, two(30))], 40))
    recording = read_skeleton(path)
    assert [t.body_id for t in recording.tracks] == ["9", "7", "8"] and [t.body_id for t in main_bodies(recording)] == ["7", "8"] and [t.body_id for t in main_bodies(recording, 3)] == ["7", "8", "9"]
    sample = validate(to_sample(recording))
    assert tuple(sample["sequence"].shape) == (2, 40, 25, 3) and sample["body_mask"].sum(1).tolist() == [40, 30] and (sample["sequence"][1, :10] == 0).all()
    assert (sample["action"], sample["identity"], sample["camera_id"]) == (12, 2, 1)
    one = validate(to_sample(recording, people=1))
    assert len(one["sequence"]) == 1 and tuple(collate([sample, one])["sequence"].shape) == (2, 2, 40, 25, 3)


def test_short_and_wide_tracks_are_left_out(tmp_path, person):
    table = torch.randn(1, 25, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([.6, .1, .2]) + torch.tensor([0, -.5, 3])
    table = table + .5 * torch.randn(40, 1, 3, generator=torch.Generator().manual_seed(1))       # it moves a lot
    ghost = kinect(drawn("walk", 4, 11)) * torch.linspace(1, 2, 11)[:, None, None]
    recording = read_skeleton(put(tmp_path, text([("table", 0, table, two(40)), ("ghost", 3, ghost, two(11)), ("person", 0, person, two(40))], 40)))
    assert [t.body_id for t in main_bodies(recording)] == ["person"] and [t.body_id for t in main_bodies(recording, 2, objects=True)] == ["table", "person"]
    alone = read_skeleton(put(tmp_path, text([("table", 0, table, two(40)), ("ghost", 3, ghost, two(11))], 40)))
    assert len(main_bodies(alone)) == 2, "where nothing is left, everything stays"


def test_lost_joints_are_flagged_masked_and_filled(tmp_path, person):
    states = two(40); states[10:13, 6] = 0; states[:, 15] = 1
    lost = person.clone(); lost[10:13, 6] = float("nan"); lost[11, 6] = 0
    recording = read_skeleton(put(tmp_path, text([("1", 0, lost, states)], 40).replace("nan nan nan", "-1.#INF 1.#QNAN nan")))
    track = recording.tracks[0]
    assert torch.equal(track.states, states.to(torch.int8)) and (track.joints[10:13, 6] == 0).all()
    sample = validate(to_sample(recording))
    assert (~sample["body_mask"][0]).nonzero().flatten().tolist() == [10, 11, 12] and (sample["sequence"][0, 10] == 0).all()
    clip = to_clip(recording)
    straight = torch.lerp(clip.joints[9, 6], clip.joints[13, 6], .5)
    assert torch.allclose(clip.joints[11, 6], straight, atol=1e-5) and "3 of 1000 joints filled" in clip.source
    with pytest.raises(NTUError, match="left_wrist of body 1 is lost for 3 frames"): to_clip(recording, max_gap=2)


def test_a_track_with_a_gap(tmp_path, person):
    recording = read_skeleton(put(tmp_path, text([("1", 0, person[:15], two(15)), ("1", 20, person[20:], two(20))], 40)))
    assert len(recording.tracks) == 1 and len(recording.tracks[0].frames) == 35 and len(to_clip(recording)) == 40
    assert (~to_sample(recording)["body_mask"][0]).nonzero().flatten().tolist() == [15, 16, 17, 18, 19]


def test_lost_zeros_are_no_motion(tmp_path):
    still = kinect(drawn("idle", 1, 40), (-1, 3, 0)); states = two(40); states[::2, 3] = 0
    recording = read_skeleton(put(tmp_path, text([("flicker", 0, still, states), ("walker", 0, kinect(drawn("walk", 2, 40)), two(40))], 40)))
    assert main_bodies(recording, 1)[0].body_id == "walker"


def test_one_frame(tmp_path, person):
    assert len(to_clip(read_skeleton(put(tmp_path, text([("1", 0, person[:1], two(1))], 1))))) == 1


def test_pixels_outside_are_nan(tmp_path):
    for word in ("-1.#INF", "nan", "-inf", "-3.4028235e38"):
        assert read_skeleton(put(tmp_path, GOOD.replace("1036.2", word))).tracks[0].pixels[..., 0].isnan().all()
        assert read_skeleton(put(tmp_path, GOOD.replace("191.8", word))).tracks[0].depth_pixels[..., 1].isnan().all()


def test_written_files_come_back(tmp_path, person):
    states = two(40); states[3, 4] = 0; states[5] = 1
    first = read_skeleton(put(tmp_path, text([("1", 0, person, states), ("2", 5, person[:20] + .5, two(20))], 40)))
    write_skeleton(tmp_path / "again.skeleton", first.tracks, 40)
    again = read_skeleton(tmp_path / "again.skeleton")
    for a, b in zip(first.tracks, again.tracks):
        assert a.body_id == b.body_id and torch.equal(a.frames, b.frames) and torch.equal(a.states, b.states) and torch.allclose(a.joints, b.joints, atol=1e-6) and torch.allclose(a.pixels, b.pixels) and torch.allclose(a.depth_pixels, b.depth_pixels)


def line(n, old, new):
    def change(text):
        rows = text.split("\n"); assert old in rows[n - 1], rows[n - 1]
        rows[n - 1] = rows[n - 1].replace(old, new, 1)
        return "\n".join(rows)
    return change


BROKEN = dict(
    empty=(lambda s: "", 1, "truncated"), html=(lambda s: "<html>\n", 1, "whole number"), zero_frames=(lambda s: "0\n", 1, "number of frames is 0"), negative=(line(1, "3", "-3"), 1, "whole number"),
    many_frames=(line(1, "3", "999999999"), 1, "possible"), huge=(line(1, "3", "9" * 50), 1, "whole number"), cut=(lambda s: s[:2500], 0, "truncated|needs 12"), one_frame_less=(line(1, "3", "4"), 85, "number of bodies in frame 3"),
    more=(line(1, "3", "2"), 57, "more follow"), seven=(line(2, "1", "7"), 2, "possible"), head=(line(3, " 0.0123", ""), 3, "begins with 10 values"), head_word=(line(3, "0.0123", "left"), 3, "no number"),
    joints24=(line(4, "25", "24"), 4, "24 joints"), joints0=(line(4, "25", "0"), 4, "0 joints"), joints_word=(line(4, "25", "all"), 4, "whole number"), eleven=(line(9, " 277.4", ""), 9, "needs 12 numbers, got 11"),
    thirteen=(line(9, " 277.4", " 277.4 3"), 9, "got 13"), word=(line(9, "277.4", "left"), 9, "'left'"), state=(line(9, "-0.05 2", "-0.05 3"), 9, "tracking state"), state_text=(line(9, "-0.05 2", "-0.05 tracked"), 9, "tracking state"),
    long=(lambda s: "3\n" + "1 " * 100_000, 2, "65,000 characters"), binary=(lambda s: "\x89PNG\r\n\x00\x01\x02", 1, "whole number"))


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_name_file_and_line(tmp_path, name):
    change, at, says = BROKEN[name]
    path = put(tmp_path, change(GOOD))
    with pytest.raises(NTUError, match=says) as e: read_skeleton(path)
    assert str(e.value).startswith(f"{path}:{at}:" if at else f"{path}:"), str(e.value)


def test_nan_and_millimetres(tmp_path):
    rows = GOOD.split("\n")
    x = rows[9].split()[0]
    for bad, says in (("nan", "tracking state is 2"), ("inf", "tracking state is 2"), ("1e9", "metres are expected"), ("-2181.15", "millimetres")):
        with pytest.raises(NTUError, match=says) as e: read_skeleton(put(tmp_path, "\n".join(rows[:9] + [rows[9].replace(x, bad, 1)] + rows[10:])))
        assert f"{NAME}:10: joint 6 (left_elbow) of body" in str(e.value)
    small = text([("1", 0, kinect(drawn("walk", 1, 20)) / 100, two(20))], 20)
    with pytest.raises(ClipError, match="impossible"): to_clip(read_skeleton(put(tmp_path, small)))


def test_a_body_twice_in_a_frame(tmp_path):
    rows = GOOD.split("\n")
    with pytest.raises(NTUError, match="comes twice in frame 0"): read_skeleton(put(tmp_path, "\n".join([rows[0], "2", *rows[2:29], *rows[2:29], *rows[29:]])))


def test_names():
    assert parse_name("/data/x/S017C003P040R002A060.skeleton") == (17, 3, 40, 2, 60) and parse_name("S001C001P001R001A001_rgb.avi").action == 1
    for wrong in ("S001C001P001R001.skeleton", "S000C001P001R001A001", "S033C001P001R001A001", "S001C001P107R001A001", "S001C001P001R003A001", "S001C001P001R001A0011", ""):
        with pytest.raises(NTUError): parse_name(wrong)
    assert len(set(ACTIONS)) == 120 and all(len(ACTIONS[a - 1]) > 3 for a in MUTUAL) and len(MUTUAL) == 26 and ACTIONS[59] == "walking apart from each other"


def test_splits_are_disjoint_and_official():
    everyone = {p: {s: [n for n in range(1, 107) if split_of(parse_name(f"S001C001P{n:03}R001A001"), p) == s] for s in ("train", "test")} for p in ("xsub60", "xsub120")}
    assert [len(v) for v in everyone["xsub120"].values()] == [53, 53] and len(everyone["xsub60"]["train"]) == 20
    assert [split_of(f"S001C00{c}P001R001A001", "xview60") for c in (1, 2, 3)] == ["test", "train", "train"]
    assert [split_of(f"S0{s:02}C001P001R001A001", "xset120") for s in (1, 2, 31, 32)] == ["test", "train", "test", "train"]
    for name in ("S018C001P001R001A001", "S001C001P001R001A061"):
        with pytest.raises(NTUError, match="belong to NTU RGB.D 120"): split_of(name, "xview60")
    with pytest.raises(NTUError, match="did you mean"): split_of("S001C001P001R001A001", "xsub6")
    assert set(PROTOCOLS) == {"xsub60", "xview60", "xsub120", "xset120"}


def test_the_list_of_missing_skeletons(tmp_path):
    path = put(tmp_path, "Samples with missing skeletons:\nS001C002P005R002A008\nS001C002P006R001A008\n", "missing.txt")
    assert read_missing(path) == {"S001C002P005R002A008", "S001C002P006R001A008"}
    with pytest.raises(NTUError, match="missing.txt:1"): read_missing(put(tmp_path, "nothing", "missing.txt"))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nothing_but_its_own_error_escapes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / NAME
    words = GOOD.replace("\n", " \n ").split(" ")
    for _ in range(data.draw(st.integers(1, 4))):
        i = data.draw(st.integers(0, len(words) - 1))
        words[i] = data.draw(st.sampled_from(["", "-1", "0", "nan", "1e39", "x", "\n", "3 4", "99999999999999999999", "\x00", "٣", "1_0", "inf"]))
    path.write_text(" ".join(words) if data.draw(st.booleans()) else data.draw(st.text(max_size=40)), encoding="utf-8")
    try:
        recording = read_skeleton(path)
        validate(to_sample(recording)); to_clip(recording)
    except (NTUError, ClipError): pass


def test_memory_is_at_most_twice_what_is_returned(tmp_path):
    person = kinect(drawn("walk", 1, 60)).repeat(50, 1, 1)
    path = put(tmp_path, text([("1", 0, person, two(3000))], 3000))
    tracemalloc.start()
    recording = read_skeleton(path)
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    held = sum(x.numel() * x.element_size() for t in recording.tracks for x in (t.joints, t.pixels, t.depth_pixels, t.states, t.frames))
    assert peak < 2 * held, f"{peak / held:.2f} times"
