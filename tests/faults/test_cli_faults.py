"""F24, F25: a command line that nobody should type, and machines that allow little."""
import os, subprocess, sys, textwrap
from pathlib import Path

import pytest

from hclab.lab.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("line, expected", [
    (["run", "papers/martines"], "did you mean 'papers/martinez'"),
    (["run"], "give the name of a notebook, or --all"),
    (["run", "core/config", "--profile", "smok"], "did you mean 'smoke'"),
    (["run", "core/config", "--engine", "cloud"], "unknown engine 'cloud'"),
    (["run", "methods/baselines/martinez", "-p", "sede"], "expected NAME=VALUE"),
    (["run", "core/config", "--seeds", "0,1"], "neither a parameter 'seed' nor 'seeds'"),
    (["run", "methods/baselines/martinez", "--seeds", "a"], "expected whole numbers"),
    (["predict", "--task", "lift2d", "x.bvh"], "did you mean 'lift3d'"),
    (["predict", "--task", "lift3d", "-"], "no such file"),
    (["predict", "--task", "lift3d", "x"*4096], ""),
    (["data", "show", "cmuu"], "did you mean 'cmu'"),
    (["list", "--colour"], "No such option"),
    (["rnu"], "No such command"),
    (["baseline", "--accept", "core/config", "--reason", "x"], "say in a few words"),
])
def test_f25_wrong_command_lines_are_one_line_and_exit_2(line, expected, capsys):
    code = main(line)
    err = capsys.readouterr().err
    assert code in (1, 2) and expected in err and "Traceback" not in err
    assert code == 2 or "x"*100 in " ".join(line)


def test_f25_a_wrong_parameter_of_a_notebook_fails_before_a_kernel_starts(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HCLAB_RUNS", str(tmp_path))
    assert main(["run", "methods/baselines/martinez", "-p", "sede=1"]) == 1
    assert "did you mean 'seed'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["with space.bvh", "ünïcode.bvh", "-dash.bvh", "$(touch owned).bvh", "a;b&c|d.bvh", "new\nline.bvh"])
def test_f25_paths_are_never_seen_by_a_shell(name, tmp_path, capsys):
    (tmp_path/name).write_text("not a bvh")
    code = main(["predict", "--task", "lift3d", "--out", str(tmp_path/"out"), "--", str(tmp_path/name)])
    err = capsys.readouterr().err
    assert code in (1, 2) and "Traceback" not in err and name.split("\n")[0] in err
    assert not list(tmp_path.rglob("owned")) and not Path("owned").exists()


def test_f25_a_config_with_an_unknown_key():
    from hclab.core.config import ConfigError
    from hclab.methods.baselines.martinez import MartinezArm
    with pytest.raises(ConfigError, match="did you mean 'channels'"): MartinezArm.from_dict({"model": {"chanels": 3}})
    with pytest.raises(ConfigError, match="no setting 'lop'"): MartinezArm.from_json('{"lop": {}}')


def test_help_answers_without_torch():
    code = "import sys; from hclab.lab.cli import main; main(['--help']); print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "False" and "predict" in done.stdout


BLOCKED = textwrap.dedent("""
    import socket, sys
    def refuse(*a, **k): raise AssertionError('the network was asked')
    socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
    import importlib, pkgutil, hclab
    for m in pkgutil.walk_packages(hclab.__path__, 'hclab.'):
        if not m.name.endswith('_modidx'): importlib.import_module(m.name)
    from hclab.data.grammar import generate
    from hclab.tasks.lift_data import LiftDataConfig, make_split
    from hclab.methods.baselines.martinez import Martinez, MartinezConfig
    import torch
    data = make_split(LiftDataConfig.for_profile('smoke', performers=(1, 1, 1), seconds=1.0), 'train')
    print(Martinez(MartinezConfig(channels=8)).eval()(data.joints2d).shape[1:] == (16, 3))
    from hclab.lab.cli import main
    sys.exit(main(['list']))
""")


def test_f24_no_network_no_home_no_gpu(tmp_path):
    "Import everything, draw, run a network and list, with sockets blocked and a home folder that cannot be written."
    home = tmp_path/"home"
    home.write_text("a file where a folder is expected, so that even root cannot write below it")
    env = {**{k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "HCLAB_", "MPLCONFIG"))}, "HOME": str(home), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", BLOCKED], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "True" in done.stdout and home.read_text().startswith("a file")
