"A trained lifter before other people: the network of the arm that is needed, and no other."
import shutil
from dataclasses import replace

import pytest

from hclab.core.config import ConfigError
from hclab.core.io import write_json
from hclab.lab.arms import Arm, find, key, run_arm
from hclab.methods import global_node_gcn as method
from hclab.methods.global_node_gcn import ElsewhereArm, GlobalNodeArm
from hclab.tasks.lift_data import make_split

SHORT = GlobalNodeArm.for_profile("smoke")
SHORT = replace(SHORT, loop=replace(SHORT.loop, steps=4, log_every=4, save_every=4))
OTHERS = ElsewhereArm(replace(SHORT.data, seed=1))


def trained(seed): return Arm("classes", "hclab.methods.global_node_gcn:train_arm", SHORT, seed)
def elsewhere(seed): return Arm("classes-there", "hclab.methods.global_node_gcn:elsewhere_arm", OTHERS, seed, (), (trained(seed),))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1): run_arm(elsewhere(seed), root)
    return root


def test_it_is_the_network_of_its_own_seed(runs):
    rows = [find(elsewhere(seed), [runs]).row for seed in (0, 1)]
    assert rows[0]["result"]["grammar_mpjpe"] != rows[1]["result"]["grammar_mpjpe"] and rows[0]["result"]["grammar_samples"] == len(make_split(OTHERS.data, "test"))
    assert all(set(row["provenance"]["before"]) == {"classes"} for row in rows)


def test_its_key_follows_the_arm_it_needs():
    slower = replace(trained(0), config=replace(SHORT, loop=replace(SHORT.loop, lr=1e-3)))
    assert key(replace(elsewhere(0), needs=(slower,))) != key(elsewhere(0))


def test_mpi_inf_3dhp_in_place_of_the_arms_own_data(runs, monkeypatch):
    people, asked = make_split(OTHERS.data, "test"), []
    monkeypatch.setattr(method, "mpi3dhp_set", lambda config, what: asked.append(what) or people)
    folder = find_folder(runs)
    found = method.elsewhere_arm(ElsewhereArm(SHORT.data, "univ_annot3"), 0, before={"classes": folder})
    assert asked == ["univ_annot3"] and found["mpi3dhp_mpjpe"] == method.elsewhere_arm(OTHERS, 0, before={"classes": folder})["grammar_mpjpe"]
    with pytest.raises(ConfigError, match="annot3"): ElsewhereArm(SHORT.data, "anot3")


def find_folder(runs): return next(p for p in runs.glob("classes-*-s0") if not p.name.startswith("classes-there"))


def test_what_is_no_trained_lifter_is_refused(runs, tmp_path):
    folder = find_folder(runs)
    for before in (None, {}, {"a": folder, "b": folder}):
        with pytest.raises(ConfigError, match="from one arm"): method.elsewhere_arm(OTHERS, 0, before=before)
    write_json(tmp_path/"result.json", {"config": {}, "config_type": "MartinezArm"})
    with pytest.raises(ConfigError, match="a is a MartinezArm"): method.elsewhere_arm(OTHERS, 0, before={"a": tmp_path})
    shutil.copytree(folder, tmp_path/"copy")
    shutil.rmtree(tmp_path/"copy/checkpoints")
    with pytest.raises(ValueError, match="holds no snapshot"): method.elsewhere_arm(OTHERS, 0, before={"a": tmp_path/"copy"})
