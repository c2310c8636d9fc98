"""A JupyterLab and a hand: what every app test of this folder stands on.

How to add an app test
----------------------
Write `tests/browser/test_<room>.py`. The fixtures `lab` and `page` come from conftest.py; a machine without Chromium or playwright skips the folder.

    from harness import open_notebook, plots, run_all, set_slider, wait_for_text, wait_until

    def test_my_app(lab, page):
        open_notebook(page, lab.copy("guides/00_tour", profile="smoke"))     # a copy without outputs, with these parameters set
        run_all(page)                                                       # a cell that raises fails the test
        label = page.locator(".widget-html-content", has_text="my number")  # what a person reads
        before = plots(page)                                                # the data of every plotly figure on the page
        set_slider(page, "camera (°)", 120)                                 # what a person does
        wait_for_text(label, "camera 120")                                  # what a person sees
        wait_until(page, lambda: plots(page) != before, "the figure follows the slider")

`lab.write(name, *cells)` makes a notebook out of strings where no real one fits. Rules: wait on what can be seen, never on time; find things as a person does
(by label and text, not by position); a number that the kernel computes is compared with what it was before, or with a format, not with a digit. The `page`
fixture fails the test if the browser asked any host but this machine, if JupyterLab put up a dialog, or if the page threw an error; when a test fails it says
where the screenshot lies. Try one test: `python -m pytest tests/browser/test_my_app.py -n 0`. Watch it: `HCLAB_BROWSER_HEAD=1` (needs a screen).
"""
import ast
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote, urlsplit

import nbformat

ROOT = Path(__file__).resolve().parents[2]
HERE = {"127.0.0.1", "localhost"}
# Software rendering: a test machine has no GPU, and plotly's 3D scenes stay empty without WebGL. The resolver rule makes a forgotten CDN fail at once
# on a machine with a network too; the fixture `page` then names it.
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage", "--no-proxy-server",
         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"]


