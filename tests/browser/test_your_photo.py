"*Your photo*, as a person uses it: a picture of one's own, a box, and what is no picture."
import os
import re
from pathlib import Path

from harness import open_notebook, run_all, screenshot, wait_for_text, wait_until
from PIL import Image
from skimage import data

APP = """
from hclab.lab.your_photo import your_photo
your_photo()
"""


def test_a_photograph_is_uploaded_and_boxed(lab, page, tmp_path):
    Image.fromarray(data.chelsea()).save(tmp_path/"cat.jpg")
    (tmp_path/"page.png").write_bytes(b"<html>404</html>")
    open_notebook(page, lab.write("photo", APP))
    run_all(page)
    app = page.locator(".jp-OutputArea-output", has=page.locator("img.widget-image")).first
    says, seen, chosen = app.locator(".widget-html-content").filter(has_text=re.compile("peaks|page.png|area")), app.locator("img.widget-image"), app.locator("select")
    wait_for_text(says, re.compile(r"\d+ of 14 peaks are high.* no probability"))
    before = seen.get_attribute("src")
    if shots := os.environ.get("HCLAB_SHOTS"): screenshot(page, Path(shots)/"your_photo.png")

    chosen.select_option("cameraman")
    wait_until(page, lambda: seen.get_attribute("src") != before, "another picture")
    before = seen.get_attribute("src")
    def upload(name):
        with page.expect_file_chooser() as asked: app.get_by_role("button", name=re.compile("a picture of yours")).click()
        asked.value.set_files(tmp_path/name)
    upload("cat.jpg")
    wait_until(page, lambda: seen.get_attribute("src") != before and chosen.input_value() == "cat.jpg", "a picture of one's own")
    before = seen.get_attribute("src")
    upload("page.png")
    wait_for_text(app.locator("[role=alert]"), "page.png: no picture")
    assert chosen.input_value() == "cat.jpg" and seen.get_attribute("src") == before, "what was there stays"

    thumb = app.locator(".widget-slider").filter(has_text="across").locator(".noUi-handle").first
    thumb.focus()
    for _ in range(5): page.keyboard.press("ArrowRight")
    wait_until(page, lambda: seen.get_attribute("src") != before, "the box follows the hand")
