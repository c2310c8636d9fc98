"F4, F13, F16, F17, F18, F20 as a store of samples meets them: kills at any moment, full disks, flipped bytes, exchanged files, workers that die, two makers of one set."
import hashlib
import json
import os
import random
import resource
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from test_io_faults import in_child, kill_at, litter

from hclab.core import io
from hclab.core.config import use_one_thread
from hclab.data import encode as en
from hclab.data import shards as sh
from hclab.data import store
from hclab.data.loading import BadSample, FolderWatch, Loader, LoadingError

use_one_thread()
CONFIG, N, ROWS = en.Discs(size=24), 24, 4
VERSION = {"offset": 0, "code": "one"}  # of the generator; forked workers see what the test sets
TROUBLE = {}                            # index -> what happens there


def draw(config, index):
    "A disc; its identity tells the version of the generator."
    if index in TROUBLE:
        TROUBLE[index]()
    return en.disc_sample(config, index) | {"identity": VERSION["offset"]}


def make(folder, n=N, **options):
    return store.make(folder, CONFIG, n, f"{__name__}:draw", **{"rows": ROWS, "tell": None, "start_method": "fork", "code": {"draw": VERSION["code"]}, **options})


@pytest.fixture(autouse=True)
def as_before():
    yield
    VERSION.update(offset=0, code="one")
    TROUBLE.clear()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The set that was never interrupted: file name -> content."
    return files(make(tmp_path_factory.mktemp("whole") / "discs").folder)


def files(folder):
    return {p.name: p.read_bytes() for p in sorted((Path(folder) / "data").glob("*.parquet"))}


def stamps_of(folder):
    "When each shard came to be: a file that was made anew has another time, though perhaps the same inode."
    return {p.name: p.stat().st_ctime_ns for p in (Path(folder) / "data").iterdir()}


def sound(folder, whole):
    "Finished shards; each is the one of the uninterrupted set, whatever happened."
    found = files(folder) if (Path(folder) / "data").is_dir() else {}
    assert all(whole[name] == data for name, data in found.items()), "a shard that is there is whole"
    return found


def running(pid):
    try: return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False


def ended(pids, seconds=10):
    "Whether these processes are gone, before the time is up."
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(running(p) for p in pids): return True
        time.sleep(0.02)
    return False


# ---- kills ---------------------------------------------------------------------------------------------------------------

