"*Drag a joint*, as a person uses it: with the mouse, with the keyboard, with the sliders."
import os
import re
from pathlib import Path

from harness import open_notebook, pixels, plots, run_all, screenshot, set_slider, share_changed, wait_for_text, wait_until

APP = """
import torch
from hclab.lab.drag_joint import Start, drag_joint
from hclab.lab.predict import load_pretrained
flat = lambda joints: torch.cat([joints, torch.zeros_like(joints[..., :1])], -1)
drag_joint({"Martinez": load_pretrained(), "everyone is flat": flat}, Start("walk", azimuth=60))
"""
MM = re.compile(r"untouched: MPJPE Martinez \d+ mm, everyone is flat \d+ mm")


def lines(place, who):
    "Coordinates of the recorded pose or of the answers, all scenes."
    shown = plots(place)
    known = lambda values: [v if v == v else None for v in values]      # a lifted pen is NaN, which equals nothing
    return [tuple(known(t[axis]) for axis in "xyz") for t in shown[0] if t.get("legendgroup") == who] if shown else None


def middle(joint):
    "Where a joint of the pad is on the page."
    box = joint.locator("circle").first.bounding_box()
    return box["x"] + box["width"]/2, box["y"] + box["height"]/2


def drag(page, joint, dx, dy, let_go=True):
    "Press on a joint and pull it in steps, as a hand does."
    x, y = middle(joint)
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 9): page.mouse.move(x + dx*step/8, y + dy*step/8)
    if let_go: page.mouse.up()
    return x, y


def test_a_joint_is_dragged(lab, page):
    open_notebook(page, lab.write("drag", APP))
    run_all(page)
    app = page.locator(".jp-OutputArea-output", has=page.locator(".js-plotly-plot"))
    says, figure, pad = app.locator(".widget-html-content").first, app.locator(".js-plotly-plot"), app.locator("svg.hclab-pad")
    joint = lambda name: pad.get_by_role("button", name=name, exact=True)
    wait_for_text(says, MM)
    wait_until(page, lambda: lines(app, "answer"), "the answers are drawn")
    start, recorded, scene = lines(app, "answer"), lines(app, "recorded"), pixels(figure)
    assert len(start) == len(recorded) == 2*3 and share_changed(scene, scene*0 + 255) > 0.01, "two scenes, three sides each, and they are not empty"
    assert pad.get_by_role("button").count() == 16

    pad.scroll_into_view_if_needed()
    x, y = drag(page, joint("left_wrist"), 70, -80, let_go=False)
    wait_until(page, lambda: lines(app, "answer") != start, "the answer follows while the button is still down")
    page.mouse.up()
    assert wait_for_text(says, "no truth and no error").startswith("left_wrist moved by")
    wait_until(page, lambda: share_changed(scene, pixels(figure)) > 0.001, "the picture of the scene follows the hand")
    if shots := os.environ.get("HCLAB_SHOTS"): screenshot(page, Path(shots)/"drag_joint.png")
    at = middle(joint("left_wrist"))
    assert abs(at[0] - x - 70) < 3 and abs(at[1] - y + 80) < 3, "the joint stays under the mouse"
    assert lines(app, "recorded") == recorded, "the recorded pose stays"
    assert app.locator("table.hclab-bones td", has_text="!").count() >= 1, "flat people have strange bones"

    app.get_by_role("button", name="reset", exact=True).click()
    wait_for_text(says, MM)
    wait_until(page, lambda: lines(app, "answer") == start, "reset brings the first answer back")
    wait_until(page, lambda: abs(middle(joint("left_wrist"))[0] - x) < 2, "and the joint to its place")

    app.get_by_text("the limb follows").click()
    wrist = middle(joint("right_wrist"))
    drag(page, joint("right_elbow"), -40, -30)
    wait_for_text(says, "right_elbow moved by")
    wait_until(page, lambda: abs(middle(joint("right_wrist"))[0] - wrist[0] + 40) < 3, "the wrist comes along")


def test_camera_keyboard_and_other_poses(lab, page):
    open_notebook(page, lab.write("turn", APP))
    run_all(page)
    app = page.locator(".jp-OutputArea-output", has=page.locator(".js-plotly-plot"))
    says, pad = app.locator(".widget-html-content").first, app.locator("svg.hclab-pad")
    words = wait_for_text(says, MM)
    wait_until(page, lambda: lines(app, "answer"), "the answers are drawn")
    start, recorded = lines(app, "answer"), lines(app, "recorded")

    joint = pad.get_by_role("button", name="head", exact=True)
    joint.focus()
    for _ in range(4): page.keyboard.press("ArrowRight")
    wait_for_text(says, "head moved by 32 px")
    moved = lines(app, "answer")
    wait_until(page, lambda: lines(app, "answer") != start, "the keyboard moves a joint, too")

    set_slider(page, "camera (°)", 150)
    wait_for_text(says, MM)
    wait_until(page, lambda: lines(app, "answer") not in (start, moved), "another camera, another answer")
    assert wait_for_text(says, MM) != words
    still = lambda: all(abs(p - q) < 2e-3 for a, b in zip(lines(app, "recorded"), recorded) for u, v in zip(a, b) for p, q in zip(u, v) if p is not None)
    wait_until(page, still, "the person stands still while the camera walks")

    app.locator("select").first.select_option("squat")
    wait_until(page, lambda: not still(), "another action, another pose")
    wait_for_text(says, MM)
    view = lambda: page.evaluate("() => document.querySelector('.js-plotly-plot').layout.scene2.camera.eye.x")
    eye = view()
    assert page.locator(".widget-slider", has_text="view (°)").locator(".widget-readout").inner_text() == "110"
    set_slider(page, "view (°)", 250)
    wait_until(page, lambda: view() != eye, "both scenes turn")
