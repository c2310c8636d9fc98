"""NTU RGB+D's pictures on files written here with Pillow: frames and numbers, the mirror, joints in each view, cameras fitted to known ones, and broken folders."""
import numpy as np
import pytest
import torch
from drawing import drawn, kinect, skeleton_text
from PIL import Image

from hclab.core.sample import validate
from hclab.core.skeleton import skeleton
from hclab.data.images import ImageError
from hclab.data.loading import BadSample, FolderWatch, Loader, LoadingError
from hclab.data.readers.ntu import NTUError, Recording, Track, read_skeleton
from hclab.data.readers.ntu_rgbd import NTUPictures, align, fit_alignment, fit_depth_camera, frame_sample, move, numbered, recordings_in, turned_back

NAME, NAMES = "S001C002P003R002A013", skeleton("NTU25").names
BESIDE = .052      # metres from the depth camera to the colour camera, to its left


def depth_place(xyz): return 256 + 365 * xyz[..., 0] / xyz[..., 2], 212 - 365 * xyz[..., 1] / xyz[..., 2]
def colour_place(xyz): return 960 + 1060 * (xyz[..., 0] + BESIDE) / xyz[..., 2], 540 - 1060 * xyz[..., 1] / xyz[..., 2]


def text(bodies, frames):
    "A .skeleton file of people with the Kinect's x to its left, y up; both pictures grow to the left, as the sensor's do."
    return skeleton_text(bodies, frames, lambda xyz: (*depth_place(xyz), *colour_place(xyz)))


def two(n): return torch.full((n, 25), 2)
def person(action="walk", performer=1, frames=20, at=(0, 3, 0)): return kinect(drawn(action, performer, frames), at)


def save_depth(folder, frame, counts=None, size=(424, 512), first=1):
    folder.mkdir(parents=True, exist_ok=True)
    array = np.zeros(size, np.uint16) if counts is None else counts
    Image.fromarray(array).save(folder / f"MDepth-{frame + first:08}.png")


def save_colour(folder, frame, array):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(folder / f"{frame + 1:08}.png")


@pytest.fixture
def root(tmp_path):
    "One recording of 20 frames; frame f has depth 1000 + f at row 10, column 100."
    (tmp_path / "skeletons").mkdir()
    (tmp_path / f"skeletons/{NAME}.skeleton").write_text(text([("1", 0, person(), two(20))], 20))
    for f in range(20):
        counts = np.zeros((424, 512), np.uint16); counts[10, 100] = 1000 + f
        save_depth(tmp_path / "depth" / NAME, f, counts)
    return tmp_path


def test_frames_numbers_and_the_turn(root):
    data = NTUPictures(root / "skeletons", root / "depth", per_recording=4)
    assert len(data) == 4 and [data.frame(i) for i in range(4)] == [2, 7, 12, 17]      # the middles of four quarters of 20, by hand
    for i, frame in enumerate((2, 7, 12, 17)):
        sample = validate(data[i])
        assert sample["depth"].shape == (1, 424, 512) and (sample["depth"] > 0).sum() == 1
        assert abs(float(sample["depth"][0, 10, 411]) - (1.0 + frame / 1000)) < 1e-6      # column 100 of 512 becomes 511 - 100
        assert (sample["action"], sample["identity"], sample["camera_id"], sample["index"], sample["image_size"]) == (12, 2, 1, i, (424, 512))
        xyz = person()[frame]
        u, v = depth_place(xyz)
        assert torch.allclose(sample["joints2d"][0], torch.stack([511 - u, v], -1), atol=1e-2) and torch.allclose(sample["joints3d"][0], xyz * torch.tensor([-1., -1, 1]), atol=1e-5)
        assert (sample["visibility"] == 2).all()
    stored = NTUPictures(root / "skeletons", root / "depth", per_recording=4, mirror=True)[1]
    assert float(stored["depth"][0, 10, 100]) > 0 and "joints3d" not in stored and torch.allclose(stored["joints2d"][0, :, 0], depth_place(person()[7])[0], atol=1e-2)


def test_left_is_left_after_the_turn(root):
    "Somebody who walks towards the sensor: a camera sees his left on its right."
    way = drawn("walk", 1, 20)[-1, 0] - drawn("walk", 1, 20)[0, 0]
    angle = torch.atan2(way[1], way[0]) + torch.pi / 2         # turned so that the walk goes to -y, where the sensor is
    c, s = angle.cos(), angle.sin()
    walk = drawn("walk", 1, 20) @ torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1.]])
    (root / f"skeletons/{NAME}.skeleton").write_text(text([("1", 0, kinect(walk, (0, 4, 0)), two(20))], 20))
    sample = NTUPictures(root / "skeletons", root / "depth", per_recording=1)[0]
    x = dict(zip(NAMES, sample["joints2d"][0, :, 0].tolist()))
    assert x["left_shoulder"] > x["right_shoulder"] + 5 and x["left_hip"] > x["right_hip"] + 3


