"The harness itself, on a notebook of its own: what an app is made of works in a browser, and each promise of the harness can be broken."
import nbformat
import pytest
from harness import ROOT, dialogs, foreign, open_notebook, pixels, plots, run_all, set_slider, share_changed, wait_for_text, wait_until, watch

APP = """
import ipywidgets as w, plotly.graph_objects as go
slider, label = w.IntSlider(3, 0, 10, description="turns", continuous_update=False), w.HTML()
view = go.FigureWidget([go.Scatter3d(x=[0, 1, 2], y=[0, 1, 0], z=[0, 3, 1], mode="lines+markers", line=dict(width=12, color="#c03030"))])
view.update_layout(width=400, height=320, margin=dict(l=0, r=0, t=0, b=0))
def show(change=None):
    label.value = f"<b>turned {slider.value} times</b>"
    view.data[0].z = [0, slider.value, 1]
slider.observe(show, "value"); show()
w.VBox([slider, label, view])
"""


def test_slider_moves_label_and_figure(lab, page):
    open_notebook(page, lab.write("small", "x = 1", APP, "print('end', x)"))
    run_all(page)
    label, figure = page.locator(".widget-html-content"), page.locator(".js-plotly-plot")
    wait_for_text(label, "turned 3 times")
    wait_until(page, lambda: plots(page) and plots(page)[0][0]["z"] == [0, 3, 1], "the figure is drawn")
    seen = pixels(figure)
    assert share_changed(seen, seen*0 + 255) > 0.01, "the 3D scene is empty: no WebGL"
    set_slider(page, "turns", 8)
    wait_for_text(label, "turned 8 times")
    wait_until(page, lambda: plots(page)[0][0]["z"] == [0, 8, 1], "the figure's data follow the slider")
    wait_until(page, lambda: share_changed(seen, pixels(figure)) > 0.001, "the picture follows the slider")


def test_cell_that_raises_fails_with_its_traceback(lab, page):
    open_notebook(page, lab.write("broken", "import warnings; warnings.warn('only a warning')", "x = {}['missing joint']", "print('never')"))
    with pytest.raises(AssertionError, match=r"(?s)a cell raised.*KeyError.*missing joint"): run_all(page)


def test_dialog_ends_the_test_with_its_question(lab, page):
    with pytest.raises(AssertionError, match="JupyterLab asks: .*Select Kernel"): open_notebook(page, lab.write("dialog", "x = 1", kernel="no-such-kernel"))
    page.keyboard.press("Escape")  # the fixture would complain too
    wait_until(page, lambda: not dialogs(page), "the dialog closes")


def test_request_to_another_host_is_seen_and_gets_no_answer(chromium, lab):
    context = chromium.new_context()
    asked, _ = watch(context)
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{lab.port}/login")
    assert asked and not foreign(asked)
    assert page.evaluate("fetch('http://cdn.example.com/plotly.js').then(() => 'answered', () => 'refused')") == "refused"
    assert foreign(asked) == ["http://cdn.example.com/plotly.js"]
    context.close()


def test_copy_has_no_outputs_and_checks_parameters(lab):
    with pytest.raises(ValueError, match=r"no parameter \['profil'\].*'profile'"): lab.copy("guides/00_tour", profil="smoke")
    _, path = lab.copy("guides/00_tour", profile="smoke")
    notebook = nbformat.read(lab.root / path, 4)
    assert not any(c.get("outputs") for c in notebook.cells) and any("profile = 'smoke'" in c.source for c in notebook.cells)
    assert "profile = 'smoke'" not in (ROOT / "nbs" / path).read_text(), "the notebook of the repository stays as it is"
