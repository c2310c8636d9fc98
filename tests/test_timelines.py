"Timelines: every segment is drawn where it is, in the colour of its class, with its name or a number that a legend explains."
import numpy as np
import pytest

from hclab.viz.style import hex_colour
from hclab.viz.timelines import COLOURS, TimelineError, check_rows, class_colour, plot_timelines, probability_image

pytestmark = pytest.mark.usefixtures("figures_that_are_closed")
CLASSES = ["background", *(f"action_{k}" for k in range(1, 29))]


def artists(ax, gid): return [a for a in ax.get_children() if a.get_gid() == gid]
def boxes(ax): return [(b.get_x(), b.get_x() + b.get_width(), hex_colour(b.get_facecolor()[:3]), b.get_height()) for b in artists(ax, "bar")]


def minute(seed=0):
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.uniform(0, 60, 41))
    return [(a, b, int(k), float(s)) for a, b, k, s in zip(cuts[:-1:2], cuts[1::2], rng.integers(1, 29, 20), rng.random(20)) if b - a > .02]


def test_bars_stand_where_their_segments_are():
    rows = {"truth": [s[:3] for s in minute()], "found": minute(1)}
    fig = plot_timelines(rows, CLASSES, seconds=60)
    want = sorted((a, b, class_colour(k), 1.0 if not more else more[0]) for segments in rows.values() for a, b, k, *more in segments)
    high = max(h for *_, h in boxes(fig.axes[0]))
    got = sorted((a, b, c, h/high) for a, b, c, h in boxes(fig.axes[0]))
    assert all(np.allclose(g[:2], w[:2]) and g[2] == w[2] and np.isclose(g[3], w[3]) for g, w in zip(got, want, strict=True))
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["truth", "found"] and fig.axes[0].get_xlim() == (0, 60)


CROWD = [(30 + .2*k, 30.1 + .2*k, 1 + k % 28, .5) for k in range(60)]


@pytest.mark.parametrize("segments", [*map(minute, range(3)), CROWD], ids=["0", "1", "2", "crowd"])
def test_words_stay_on_their_bars_and_numbers_are_explained(segments):
    fig = plot_timelines({"found": segments}, CLASSES, seconds=60)
    fig.canvas.draw()
    spans = {(a, b): k for a, b, k, _ in segments}
    keys = {t.get_text() for a in fig.axes[1:] for t in artists(a, "key")}
    inverse, renderer, shown = fig.axes[0].transData.inverted(), fig.canvas.get_renderer(), []
    for text in artists(fig.axes[0], "words"):
        box = text.get_window_extent(renderer)
        (low, _), (high, _) = inverse.transform(box.get_points())
        (a, b), k = next(((a, b), k) for (a, b), k in spans.items() if abs((a + b)/2 - text.get_position()[0]) < 1e-9)
        words = text.get_text()
        if words.isdigit(): assert int(words) == k and f"{k} action {k}" in keys
        else: assert words.replace("\n", " ") == f"action {k}"
        if text.get_va() == "center": assert a <= low and high <= b, "letters stay inside the bar"
        else: shown.append((low, high))
    assert all(x[1] <= y[0] + .05 for x, y in zip(sorted(shown), sorted(shown)[1:])), "numbers above bars don't lie on each other"


def test_the_strip_has_the_frames_of_the_probabilities():
    p = np.zeros((300, 29)); p[:, 0] = 1
    p[60:90] = 0; p[60:90, 5] = 1; p[200:210] = np.nan
    fig = plot_timelines({"truth": [(2, 3, 5)]}, CLASSES, probabilities=p, fps=30)
    (strip,) = artists(fig.axes[1], "strip")
    assert fig.axes[0].get_xlim() == fig.axes[1].get_xlim() == (0, 10) and [t.get_text() for t in fig.axes[1].get_yticklabels()] == ["background 0", "action 5 5"]
    assert strip.get_extent() == [0, 10, 2, 0]
    image = probability_image(p, [0, 5])
    assert [hex_colour(image[1, t]) for t in (0, 70, 205)] == ["#FFFFFF", COLOURS[4], "#D9D9D9"]


def test_marks_are_drawn_on_their_row():
    fig = plot_timelines({"truth": [(1, 2, 1)], "found": [(1.5, 2, 1, .5)]}, CLASSES, seconds=4, marks=[("found", 1.5, 1.0)])
    (mark,) = artists(fig.axes[0], "mark")
    bar = min(artists(fig.axes[0], "bar"), key=lambda b: b.get_y())
    assert list(mark.get_xdata()) == [1, 1] and mark.get_ydata()[0] < bar.get_y() < mark.get_ydata()[1]


@pytest.mark.parametrize("segments, words", [([(0, 4, 1), (3, 5, 2)], "begins before action_1 ends"), ([(0, 70, 1)], "outside the stream of 0 to 60 s; cut it, and if these are frames"), ([(-1, 2, 1)], "outside"), ([(2, 2, 1)], "start before it ends"),
                                             ([(3, 2, 1)], "start before it ends"), ([(0, 2, "actoin_3")], "did you mean 'action_3'"), ([(0, 2, 29)], "numbered 0 to 28"), ([(0, 2, "background")], "left blank"), ([(0, 2, 1, 2.0)], "share from 0 to 1"),
                                             ([(0, 2)], "a segment is .start, end, label."), ([(0, 2, None)], "a name or a number"), ([(0, 2, 1, .5, 3)], "three or four values")])
def test_wrong_segments_are_named(segments, words):
    with pytest.raises(TimelineError, match="row x.*" + words): check_rows({"row x": segments}, CLASSES, 60.0)
