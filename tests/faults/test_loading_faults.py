"F13 (the policy), F17, F18, F19: one stream of samples for every way of fetching it, and answers when data or workers fail."
import multiprocessing
import os
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hclab.core.config import use_one_thread
from hclab.data import loading as ld

use_one_thread()
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Draws:
    "Sample (index, draw): what a stream is made of. It can be sent to a spawned worker."
    def __init__(self, n=22): self.n = n
    def __len__(self): return self.n
    def sample(self, index, generator): return torch.stack([torch.tensor(float(index)), torch.randn((), generator=generator)])


def loader(dataset=None, batch=4, **options):
    return ld.Loader(dataset or Draws(), batch, **{"collate": torch.stack, "seed": 5, **options})


def stream(epochs=2, **options):
    "All batches of some epochs, as plain numbers."
    it = loader(**options)
    try:
        return [batch.tolist() for _ in range(epochs) for batch in it]
    finally:
        it.close()


def children():
    return psutil.Process().children(recursive=True)


def of_others(process):
    "Whether a process is multiprocessing's own or of the browser that other tests of this worker keep open: it makes new ones when it likes. One that has ended is none."
    try: return any(word in " ".join(process.cmdline()) for word in ("resource_tracker", "forkserver")) or any("chrom" in p.name() for p in (process, *process.parents()))
    except psutil.NoSuchProcess: return True


@pytest.fixture(autouse=True)
def no_process_is_left():
    before = set(children())
    yield
    left = [p for p in children() if p not in before and not of_others(p)]
    assert not left, f"processes left behind: {left}"


# ---- F19: one stream -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [dict(workers=1), dict(workers=2), dict(workers=4, prefetch=1), dict(workers=2, prefetch=5), dict(workers=2, start_method="forkserver"), dict(workers=1, start_method="spawn")], ids=str)
def test_the_stream_does_not_depend_on_who_fetches(options):
    assert stream(**options) == stream()


def test_seeds_and_epochs_give_other_streams_and_no_draw_comes_twice():
    batches = stream(epochs=3, batch=2)
    draws = [draw for batch in batches for _, draw in batch]
    assert len(set(draws)) == len(draws) == 66
    epochs = [[i for batch in batches[e * 11:(e + 1) * 11] for i, _ in batch] for e in range(3)]
    assert all(sorted(e) == list(range(22)) for e in epochs) and len({tuple(e) for e in epochs}) == 3
    assert stream(seed=6) != stream() == stream()


def test_the_global_generators_are_neither_used_nor_moved():
    torch.manual_seed(1), np.random.seed(1)
    a, before = stream(), (torch.get_rng_state(), np.random.get_state()[1].tolist())
    torch.manual_seed(2), np.random.seed(2)
    assert stream(workers=2) == a
    torch.manual_seed(1), np.random.seed(1)
    stream(workers=2), stream()
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == np.random.get_state()[1].tolist()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 4, 5, 6, 9])
def test_a_stream_goes_on_where_it_stopped(workers, stop):
    "5 batches an epoch; what was prefetched and not used comes again."
    first, expected = loader(workers=workers), stream(epochs=2)
    forever = first.forever()
    got = [next(forever).tolist() for _ in range(stop)]
    state = first.state_dict()
    first.close()
    second = loader(workers=2 - workers)
    second.load_state_dict(state)
    forever = second.forever()
    got += [next(forever).tolist() for _ in range(10 - stop)]
    second.close()
    assert got == expected and second.state_dict()["epoch"] == 2 and second.batch_index == 0


def test_an_epoch_that_is_left_early_is_taken_up_again_by_the_same_workers():
    it, expected = loader(workers=2), stream(epochs=1)
    got = []
    for _ in range(len(it)):
        for batch in it:
            got.append(batch.tolist())
            break
    it.close()
    assert got == expected