def test_kills_at_random_moments_lose_no_finished_shard(tmp_path, whole):
    "The main process dies; its workers follow; what was finished stays, is never wrong and is not made twice."
    folder, rng, kept, kills, workers = tmp_path / "discs", random.Random(0), {}, 0, set()
    for _ in range(60):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            try:
                for i in range(N): TROUBLE[i] = lambda: time.sleep(0.004)
                make(folder)
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0.01, 0.25))
        os.kill(pid, signal.SIGSTOP)        # it starts no worker after they were counted
        workers |= {p.pid for p in psutil.Process(pid).children()}
        os.kill(pid, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0: break
        kills += 1
        found = sound(folder, whole)
        assert set(kept) <= set(found), "what was finished is kept"
        kept = found
        if len(kept) < len(whole):
            with pytest.raises(sh.StoreError, match="make it"): sh.Stored(folder)
        else: break
    assert kills >= 3 and ended(workers)
    before = {name: when for name, when in stamps_of(folder).items() if name in whole}
    stored = make(folder)
    assert sound(folder, whole) == whole and litter(folder) == [] and stored.verify() == [] and len(stored) == N
    assert before.items() <= stamps_of(folder).items()


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_step_of_writing_a_shard_leaves_it_whole_or_absent(tmp_path, whole, after):
    rows, name = [en.encode(draw(CONFIG, i)) for i in range(ROWS)], sorted(whole)[0]
    for n in range(1, 60):
        folder = tmp_path / str(n)
        folder.mkdir()
        code = in_child(lambda n=n, folder=folder: (kill_at(n, after), sh.write_shard(folder, 0, rows)) and 0)
        left = [p.name for p in folder.glob("*.parquet")]
        assert left in ([], [name]) and all((folder / p).read_bytes() == whole[name] for p in left)
        if code == 0: break
    assert code == 0 and n > 4


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_step_never_mixes_two_versions_of_the_generator(tmp_path, after):
    "A finished set is made anew because the code changed; the kill comes anywhere in the main process or a worker."
    folder, seen = tmp_path / "discs", set()
    for n in [*range(1, 24), *range(24, 90, 3)]:
        VERSION.update(offset=0, code="one")
        make(folder, n=8, workers=1)
        VERSION.update(offset=1, code="two")
        code = in_child(lambda n=n: (kill_at(n, after), make(folder, n=8, workers=1)) and 0)
        try: identities = {sample["identity"] for sample in map(sh.Stored(folder).__getitem__, range(8))}
        except sh.StoreError as e: identities = {str(e).split(";")[-1]}
        assert len(identities) == 1, "samples of one version, or none"
        seen |= identities
        if n % 4 == 0:
            assert {s["identity"] for s in map(make(folder, n=8, workers=1).__getitem__, range(8))} == {1} and litter(folder) == []
        if code == 0: break
    assert code == 0 and n > 20 and {0, 1} <= seen and any("make it" in str(s) for s in seen)


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_step_of_growing_leaves_a_set_that_reads(tmp_path, whole, after):
    for n in [*range(1, 16), *range(16, 90, 4)]:
        folder = tmp_path / str(n)
        make(folder, n=6, workers=1)  # the second shard is short and will be replaced
        code = in_child(lambda n=n, folder=folder: (kill_at(n, after), make(folder, workers=1)) and 0)
        stored = sh.Stored(folder)
        assert len(stored) in (6, N) and [stored[i]["index"] for i in range(len(stored))] == list(range(len(stored))) and stored.verify() == []
        if n % 5 == 0 or code == 0: assert files(make(folder).folder) == whole
        if code == 0: break
    assert code == 0 and n > 12


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_while_a_set_is_removed_leaves_all_of_it_or_nothing(tmp_path, after):
    for n in range(1, 40):
        root = tmp_path / str(n)
        folder = make(root / "discs", n=6, workers=1).folder
        code = in_child(lambda n=n, root=root: (kill_at(n, after), store.remove("discs", root)) and 0)
        if folder.exists(): assert sh.Stored(folder).verify() == []
        else: assert store.stored_sets(root) == []
        if code == 0: break
    assert code == 0 and not folder.exists()


# ---- F18: workers ----------------------------------------------------------------------------------------------------------

def kill(): os.kill(os.getpid(), signal.SIGKILL)
def leave(): os._exit(3)
def stop(): os.kill(os.getpid(), signal.SIGSTOP)
def hang():
    "Hang, but not longer than somebody waits: an orphan would hold the pipes of the test run."
    parent = os.getppid()
    while os.getppid() == parent: time.sleep(.1)
    os._exit(3)
def fail(): raise ValueError("a knee has no such angle")
def quit_(): raise SystemExit(0)


@pytest.mark.parametrize("act, words", [(kill, "was ended by SIGKILL at sample 13"), (leave, "ended with code 3 at sample 13"), (fail, "failed at sample 13: ValueError: a knee has no such angle(?s:.*)in fail"),
                                        (quit_, "failed at sample 13: SystemExit"), (hang, "has been at sample 13 for"), (stop, "has been at sample 13 for")])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_fails_is_named_with_its_sample_and_the_rest_is_kept(tmp_path, whole, act, words, workers):
    TROUBLE[13] = act
    before, began = set(psutil.Process().children(recursive=True)), time.monotonic()
    with pytest.raises(store.MakeError, match=rf"worker \d .*{words}(?s:.*)Finished shards are kept") as e:
        make(tmp_path / "discs", workers=workers, timeout=1.5)
    assert e.value.index == 13 and 0 <= e.value.worker < workers and time.monotonic() - began < 30
    assert not [p for p in psutil.Process().children(recursive=True) if p not in before]
    found = sound(tmp_path / "discs", whole)
    assert len(found) >= 3 - (workers - 1), "shards 0 to 2 come before sample 13"
    TROUBLE.clear()
    stamps = {name: when for name, when in stamps_of(tmp_path / "discs").items() if name in whole}
    assert files(make(tmp_path / "discs").folder) == whole
    assert stamps.items() <= stamps_of(tmp_path / "discs").items()


def test_a_sample_that_breaks_the_contract_is_named(tmp_path, monkeypatch):
    import test_store_faults as here
    monkeypatch.setattr(here, "draw", lambda config, index: en.disc_sample(config, index) | ({"boxes": torch.zeros(1, 3)} if index == 2 else {}))
    with pytest.raises(store.MakeError, match=r"failed at sample 2: SampleError: sample\['boxes'\]"): make(tmp_path / "discs")


def test_a_function_that_a_worker_cannot_import(tmp_path):
    with pytest.raises(store.MakeError, match="failed at the start: StoreError.*nowhere.*it must be importable"):
        store.make(tmp_path / "discs", CONFIG, 4, "hclab.nowhere:draw", tell=None, start_method="fork")


# ---- F4: a full disk -------------------------------------------------------------------------------------------------------

def test_a_disk_that_fills_costs_the_shard_at_hand(tmp_path, whole):
    "The third and later shards are too large for the limit of this process and its workers."
    folder, big = tmp_path / "discs", en.Discs(size=24)

    def work():
        make(folder, n=2*ROWS, workers=1)
        limit = max(map(len, files(folder).values())) - 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try: make(folder, workers=2)
        except io.DiskFull as e: return 0 if "data" in str(e) and "bytes are free" in str(e) and e.needed > 0 and "kept" in str(e) else 3
        return 4
    assert big == CONFIG and in_child(work) == 0
    stored = sh.Stored(folder)
    assert len(stored) == 2*ROWS and stored.verify() == [] and litter(folder) == []
    assert files(make(folder).folder) == whole


def test_too_little_room_is_known_before_the_work(tmp_path, monkeypatch):
    drawn = tmp_path / "drawn"
    for i in range(N): TROUBLE[i] = lambda i=i: (tmp_path / "drawn").open("a").write(f"{i} ")
    monkeypatch.setattr(io, "free_bytes", lambda path: 30_000)
    with pytest.raises(io.DiskFull) as e: make(tmp_path / "discs")
    assert e.value.needed > 30_000 and files(tmp_path / "discs") == {} and drawn.read_text().split() == ["0", "1", "2"], "three samples were drawn for the estimate"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "discs"):
        with pytest.raises(OSError): make(folder)
    assert (tmp_path / "file").read_text() == ""


