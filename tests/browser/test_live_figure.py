"A figure of an app in a browser that takes long to read plotly."
from harness import open_notebook, plots, run_all, set_slider, wait_until

APP = """
import ipywidgets
from plotly.graph_objects import Figure
from hclab.lab.hands import live_figure
one, two = (live_figure(Figure({"y": [1, 3, 2]})) for _ in range(2))
slider = ipywidgets.IntSlider(0, 0, 9, description="value")
def act(change): one.data[0].y = two.data[0].y = [change["new"]]*3
slider.observe(act, "value")
one.data[0].y = [7, 7, 7]
ipywidgets.VBox([slider, one, two])
"""
# Reading a large module takes three seconds; anywidget gives up after two.
SLOW = """
window.Blob = class extends Blob {
    constructor(parts, options) { super(String(parts?.[0] ?? "").length > 1e6 ? ["await new Promise(done => setTimeout(done, 3000));", ...parts] : parts, options); }
};
"""


def test_what_is_said_while_plotly_is_read_and_later_arrives(lab, page):
    page.add_init_script(SLOW)
    open_notebook(page, lab.write("slow", APP))
    run_all(page)
    shown = lambda: [figure[0]["y"] for figure in plots(page) if figure]
    wait_until(page, lambda: shown() == [[7, 7, 7], [1, 3, 2]], "both are drawn, with what was said before")
    set_slider(page, "value", 5)
    wait_until(page, lambda: shown() == [[5, 5, 5], [5, 5, 5]], "both follow the slider")
