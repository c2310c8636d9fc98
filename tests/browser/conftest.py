"One JupyterLab and one Chromium for all app tests; each test gets a new profile, and fresh kernels. See harness.py."
import os
from pathlib import Path

import pytest
from harness import FLAGS, Lab, dialogs, find_chromium, foreign, screenshot, watch


FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == FOLDER:
            item.add_marker("browser")
            item.add_marker(pytest.mark.xdist_group("browser"))  # with --dist loadgroup: one server, not one a worker


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    "A running Chromium; the folder is skipped where there is none."
    path = find_chromium()
    if path is None: pytest.skip("no chromium, chromium-browser or google-chrome on PATH (Debian: sudo apt-get install -y chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: it is in requirements-dev.lock")
    home = str(tmp_path_factory.mktemp("home"))
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, headless=not os.environ.get("HCLAB_BROWSER_HEAD"), args=FLAGS,
                                    env={**os.environ, "HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home})
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(chromium, tmp_path_factory):
    "A running JupyterLab with a root folder of its own."
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try: yield lab.start()
    finally: lab.stop()


@pytest.fixture
def page(chromium, lab, request, tmp_path):
    "A page of 1400x900 in a new profile. After the test: no foreign host was asked, no dialog is open, no script of the page threw an error."
    context = chromium.new_context(viewport={"width": 1400, "height": 900})
    asked, thrown = watch(context)
    page = context.new_page()
    page.set_default_timeout(20_000)
    yield page
    try:
        if getattr(request.node, "failed", False): print("the page when it failed:", screenshot(page, tmp_path / "failed.png"))
        assert asked and not foreign(asked), f"the page asked other machines: {foreign(asked)}"
        assert not dialogs(page), f"JupyterLab asks: {dialogs(page)}"
        assert not thrown, f"the page threw: {thrown}"
    finally:
        context.close()
        lab.close_kernels()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call": item.failed = report.failed
    return report
