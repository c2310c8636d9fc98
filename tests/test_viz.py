"Pictures: what a figure holds is what was given to it - colours, sides, gaps, handedness - and what is stored stays small and quiet."
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from hclab.core.skeleton import SKELETONS, mirror, rest_pose, skeleton
from hclab.viz.curves import plot_curves, plot_intervals, spread_labels
from hclab.viz.sheets import contact_sheet, save_figure
from hclab.viz.skeleton2d import drawn_edges, plot_skeleton2d
from hclab.viz.skeleton3d import MAX_FRAMES, UP, chains, plot_skeleton3d, skeleton3d_figure, skeleton_player, to_plot_axes
from hclab.viz.style import SIDES
from hclab.viz.tables import show_table

ROOT = Path(__file__).resolve().parents[1]
LAYOUTS = sorted(SKELETONS)


pytestmark = pytest.mark.usefixtures("figures_that_are_closed")


def clip(name, frames, seed=0):
    "A rest pose that sways, (frames, J, 3)."
    sway = np.random.default_rng(seed).normal(scale=0.02, size=(frames, 1, 3)).cumsum(0)
    return rest_pose(name).numpy()[None] + sway


def artists(ax, gid): return [a for a in ax.get_children() if a.get_gid() == gid]


def test_importing_pictures_loads_nothing_heavy():
    code = ("import sys, hclab.viz.style, hclab.viz.skeleton2d, hclab.viz.skeleton3d, hclab.viz.curves, hclab.viz.tables, hclab.viz.sheets;"
            "print([m for m in ('torch', 'matplotlib', 'plotly', 'scipy') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------ every layout
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_bone_is_drawn_once_in_its_own_colour(name):
    s = skeleton(name)
    drawn = sorted(tuple(sorted(pair)) for side in SIDES for line in chains(s, side) for pair in pairwise(line))
    assert drawn == sorted(tuple(sorted(pair)) for pair in (*s.edges, *s.loops))
    ax = plot_skeleton2d(100*rest_pose(name)[:, [0, 2]], name, image_size="joints")
    assert [line.get_color() for line in artists(ax, "bone")][:len(s.edges)] == list(s.colours)
    ax3d = plot_skeleton3d(rest_pose(name), name)
    assert len(artists(ax3d, "bone")) == len(drawn_edges(s))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("frames", [1, 61, 1000])
def test_player_stays_small_and_tells_its_stride(name, frames):
    motion = clip(name, frames)
    player = skeleton_player(dict(truth=motion, prediction=motion + 0.01), name, fps=30)
    stored = player.to_json()
    assert len(stored) < 150_000 and len(player.frames) <= MAX_FRAMES and "NaN" not in stored
    stride = int(re.search(r"one frame in (\d+)", player.layout.title.text + " one frame in 1")[1])
    assert [f.name for f in player.frames] == [str(t) for t in range(0, frames, stride)]
    assert float(player.layout.sliders[0].steps[-1].label) == pytest.approx((frames - 1)//stride*stride/30, abs=0.006)


# ------------------------------------------------------------------------------------------------ left stays left
@pytest.mark.parametrize("up", UP)
def test_no_frame_is_mirrored(up):
    corners = np.random.default_rng(0).normal(size=(50, 3, 3))
    assert np.allclose(np.linalg.det(to_plot_axes(corners, up)), np.linalg.det(corners))


def test_sides_differ_in_line_and_marker_and_follow_the_joints():
    pose = rest_pose("H36M17")
    for given in (pose, mirror(pose, "H36M17")):
        left, right = (next(t for t in skeleton3d_figure(given, "H36M17").data if t.name.startswith(side)) for side in ("left", "right"))
        assert (left.line.dash, left.marker.symbol) != (right.line.dash, right.marker.symbol)
        s = skeleton("H36M17")
        for trace, joint in ((left, "left_wrist"), (right, "right_wrist")):
            at = trace.text.index(joint)
            assert trace.x[at] == pytest.approx(float(given[s.index(joint), 0]), abs=6e-4)


def test_unknown_joints_are_gaps_everywhere():
    s, motion = skeleton("H36M17"), clip("H36M17", 4)
    motion[1, s.index("left_knee")] = np.nan
    assert len(artists(plot_skeleton3d(motion[1], s), "bone")) == len(artists(plot_skeleton2d(motion[1, :, :2], s, image_size="joints"), "bone")) == 14
    player = skeleton_player(motion, s, fps=30)
    gaps = [int(np.isnan(frame.data[0].x).sum()) for frame in player.frames]
    assert gaps == [gaps[0], gaps[0] + 1, gaps[0], gaps[0]]
    with pytest.raises(ValueError, match="nothing to draw"): skeleton3d_figure(np.full((17, 3), np.nan), s)


def test_visibility_decides_over_coordinates():
    seen = np.array([2]*10 + [1]*4 + [0]*3)
    ax = plot_skeleton2d(np.zeros((17, 2)) + 5, "H36M17", image_size=(10, 10), visibility=seen)
    assert sum(len(a.get_xdata()) for a in artists(ax, "occluded")) == 4 and sum(len(a.get_xdata()) for a in artists(ax, "visible")) == 10


# ------------------------------------------------------------------------------------------------ errors that teach
@pytest.mark.parametrize("call, words", [
    (lambda: plot_skeleton2d(np.zeros((50, 17)), "H36M17", image_size=(9, 9)), r"\(50, 17\).*\(17, 2\)"),
    (lambda: plot_skeleton2d(np.zeros((16, 2)), "H36M17", image_size=(9, 9)), r"H36M17 has 17 joints.*H36M16"),
    (lambda: plot_skeleton2d(np.zeros((17, 2)), "H36M17"), r"image_size=\(height, width\)"),
    (lambda: plot_skeleton2d(np.zeros((17, 2)), "H36M71", image_size=(9, 9)), "did you mean 'H36M17'"),
    (lambda: plot_skeleton2d(np.zeros((17, 2)), np.zeros((17, 2)), image_size=(9, 9)), "expected a Skeleton"),
    (lambda: skeleton_player(np.zeros((17, 3)), "H36M17", fps=25), r"\(T, 17, 3\)"),
    (lambda: skeleton_player(np.zeros((0, 17, 3)), "H36M17", fps=25), "no frames"),
    (lambda: skeleton3d_figure({}, "H36M17"), "0 poses"),
    (lambda: plot_skeleton3d(np.zeros((17, 3)), "H36M17", up="x"), "which axis points up"),
    (lambda: plot_curves({"a": (range(4), np.zeros((4, 3)))}), "seeds come first"),
    (lambda: plot_intervals([dict(label="a", mean=1, low=2, high=3)]), "outside its interval"),
    (lambda: contact_sheet([np.zeros((2, 3, 8, 8))]), "picture 1: .*images"),
    (lambda: save_figure(object(), "x.png"), "got object")])
def test_message_says_what_to_do(call, words):
    with pytest.raises(ValueError, match=words): call()


# ------------------------------------------------------------------------------------------------ labels, tables, files
def test_labels_never_collide_and_move_no_further_than_needed():
    rng = np.random.default_rng(0)
    for _ in range(50):
        wanted, gap = rng.random(rng.integers(1, 8)), rng.uniform(0.01, 0.3)
        placed = spread_labels(wanted, gap)
        assert np.diff(np.sort(placed)).min(initial=np.inf) >= gap - 1e-9
        assert np.isclose(placed.mean(), wanted.mean()) and (np.argsort(placed, kind="stable") == np.argsort(wanted, kind="stable")).all()


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "&<>'\"", "a\nb"])
def test_table_is_never_markup(text):
    page = show_table([{text: text, "n": 1}], caption=text).to_html()
    assert {tag.split()[0].strip("/") for tag in re.findall(r"<([^>]*)>", page)} <= {"table", "caption", "thead", "tbody", "tr", "th", "td"}