# ---- F13, F17: what lies there changes ---------------------------------------------------------------------------------------

def check_all(stored, whole_set):
    "Read every sample; the errors. What is read is right."
    errors = {}
    for i in range(len(stored)):
        try: sample = stored[i]
        except sh.StoreError as e: errors[i] = str(e)
        else: assert sample["index"] == i and torch.equal(sample["image"], whole_set[i]["image"]) and torch.equal(sample["joints2d"], whole_set[i]["joints2d"])
    return errors


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return [sample for sample in map(make(tmp_path_factory.mktemp("samples") / "discs").__getitem__, range(N))]


def test_a_flipped_byte_is_never_a_sample(tmp_path, whole, samples):
    stored, rng = make(tmp_path / "discs"), random.Random(1)
    names = stored.names
    for trial in range(120):
        k = rng.randrange(len(names))
        path, data = tmp_path / "discs/data" / names[k], bytearray(whole[names[k]])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        at = k*ROWS + rng.randrange(ROWS)
        reader = stored if trial % 2 else sh.Stored(tmp_path / "discs")  # one that had checked it before, and one that begins
        with pytest.raises(sh.StoreError, match=rf"{names[k]}: its content changed.*Samples {k*ROWS} to {k*ROWS + ROWS - 1} .*make the set again"): reader[at]
        assert len(reader.verify()) == 1 and names[k] in reader.verify()[0] and reader[(at + ROWS) % N]["index"] == (at + ROWS) % N
        path.write_bytes(whole[names[k]])
    assert check_all(stored, samples) == {}


