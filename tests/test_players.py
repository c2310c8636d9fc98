"Players, sheets and animations: what is shown is what was given, at the right time, and what is stored can be read back."
import base64
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hclab.core.skeleton import SKELETONS, rest_pose, skeleton
from hclab.viz import players
from hclab.viz.players import PlayerError, key_frames, motion_player, motion_sheet, save_gif, save_player, scene, stage, strokes, view_axes

LAYOUTS = sorted(SKELETONS)


pytestmark = pytest.mark.usefixtures("figures_that_are_closed")


def clip(name="H36M17", frames=30, fps=20.0, action="sway", performer=1):
    "A rest pose that moves off along x at one metre a second."
    joints = rest_pose(name).numpy()[None] + np.arange(frames)[:, None, None]/fps*np.array([1.0, 0, 0])
    return SimpleNamespace(joints=joints, skeleton=skeleton(name), fps=fps, action=action, performer=performer)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_has_player_sheet_and_stage(name):
    c = clip(name, 8)
    st = stage(c)
    assert len(st.trails) and np.allclose(st.speeds, 1.0), "everybody moves at one metre a second"
    assert len(motion_player(c).frames) >= 4
    sheet = motion_sheet([c])
    assert [a for a in sheet.axes[0].collections if a.get_gid() == "people"]


@pytest.mark.parametrize("frames, fps", [(1, 30), (2, 120), (400, 50)])
def test_slider_and_play_count_the_seconds_of_the_clip(frames, fps):
    figure = motion_player(clip(frames=frames, fps=float(fps)))
    labels = [float(s.label) for s in figure.layout.sliders[0].steps]
    stride = int(figure.frames[1].name) if len(figure.frames) > 1 else 1
    assert np.allclose(labels, np.arange(len(labels))*stride/fps, atol=0.006)
    assert abs(figure.layout.updatemenus[0].buttons[0].args[1]["frame"]["duration"] - 1000*stride/fps) <= 0.5
    for frame in figure.frames: assert frame.data[-1].x[0] == pytest.approx(int(frame.name)/fps, abs=6e-4), "the cursor stands where the slider does"


def test_body_and_trail_of_a_frame_are_the_clips():
    c = clip()
    st = stage(c, trails=("left_wrist",))
    left, tail = st.at(17)[0], st.at(17)[3]
    j = c.skeleton.index("left_wrist")
    assert tail["x"][-1] == pytest.approx(c.joints[17, j, 0], abs=6e-4)
    assert any(abs(x - c.joints[17, j, 0]) < 6e-4 for x in left["x"] if x is not None)


def test_two_people_keep_their_sides_and_their_layouts():
    s = scene({"Ann": clip("H36M17"), "Bo": clip("COCO17")})
    assert s.joints.shape == (30, 34, 3) and s.skeleton.names[0] == "Ann hip" and s.skeleton.names[17] == "Bo nose"
    assert [s.skeleton.sides[17 + j] for j in range(17)] == list(skeleton("COCO17").sides)
    assert scene([clip("NTU25"), clip("NTU25")]).skeleton.root == skeleton("NTU25").root == 20, "a layout whose root is not its first joint"
    assert len(motion_player([clip(), clip()], trails=("left_wrist",)).data) == len(motion_player(clip(), trails=("left_wrist",)).data) + 2   # a trail and a curve more


@pytest.mark.parametrize("wrong, words", [([], "no clip"), ([clip(), clip(frames=3)], "differ in length"), ([clip(), clip(fps=30.0)], "differ in rate"), ("walk", "expected a clip")])
def test_what_cannot_be_shown_together_is_said(wrong, words):
    with pytest.raises(PlayerError, match=words): scene(wrong)