def find_chromium():
    "Path of an installed Chromium or Chrome, or None."
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# ------------------------------------------------------------------------------------------------ the server
def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Lab:
    "JupyterLab of this environment on a port of this machine. Everything that it reads or writes beside the packages lies under `folder`."

    def __init__(self, folder):
        self.folder, self.root, self.token = Path(folder), Path(folder) / "notebooks", secrets.token_hex(16)
        self.root.mkdir(parents=True)
        self.log = self.folder / "jupyter.log"
        # buildCheck: packages that bring an unbuilt extension (dash) make JupyterLab ask for a rebuild; `make demo` turns the question off in its
        # own environment, and the tests must not depend on that.
        self._settings("labconfig/page_config.json", {"buildCheck": False, "buildAvailable": False, "disabledExtensions": {
            "@jupyterlab/apputils-extension:announcements": True, "@jupyterlab/extensionmanager-extension": True}})

    def _settings(self, name, value):
        path = self.folder / "config" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))

    def environment(self):
        "The caller's environment without its Jupyter and hclab settings."
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON", "HCLAB_")) and k.lower() not in ("http_proxy", "https_proxy")}
        folders = {"HOME": "home", "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython",
                   "HCLAB_HOME": "hclab", "HCLAB_RUNS": "runs", "MPLCONFIGDIR": "matplotlib", "XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "xdg"}
        for name in folders.values(): (self.folder / name).mkdir(exist_ok=True)
        return {**keep, **{k: str(self.folder / v) for k, v in folders.items()}, "HCLAB_PROFILE": "smoke", "PYTHONPATH": str(ROOT),
                **{f"{k}_NUM_THREADS": "1" for k in ("OMP", "MKL", "OPENBLAS")}}

    def start(self, seconds=60):
        for _ in range(3):  # another program may take the port between our choice and JupyterLab's
            self.port = free_port()
            # The last three end a server whose tests were killed before they could stop it.
            options = {"ServerApp.ip": "127.0.0.1", "ServerApp.port": self.port, "ServerApp.port_retries": 0, "IdentityProvider.token": self.token,
                       "ServerApp.root_dir": self.root, "ServerApp.open_browser": False, "ServerApp.allow_root": True, "LabApp.news_url": "None",
                       "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate", "LabApp.extension_manager": "readonly",
                       "ServerApp.shutdown_no_activity_timeout": 900, "MappingKernelManager.cull_idle_timeout": 600, "MappingKernelManager.cull_interval": 60}
            with self.log.open("ab") as log:
                self.process = subprocess.Popen([sys.executable, "-m", "jupyterlab", *(f"--{k}={v}" for k, v in options.items())], cwd=self.root,
                                                env=self.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            end = time.monotonic() + seconds
            while self.process.poll() is None and time.monotonic() < end:
                try: self.ask("api/status"); return self
                except (urllib.error.URLError, OSError): time.sleep(0.1)
            self.stop()
        raise RuntimeError(f"JupyterLab did not answer within {seconds} s; its log ends:\n{self.log.read_text()[-3000:]}")

    def stop(self):
        "End kernels, server and whatever it started. Kernels live in process groups of their own: only the server can end them properly."
        try: self.close_kernels()
        except (urllib.error.URLError, OSError): pass
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try: os.killpg(self.process.pid, sign)
            except ProcessLookupError: break
            try: self.process.wait(10)
            except subprocess.TimeoutExpired: pass

    def ask(self, path, method="GET"):
        "An answer of the server's HTTP interface."
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", headers={"Authorization": f"token {self.token}"}, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            text = answer.read()
            return json.loads(text) if text else {}

    def connected(self, path):
        "Whether a browser holds a connection to the kernel of this notebook."
        return any(s["path"] == str(path) and s["kernel"]["connections"] for s in self.ask("api/sessions"))

    def close_kernels(self):
        for kernel in self.ask("api/kernels"): self.ask(f"api/kernels/{kernel['id']}", "DELETE")

    def url(self, path):
        "Where a notebook opens in an empty workspace."
        return f"http://127.0.0.1:{self.port}/lab/tree/{quote(str(path))}?reset&token={self.token}"

    def write(self, path, *cells, kernel="python3"):
        "A notebook made of code cells, for `open_notebook`."
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells],
                                            metadata={"kernelspec": {"name": kernel, "display_name": "Python 3 (ipykernel)", "language": "python"}})
        return self._place(path, notebook)

    def copy(self, path, **parameters):
        "A copy of `nbs/<path>` without outputs, so that what is seen was made here, and with `parameters` set in its parameters cell."
        path = Path(path).with_suffix(".ipynb")
        notebook = nbformat.read(ROOT / "nbs" / path, 4)
        for cell in notebook.cells:
            if cell.cell_type == "code": cell.outputs, cell.execution_count = [], None
        if parameters: _set_parameters(notebook, path, parameters)
        notebook.metadata.setdefault("kernelspec", {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"})
        return self._place(path, notebook)

    def _place(self, path, notebook):
        path = Path(path).with_suffix(".ipynb")
        notebook.cells = [c for c in notebook.cells if c.cell_type != "code" or c.source.strip()]  # an empty cell never gets a number
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, self.root / path)
        return (self, path)


def _set_parameters(notebook, path, parameters):
    "Append assignments to the cell tagged `parameters`; a name that the cell does not assign is an error, as a typing mistake would else go unnoticed."
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1: raise ValueError(f"{path} has {len(cells)} cells tagged 'parameters', expected one")
    known = {t.id for node in ast.parse(cells[0].source).body if isinstance(node, ast.Assign) for t in node.targets}
    if wrong := set(parameters) - known: raise ValueError(f"{path} has no parameter {sorted(wrong)}; it has {sorted(known)}")
    cells[0].source += "\n" + "\n".join(f"{k} = {v!r}" for k, v in parameters.items())


# ------------------------------------------------------------------------------------------------ waiting
def wait_until(page, condition, what, seconds=20):
    "Poll a Python condition about the page; says what did not happen. Playwright's own waits are better where one fits."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"did not happen within {seconds} s: {what}"
        page.wait_for_timeout(50)  # lets the browser's events through, which time.sleep would hold back


def wait_for_text(locator, text, seconds=20):
    "Bring the element into sight, wait until it holds `text` (a string, or a compiled pattern), and return its whole text."
    from playwright.sync_api import expect
    expect(locator).to_be_visible(timeout=1000*seconds)
    expect(locator).to_contain_text(text, timeout=1000*seconds)
    found = [""]
    def held():  # a widget that is drawn again is empty for a moment, and of a cell out of sight the browser draws nothing
        found[0] = locator.inner_text()
        words = " ".join(found[0].split())
        if text.search(words) if isinstance(text, re.Pattern) else text in words: return True
        locator.evaluate("e => e.scrollIntoView({block: 'center'})")      # at once: an app that plays never stands still
    wait_until(locator.page, held, f"a text with {text}", seconds)
    return found[0]


# ------------------------------------------------------------------------------------------------ the notebook
def dialogs(page):
    "Texts of the dialogs that JupyterLab shows."
    return [d.inner_text().replace("\n", " ") for d in page.locator(".jp-Dialog").all() if d.is_visible()]


# What the page shows: name and state of the kernel, number of cells, prompt of each code cell, tracebacks.
_STATE = """() => {
  const panel = document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden)');
  const all = query => [...(panel?.querySelectorAll(query) ?? [])];
  return {kernel: panel?.querySelector('.jp-KernelName')?.textContent ?? 'No Kernel',
          status: panel?.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status ?? 'none',
          cells: all('.jp-Notebook .jp-Cell').length,
          prompts: all('.jp-Notebook .jp-CodeCell').map(c => c.querySelector('.jp-InputPrompt')?.textContent.trim() ?? ''),
          errors: all('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]').map(e => e.textContent).filter(  // warnings too
            t => /Traceback \\(most recent call last\\)|SyntaxError|IndentationError/.test(t))};
}"""


def _wait_for_state(page, ready, what, seconds):
    "Poll until `ready(state)`; a dialog that waits for an answer ends the test at once."
    def check():
        assert not dialogs(page), f"JupyterLab asks: {dialogs(page)}"
        return ready(page.evaluate(_STATE))
    try: wait_until(page, check, what, seconds)
    except AssertionError as e: raise AssertionError(f"{e}\nthe page shows {page.evaluate(_STATE)}") from None


def open_notebook(page, notebook, seconds=60):
    "Open what `lab.copy` or `lab.write` returned, and wait until its cells are drawn and its kernel is idle."
    lab, path = notebook
    cells = len(nbformat.read(lab.root / path, 4).cells)
    page.goto(lab.url(path))
    # JupyterLab draws an idle circle before there is a kernel, and one empty cell before there is a notebook; Run All Cells then does nothing.
    _wait_for_state(page, lambda s: s["status"] == "idle" and s["kernel"] != "No Kernel" and s["cells"] == cells and lab.connected(path),
                    f"{path} shows its {cells} cells and an idle kernel", seconds)


def run_all(page, seconds=120):
    "Run > Run All Cells, and wait until every code cell has a number. A cell that raises fails the test with its traceback."
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    idle = lambda s: s["status"] == "idle" and "[*]:" not in s["prompts"]
    _wait_for_state(page, lambda s: idle(s) and (s["errors"] or "[ ]:" not in s["prompts"]), "all cells have run", seconds)
    if errors := page.evaluate(_STATE)["errors"]: raise AssertionError("a cell raised:\n" + "\n".join(errors))


def set_slider(page, label, value):
    "Type `value` into the number beside the ipywidgets slider called `label`, as a person does, and wait until the slider shows it."
    from playwright.sync_api import expect
    slider = page.locator(".widget-slider").filter(has=page.locator(".widget-label", has_text=re.compile(f"^\\s*{re.escape(label)}\\s*$")))
    number = slider.locator(".widget-readout")
    number.scroll_into_view_if_needed()
    number.click()
    number.fill(str(value))
    number.press("Enter")
    expect(number).to_have_text(str(value))


# ------------------------------------------------------------------------------------------------ figures
# Coordinates as plain lists: plotly holds them as lists, typed arrays, or a description {dtype, bdata} of one.
_PLOTS = """(root) => [...(root ?? document).querySelectorAll('.js-plotly-plot')].map(el => (el.data ?? []).map(trace =>
  Object.fromEntries(['type', 'name', 'legendgroup', 'x', 'y', 'z'].filter(k => trace[k] !== undefined).map(k =>
    [k, ArrayBuffer.isView(trace[k]) ? Array.from(trace[k]) : trace[k]]))))"""


def plots(place):
    "Data of every plotly figure on a page, or within one element, in order: one list of traces each (type, name, legendgroup, x, y, z)."
    return place.evaluate(_PLOTS)


def pixels(locator):
    "What an element looks like, (H, W, 3) uint8."
    import io

    import numpy as np
    from PIL import Image
    locator.scroll_into_view_if_needed()
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB"))


def share_changed(before, after, least=24):
    "Share of pixels that differ by more than `least` grey levels in any channel; 1 where the sizes differ."
    import numpy as np
    if before.shape != after.shape: return 1.0
    return float((np.abs(before.astype(int) - after) > least).any(2).mean())


def screenshot(page, path):
    "Save what the page shows, and say where."
    page.screenshot(path=str(path))
    return path


def watch(context):
    "Lists that fill while pages of this context live: addresses asked for, and errors thrown by their scripts."
    asked, thrown = [], []
    context.on("request", lambda r: asked.append(r.url))
    context.on("page", lambda page: page.on("websocket", lambda s: asked.append(s.url)))
    context.on("weberror", lambda e: thrown.append(str(e.error)))
    return asked, thrown


def foreign(urls):
    "Addresses that lead off this machine."
    return [u for u in urls if urlsplit(u).scheme in ("http", "https", "ws", "wss") and urlsplit(u).hostname not in HERE]