def test_positions_of_other_streams_are_refused():
    state = loader().state_dict()
    for other, words in ((loader(seed=1), "seed: 5 then, 1 now"), (loader(batch=3), "batch: 4 then, 3 now"), (loader(Draws(23)), "samples: 22 then, 23 now"), (loader(world=2), "world")):
        with pytest.raises(ld.LoadingError, match=words):
            other.load_state_dict(state)
    it = loader()
    with pytest.raises(ld.LoadingError, match="begin a new iteration"):
        for _ in it:
            it.load_state_dict(state)


class Global(Draws):
    def __init__(self, draw): self.n, self.draw = 8, draw
    def sample(self, index, generator): return torch.tensor([self.draw()])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("draw, name", [(lambda: torch.rand(()).item(), "torch's"), (lambda: np.random.rand(), "numpy's")])
def test_augmentations_from_a_global_generator_are_refused(draw, name, workers):
    with pytest.raises(ld.LoadingError, match=f"drew from {name} global generator"):
        stream(dataset=Global(draw), workers=workers)


@settings(max_examples=50, deadline=None)
@given(st.integers(), st.integers(0, 2**40), st.integers(0, 2**32 - 1 - 500))
def test_no_two_samples_of_an_epoch_share_a_seed(seed, epoch, first):
    assert len({ld.sample_seed(seed, epoch, i) for i in range(first, first + 500)}) == 500


def test_seeds_are_spread_evenly():
    seeds = np.array([ld.sample_seed(0, 0, i) for i in range(20_000)])
    bits = (seeds[:, None] >> np.arange(32)) & 1
    assert abs(bits.mean(0) - 0.5).max() < 0.02 and abs(np.corrcoef(seeds[:-1], seeds[1:])[0, 1]) < 0.03


# ---- sharding --------------------------------------------------------------------------------------------------------------