def test_a_joint_that_is_lost_is_a_gap_everywhere(tmp_path):
    c = clip()
    c.joints[5:9, c.skeleton.index("left_wrist")] = np.nan
    motion_player(c)
    motion_sheet([c])
    kept = json.loads(re.search(r'id="clips">(.*?)</script>', save_player(c, tmp_path/"a.html").read_text(), re.S).group(1))[0]
    back = np.frombuffer(base64.b64decode(kept["joints"]), "<i2").reshape(30, 17, 3)
    assert (back[6, c.skeleton.index("left_wrist")] == -32768).all() and (back[6, 0] != -32768).all()


@pytest.mark.filterwarnings("error")
def test_a_lost_root_and_a_lost_frame_leave_the_rest_in_place(tmp_path):
    c = clip("COCO17", frames=100)
    c.joints[:, 0] = np.nan
    c.joints[40] = np.nan
    assert stage(c).path is not None and np.isfinite(stage(c).path).all(), "four metres are followed by what is known"
    assert len([a for a in motion_sheet([c]).axes[0].collections if a.get_gid() == "people"][0].get_segments()) > 50
    save_gif(c, tmp_path/"a.gif", height=60, fps=10)


def test_view_never_mirrors():
    for azimuth in range(0, 360, 30): assert np.linalg.det(view_axes(azimuth, 20)) == pytest.approx(1)
    c = clip()
    segments = strokes(c.joints[0], c.skeleton, view_axes(players.facing(scene(c))))      # face to face: their left is on our right
    colour = lambda side: {players._toned(players.SIDES[side].colour, n) for n in np.linspace(0, 1, 1001)}
    middle = lambda side: np.mean([line[:, 0].mean() for line, tone, _ in segments if tone in colour(side)])
    assert middle("left") > middle("right")


def test_key_frames_show_the_extreme_and_skip_the_pause():
    c = clip(frames=100)
    c.joints[:] = c.joints[:1]
    c.joints[48:53, c.skeleton.index("right_foot"), 0] += 0.8      # a kick of a quarter of a second in five seconds of rest
    assert any(48 <= t < 53 for t in key_frames(c.joints, 4))


def test_gif_keeps_real_time(tmp_path):
    with Image.open(save_gif(clip(frames=60, fps=30.0), tmp_path/"a.gif", fps=30, height=120)) as image:
        assert image.n_frames*image.info["duration"] == 2000 and image.size[1] == 120


def test_page_has_no_way_out_of_its_data(tmp_path):
    bad = clip(action="</script><script>alert(1)</script>")
    text = save_player(bad, tmp_path/"a.html", title="<b>x").read_text()
    assert "<script>alert" not in text and "<b>x" not in text


def test_rows_of_hands_are_drawn_closer_and_say_so():
    import matplotlib.pyplot as plt

    from hclab.data.grammar import generate
    from hclab.viz.players import CLOSER, motion_sheet
    clips = [generate(action, 1, 3, 20, layout="FIGURE") for action in ("drink", "squat")]
    words = lambda fig: [t.get_text() for t in fig.axes[0].texts]
    tall = lambda fig: [max(seg[:, 1].max() for seg in a.get_segments()) - min(seg[:, 1].min() for seg in a.get_segments()) for a in fig.axes[0].collections if a.get_gid() == "people"]
    closer, plain = motion_sheet(clips), motion_sheet(clips, close=False)
    assert f"hips up, {CLOSER:g}x" in words(closer) and not any("hips up" in w for w in words(plain))
    assert tall(closer)[1] == pytest.approx(tall(plain)[1]), "whoever squats keeps the scale"
    assert .6 * CLOSER * .5 < tall(closer)[0] / tall(plain)[0] < CLOSER
    jumping = motion_sheet([generate("jumping_jack", n, 3.0, fps=30) for n in range(3)])
    assert not any("hips up" in w for w in words(jumping)), "the legs of a jumping jack are what it is told by"
    plt.close("all")


def test_titles_of_animations_fit_their_figures():
    from hclab.viz.players import _fitting
    for room in (80, 120, 400):
        text, size = _fitting("sit_down + stand_up, performer 12", room)
        assert "_" not in text and 5 <= size <= 9 and (size == 5 or .6 * size * max(map(len, text.split("\n"))) <= room + 1)
