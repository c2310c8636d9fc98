"How a bare machine becomes a lab: every decision on imaginary machines; nothing is installed and no network is asked."
import ast, os, re, shutil, subprocess, sys, tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from hclab.lab import setup as S

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT/"hclab"/"lab"/"setup.py"
PYPROJECT = tomllib.loads((ROOT/"pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKED_EXTRAS = ("dev", "cluster", "hdf5")  # bench and bake are for machines that ask for them

def name_of(requirement): return S.normal_name(re.match(r"[\w.-]+", requirement)[0])

def pins_of(lock):
    "Every pin of a lock file, whatever its marker."
    lines = (line.split("#")[0].split(";")[0].strip() for line in (ROOT/lock).read_text(encoding="utf-8").splitlines())
    return dict((S.normal_name(n), v) for n, _, v in (line.partition("==") for line in lines if "==" in line))

@pytest.fixture
def venv(tmp_path):
    "Something that looks like an environment of Python 3.11, in a folder with a space and an umlaut."
    folder = tmp_path/"ein schöner Ort"/".venv"
    S.venv_python(folder).parent.mkdir(parents=True)
    S.venv_python(folder).touch()
    (folder/"pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11.2\n", encoding="utf-8")
    return folder

# the script itself

def test_the_script_imports_the_standard_library_only():
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 8))  # an old Python must get as far as the message
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {"." * node.level + (node.module or "") for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {m for m in modules if m.split(".")[0] not in sys.stdlib_module_names}
    assert not foreign, f"{foreign} cannot be imported before anything is installed"

def test_the_script_runs_alone_from_any_folder(tmp_path):
    run = subprocess.run([sys.executable, "-S", "-E", SCRIPT, "closing", "my pictures", "ledger.html"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and "my pictures" in run.stdout and "ssh -L 8888:localhost:8888 you@machine" in run.stdout

@pytest.mark.parametrize("words", [[], ["dmeo"], ["demo", "fast"], ["closing"]])
def test_wrong_usage_is_status_2_and_says_the_usage(words, capsys):
    assert S.main(words) == 2 and "usage:" in capsys.readouterr().err

def test_outside_a_project_one_line_and_status_1(tmp_path):
    copy = tmp_path/"alone.py"
    shutil.copy(SCRIPT, copy)
    run = subprocess.run([sys.executable, "-S", copy, "demo"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and len(run.stderr.splitlines()) == 1 and "clone the project" in run.stderr

# system packages

BARE = S.Machine(root=True, ensurepip=False, missing=tuple(S.LIBRARIES))

def test_root_on_debian_installs_what_is_missing():
    commands, said = [], []
    S.provide_system(replace(BARE, chromium=False), "dev", run=commands.append, say=said.append)
    assert commands[1][-7:] == ["python3.11-venv", "libgl1", "libegl1", "libgomp1", "libx11-6", "libusb-1.0-0", "libudev1"]
    assert commands[-1][-1] == "chromium" and any("libgl1" in line for line in said)

def test_a_complete_machine_runs_no_command():
    commands = []
    S.provide_system(S.Machine(root=True), "dev", run=commands.append, say=commands.append)
    assert commands == []

def test_without_root_the_exact_line_to_run():
    with pytest.raises(S.SetupError) as e: S.provide_system(S.Machine(ensurepip=False, missing=("libGL.so.1",)), "run", run=pytest.fail)
    assert str(e.value).splitlines() == [
        "this machine lacks libGL.so.1, ensurepip; run this line, then the same command again:",
        "    sudo apt-get update && sudo apt-get install -y --no-install-recommends python3.11-venv libgl1"]

@pytest.mark.parametrize("machine, words", [
    (S.Machine(apt=False, missing=("libEGL.so.1",)), ("libEGL.so.1", "no apt-get", "mesa-libEGL")),
    (S.Machine(apt=False, root=True, missing=("libEGL.so.1",)), ("libEGL.so.1", "no apt-get")),
    (S.Machine(apt=False, ensurepip=False), ("ensurepip", "Python 3.11", "PYTHON=")),
    (S.Machine(python=(3, 10)), ("Python 3.10", "needs 3.11", "PYTHON="))])
def test_elsewhere_one_line_that_teaches(machine, words):
    with pytest.raises(S.SetupError) as e: S.provide_system(machine, "run", run=pytest.fail)
    assert "\n" not in str(e.value) and all(word in str(e.value) for word in words)

def test_no_chromium_is_told_and_never_stops():
    said = []
    S.provide_system(S.Machine(chromium=False), "dev", run=pytest.fail, say=said.append)
    assert "browser tests will be skipped" in said[0] and "apt-get install -y" in said[0]
    def no_such_package(command):
        if "chromium" in command: raise S.SetupError("E: Unable to locate package chromium")
    S.provide_system(S.Machine(chromium=False, root=True), "dev", run=no_such_package, say=said.append)
    assert "browser tests will be skipped" in said[-1]

def test_apt_update_may_fail_but_install_may_not():
    def broken(command): raise S.SetupError(f"{command[1]} failed")
    with pytest.raises(S.SetupError, match="install failed"): S.provide_system(BARE, "run", run=broken, say=lambda text: None)

def test_probe_reports_a_library_that_does_not_load(monkeypatch):
    monkeypatch.setattr(S.platform, "system", lambda: "Linux")
    monkeypatch.setattr(S, "loads", lambda soname: soname != "libEGL.so.1")
    monkeypatch.setattr(S.os, "geteuid", lambda: 1000, raising=False)
    machine = S.probe()
    assert machine.missing == ("libEGL.so.1",) and not machine.root and machine.nvidia  # libcuda "loads"

# torch

def ask_never(): raise AssertionError("the index was asked although its answer cannot matter")

@pytest.mark.parametrize("machine, environ, ask, index, build", [
    (S.Machine(nvidia=True), {}, ask_never, "", "cuda"),
    (S.Machine(), {}, lambda: "2.13.0+cpu", "", "cpu"),
    (S.Machine(), {}, lambda: "2.13.0", S.CPU_INDEX, "cpu"),
    (S.Machine(), {}, lambda: "2.13.0+cu130", S.CPU_INDEX, "cpu"),
    (S.Machine(), {}, lambda: "", S.CPU_INDEX, "cpu"),
    (S.Machine(system="Darwin"), {}, ask_never, "", "cpu"),
    (S.Machine(system="Windows", nvidia=True), {}, ask_never, "", "cpu"),
    (S.Machine(), {"TORCH_INDEX": "https://mirror.example/whl/cpu/"}, ask_never, "https://mirror.example/whl/cpu/", "cpu"),
    (S.Machine(nvidia=True), {"TORCH_INDEX": "https://mirror.example/whl/cu130"}, ask_never, "https://mirror.example/whl/cu130", "cuda")])
def test_which_torch(machine, environ, ask, index, build):
    plan = S.torch_plan(machine, environ, ask)
    assert (plan.index, plan.build) == (index, build) and plan.why

@pytest.mark.parametrize("index", ["", S.CPU_INDEX, "https://mirror.example/simple"])
def test_the_last_attempt_is_always_the_configured_index(index):
    assert S.torch_attempts(S.TorchPlan(index, "cpu", ""), "2.13.0")[-1] == ["torch==2.13.0"]

def test_a_dead_index_falls_back_and_says_so():
    tried, said = [], []
    def pip(*arguments):
        tried.append(arguments)
        if "--index-url" in arguments: raise S.SetupError("pip failed:\n    Connection refused\nWhat to do: wait")
    S.install_torch(pip, S.torch_attempts(S.TorchPlan(S.CPU_INDEX, "cpu", ""), "2.13.0"), say=said.append)
    assert len(tried) == 2 and tried[1] == ("torch==2.13.0",) and "falling back" in said[0] and "Connection refused" in said[0]

def test_when_all_attempts_fail_the_error_is_the_last_ones():
    def pip(*arguments): raise S.SetupError(f"{len(arguments)} arguments\n    reason\nadvice")
    with pytest.raises(S.SetupError, match="1 arguments"): S.install_torch(pip, S.torch_attempts(S.TorchPlan(S.CPU_INDEX, "cpu", ""), "1"), say=lambda t: None)

def test_an_index_that_cannot_be_asked_answers_nothing(monkeypatch):
    def slow(*args, **kwargs): raise subprocess.TimeoutExpired("pip", kwargs["timeout"])
    monkeypatch.setattr(S.subprocess, "run", slow)
    assert S.configured_build(Path(sys.executable), "2.13.0", seconds=0.1) == ""

# environment and stamp

def test_stamp_follows_the_lock_files(venv, tmp_path):
    project = tmp_path/"a project"
    project.mkdir()
    for name in (*S.LOCKS.values(), "pyproject.toml"): (project/name).write_text("numpy==2.0.1\n", encoding="utf-8")
    assert not S.is_ready(venv, project, "run")
    S.write_stamp(venv, project, "run")
    assert S.is_ready(venv, project, "run") and not S.is_ready(venv, project, "dev")
    S.write_stamp(venv, project, "dev")
    assert S.is_ready(venv, project, "run") and S.is_ready(venv, project, "dev")
    (project/"requirements.lock").write_text("numpy==2.0.2\n", encoding="utf-8")
    assert not S.is_ready(venv, project, "run") and not S.is_ready(venv, project, "dev")
    S.write_stamp(venv, project, "run")
    assert len(list(venv.glob(".hclab-*-*"))) == 1, "stamps of older locks stay behind"

def test_faults_of_an_environment_are_named(venv, tmp_path):
    machine = S.Machine()
    assert S.venv_fault(venv, machine) == "" and S.venv_fault(tmp_path/"none", machine) == "is absent"
    assert S.venv_fault(venv, S.Machine(python=(3, 13))) == "belongs to Python 3.11, this is 3.13"
    (venv/S.HOME_NOTE).write_text(str(venv.resolve()), encoding="utf-8")
    assert S.venv_fault(venv, machine) == ""
    moved = venv.parent/"moved"
    venv.rename(moved)
    assert "was moved" in S.venv_fault(moved, machine)
    S.venv_python(moved).unlink()
    assert "its Python is gone" in S.venv_fault(moved, machine)

def test_a_folder_that_is_no_environment_is_never_touched(tmp_path):
    (tmp_path/"thesis.tex").write_text("years of work")
    with pytest.raises(S.SetupError, match="left alone"): S.make_venv(tmp_path, S.Machine())
    assert (tmp_path/"thesis.tex").read_text() == "years of work"

def test_a_broken_environment_is_named_and_made_anew(venv, monkeypatch):
    commands, said = [], []
    monkeypatch.setattr(S, "run_logged", lambda command: (commands.append(command), venv.mkdir()))
    S.make_venv(venv, S.Machine(), say=said.append)  # its python is an empty file, so pip does not start
    assert "is broken" in said[0] and commands[0][1:3] == ["-m", "venv"] and (venv/S.HOME_NOTE).is_file()

def test_half_an_installation_is_forgotten(venv):
    folder = venv/"lib"/"python3.11"/"site-packages"
    for name, whole in (("whole-1.0", True), ("half-2.0", False)):
        (folder/f"{name}.dist-info").mkdir(parents=True)
        (folder/f"{name}.dist-info"/"METADATA").write_text("Name: {}\nVersion: {}\n".format(*name.split("-")))
        if whole: (folder/f"{name}.dist-info"/"INSTALLER").write_text("pip\n")
    assert S.forget_half_installed(venv) == ["half-2.0.dist-info"] and S.installed(venv) == {"whole": "1.0"}

def test_ready_means_no_pip_and_no_command(venv, monkeypatch):
    S.write_stamp(venv, ROOT, "dev")
    for name in ("run_logged", "make_venv", "configured_build"): monkeypatch.setattr(S, name, pytest.fail)
    monkeypatch.setattr(S, "probe", lambda: S.Machine())
    S.set_up("run", ROOT, venv)
    S.set_up("dev", ROOT, venv)

def test_the_whole_set_up_in_order_and_resumed(venv, monkeypatch, capsys):
    "Commands of a first run that dies at the lock, and of the second, which finds torch there; paths with spaces stay whole."
    commands, fails, site = [], [True], venv/"lib"/"python3.11"/"site-packages"
    def pretend(command, show=None):
        commands.append([str(c) for c in command])
        if "torch==" + pins["torch"] in command:
            (site/"torch.dist-info").mkdir(parents=True, exist_ok=True)
            (site/"torch.dist-info"/"METADATA").write_text(f"Name: torch\nVersion: {pins['torch']}+cpu\n")
            (site/"torch.dist-info"/"INSTALLER").write_text("pip")
        if "-r" in command and fails.pop(): raise S.SetupError("no network")
    pins = S.read_lock(ROOT/"requirements.lock")
    for name, value in dict(run_logged=pretend, probe=lambda: S.Machine(), pip_works=lambda venv: True, configured_build=lambda *a: "2.13.0").items():
        monkeypatch.setattr(S, name, value)
    monkeypatch.setattr(S.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, 10**12))
    with pytest.raises(S.SetupError, match="no network"): S.set_up("run", ROOT, venv, environ={})
    assert "--index-url" in commands[1] and not S.is_ready(venv, ROOT, "run")
    fails.append(False); commands.clear()
    S.set_up("run", ROOT, venv, environ={})
    assert [c[-1] for c in commands] == [f"pip=={pins['pip']}", f"torch=={pins['torch']}", str(ROOT/"requirements.lock"), str(ROOT)]
    assert "--index-url" not in commands[1] and all(c[0] == str(S.venv_python(venv)) for c in commands)
    assert S.is_ready(venv, ROOT, "run") and '"buildCheck": false' in (venv/"etc/jupyter/labconfig/page_config.json").read_text()
    out = capsys.readouterr().out
    assert [f"[{n}/5]" in out for n in range(1, 6)] == [True]*5 and "MB" in out

def test_a_full_disk_is_told_before_the_download():
    with pytest.raises(S.SetupError, match=r"has 1\.0 GB free, .* needs 4\.0 GB"): S.check_disk(Path(".venv"), 4000, 1000)

def test_page_config_keeps_other_settings_and_survives_garbage(tmp_path):
    path = S.write_page_config(tmp_path)
    path.write_text('{"disabledExtensions": {"x": true}}')
    assert S.json.loads(S.write_page_config(tmp_path).read_text()) == {"disabledExtensions": {"x": True}, "buildCheck": False, "buildAvailable": False}
    path.write_text("{")
    assert S.json.loads(S.write_page_config(tmp_path).read_text())["buildCheck"] is False

# pip's output

@pytest.mark.parametrize("line, words", [
    ("OSError: [Errno 28] No space left on device", "disk is full"),
    ("ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)", "check the network"),
    ("WARNING: Retrying (Retry(total=0)) after connection broken by 'NameResolutionError(...)'", "check the network"),
    ("ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: 2.11.0)", "for this Python"),
    ("ssl.SSLCertVerificationError: CERTIFICATE_VERIFY_FAILED", "PIP_CERT"),
    ("something nobody has seen", "read the lines above")])
def test_advice(line, words): assert words in S.advice([line]) and "goes on where it stopped" in S.advice([line])

def test_failure_shows_the_last_lines_without_noise():
    code = "print('WARNING: Location x is ignored')\nfor i in range(99): print('Collecting', i)\nprint('Requirement already satisfied: y')\nraise SystemExit(3)"
    with pytest.raises(S.SetupError) as e: S.run_logged([sys.executable, "-c", code])
    shown = [line for line in str(e.value).splitlines() if line.startswith("    ")]
    assert len(shown) == 30 and shown[-1].strip() == "Collecting 98" and "(3)" in str(e.value)

def test_pip_sees_no_foreign_packages(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert "PYTHONPATH" not in S.pip_environment() and S.pip_environment()["PIP_USER"] == "0"

# lock files, pyproject, CONTRIBUTING

def test_locks_parse_do_not_overlap_and_name_no_build():
    run, dev = pins_of("requirements.lock"), pins_of("requirements-dev.lock")
    assert not set(run) & set(dev) and "-r requirements.lock" in (ROOT/"requirements-dev.lock").read_text().splitlines()
    assert {**run, **dev}.keys() - S.read_lock(ROOT/"requirements-dev.lock").keys() in ({"open3d"}, {"open3d-cpu"})
    assert not any("+" in version for version in {**run, **dev}.values()), "a local version binds the lock to one machine"
    assert {"pip", "setuptools", "wheel", "torch"} <= set(run)
    assert S.estimate("cpu", "run", have=set(run)) == (0, 500)

def test_locked_versions_fit_pyproject():
    from packaging.requirements import Requirement
    run, dev = pins_of("requirements.lock"), pins_of("requirements-dev.lock")
    for group, pins in {"dependencies": run, **{extra: {**run, **dev} for extra in LOCKED_EXTRAS}}.items():
        for line in PYPROJECT["dependencies"] if group == "dependencies" else PYPROJECT["optional-dependencies"][group]:
            assert name_of(line) in pins, f"{line} of {group} is in no lock"
            assert Requirement(line).specifier.contains(pins[name_of(line)]), f"{line} of {group}: locked is {pins[name_of(line)]}"

def test_locked_packages_run_on_debian_12s_python():
    "Debian 12 has 3.11.2; some packages raised their floor to 3.11.5, and pip on a newer 3.11 does not notice."
    from importlib.metadata import PackageNotFoundError, metadata
    from packaging.specifiers import SpecifierSet
    for name, version in S.read_lock(ROOT/"requirements-dev.lock").items():
        try: found = metadata(name)
        except PackageNotFoundError: continue
        if found["Version"].split("+")[0] != version: continue
        assert SpecifierSet(found.get("Requires-Python") or "").contains("3.11.2"), f"{name} {version} needs Python {found['Requires-Python']}"

def test_the_table_of_contributing_is_complete_and_true():
    text = (ROOT/"CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = {cells[0]: cells[1:] for cells in ([c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| "))}
    direct = PYPROJECT["dependencies"] + [r for extra in PYPROJECT["optional-dependencies"].values() for r in extra]
    pins = {**pins_of("requirements.lock"), **pins_of("requirements-dev.lock")}
    for name in sorted({name_of(r) for r in direct}):
        assert name in rows, f"CONTRIBUTING.md: the table of dependencies lacks {name}"
        assert len(rows[name][1]) > 10, f"CONTRIBUTING.md: {name} has no reason"
        if name in pins: assert rows[name][0] == pins[name], f"CONTRIBUTING.md says {name} {rows[name][0]}, locked is {pins[name]}"

# the doctor

def test_doctor_names_what_differs_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HCLAB_SAMPLES", str(tmp_path/"not there"))
    monkeypatch.setattr(S, "probe", lambda: S.Machine(missing=("libGL.so.1",)))
    rows = {row.check: row for row in S.doctor(home=tmp_path/"cache")}
    assert not rows["Open3D's libraries"].ok and rows["Open3D's libraries"].todo.endswith(" libgl1")
    assert not rows["HCLAB_SAMPLES"].ok and rows["HCLAB_HOME"].ok and rows["python"].ok
    assert not (tmp_path/"cache").exists(), "a check makes no folder"
    assert S.show_doctor(rows.values()) == 1

def test_doctor_on_packages():
    rows = S.check_packages({"torch": "2.13.0", "rich": "15.0.0", "typer": "0.29.2"}, {"torch": "2.13.0+cu130", "rich": "14.0.0"})
    assert [(row.check, row.ok) for row in rows] == [("packages", False), ("package rich", False), ("package typer", False)]
    assert rows[0].seen == "1 of 3 as locked" and rows[1].todo == "pip install rich==15.0.0" and "missing" in rows[2].seen

@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no /proc on this system")
def test_doctor_sees_a_home_that_cannot_be_written():
    unwritable = Path("/proc/hclab") if Path("/proc").is_dir() else Path("/dev/null/hclab")
    assert not S.writable(unwritable)
    row = next(row for row in S.check_folders(unwritable, None) if row.check == "HCLAB_HOME")
    assert not row.ok and "HCLAB_HOME" in row.todo

# Makefile and .ci/run

def make(*words, **environ):
    return subprocess.run(["make", "-C", ROOT, *words], capture_output=True, text=True, timeout=60, env={**os.environ, "MAKEFLAGS": "", **environ})

@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_makefile_helps_and_teaches_without_python(tmp_path):
    shown = make("help")
    assert shown.returncode == 0 and all(f"make {target}" in shown.stdout for target in ("demo", "test", "lab", "site", "clean"))
    none = make("demo", "PYTHON=")
    assert none.returncode != 0 and "needs Python 3.11" in none.stderr

@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_clean_removes_nothing_that_is_committed_or_trained():
    plan = make("-n", "clean").stdout
    removed = set(re.search(r"rm -rf (.*)", plan)[1].split())
    assert not removed & {"runs", "nbs", "hclab", "tests", "data_cards"} and ".venv" in removed and "kept: runs/" in plan

def test_ci_runs_make_test():
    text = (ROOT/".ci"/"run").read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash") and text.rstrip().endswith("exec make test") and os.access(ROOT/".ci"/"run", os.X_OK)
