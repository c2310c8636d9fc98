"*Play the puzzle*, as a person uses it: with the mouse, with the keyboard, with the buttons."
import os
import re
from pathlib import Path

from harness import open_notebook, run_all, screenshot, wait_for_text, wait_until

APP = """
import torch
from hclab.methods.jigsaw import JigsawConfig, Solver
from hclab.lab.play_puzzle import play_puzzle
from skimage import data
torch.manual_seed(0)
play_puzzle(Solver(JigsawConfig.for_profile("smoke")), {"astronaut": torch.from_numpy(data.astronaut()).permute(2, 0, 1)/255, "cat": torch.from_numpy(data.chelsea()).permute(2, 0, 1)/255})
"""


def test_a_puzzle_is_played(lab, page):
    open_notebook(page, lab.write("puzzle", APP))
    run_all(page)
    app = page.locator(".jp-OutputArea-output", has=page.locator(".hclab-board"))
    says, board = app.locator(".widget-html-content").first, app.locator(".hclab-board")
    tile = lambda name: board.get_by_role("button", name=re.compile(f"^{name}"))
    pictures = lambda: [image.get_attribute("src") for image in board.locator("img").all()]
    wait_for_text(says, "0 of 9 patches at home.")
    assert board.get_by_role("button").count() == 9
    before = pictures()

    board.scroll_into_view_if_needed()
    tile("top left").drag_to(tile("bottom right"))
    wait_for_text(says, "after 1 move.")
    assert pictures() == [before[8], *before[1:8], before[0]], "the two have changed places, and no other"

    beliefs = app.locator("img.widget-image")
    seen = beliefs.get_attribute("src")
    tile("middle centre").focus()
    page.keyboard.press("Enter")
    wait_until(page, lambda: beliefs.get_attribute("src") != seen, "the chosen patch's beliefs")
    assert tile("middle centre").get_attribute("aria-pressed") == "true"
    tile("top centre").focus()
    page.keyboard.press("Enter")
    wait_for_text(says, "after 2 moves.")
    assert pictures() == [before[8], before[4], *before[2:4], before[1], *before[5:8], before[0]]

    app.get_by_role("button", name="ask it").click()
    known = int(re.search(r"knows (\d)", wait_for_text(says, re.compile(r"The network knows \d of 9")))[1])
    app.get_by_role("button", name="let it solve").click()
    wait_for_text(says, re.compile(f"{known} of 9 patches at home after 3 moves|Solved"))
    app.get_by_label("mark what is right").check()
    wait_until(page, lambda: board.get_by_role("button", name=re.compile(", right$")).count() >= known, "what is right is marked")
    if shots := os.environ.get("HCLAB_SHOTS"): screenshot(page, Path(shots)/"play_puzzle.png")

    now = pictures()
    app.get_by_role("button", name="shuffle").click()
    wait_until(page, lambda: pictures() != now, "another order")
    app.locator("select").first.select_option("cat")
    wait_for_text(says, "0 of 9 patches at home.")
    wait_until(page, lambda: not set(pictures()) & set(before), "another picture")
