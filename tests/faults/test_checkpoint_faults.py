"F2, F4-F10 as a training run meets them: what a checkpoint restores, and what it refuses. The files beneath are tested in test_io_faults.py."
import errno
import json
import os
import pickle
import random
import resource
import signal
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_io_faults import in_child, kill_at
from torch import nn

from hclab.core import io
from hclab.core.config import use_one_thread
from hclab.data.loading import Loader, TensorRows
from hclab.train import checkpoint as ck

use_one_thread()
SETTINGS = dict(loop=dict(lr=0.05, workers=0), data=dict(seed=0), model=dict(width=4))


class Centre:
    "Something a method carries along: a tensor, a count and a bound that JSON cannot hold."
    def __init__(self): self.value, self.count, self.best = torch.zeros(2), 0, float("inf")
    def state_dict(self): return dict(value=self.value, count=self.count, best=self.best)
    def load_state_dict(self, state): self.value, self.count, self.best = state["value"].clone(), state["count"], state["best"]


class Run:
    "A small training run; every source of randomness that a step can have takes part in it."
    def __init__(self, folder, width=4, workers=0, make=lambda p: torch.optim.Adam(p, lr=0.05), **changes):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        self.model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 2))
        self.optimiser, self.centre, self.step = make(self.model.parameters()), Centre(), 0
        self.loader = Loader(TensorRows(dict(x=torch.linspace(-1, 1, 60).reshape(20, 3)), dict(x=0.1)), batch=6, workers=workers)
        folder.mkdir(exist_ok=True)
        changed = {k: {**v, **changes.get(k, {})} for k, v in SETTINGS.items()}
        self.checkpoints = ck.Checkpointer(folder / "checkpoints", changed, may_change=("workers",))
        for name in ("model", "optimiser", "centre"):
            self.checkpoints.register(name, getattr(self, name))
        self.checkpoints.register("data", self.loader)

    def resume(self):
        found = self.checkpoints.resume()
        self.step = found.step if found else 0
        return found

    def train(self, until, save=()):
        "Steps up to `until`, saving after those in `save`."
        batches = self.loader.forever()
        while self.step < until:
            x = next(batches)["x"] * (1 + 0.1 * np.random.rand() + 0.1 * random.random())
            loss = (self.model(x) - self.centre.value).square().mean()
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            self.centre.value = 0.9 * self.centre.value + 0.1 * torch.ones(2)
            self.centre.count, self.centre.best, self.step = self.centre.count + 1, min(self.centre.best, loss.item()), self.step + 1
            if self.step in save:
                self.checkpoints.save(self.step, dict(step=self.step))
        self.loader.close()
        return self

    def numbers(self):
        "Everything, as something to compare."
        tensors, plain = ck.split_state({name: ck.state_of(t) for name, t in self.checkpoints.things.items()})
        return {name: t.numpy().tobytes() for name, t in tensors.items()}, json.dumps(plain)


def quietly(work):
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        result = work()
    return result, [str(n.message) for n in notices]


def reseal(snapshot):
    "Write a manifest that agrees with changed files, as a person with bad intentions would."
    io.Manifest.of(snapshot, io.read_manifest(snapshot).order).write(snapshot)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The uninterrupted run: its numbers after 9 steps."
    return Run(tmp_path_factory.mktemp("whole")).train(9).numbers()


# ---- exact resume --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("at", [2, 3, 4, 6])
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, whole, at):
    "An epoch has 3 steps: at its end, one before and one after."
    Run(tmp_path).train(at, save=(at,))
    torch.rand(5), np.random.rand(3), random.random()  # another process has other states
    run = Run(tmp_path)
    found = run.resume()
    assert found.step == at and found.position == dict(step=at) and found.notes == ()
    assert run.train(9).numbers() == whole