def test_the_published_line_agrees_with_the_mirror():
    "Line of a real file, quoted in issue 48 of the authors' repository: x grows to the sensor's left, and so does the column."
    x, y, z, u, v = 0.2181153, 0.1725972, 3.785547, 277.419, 191.8218
    assert abs(256 + 365 * x / z - u) < 2 and abs(212 - 365 * y / z - v) < 5


def test_both_pictures_and_their_scale(root):
    wide = np.zeros((360, 640, 3), np.uint8); wide[:, :10] = 255
    for f in range(20): save_colour(root / f"rgb/{NAME}_rgb", f, wide)
    sample = validate(NTUPictures(root / "skeletons", colour=root / "rgb", per_recording=1)[0])
    u, v = colour_place(person()[10])
    assert sample["image"].shape == (3, 360, 640) and (sample["image"][:, 0, -10:] == 1).all() and "joints3d" not in sample and "depth" not in sample
    assert torch.allclose(sample["joints2d"][0], torch.stack([639 - ((u + .5) / 3 - .5), (v + .5) / 3 - .5], -1), atol=1e-2)
    with pytest.raises(NTUError, match=r"\(360, 640\).*align"): NTUPictures(root / "skeletons", root / "depth", root / "rgb", per_recording=1)[0]
    for f in range(20): save_colour(root / f"aligned/{NAME}", f, np.full((424, 512, 3), 51, np.uint8))      # already in the depth view
    sample = validate(NTUPictures(root / "skeletons", root / "depth", root / "aligned", per_recording=1)[0])
    assert (sample["image"] - .2).abs().max() < 1e-6 and sample["depth"].shape[1:] == sample["image"].shape[1:] and "joints3d" in sample
    save_colour(root / f"rgb/{NAME}_rgb", 10, np.zeros((300, 640, 3), np.uint8))
    with pytest.raises(NTUError, match="same shape at another scale"): NTUPictures(root / "skeletons", colour=root / "rgb", per_recording=1)[0]


def test_states_become_visibility(root):
    states, body = two(20), person()
    states[10, 3], states[10, 4], body[10, 5, 0] = 0, 1, 5.0       # lost, inferred, outside of the picture
    path = root / f"skeletons/{NAME}.skeleton"
    path.write_text(text([("1", 0, body, states)], 20))
    sample = NTUPictures(root / "skeletons", root / "depth", per_recording=1)[0]
    assert sample["visibility"][0, 3:7].tolist() == [0, 1, 1, 2] and sample["joints2d"][0, 3].tolist() == [0, 0] and sample["joints3d"][0, 3].tolist() == [0, 0, 0]
    u = depth_place(body[10])[0]
    path.write_text(path.read_text().replace(f" {float(u[6]):.7g} ", " -1.#INF "))
    recording = read_skeleton(path)
    sample = frame_sample(recording, 10, torch.zeros(1, 424, 512))
    assert sample["visibility"][0, 6] == 0 and sample["joints2d"].isfinite().all()


def test_two_people_and_nobody(root):
    (root / f"skeletons/{NAME}.skeleton").write_text(text([("1", 0, person(at=(-.5, 3, 0)), two(20)), ("2", 5, person("squat", 2, 12, (.5, 3, 0)), two(12))], 22))
    recording = read_skeleton(root / f"skeletons/{NAME}.skeleton")
    counts = [validate(frame_sample(recording, f, torch.zeros(1, 424, 512)))["joints2d"].shape[0] for f in (0, 5, 16, 17)]
    assert counts == [1, 2, 2, 1] and frame_sample(recording, 5, torch.zeros(1, 424, 512), people=1)["joints2d"].shape[0] == 1
    with pytest.raises(NTUError, match=f"{NAME}.skeleton:frame 20: no body"): frame_sample(recording, 20, torch.zeros(1, 424, 512))
    data = NTUPictures(root / "skeletons", root / "depth", per_recording=20)
    assert [data.frame(i) for i in range(20)] == list(range(20))      # frames 20 and 21, without anybody, are never chosen
    (root / f"skeletons/{NAME}.skeleton").write_text("2\n0\n0\n")
    with pytest.raises(NTUError, match="no body in any of 2 frames"): NTUPictures(root / "skeletons", root / "depth")[0]