DAMAGE = {
    "empty": lambda a, b: a.write_bytes(b""), "page": lambda a, b: a.write_bytes(b"<!DOCTYPE html><title>404</title>"), "gone": lambda a, b: a.unlink(),
    "swapped": lambda a, b: (a.rename(a.with_suffix(".x")), b.rename(a), a.with_suffix(".x").rename(b)), "copied": lambda a, b: a.write_bytes(b.read_bytes()),
    "folder": lambda a, b: (a.unlink(), a.mkdir()), "grown": lambda a, b: a.write_bytes(a.read_bytes() + b"x"),
    **{f"cut at {n}/16": lambda a, b, n=n: a.write_bytes(a.read_bytes()[:a.stat().st_size*n//16]) for n in range(1, 16)}}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_changed_file_is_named_and_made_anew_and_nothing_else_is(tmp_path, whole, samples, how):
    folder, stored = tmp_path / "discs", make(tmp_path / "discs")
    assert check_all(stored, samples) == {}
    watch = FolderWatch(folder / "data", stored.manifest())
    a, b = (folder / "data" / stored.names[k] for k in (1, 4))
    stamps = stamps_of(folder)
    DAMAGE[how](a, b)
    hit = [1, 4] if how == "swapped" else [1]
    errors = check_all(stored, samples)
    assert sorted(errors) == [i for k in hit for i in range(k*ROWS, (k + 1)*ROWS)] and all(stored.names[i//ROWS] in text for i, text in errors.items())
    assert [line.split(":")[0] for line in stored.verify()] == [stored.names[k] for k in hit] and set(watch()) >= set(stored.verify())
    if how == "folder": return  # nobody's file: `make` refuses to delete what it did not write
    if how == "gone":
        with pytest.raises(sh.StoreError, match=f"{a.name}: it is missing"): sh.Stored(folder)
    lines = []
    again = make(folder, tell=lines.append)
    assert files(folder) == whole and check_all(again, samples) == {} and check_all(stored, samples) == {} and again.verify() == []
    assert [k for k, name in enumerate(stored.names) if stamps_of(folder)[name] != stamps[name]] == hit
    assert sum("damaged and made anew" in line for line in lines) == (0 if how == "gone" else len(hit))


def test_a_loader_says_which_shard_changed(tmp_path):
    stored = make(tmp_path / "discs")
    path = tmp_path / "discs/data" / stored.names[2]
    loader = Loader(stored, 4, check=FolderWatch(tmp_path / "discs/data", stored.manifest()))
    first = loader.signature()["data"]
    assert len(list(loader)) == 6 and first == stored.manifest().hash()
    kept = path.read_bytes()
    path.write_bytes(kept[:-1] + b"?")
    with pytest.raises(LoadingError, match=f"the data changed before epoch 1: {stored.names[2]}"): list(loader)
    with pytest.raises(BadSample, match=rf"sample \d+ of epoch 0 \(discs/data/{stored.names[2]} row \d\): StoreError: .*content changed"): list(Loader(stored, 4))
    path.write_bytes(kept)
    assert len(list(loader)) == 6


def test_a_reader_lives_through_a_set_that_is_made_anew(tmp_path):
    stored = make(tmp_path / "discs")
    assert stored[0]["identity"] == 0
    VERSION.update(offset=1, code="two")
    again = make(tmp_path / "discs")
    assert again[0]["identity"] == 1
    with pytest.raises(sh.StoreError, match="it is missing"): stored[0]


def test_a_damaged_card_is_refused_and_the_set_made_anew(tmp_path, whole):
    folder = make(tmp_path / "discs").folder
    card, text = folder / "set.json", (folder / "set.json").read_text()
    values, rng = json.loads(text), random.Random(2)
    forged = [text[:len(text)*n//16] for n in range(16)] + ["[]", "null", "<html>", json.dumps(values | {"n": 25}), json.dumps(values | {"digest": 5}), json.dumps({k: v for k, v in values.items() if k != "digest"})]
    for _ in range(60):
        raw = bytearray(text.encode())
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(7)
        forged.append(raw.decode())
    for n, given in enumerate(forged):
        card.write_text(given)
        try: assert len(sh.Stored(folder)) == N and json.loads(given) == values, "only the layout of the text changed"
        except sh.StoreError as e: assert "set.json" in str(e) and "make the set again" in str(e) or "make it" in str(e)
        if n % 20 == 0:
            lines = []
            assert files(make(folder, tell=lines.append).folder) == whole and (json.loads(card.read_text()) == values) and any("made anew" in line for line in lines)
    for future in (dict(format=2), dict(format=2, colour="red")):
        other = {k: v for k, v in (values | future).items() if k != "digest"}
        card.write_text(json.dumps(other | {"digest": hashlib.sha256(json.dumps(other, sort_keys=True, separators=(",", ":")).encode()).hexdigest()}))
        with pytest.raises(sh.StoreError, match="format 2, this version reads 1"): sh.Stored(folder)


def test_pickled_bytes_in_a_shard_are_never_run(tmp_path):
    "A shard holds pictures and numbers; a column that is none of ours is not looked at, and a picture that is no picture is refused."
    import pickle

    class Trap:
        def __reduce__(self): return (os.mkdir, (str(tmp_path / "sprung"),))
    row = en.encode(draw(CONFIG, 0)) | {"image": pickle.dumps(Trap())}
    data = sh.shard_bytes([row])
    (back,) = sh.read_rows(data)
    with pytest.raises(en.EncodingError): en.decode({k: data[v] if isinstance(v, slice) else v for k, v in back.items()})
    assert not (tmp_path / "sprung").exists()


# ---- F20: two makers -------------------------------------------------------------------------------------------------------

def test_a_second_maker_refuses_or_waits(tmp_path, whole):
    folder = tmp_path / "discs"
    pid = os.fork()
    if pid == 0:
        for i in range(N): TROUBLE[i] = lambda: time.sleep(0.05)
        try: make(folder, workers=1)
        finally: os._exit(0)
    while not (folder / "data").is_dir(): time.sleep(0.01)
    with pytest.raises(io.FolderLocked) as e: make(folder, wait=0)
    with pytest.raises(io.FolderLocked): store.remove("discs", tmp_path)
    assert e.value.pid == pid and [s.state for s in store.stored_sets(tmp_path)] == ["not finished"]
    lines = []
    stored = make(folder, tell=lines.append)
    assert len(stored) == N and files(folder) == whole and lines == [f"discs: process {pid} is making this set; waiting for it"], "it found everything made"
    os.waitpid(pid, 0)


def test_a_maker_that_dies_is_taken_over_from(tmp_path, whole):
    folder = tmp_path / "discs"
    assert in_child(lambda: (TROUBLE.update({9: hang}), os.fork() or (time.sleep(0.7), os.kill(os.getppid(), signal.SIGKILL), os._exit(0)), make(folder)) and 0) == -signal.SIGKILL
    assert len(sound(folder, whole)) < len(whole)
    assert files(make(folder, wait=0).folder) == whole and litter(folder) == []