def test_another_number_of_workers_is_the_same_run(tmp_path, whole):
    Run(tmp_path, workers=1).train(4, save=(4,))
    run = Run(tmp_path, workers=2, loop=dict(workers=2))
    found, notices = quietly(run.resume)
    assert found.notes == ("loop.workers: 0 in the checkpoint, 2 now",) and any("loop.workers" in n for n in notices)
    assert run.train(9).numbers() == whole


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_moment_of_a_save_costs_at_most_that_save(tmp_path, whole, after):
    Run(tmp_path).train(3, save=(3,))
    seen = set()
    for n in range(1, 400):
        io.remove_temp(tmp_path / "checkpoints" / "step-00000005")

        def work(n=n):
            run = Run(tmp_path)
            run.resume()
            run.train(5)
            kill_at(n, after)
            run.checkpoints.save(5, dict(step=5))
        code = in_child(work)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        run = Run(tmp_path)
        quietly(run.resume)
        seen.add(run.step)
        if n % 5 == 0:
            assert run.train(9).numbers() == whole
    assert code == 0 and n > 20 and seen == {3, 5}


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True), lambda p: torch.optim.SGD(p, lr=0.05),
    lambda p: torch.optim.AdamW(p, lr=0.05, amsgrad=True), lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.05), capturable=False, foreach=False),
    lambda p: torch.optim.Adagrad(p, lr=0.05), lambda p: torch.optim.RMSprop(p, lr=0.05, centered=True),
    lambda p: torch.optim.NAdam([dict(params=list(p), lr=0.01, weight_decay=0.1)])], ids=["nesterov", "sgd", "amsgrad", "tensor-lr", "adagrad", "rmsprop", "groups"])
def test_optimisers_go_on_with_the_same_numbers(tmp_path, make):
    expected = Run(tmp_path / "a", make=make).train(7).numbers()
    Run(tmp_path / "b", make=make).train(4, save=(4,))
    run = Run(tmp_path / "b", make=make)
    run.resume()
    assert run.train(7).numbers() == expected


def test_the_same_run_gives_the_same_bytes(tmp_path, monkeypatch):
    first = Run(tmp_path / "a")
    first.train(4, save=(2, 4))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    second = Run(tmp_path / "b")
    second.train(4, save=(2, 4))
    for step in ("step-00000002", "step-00000004"):
        assert (tmp_path / "a/checkpoints" / step / io.MANIFEST).read_bytes() == (tmp_path / "b/checkpoints" / step / io.MANIFEST).read_bytes()


def test_files_get_the_permissions_of_ordinary_new_files(tmp_path):
    "The library that writes tensors makes files for its user alone."
    before = os.umask(0o027)
    try:
        Run(tmp_path).train(1, save=(1,))
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "checkpoints/step-00000001").iterdir()} == {0o640}


def test_each_rank_gets_its_own_generators_back(tmp_path):
    def gather(mine):
        torch.manual_seed(77)  # the other rank's state
        return [mine, ck.rng_state()]
    saver = ck.Checkpointer(tmp_path / "c", {}, rank=0, world=2, gather=gather)
    torch.manual_seed(5)
    saver.save(1)
    for rank, seed in ((0, 5), (1, 77)):
        ck.Checkpointer(tmp_path / "c", {}, rank=rank, world=2, gather=gather).resume()
        got = torch.rand(3)
        torch.manual_seed(seed)
        assert torch.equal(got, torch.rand(3))
    with pytest.raises(ck.CheckpointError, match="2 processes in the checkpoint, 1 now"):
        ck.Checkpointer(tmp_path / "c", {}).resume()
    assert ck.Checkpointer(tmp_path / "d", {}, rank=1, world=2, gather=gather).save(1) is None and not (tmp_path / "d").exists()


# ---- F4, F5: no room, no permission --------------------------------------------------------------------------------------

def test_a_full_disk_costs_the_checkpoint_and_not_the_training(tmp_path, whole):
    def work():
        run = Run(tmp_path)
        run.train(3, save=(3,))
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        _, notices = quietly(lambda: run.train(5, save=(4, 5)))
        told = [n for n in notices if "training goes on" in n and "bytes are free" in n]
        try: run.checkpoints.save(6, required=True)
        except io.DiskFull: raised = True
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        run.train(9)
        return 0 if raised and len(told) == 2 and run.checkpoints.failures == 3 and run.numbers() == whole else 2
    assert in_child(work) == 0
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    run = Run(tmp_path)
    assert run.resume().step == 3 and run.train(9).numbers() == whole