@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 5), st.sampled_from(["drop", "keep"]), st.integers(0, 3))
def test_ranks_share_an_epoch(samples, batch, world, last, epoch):
    order = ld.epoch_order(samples, 0, epoch)
    try:
        ranks = [ld.deal(order, batch, r, world, last) for r in range(world)]
    except ld.LoadingError:
        assert samples < (batch * world if last == "drop" else world)
        return
    seen = [int(i) for r in ranks for b in r for i in b]
    assert len(set(seen)) == len(seen) == (samples if last == "keep" else samples // (batch * world) * batch * world)
    assert len({len(r) for r in ranks}) == 1 and min(len(b) for r in ranks for b in r) >= 1
    for parts in zip(*ranks, strict=True):
        assert max(map(len, parts)) - min(map(len, parts)) <= (0 if last == "drop" else 1)
    for g in range(samples // (batch * world) - 1):
        assert torch.cat([r[g] for r in ranks]).sort()[0].equal(order[g * batch * world:(g + 1) * batch * world].sort()[0])


def test_the_ranks_of_a_loader_draw_what_one_process_draws():
    one = {(i, x) for batch in stream(batch=4, epochs=1, last="keep") for i, x in batch}
    ranks = [stream(batch=2, epochs=1, last="keep", rank=r, world=2, workers=r) for r in range(2)]
    assert {(i, x) for r in ranks for batch in r for i, x in batch} == one and len(one) == 22


# ---- F13: bad samples -----------------------------------------------------------------------------------------------------

class Bad(Draws):
    "Some samples cannot be read."
    def __init__(self, bad, n=400, error=ValueError): self.bad, self.n, self.error = set(bad), n, error
    def where(self, index): return f"people/{index:04d}.png"
    def sample(self, index, generator):
        if index in self.bad: raise self.error("cut short")
        return super().sample(index, generator)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_is_named_with_its_file(workers):
    with pytest.raises(ld.BadSample, match=r"sample 7 of epoch 0 \(people/0007.png\): ValueError: cut short") as e:
        stream(dataset=Bad([7]), workers=workers)
    assert e.value.index == 7 and not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_up_to_one_in_a_hundred_may_be_skipped(workers):
    it = loader(Bad([3, 77, 200, 201]), workers=workers, on_bad="skip")
    with pytest.warns(UserWarning, match="skipped sample") as notices:
        rows = [int(i) for batch in it for i in batch[:, 0]]
    it.close()
    assert sorted(rows) == sorted(set(range(400)) - {3, 77, 200, 201}) and len(notices) == 4
    it = loader(Bad([3, 77, 200, 201, 202]), workers=workers, on_bad="skip")
    with pytest.raises(ld.BadSample, match=r"people.*5 of \d+ samples of epoch 0 could not be loaded, more than 1.0%"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        list(it)


def test_what_was_skipped_is_counted_across_a_resume():
    it = loader(Bad(range(5)), on_bad="skip", shuffle=False, batch=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ld.BadSample, match="5 of 8"):
            next(iter(it))
        it = loader(Bad([0, 1, 2, 16, 17]), on_bad="skip", shuffle=False, batch=8)
        forever = iter(it)
        next(forever)
        state = it.state_dict()
        again = loader(Bad([0, 1, 2, 16, 17]), on_bad="skip", shuffle=False, batch=8)
        again.load_state_dict(state)
        assert again.skipped == 3
        with pytest.raises(ld.BadSample, match="5 of 24"):
            list(again)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_the_code_is_never_skipped(workers):
    with pytest.raises(ld.BadSample, match="(?s)sample 7.*TypeError: cut short.*mistake in the code.*trace"):
        stream(dataset=Bad([7], error=TypeError), workers=workers, on_bad="skip")
    with pytest.raises(ld.BadSample, match="batch that begins with sample .*size"):
        stream(dataset=[torch.zeros(n) for n in range(4)], workers=workers, on_bad="skip")


def test_an_os_error_names_its_file_and_a_lost_batch_stops():
    class Files(Draws):
        def sample(self, index, generator): return Path("nowhere/x.png").read_bytes()
    with pytest.raises(ld.BadSample, match=r"\(nowhere/x.png\): FileNotFoundError"):
        stream(dataset=Files())
    with pytest.raises(ld.BadSample, match="no sample of this batch is left"):
        stream(dataset=Files(), on_bad="skip", max_skip_rate=1.0)


# ---- F18: workers that die or hang ------------------------------------------------------------------------------------------

class Deadly(Draws):
    def __init__(self, act, at=9): self.n, self.act, self.at = 22, act, at
    def sample(self, index, generator):
        if index == self.at:
            self.act()
        return super().sample(index, generator)


def kill(): os.kill(os.getpid(), signal.SIGKILL)
def leave(): os._exit(3)
def sleep(): time.sleep(3600)
def stop(): os.kill(os.getpid(), signal.SIGSTOP)


def spin():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # and it does not want to go
    while True:
        pass


@pytest.mark.parametrize("act, words, start", [
    (kill, "was ended by SIGKILL", "fork"), (leave, "ended with code 3", "fork"), (sleep, "has not answered", "fork"),
    (stop, "has not answered", "fork"), (spin, "has not answered", "fork"), (kill, "was ended by SIGKILL", "forkserver")])
def test_a_worker_that_dies_or_hangs_is_named_with_its_sample(act, words, start):
    it = loader(Deadly(act), workers=2, shuffle=False, timeout=2 if start == "fork" else 30, start_method=start)
    began, got = time.monotonic(), 0
    with pytest.raises(ld.WorkerError, match=rf"worker 0 \(process \d+\) {words}.*sample 9 of epoch 0") as e:
        for _ in it:
            got += 1
    assert (e.value.worker, e.value.index) == (0, 9) and got <= 2 and time.monotonic() - began < 20
    assert not [p for p in children() if p.status() == psutil.STATUS_ZOMBIE]
    it.dataset.at = -1  # mended: the loader begins new workers where it stopped
    assert sum(1 for _ in it) == 5 - got
    it.close()


@pytest.mark.parametrize("act, words", [(stop, "has not answered"), (kill, "was ended by SIGKILL"), (leave, "ended with code 3")])
def test_a_worker_that_is_gone_before_its_finished_batch_was_fetched(act, words):
    it = loader(Deadly(act, at=17), workers=2, shuffle=False, timeout=2, start_method="fork")
    batches, got, began = iter(it), 0, time.monotonic()
    with pytest.raises(ld.WorkerError, match=rf"worker 0 \(process \d+\) {words}.*sample 17 of epoch 0") as e:
        for _ in batches:
            if got == 0:
                time.sleep(1)  # worker 0 finishes its second batch meanwhile and is gone in its third
            got += 1
    assert (e.value.worker, e.value.index) == (0, 17) and 1 <= got <= 2 and time.monotonic() - began < 15
    assert not [p for p in children() if p.status() == psutil.STATUS_ZOMBIE]
    it.dataset.at = -1
    assert sum(1 for _ in it) == 5 - got
    it.close()


def test_a_death_in_the_middle_of_a_step_is_reported_by_the_loader_and_not_in_the_step():
    it = loader(workers=1, shuffle=False, prefetch=1)
    batches = iter(it)
    next(batches)
    os.kill(it._processes[0].pid, signal.SIGKILL)
    for _ in range(20):
        torch.ones(100).sum()
        time.sleep(0.02)  # torch's own handler would raise here, in the user's code
    with pytest.raises(ld.WorkerError, match="SIGKILL"):
        list(batches)


def test_a_slow_sample_is_not_a_hanging_worker():
    it = loader(Deadly(lambda: time.sleep(2.5)), workers=1, shuffle=False, timeout=10)
    assert sum(1 for _ in it) == 5
    it.close()


# ---- F17: data that change -----------------------------------------------------------------------------------------------

def test_a_folder_that_changes_is_noticed_by_name(tmp_path):
    for i in range(3):
        (tmp_path / f"shard{i}").write_bytes(bytes([i]) * 50)
    it = loader(check=ld.FolderWatch(tmp_path))
    state = it.state_dict()
    list(it)
    os.utime(tmp_path / "shard0", (0, 0))
    list(it)
    (tmp_path / "shard1").write_bytes(b"x" * 50)
    (tmp_path / "new").write_bytes(b"")
    with pytest.raises(ld.LoadingError, match="before epoch 2: shard1: its content changed.*new: not in the manifest"):
        list(it)
    with pytest.raises(ld.LoadingError, match="data: .* then, .* now"):
        loader(check=ld.FolderWatch(tmp_path)).load_state_dict(state)
    with pytest.raises(ld.LoadingError, match="not what its manifest says"):
        ld.FolderWatch(tmp_path, it.check.manifest)


def test_a_data_set_that_grows_or_shrinks_is_noticed():
    it = loader(Draws())
    list(it)
    it.dataset.n = 21
    with pytest.raises(ld.LoadingError, match="21 samples, 22 when the run began"):
        list(it)


# ---- the contract ------------------------------------------------------------------------------------------------------------

def test_data_sets_of_every_form():
    class Getter:
        def __len__(self): return 22
        def __getitem__(self, index, generator=None): return Draws().sample(index, generator)
    assert stream(dataset=Getter()) == stream()
    assert [b for b in stream(dataset=[torch.tensor(float(i)) for i in range(4)], shuffle=False, epochs=1)] == [[0, 1, 2, 3]]
    rows = ld.Loader(ld.TensorRows(dict(x=torch.zeros(8, 2), y=torch.arange(8)), dict(x=1.0)), 4)
    assert all(b["x"].shape == (4, 2) and b["x"].abs().min() > 0 for b in rows)


@pytest.mark.parametrize("wrong, words", [(dict(dataset=3), "no data set"), (dict(on_bad="ignore"), "on_bad"), (dict(last="pad"), "last='pad'"), (dict(batch=0), "at least one"),
                                          (dict(rank=2, world=2), "ranks run"), (dict(batch=23), "smaller batch")])
def test_wrong_settings_are_told(wrong, words):
    with pytest.raises(ld.LoadingError, match=words):
        loader(**wrong)
