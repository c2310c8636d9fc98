"""The regression run: every notebook under papermill at `smoke`, its numbers against tests/baselines, its outputs not older than its code."""
import os
from pathlib import Path

import pytest

from hclab.lab.baseline import regress
from hclab.lab.notebooks import stale_outputs
from hclab.lab.runner import notebooks

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = notebooks(ROOT)
LIMIT = 60  # seconds a notebook may take at smoke on two cores, kernel start included
SLACK = 4   # a busy machine is slower; a test that fails for that reason teaches people to ignore it


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_says_the_same(name, tmp_path, monkeypatch, record_property):
    monkeypatch.setenv("HCLAB_RUNS", str(tmp_path/"runs"))  # arms are trained here, never read from an earlier run
    monkeypatch.chdir(ROOT)
    result = regress(name, tmp_path/"out.ipynb", ROOT, wall=LIMIT*SLACK)
    if result.run.skipped: pytest.skip(result.run.skipped)
    record_property("seconds", round(result.run.seconds, 1))
    assert not result.problems, "\n".join(result.problems) + f"\nIf the change is meant: hclab baseline --accept {name} --reason \"...\""


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_outputs_belong_to_the_code(name):
    assert not stale_outputs(NOTEBOOKS[name]), f"{name}: its code changed after its outputs were stored; run `hclab run {name} --write`"


def test_every_baseline_belongs_to_a_notebook():
    known = {str(p.relative_to(ROOT/"tests/baselines").with_suffix("")) for p in (ROOT/"tests/baselines").rglob("*.json")}
    assert known <= set(NOTEBOOKS), f"baselines without a notebook: {sorted(known - set(NOTEBOOKS))}; remove them"


def test_what_is_learnt_has_a_number_that_an_untrained_network_fails():
    from hclab.lab.baseline import read_baseline
    learns = [name for name in NOTEBOOKS if name.startswith(("methods/", "papers/", "guides/tour"))]
    assert learns
    for name in learns:
        numbers = read_baseline(name, ROOT)
        assert any(e.untrained is not None for e in numbers.values()), f"{name} trains, but records nothing with an untrained value"
        for key, e in numbers.items():
            assert e.untrained is None or abs(e.untrained - e.value) > e.tolerance, f"{name}: {key} would accept an untrained network"


@pytest.mark.skipif(not os.environ.get("HCLAB_SAMPLES"), reason="HCLAB_SAMPLES is not set: real recordings are not at hand")
def test_samples_are_found():
    from hclab.core.config import samples_dir
    assert samples_dir() and any(samples_dir().rglob("*.bvh"))


def test_list_prints_every_name_whole(capsys, monkeypatch):
    from hclab.lab.cli import main
    monkeypatch.setenv("COLUMNS", "60")     # names are there to be copied, however narrow the terminal
    assert main(["list"]) == 0
    assert set(NOTEBOOKS) <= set(capsys.readouterr().out.split())