def test_a_save_that_failed_can_be_tried_again(tmp_path, monkeypatch):
    run = Run(tmp_path).train(1)
    with monkeypatch.context() as m:
        def full(*args): raise OSError(errno.ENOSPC, "full")
        m.setattr(os, "fsync", full)
        assert quietly(lambda: run.checkpoints.save(1))[0] is None
    assert run.checkpoints.save(1).name == "step-00000001" and run.checkpoints.failures == 1


def test_a_folder_that_cannot_be_written_fails_before_the_first_step(tmp_path, monkeypatch):
    run = Run(tmp_path)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "none" / "checkpoints"):
        run.checkpoints.folder = folder
        with pytest.raises(io.NotWritable):
            run.resume()
    run.checkpoints.folder = tmp_path / "checkpoints"
    monkeypatch.setattr(io, "free_bytes", lambda path: 1000)
    with pytest.raises(io.DiskFull) as e:
        run.resume()
    parameters = sum(p.nbytes for p in run.model.parameters())
    assert 4 * 3 * parameters < e.value.needed < 4 * 4 * parameters + 2000  # weights and two moments, four times


# ---- F6: damage ------------------------------------------------------------------------------------------------------------

def test_truncation_and_flipped_bytes_fall_back_to_the_checkpoint_before(tmp_path):
    Run(tmp_path).train(4, save=(2, 4))
    expected = Run(tmp_path)
    snapshot = tmp_path / "checkpoints" / "step-00000004"
    aside = tmp_path / "aside"
    snapshot.rename(aside)
    expected.resume()
    aside.rename(snapshot)
    want, rng, files = expected.numbers(), random.Random(0), sorted(p for p in snapshot.iterdir())
    damages = [(f, size * i // 16) for f in files for size in [f.stat().st_size] for i in range(16)] + [(rng.choice(files), None) for _ in range(100)]
    run = Run(tmp_path)
    for file, cut in damages:
        content = file.read_bytes()
        broken = bytearray(content if cut is None else content[:cut])
        if cut is None:
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        file.write_bytes(broken)
        found, notices = quietly(run.resume)
        assert found.step == 2 and run.numbers() == want, (file.name, cut)
        assert any("step-00000004" in n for n in (*found.notes, *notices))
        file.write_bytes(content)
    assert run.resume().step == 4


def test_nothing_is_touched_where_nothing_is_sound(tmp_path):
    Run(tmp_path).train(2, save=(2,))
    (tmp_path / "checkpoints/step-00000002/optimiser.safetensors").write_bytes(b"")
    run = Run(tmp_path)
    before = run.numbers()
    with pytest.raises(io.SnapshotError, match="optimiser.safetensors"):
        run.resume()
    assert run.numbers() == before


def test_a_part_that_refuses_its_state_leaves_the_others_as_they_were(tmp_path):
    Run(tmp_path).train(2, save=(2,))
    run = Run(tmp_path).train(1)
    before = run.numbers()

    def refuse(state): raise KeyError("queue")
    run.loader.load_state_dict = refuse  # the last to be restored
    with pytest.raises(ck.CheckpointError, match="data .Loader.*queue.*as they were"):
        run.resume()
    assert run.numbers() == before


# ---- F7, F8: hostile files -------------------------------------------------------------------------------------------------

class Touch:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [lambda x, p: torch.save(x, p), lambda x, p: p.write_bytes(pickle.dumps(x)), lambda x, p: torch.save(x, p, _use_new_zipfile_serialization=False)])
def test_pickles_are_refused_wherever_they_come_from(tmp_path, write):
    Run(tmp_path).train(1, save=(1,))
    snapshot, trap = tmp_path / "checkpoints/step-00000001", tmp_path / "trap"
    write(dict(weight=Touch(trap)), tmp_path / "model.pth")
    write(dict(weight=Touch(trap)), snapshot / "model.safetensors")
    reseal(snapshot)
    run = Run(tmp_path)
    before = run.numbers()
    for refused in (lambda: ck.init_from(tmp_path / "model.pth", run.model), lambda: ck.init_from(tmp_path, run.model), run.resume):
        with pytest.raises(io.TensorFileError, match="convert_untrusted"):
            refused()
    assert run.numbers() == before and not trap.exists()


@pytest.mark.parametrize("change, words", [
    ({"0.weight": torch.zeros(5, 3)}, r"model.0.weight: '\[5, 3\] float32' in the checkpoint, '\[4, 3\] float32' now"),
    ({"0.weight": torch.zeros(4, 3).double()}, r"float64' in the checkpoint"), ({"extra": torch.zeros(1)}, None)])
def test_forged_weights_are_refused_whole(tmp_path, change, words):
    "The manifest agrees with the files, so only names, shapes and types can tell."
    Run(tmp_path).train(1, save=(1,))
    snapshot = tmp_path / "checkpoints/step-00000001"
    tensors = io.load_tensors(snapshot / "model.safetensors") | change
    io.save_tensors(snapshot / "model.safetensors", tensors)
    reseal(snapshot)
    run = Run(tmp_path)
    before = run.numbers()
    if words is None:  # a tensor that nothing refers to is not restored
        run.resume()
        return
    with pytest.raises(ck.CheckpointError, match=words):
        run.resume()
    assert run.numbers() == before


def test_a_state_file_that_names_what_is_not_there_is_a_typed_error(tmp_path):
    Run(tmp_path).train(1, save=(1,))
    snapshot = tmp_path / "checkpoints/step-00000001"
    for broken in ({}, dict(format=1), [1], dict(format=2)):
        io.write_json(snapshot / "state.json", broken)
        reseal(snapshot)
        with pytest.raises(ck.CheckpointError, match="step-00000001"):
            Run(tmp_path).resume()


# ---- F9: another run -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("change, words", [
    (dict(loop=dict(lr=0.06)), "loop.lr: 0.05 in the checkpoint, 0.06 now"), (dict(data=dict(seed=1)), "data.seed: 0 in the checkpoint, 1 now"),
    (dict(data=dict(views=2)), "data.views: absent in the checkpoint, 2 now"), (dict(width=5), r"model.3.weight: '\[2, 4\] float32' in the checkpoint, '\[2, 5\]"),
    (dict(make=lambda p: torch.optim.SGD(p, lr=0.05)), "optimiser: Adam in the checkpoint, SGD now")])
