"The apps of the lab room, as a person uses them."
import re

from harness import open_notebook, pixels, plots, run_all, set_slider, share_changed, wait_for_text, wait_until

LABEL = re.compile(r"camera \d+°, frame \d+: MPJPE \d+\.\d mm")


def lines(state, who):
    "Coordinates of one person in the app's scene."
    return [(t["x"], t["y"], t["z"]) for t in state[0] if t.get("legendgroup") == who]


def test_tour_turn_the_camera(lab, page):
    open_notebook(page, lab.copy("guides/00_tour", profile="smoke"))
    run_all(page)
    label = page.locator(".widget-html-content", has_text="MPJPE")
    app = page.locator(".jp-OutputArea-output", has=label)
    figure, seen = app.locator(".js-plotly-plot"), app.locator("img")
    before = wait_for_text(label, LABEL)
    assert before.startswith("camera 60°, frame 20:")
    wait_until(page, lambda: plots(app) and lines(plots(app), "truth"), "the scene is drawn")
    person, input_before, scene = plots(app), seen.get_attribute("src"), pixels(figure)
    assert share_changed(scene, scene*0 + 255) > 0.01, "the scene is empty"

    set_slider(page, "camera (°)", 120)
    after = wait_for_text(label, "camera 120°, frame 20")
    assert LABEL.fullmatch(after.strip()) and after.split(":")[1] != before.split(":")[1], "another camera, another error"
    wait_until(page, lambda: plots(app) != person, "the answer in the scene follows the camera")
    wait_until(page, lambda: seen.get_attribute("src") != input_before, "the input follows the camera")
    wait_until(page, lambda: share_changed(scene, pixels(figure)) > 0.001, "the picture of the scene follows the camera")
    assert lines(plots(app), "truth") == lines(person, "truth"), "the person stands still while the camera walks"
    assert lines(plots(app), "lifted") != lines(person, "lifted"), "the network answers anew"

    set_slider(page, "frame", 5)
    wait_for_text(label, "camera 120°, frame 5")
    wait_until(page, lambda: lines(plots(app), "truth") != lines(person, "truth"), "the person of another frame stands otherwise")