def test_a_track_without_places_in_depth():
    track = Track("1", torch.arange(20), person() * torch.tensor([-1., -1, 1]), two(20).to(torch.int8), torch.zeros(20, 25, 2))
    with pytest.raises(NTUError, match="made up:frame 3: the track has no places"): frame_sample(Recording(None, 20, (track,), "made up"), 3, torch.zeros(1, 424, 512))


def test_a_turn_twice_is_nothing():
    sample = dict(image=torch.rand(3, 6, 9), depth=torch.rand(1, 6, 9), instance_ids=torch.randint(0, 3, (6, 9)), joints2d=torch.rand(1, 25, 2) * 8, joints3d=torch.rand(1, 25, 3), boxes=torch.tensor([[1., 2, 4, 5]]), image_size=(6, 9))
    once = turned_back(sample, joints3d=True)
    assert once["boxes"].tolist() == [[4, 2, 7, 5]] and torch.equal(once["image"][..., 0], sample["image"][..., 8]) and torch.equal(once["joints3d"][..., 0], -sample["joints3d"][..., 0])
    again = turned_back(once, joints3d=True)
    assert all(torch.allclose(torch.as_tensor(again[k], dtype=torch.float64), torch.as_tensor(sample[k], dtype=torch.float64), atol=1e-5) for k in sample)


def test_cameras_come_back_from_skeletons(root):
    recording = read_skeleton(root / f"skeletons/{NAME}.skeleton")
    camera = fit_depth_camera([recording])
    want = torch.tensor([[365, 0, 255], [0, 365, 212], [0, 0, 1]], dtype=torch.float64)      # 511 - 256
    assert (camera.K - want).abs().max() < .2
    data = NTUPictures(root / "skeletons", root / "depth", per_recording=2, cameras={(1, 2): camera})
    sample = validate(data[0])
    seen = sample["joints3d"][0] @ sample["camera"]["K"].T
    assert (seen[:, :2] / seen[:, 2:] - sample["joints2d"][0]).abs().max() < .1
    with pytest.raises(NTUError, match=r"no camera for setup 1, camera 2; there are \[\(3, 1\)\]"): NTUPictures(root / "skeletons", root / "depth", cameras={(3, 1): camera})[0]
    with pytest.raises(NTUError, match="at least 50"): fit_depth_camera([])
    body = person()
    scrambled = text([("1", 0, body[torch.randperm(20, generator=torch.Generator().manual_seed(0))], two(20))], 20).split("\n")
    other = text([("1", 0, body * torch.tensor([1., 1, 2]), two(20))], 20).split("\n")
    mixed = [" ".join([*o.split()[:3], *s.split()[3:]]) if len(s.split()) == 12 else s for s, o in zip(scrambled, other)]
    (root / "mixed.skeleton").write_text("\n".join(mixed))
    with pytest.raises(NTUError, match="fit no pinhole"): fit_depth_camera([read_skeleton(root / "mixed.skeleton")], worst=1.0)


def test_alignment_is_exact_for_one_plane(root):
    flat = person(frames=20); flat[..., 2] = 3.0
    (root / "flat.skeleton").write_text(text([("1", 0, flat, two(20))], 20))
    H, off = fit_alignment([read_skeleton(root / "flat.skeleton")])
    scale = 365 / 1060      # by hand: depth u = 256 + s (colour u - 960) - 365 * 0.052 / 3
    assert off < 1e-3 and torch.allclose(H / H[2, 2], torch.tensor([[scale, 0, 256 - scale * 960 - 365 * BESIDE / 3], [0, scale, 212 - scale * 540], [0, 0, 1]], dtype=torch.float64), atol=1e-3)
    deep, off = fit_alignment([read_skeleton(root / f"skeletons/{NAME}.skeleton")])
    assert off < 1.5, "the lenses are 52 mm apart: people who move by half a metre stay within a pixel or so"
    image = torch.zeros(3, 1080, 1920)
    for u, v in ((960, 540), (1500, 300)): image[:, v - 4:v + 5, u - 4:u + 5] = 1
    moved = align(image, H)
    for u, v in ((960, 540), (1500, 300)):
        x, y = move(H, torch.tensor([[float(u), float(v)]]))[0].tolist()
        assert moved[0, round(y), round(x)] > .9
    assert moved.shape == (3, 424, 512) and moved[0].sum() < 2 * 9 * 9 and (align(torch.ones(3, 1080, 1920), H)[:, 0, 256] == 0).all()      # above the colour camera's view