def test_a_changed_run_is_refused_with_the_difference(tmp_path, change, words):
    Run(tmp_path).train(1, save=(1,))
    run = Run(tmp_path, **change)
    before, state = run.numbers(), torch.get_rng_state()
    with pytest.raises(ck.CheckpointError, match=words) as e:
        run.resume()
    assert "init_from=" in str(e.value) and "step-00000001" in str(e.value)
    assert run.numbers() == before and torch.equal(state, torch.get_rng_state())
    weights = ck.init_from(tmp_path, Run(tmp_path / "new").model)  # the way out that the message names
    assert not (weights.missing or weights.unexpected or weights.reshaped) and weights.share == 1


def test_things_that_are_forgotten_or_new_are_named(tmp_path):
    Run(tmp_path).train(1, save=(1,))
    run = Run(tmp_path)
    del run.checkpoints.things["centre"]
    run.checkpoints.register("teacher", nn.Linear(1, 1))
    with pytest.raises(ck.CheckpointError, match=r"centre \(Centre\) is in the checkpoint but not registered\n.*teacher is registered but not"):
        run.resume()


def test_names_and_things_that_cannot_be_registered(tmp_path):
    run = Run(tmp_path)
    for name, thing in (("model", nn.Linear(1, 1)), ("rng", nn.Linear(1, 1)), ("../x", nn.Linear(1, 1)), ("Big", nn.Linear(1, 1)), ("text", "no state")):
        with pytest.raises(ck.CheckpointError):
            run.checkpoints.register(name, thing)
    with pytest.raises(ck.CheckpointError, match="gather"):
        ck.Checkpointer(tmp_path, {}, world=2)


# ---- F11: what is not finite never becomes the last checkpoint ----------------------------------------------------------

@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_not_written(tmp_path, value):
    run = Run(tmp_path).train(1, save=(1,))
    run.model[3].weight.data[1, 2] = value
    with pytest.raises(ck.CheckpointError, match=r"1 of 8 values of model.3.weight"):
        run.checkpoints.save(2)
    assert Run(tmp_path).resume().step == 1