def test_a_saved_figure_keeps_its_layout_engine(tmp_path):
    with plt.rc_context({"figure.constrained_layout.use": True}):
        fig, ax = plt.subplots(layout="none")
        ax.plot([0, 1])
        fig.subplots_adjust(left=.3)
        save_figure(fig, tmp_path/"a.png")
        fig.draw_without_rendering()
        assert fig.subplotpars.left == .3
        kept, _ = plt.subplots(layout="constrained")
        engine = kept.get_layout_engine()
        save_figure(kept, tmp_path/"b.png")
        assert kept.get_layout_engine() is engine


def test_saved_page_needs_no_network(tmp_path):
    page = save_figure(skeleton3d_figure(rest_pose("COCO17"), "COCO17"), tmp_path/"a b"/"ü.html").read_text(encoding="utf-8")
    assert "://" not in page and (tmp_path/"a b"/"plotly.min.js").stat().st_size > 1e6
    assert not [p for p in (tmp_path/"a b").iterdir() if p.name not in ("ü.html", "plotly.min.js")], "a temporary file stayed"


@pytest.mark.parametrize("path", sorted((ROOT/"nbs"/"10_viz").glob("*.ipynb")), ids=lambda p: p.stem)
def test_stored_figures_are_small_and_hold_no_script(path):
    outputs = [o for c in json.loads(path.read_text(encoding="utf-8"))["cells"] for o in c.get("outputs", [])]
    for data in (o.get("data", {}) for o in outputs):
        assert "application/javascript" not in data and "<script" not in "".join(data.get("text/html", ""))
        assert len(json.dumps(data.get("application/vnd.plotly.v1+json", ""))) < 150_000


def test_the_label_of_a_single_curve_lies_beside_its_end():
    from hclab.viz.curves import plot_curves
    ax = plot_curves({"only": ([50, 100, 400], [400.0, 200.0, 60.0])})
    (label,) = [t for t in ax.texts if t.get_gid() == "label"]
    assert 0 <= label.get_position()[1] <= 1
