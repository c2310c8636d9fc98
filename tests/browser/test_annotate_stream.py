"*Annotate a stream*, as a person uses it: play, the words and the cursor that follow, another recording, one's own, and what is none."
import os
import re
from pathlib import Path

from harness import open_notebook, plots, run_all, screenshot, set_slider, wait_for_text, wait_until

from hclab.data.readers.bvh import write_bvh
from hclab.data.sequences import compose

APP = """
from hclab.lab.annotate_stream import annotate_stream
annotate_stream()
"""


def traces(place, name):
    "Traces of both figures whose name begins so."
    return [t for shown in plots(place) or () for t in shown if str(t.get("name", "")).startswith(name)]


def test_a_recording_plays_with_its_labels(lab, page, tmp_path):
    write_bvh(compose(61, ["punch"], seed=1, fps=15, layout="FIGURE").clips[0], tmp_path/"mine.bvh")
    (tmp_path/"page.bvh").write_text("<html>404</html>")
    open_notebook(page, lab.write("annotate", APP))
    run_all(page)
    app = page.locator(".jp-OutputArea-output", has=page.locator(".js-plotly-plot")).first
    says = app.locator(".widget-html-content").filter(has_text=re.compile("segment|page.bvh"))
    wait_for_text(says, re.compile(r"4 segments: .* walk \d+ %"), 60)
    wait_until(page, lambda: len(plots(app)) == 2 and traces(app, "detected"), "stage and clock are drawn")
    cursor, body = lambda: traces(app, "now")[-1]["x"][0], lambda: traces(app, "left")[0]["x"]
    first = body()
    assert len(traces(app, "detected")[0]["x"]) == 4 and cursor() == 0

    set_slider(page, "frame", 60)
    wait_until(page, lambda: cursor() == 4 and body() != first, "stage and cursor follow the frame")
    wait_for_text(app, re.compile(r"walk, \d+%"))
    if shots := os.environ.get("HCLAB_SHOTS"): screenshot(page, Path(shots)/"annotate_stream.png")

    app.locator("select").first.select_option(index=1)
    wait_for_text(says, re.compile("jumping jack"))
    wait_until(page, lambda: cursor() == 0, "another recording begins at its beginning")
    before = cursor()
    app.locator(".jupyter-widgets.widget-play button, .widget-play button").first.click()
    wait_until(page, lambda: cursor() > before + .3, "it plays by itself")
    app.locator(".widget-play button").first.click()

    def upload(name):
        with page.expect_file_chooser() as asked: app.get_by_role("button", name=re.compile("a recording of yours")).click()
        asked.value.set_files(tmp_path/name)
    upload("mine.bvh")
    wait_for_text(says, re.compile("1 segment: punch"))
    wait_until(page, lambda: len(traces(app, "detected")[0]["x"]) == 1 and not traces(app, "true")[0]["x"], "its own segment and no truth")
    upload("page.bvh")
    wait_for_text(app.locator("[role=alert]"), "page.bvh:1: the first word must be HIERARCHY")
    assert app.locator("select").first.input_value() == "mine.bvh", "what was there stays"
