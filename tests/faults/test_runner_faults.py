"""F20, F21, F22: two runs in one folder, notebooks that only look like successes, outputs of older code."""
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest

from hclab.core.config import ConfigError
from hclab.core.io import read_json, write_json
from hclab.lab.arms import Arm, ExampleConfig, _command, find, folder_name, run_arm, run_arms
from hclab.lab.notebooks import stale_outputs, write_notebook
from hclab.lab.runner import NotebookFailed, run_notebook, store_outputs

RUN = "hclab.lab.arms:example_arm"


def notebook(folder: Path, *sources: str, parameters: str | None = None, tags: dict | None = None) -> Path:
    "Write a notebook of code cells; `parameters` becomes a tagged first cell."
    cells = [{"cell_type": "code", "source": s, "metadata": {"tags": (tags or {}).get(i, [])}, "outputs": [], "execution_count": None, "id": f"cell-{i}"} for i, s in enumerate(sources)]
    if parameters is not None:
        cells.insert(0, {"cell_type": "code", "source": parameters, "metadata": {"tags": ["parameters"]}, "outputs": [], "execution_count": None, "id": "parameters"})
    path = folder/"toy.ipynb"
    write_notebook({"cells": cells, "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}, "nbformat": 4, "nbformat_minor": 5}, path)
    return path


def failure(path: Path, given: dict | None = None, **limits) -> str:
    with pytest.raises(NotebookFailed) as e: run_notebook(path, path.parent/"out.ipynb", given, **limits)
    return str(e.value)


@pytest.mark.parametrize("sources, given, expected", [
    (("seed + 1",), {"sede": 1}, ["toy", "no parameter 'sede'", "did you mean 'seed'"]),
    (("seed = 5\nseed",), {"seed": 1}, ["cell 1", "assigns the parameter 'seed' again"]),
    (("for seed in range(3): pass",), {"seed": 1}, ["cell 1", "'seed' again"]),
    (("1", "import os as seed"), {"seed": 1}, ["cell 2", "'seed' again"]),
    (("def seed(): pass",), {"seed": 1}, ["cell 1", "'seed' again"]),
    (("%%bash\necho hello", "seed = 2"), {"seed": 1}, ["cell 2", "'seed' again"]),
    (("1", "def f(:\n    pass"), {"seed": 1}, ["toy, cell 2: SyntaxError", "line 1: def f(:"]),
    (("(1\n", "2"), {}, ["toy, cell 1: SyntaxError"]),
])
def test_f21_parameters_that_would_not_count(tmp_path, sources, given, expected):
    message = failure(notebook(tmp_path, *sources, parameters="seed = 0"), given)
    assert all(part in message for part in expected), message


def test_f21_parameters_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="parameters cell cannot be read, line 2: .*seed = = 3"): run_notebook(notebook(tmp_path, "1", parameters="profile = 'cpu'\nseed = = 3"), tmp_path/"out.ipynb")


def test_f21_the_cell_is_that_of_the_source_also_with_parameters(tmp_path):
    path = notebook(tmp_path, "1 + 1", "1/0", parameters="seed = 0")
    assert "toy, cell 2: ZeroDivisionError" in failure(path) and "toy, cell 2: ZeroDivisionError" in failure(path, {"seed": 3})


def test_f21_no_parameters_cell(tmp_path):
    assert "no cell is tagged 'parameters'" in failure(notebook(tmp_path, "1"), {"seed": 1})


def test_f21_a_tag_that_hides_errors(tmp_path):
    message = failure(notebook(tmp_path, "1", "1/0", tags={1: ["raises-exception"]}))
    assert "cell 1" in message and "raises-exception" in message


@pytest.mark.parametrize("source, expected", [
    ("import sys; sys.exit(0)", "SystemExit"),
    ("import os; os._exit(0)", "the kernel died"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "the kernel died"),
    ("{}['missing']", "KeyError: 'missing'"),
])
def test_f21_a_stop_in_the_middle_names_notebook_and_cell(tmp_path, source, expected):
    message = failure(notebook(tmp_path, "1 + 1", source, "2 + 2"))
    assert "toy, cell 1" in message and expected in message


def test_f21_an_endless_cell_meets_its_limit(tmp_path):
    began = time.monotonic()
    message = failure(notebook(tmp_path, "1", "while True: pass"), cell_timeout=3)
    assert "toy, cell 1" in message and "limit of 3 s" in message and time.monotonic() - began < 30


def test_f21_an_endless_notebook_meets_its_limit(tmp_path):
    message = failure(notebook(tmp_path, "1", "import time; time.sleep(60)"), wall=5)
    assert "toy, cell 1" in message and "limit of 5 s for the whole notebook" in message


@pytest.mark.parametrize("source", ["print('x'*100_000_000)", "for i in range(3000): print('x'*50_000)"])
def test_f21_a_flood_of_output_is_stopped(tmp_path, source):
    message = failure(notebook(tmp_path, "1", source), max_output=5_000_000, wall=120)
    assert "toy, cell 1" in message and "printed more than 5 MB" in message


def test_f21_on_the_command_line_the_exit_code_is_not_zero(tmp_path):
    path = notebook(tmp_path, "1", "import sys; sys.exit(0)")
    env = {**os.environ, "HCLAB_RUNS": str(tmp_path/"runs")}
    (tmp_path/"nbs").mkdir(); (tmp_path/"settings.ini").write_text("")
    target = tmp_path/"nbs/toy.ipynb"
    path.rename(target)
    done = subprocess.run([str(Path(sys.executable).parent/"hclab"), "run", "toy"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "toy, cell 1" in done.stderr, done


def test_f22_outputs_of_older_code_are_stale(tmp_path):
    path = notebook(tmp_path, "print(1)")
    assert stale_outputs(path)
    run_notebook(path, tmp_path/"out.ipynb")
    store_outputs(path, tmp_path/"out.ipynb")
    assert not stale_outputs(path)
    cells = json.loads(path.read_text())
    cells["cells"][0]["source"] = "print(2)"
    write_notebook(cells, path)
    assert stale_outputs(path)
    with pytest.raises(ValueError, match="changed while it ran"): store_outputs(path, tmp_path/"out.ipynb")


def test_f20_two_runs_in_one_folder(tmp_path):
    arm = Arm("slow", RUN, ExampleConfig(steps=40, seconds=0.2))
    first = subprocess.Popen(_command(arm, tmp_path))
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path/folder_name(arm)/"metrics.jsonl").exists() and time.monotonic() < deadline: time.sleep(0.05)
        with pytest.raises(OSError) as e: run_arm(arm, tmp_path)
        assert str(first.pid) in str(e.value)
    finally: first.send_signal(signal.SIGKILL); first.wait()
    assert find(arm, [tmp_path]).state == "missing"
    quick = Arm("slow", RUN, ExampleConfig(steps=40, seconds=0.0))
    assert run_arm(quick, tmp_path)["result"]  # another setting, another folder
    arm_again = run_arms([quick], root=tmp_path)
    assert arm_again["slow", 0].state == "done"


def test_f20_the_lock_of_a_dead_run_is_taken_over(tmp_path):
    arm = Arm("killed", RUN, ExampleConfig(steps=40, seconds=0.05))
    first = subprocess.Popen(_command(arm, tmp_path))
    deadline = time.monotonic() + 60
    while not (tmp_path/folder_name(arm)/"metrics.jsonl").exists() and time.monotonic() < deadline: time.sleep(0.05)
    first.send_signal(signal.SIGKILL); first.wait()
    assert run_arm(arm, tmp_path)["result"]["error"] > 0


def test_a_failed_arm_is_tried_again_and_the_others_are_kept(tmp_path):
    good, bad = Arm("good", RUN, ExampleConfig(steps=3)), Arm("bad", RUN, ExampleConfig(steps=9, fail_at=2))
    from hclab.lab.arms import ArmsFailed
    with pytest.raises(ArmsFailed, match="bad s0: RuntimeError: the example fails at step 2"): run_arms([good, bad], root=tmp_path)
    assert find(good, [tmp_path]).state == "done" and find(bad, [tmp_path]).state == "failed"
    made = (tmp_path/folder_name(good)/"result.json").stat().st_mtime_ns
    with pytest.raises(ArmsFailed, match="bad s0"): run_arms([good, bad], root=tmp_path)
    assert (tmp_path/folder_name(good)/"result.json").stat().st_mtime_ns == made, "what was done is not done again"
    assert len((tmp_path/folder_name(bad)/"metrics.jsonl").read_text().splitlines()) == 2, "the second try begins anew"


def test_f20_force_does_not_take_a_folder_from_a_run(tmp_path):
    arm = Arm("slow", RUN, ExampleConfig(steps=40, seconds=0.2))
    first = subprocess.Popen(_command(arm, tmp_path))
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path/folder_name(arm)/"metrics.jsonl").exists() and time.monotonic() < deadline: time.sleep(0.05)
        with pytest.raises(OSError) as e: run_arm(arm, tmp_path, force=True)
        assert str(first.pid) in str(e.value) and (tmp_path/folder_name(arm)/"metrics.jsonl").exists()
    finally: first.kill(); first.wait()


@pytest.mark.parametrize("needs", [False, True], ids=["alone", "after another"])
def test_the_ledger_sees_that_code_changed_after_a_row_was_stored(tmp_path, needs):
    from hclab.core.book import Claim
    from hclab.lab.ledger import all_rows, judge, write_rows
    before = lambda name, seed: (Arm("pre", RUN, ExampleConfig(steps=2), seed),) if needs and name == "a" else ()
    arms = [Arm(name, RUN, ExampleConfig(steps=3, level=level), seed, needs=before(name, seed)) for name, level in (("a", 30.0), ("b", 40.0)) for seed in (0, 1)]
    states = run_arms(arms, root=tmp_path/"runs")
    folder = tmp_path/"nbs/70_papers/results/toy/cpu"
    folder.mkdir(parents=True)
    for status in states.values(): write_json(folder/f"{status.row['name']}-{status.row['key']}-s{status.row['seed']}.json", status.row)
    write_rows([judge(Claim("Z1", "a is better", "a", "b", "error", "mm"), states, "cpu")], folder/"ledger.json")
    assert all_rows(tmp_path)["toy/cpu"][0].stale == ""
    module = "hclab.core.io (of pre)" if needs else "hclab.core.io"
    for seed in (0, 1) if needs else (0,):
        one = next(folder.glob(f"a-*-s{seed}.json"))
        write_json(one, {**read_json(one), "sources": {**read_json(one)["sources"], module: "0"*12}})
    assert all_rows(tmp_path)["toy/cpu"][0].stale == f"changed since: {module}"


def test_a_lost_network_is_trained_again_for_those_that_start_from_it(tmp_path, capsys):
    "Committed results without their checkpoints: the need runs again where it is asked for, and only there."
    first = Arm("pre", RUN, ExampleConfig(steps=2))
    run_arm(first, tmp_path/"elsewhere")
    kept = read_json(tmp_path/"elsewhere"/folder_name(first)/"result.json")
    (tmp_path/"results").mkdir()
    write_json(tmp_path/"results"/f"pre-{kept['key']}-s0.json", kept)
    look = dict(folders=[tmp_path/"results"], root=tmp_path/"runs")
    assert run_arms([first], **look)["pre", 0].state == "done" and not (tmp_path/"runs").exists()
    after = Arm("after", RUN, ExampleConfig(steps=3), needs=(first,))
    assert run_arms([first, after], **look)["after", 0].state == "done"
    assert "pre s0 runs, for others start from it" in capsys.readouterr().out and (tmp_path/"runs"/folder_name(first)/"result.json").exists()


def test_a_stale_arm_is_reported_and_renewed_only_by_force(tmp_path, capsys):
    arm = Arm("a", RUN, ExampleConfig(steps=3))
    run_arm(arm, tmp_path)
    path = tmp_path/folder_name(arm)/"result.json"
    old = read_json(path)
    write_json(path, {**old, "key": "0"*12, "sources": {**old["sources"], "hclab.core.io": "0"*12}, "result": {"error": -1.0}})
    assert run_arms([arm], root=tmp_path)["a", 0].row["result"]["error"] == -1.0
    assert "STALE a s0: changed since: hclab.core.io" in capsys.readouterr().out
    assert run_arms([arm], root=tmp_path, force=True)["a", 0].row["result"]["error"] > 0
