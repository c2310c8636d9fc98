"The motion mixer and the player's page, as a person uses them."
import re
from pathlib import Path

from harness import open_notebook, pixels, plots, run_all, set_slider, share_changed, wait_for_text, wait_until

APP = """
from hclab.lab.motion_mixer import Take, motion_mixer
motion_mixer(Take("walk", seconds=2.0))
"""
PAGE = """
from pathlib import Path
from hclab.lab.motion_mixer import Take, draw
from hclab.viz.players import save_player
print(save_player([draw(Take("walk", seconds=2.0)), draw(Take("wave", seconds=2.0))], Path("player.html").resolve(), title="Two clips"))
"""


def body(place):
    "Coordinates of the left limbs of the figure on the stage."
    shown = plots(place)
    return next(((t["x"], t["y"], t["z"]) for t in shown[0] if str(t.get("name", "")).startswith("left (")), None) if shown else None


def cursor(place):
    "Seconds at which the cursor stands."
    return next(t["x"][0] for t in plots(place)[0] if t.get("name") == "now")


def test_mixer_follows_the_hand_and_joins(lab, page):
    open_notebook(page, lab.write("mixer", APP))
    run_all(page)
    app = page.locator(".jp-OutputArea-output", has=page.locator(".js-plotly-plot"))
    says, figure = app.locator(".widget-html-content").first, app.locator(".js-plotly-plot")
    press = lambda name: app.get_by_role("button", name=name, exact=True).click()
    wait_for_text(says, "drawn: walk by performer 1, 60 frames")
    wait_until(page, lambda: body(app), "the figure is drawn")
    first, seen = body(app), pixels(figure)
    assert share_changed(seen, seen*0 + 255) > 0.01, "the stage is empty"

    set_slider(page, "frame", 30)
    wait_until(page, lambda: body(app) != first and cursor(app) == 1.0, "body and cursor follow the frame")
    wait_until(page, lambda: share_changed(seen, pixels(figure)) > 0.001, "the picture follows the frame")

    set_slider(page, "tempo", "1.30")
    wait_until(page, lambda: cursor(app) == 0 and body(app) != first, "another tempo is another clip, at its start")
    press("add the cut")
    wait_for_text(says, "1 on the track")
    app.locator("select").first.select_option("wave")
    wait_for_text(says, "drawn: wave")
    press("add the cut")
    wait_for_text(says, "2 on the track")
    press("join and play")
    frames = int(re.search(r"(\d+) frames", wait_for_text(says, "joined 2: walk + wave by performer 1")).group(1))
    assert frames > 120, "two clips of 60 frames and a bridge"
    wait_until(page, lambda: cursor(app) > 0.3, "it plays by itself")

    set_slider(page, "performer", 5)
    wait_for_text(says, "by performer 5")
    press("add the cut")
    press("join and play")
    wait_for_text(says, "clips differ in performer")
    assert app.locator("[role=alert]").count() == 1, "what cannot be joined is said in the app"


def test_page_plays_in_real_time(lab, page):
    open_notebook(page, lab.write("page", PAGE))
    run_all(page)
    path = Path(wait_for_text(page.locator(".jp-OutputArea-output pre").last, "player.html").strip())
    page.goto(path.as_uri())
    wait_until(page, lambda: body(page), "the figure is drawn")
    start = body(page)
    page.get_by_label("speed").select_option("0.25")      # slow enough that the end of the clip is not reached while we look
    before = page.evaluate("performance.now()")
    page.get_by_role("button", name="play").click()
    wait_until(page, lambda: body(page) != start, "the figure moves")
    wait_until(page, lambda: float(page.locator("#clock").inner_text().split()[0]) >= 0.2, "the clock goes on")
    shown, passed = page.evaluate("[seconds, performance.now()]")
    assert shown*4 <= (passed - before)/1000 + 0.05, "never faster than life"
    page.get_by_role("button", name="pause").click()
    page.get_by_label("clip").select_option("1")
    wait_until(page, lambda: page.locator("#clock").inner_text() == "0.00 s" and body(page) != start, "another clip, from its start")