def test_large_finite_weights_are_written(tmp_path):
    "Their sum is infinite, they are not."
    model = nn.Linear(2, 2).half()
    model.weight.data.fill_(60_000)
    checkpoints = ck.Checkpointer(tmp_path / "c", {})
    checkpoints.register("model", model)
    assert checkpoints.save(1)


# ---- weights only ----------------------------------------------------------------------------------------------------------

def test_init_from_says_what_it_took(tmp_path):
    run = Run(tmp_path)
    run.checkpoints.register("teacher", nn.Linear(3, 4))
    run.train(1, save=(1,))
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Identity(), nn.Linear(4, 3))
    old_head = student[3].weight.detach().clone()
    found = ck.init_from(tmp_path / "checkpoints/step-00000001", student)
    assert found.reshaped == ("3.weight [2, 4] -> [3, 4]", "3.bias [2] -> [3]") and found.missing == found.unexpected == ()
    assert torch.equal(student[0].weight, run.model[0].weight) and torch.equal(student[3].weight, old_head) and "7 of 9 tensors matched" in str(found)
    encoder = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    found = ck.init_from(tmp_path, encoder, part="teacher", rename=lambda name: f"0.{name}")
    assert found.matched == ("0.weight", "0.bias") and found.missing == ("1.weight", "1.bias")
    assert torch.equal(encoder[0].weight, run.checkpoints.things["teacher"].weight)
    for wrong, words in (((tmp_path / "none", encoder), "nothing of that name"), ((tmp_path, nn.Conv2d(1, 1, 1)), "none of its tensors")):
        with pytest.raises(ck.CheckpointError, match=words):
            ck.init_from(*wrong)
    with pytest.raises(ck.CheckpointError, match="did you mean 'teacher'"):
        ck.init_from(tmp_path, encoder, part="techer")
    (tmp_path / "checkpoints/step-00000001/model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ck.CheckpointError, match="damaged"):
        ck.init_from(tmp_path / "checkpoints/step-00000001", student)


def test_init_from_refuses_nan_unless_told(tmp_path):
    io.save_tensors(tmp_path / "m.safetensors", dict(weight=torch.full((1, 1), float("nan")), bias=torch.zeros(1)))
    model = nn.Linear(1, 1)
    with pytest.raises(io.TensorFileError, match="NaN"):
        ck.init_from(tmp_path / "m.safetensors", model)
    assert model.weight.isfinite().all()
    assert ck.init_from(tmp_path / "m.safetensors", model, finite=False).share == 1


def test_a_compiled_model_has_the_names_of_the_plain_one(tmp_path):
    plain, checkpoints = nn.Linear(2, 2), ck.Checkpointer(tmp_path / "c", {})
    checkpoints.register("model", torch.compile(plain))
    checkpoints.save(1)
    assert ck.init_from(tmp_path / "c", nn.Linear(2, 2)).share == 1


# ---- the split -------------------------------------------------------------------------------------------------------------

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.integers(0, 4).map(torch.arange) | st.integers(0, 4).map(lambda n: np.arange(n, dtype=np.uint32))
keys = st.text(max_size=4) | st.integers() | st.sampled_from(["$tensor", "$items", "a.b", "a"]) | st.tuples(st.integers())
trees = st.recursive(leaves, lambda x: st.lists(x, max_size=4) | st.lists(x, max_size=4).map(tuple) | st.dictionaries(keys, x, max_size=4), max_leaves=12)


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (torch.Tensor, np.ndarray)):
        return a.dtype == b.dtype and a.shape == b.shape and (a == b).all()
    return a == b or a != a and b != b


@settings(max_examples=200, deadline=None)
@given(trees)
def test_any_state_comes_back_as_it_went(tree):
    tensors, plain = ck.split_state(tree)
    assert same(tree, ck.join_state(tensors, json.loads(json.dumps(plain, allow_nan=False))))


@pytest.mark.parametrize("bad", [{1, 2}, b"bytes", nn.ReLU(), np.array([None]), lambda: 0, 1j])
def test_what_cannot_be_kept_without_a_pickle_is_named(bad):
    with pytest.raises(ck.CheckpointError, match="'outer.1'"):
        ck.split_state(dict(outer=[0, bad]))
