"Body and camera, as a person uses it."
import os
import re
from pathlib import Path

from harness import open_notebook, pixels, run_all, screenshot, set_slider, share_changed, wait_for_text, wait_until

APP = """
from hclab.lab.body_camera import body_camera, shot_of
body_camera(shot_of(7, place="field"))
"""
SHOWN = re.compile(r"full picture in \d+\.\d\d s")


def opened(lab, page, name):
    "The app, its line, and its six pictures."
    open_notebook(page, lab.write(name, APP))
    run_all(page)
    app = page.locator(".jp-OutputArea-output", has=page.locator("img.widget-image")).first
    says = app.locator(".widget-html-content").first
    wait_for_text(says, SHOWN)
    assert app.locator("img.widget-image").count() == 6
    return app, says, app.locator("img.widget-image")


def choose(app, label, value):
    "Choose in the visible list called `label`."
    named = app.page.locator(".widget-label", has_text=re.compile(f"^{label}$"))
    app.locator(".widget-dropdown:visible").filter(has=named).locator("select").first.select_option(value)


def sources(images): return [image.get_attribute("src") for image in images.all()]


def test_six_panels_follow_each_control(lab, page):
    page.set_viewport_size({"width": 1280, "height": 800})
    app, says, images = opened(lab, page, "body")
    page.keyboard.press("Control+b")       # the files beside it are put away, as one does to show something
    images.first.scroll_into_view_if_needed()
    wait_until(page, lambda: images.first.bounding_box()["width"] > 230, "the panels take the room that there is")
    looks = [pixels(image) for image in images.all()]
    assert all(share_changed(look, look*0 + 255) > .05 for look in looks) and all(share_changed(looks[0], other) > .2 for other in looks[1:5]), "six different pictures, and none is empty"

    before, words = sources(images), wait_for_text(says, SHOWN)
    set_slider(page, "azimuth (°)", 140)
    wait_until(page, lambda: all(a != b for a, b in zip(sources(images), before, strict=True)), "all six follow the camera")
    wait_for_text(says, SHOWN)
    wait_until(page, lambda: all(share_changed(a, pixels(image)) > .02 for a, image in zip(looks, images.all(), strict=True)), "and look otherwise")

    app.get_by_role("button", name="Clothes", exact=True).click()
    parts, photo = pixels(images.nth(3)), pixels(images.first)
    choose(app, "its colour", "yellow")
    wait_for_text(says, "yellow")
    wait_for_text(says, SHOWN)
    wait_until(page, lambda: share_changed(photo, pixels(images.first)) > .01, "another colour is seen")
    assert share_changed(parts, pixels(images.nth(3))) < .002, "and is no other body"

    app.get_by_role("button", name="Motion", exact=True).click()
    choose(app, "action", "squat")
    wait_for_text(says, "squat")
    set_slider(page, "frame", 40)
    wait_for_text(says, SHOWN)
    wait_until(page, lambda: share_changed(parts, pixels(images.nth(3))) > .02, "another pose, other parts")
    if shots := os.environ.get("HCLAB_SHOTS"): screenshot(page, Path(shots)/"body_camera.png")

    app.get_by_role("button", name="another person", exact=True).click()
    wait_until(page, lambda: wait_for_text(says, SHOWN).split("(")[0] != words.split("(")[0], "somebody else")
    app.get_by_role("button", name="show the numbers", exact=True).click()
    wait_for_text(app.locator(".hclab-numbers"), "camera at")


def test_play_keyboard_files_and_mistakes(lab, page):
    app, says, images = opened(lab, page, "play")
    thumb = page.locator(".widget-slider").filter(has_text="azimuth (°)").locator(".noUi-handle")
    before = sources(images)
    thumb.focus()
    page.keyboard.press("ArrowRight")
    wait_until(page, lambda: sources(images)[0] != before[0], "the arrows move the camera")

    app.get_by_role("button", name="Motion", exact=True).click()
    frame = page.locator(".widget-slider").filter(has=page.locator(".widget-label", has_text=re.compile("^frame$"))).locator(".widget-readout")
    start = frame.inner_text()
    app.locator(".jupyter-widget-play button, .widget-play button").first.click()
    wait_until(page, lambda: frame.inner_text() != start, "it plays")
    before = sources(images)
    wait_until(page, lambda: sources(images)[3] != before[3], "and the body moves")
    app.locator(".jupyter-widget-play button, .widget-play button").first.click()
    wait_for_text(says, SHOWN)

    name = app.locator("input[type=text]:visible").last
    name.fill("../mine.npz")
    app.get_by_role("button", name="save", exact=True).click()
    wait_for_text(app.locator("[role=alert]"), "without folders")
    name.fill("mine.npz")
    app.get_by_role("button", name="save", exact=True).click()
    wait_for_text(app.locator(".widget-html-content").filter(has_text="saved:"), "saved: mine.npz")
    assert (lab.root/"mine.npz").stat().st_size > 50_000