def test_wrong_points_do_not_move_the_alignment(root):
    flat = person(frames=20); flat[..., 2] = 3.0
    rows = text([("1", 0, flat, two(20))], 20).split("\n")
    for n in range(4, 600, 50):      # a twentieth of the joints are somewhere else in colour
        words = rows[n].split()
        if len(words) == 12: words[5] = "1900"; rows[n] = " ".join(words)
    (root / "a.skeleton").write_text("\n".join(rows)); (root / "b.skeleton").write_text(text([("1", 0, flat, two(20))], 20))
    (H, _), (G, _) = fit_alignment([read_skeleton(root / "a.skeleton")]), fit_alignment([read_skeleton(root / "b.skeleton")])
    at = torch.tensor([[800., 400], [1100, 900]])
    assert (move(H, at) - move(G, at)).norm(dim=-1).max() < 5


def test_folders_of_frames(tmp_path):
    save_depth(tmp_path / "a", 0); save_depth(tmp_path / "a", 3); (tmp_path / "a" / "Thumbs.db").touch()
    assert {k: p.name for k, p in numbered(tmp_path / "a").items()} == {0: "MDepth-00000001.png", 3: "MDepth-00000004.png"}
    save_depth(tmp_path / "zero", 0, first=0)
    with pytest.raises(NTUError, match="pass first=0"): numbered(tmp_path / "zero")
    assert list(numbered(tmp_path / "zero", first=0)) == [0]
    (tmp_path / "a" / "frame_1.jpg").touch()
    with pytest.raises(NTUError, match="comes twice"): numbered(tmp_path / "a")
    (tmp_path / "b").mkdir()
    with pytest.raises(NTUError, match="no picture"): numbered(tmp_path / "b")
    (tmp_path / f"{NAME}_rgb.avi").touch()
    for name in (NAME, f"{NAME}_rgb"):
        with pytest.raises(FileNotFoundError, match="is a video, which hclab does not decode.*ffmpeg"): numbered(tmp_path / name)


def test_missing_and_broken_frames(root):
    data = NTUPictures(root / "skeletons", root / "depth", per_recording=4)
    path = root / "depth" / NAME / "MDepth-00000008.png"
    save_depth(path.parent, 7, size=(240, 320))
    with pytest.raises(NTUError, match=r"00000008.png: \(240, 320\).*\(424, 512\)"): data[1]
    for bytes_, says in ((b"", "empty"), (b"<html>", "HTML"), (path.read_bytes()[:50], "damaged|no picture")):
        path.write_bytes(bytes_)
        with pytest.raises(ImageError, match=says): data[1]
    Image.new("L", (512, 424)).save(path)
    with pytest.raises(ImageError, match="picture of a depth map"): data[1]
    path.unlink()
    with pytest.raises(NTUError, match="no picture of frame 8; it has 1 to 20"): data[1]
    with pytest.raises(BadSample, match=f"{NAME}.skeleton, choice 2 of 4"): list(Loader(data, batch=4, shuffle=False))
    with pytest.raises(IndexError): data[4]
    assert data[-1]["index"] == 3
    for kw in (dict(), dict(depth=root / "depth", per_recording=0)):
        with pytest.raises(NTUError): NTUPictures(root / "skeletons", **kw)


def test_workers_see_the_same_and_changes_are_named(root):
    data = NTUPictures(root / "skeletons", root / "depth", per_recording=8)
    loaders = [Loader(data, batch=4, seed=3, workers=w) for w in (0, 2)]
    for a, b in zip(*loaders): assert torch.equal(a["index"], b["index"]) and torch.equal(a["depth"], b["depth"])
    for loader in loaders: loader.close()
    loader = Loader(data, batch=4, check=FolderWatch(root))
    list(loader)
    save_depth(root / "depth" / NAME, 3, np.full((424, 512), 7, np.uint16))
    with pytest.raises(LoadingError, match="MDepth-00000004.png"): next(iter(loader))


def test_recordings_by_protocol(tmp_path):
    for n in ("S001C001P001R001A001", "S001C001P003R001A001", "S018C002P042R001A100"): (tmp_path / f"{n}.skeleton").touch()
    assert recordings_in(tmp_path, "xsub120") == ["S001C001P001R001A001"] and recordings_in(tmp_path, "xsub120", "test") == ["S001C001P003R001A001", "S018C002P042R001A100"]
    assert recordings_in(tmp_path, missing=frozenset({"S001C001P003R001A001"})) == ["S001C001P001R001A001", "S018C002P042R001A100"]
    with pytest.raises(NTUError, match="belong to NTU RGB.D 120"): recordings_in(tmp_path, "xview60")
    with pytest.raises(NTUError, match="none of them"): recordings_in(tmp_path / "nowhere")
    (tmp_path / "walk.skeleton").touch()
    with pytest.raises(NTUError, match="name should begin"): recordings_in(tmp_path)
