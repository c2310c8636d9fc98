"F2, F4, F5, F6, F8: kills, full disks, folders that cannot be written, damaged files and forged tensor files."
import errno
import itertools
import json
import os
import random
import resource
import signal
import struct
import time
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hclab.core import io
from hclab.core.config import use_one_thread

use_one_thread()  # a fork of a process with a pool of threads waits for threads that it does not have
STATE = dict(weight=torch.arange(12.0).reshape(3, 4), step=torch.tensor(3), half=torch.ones(5, dtype=torch.bfloat16))


def in_child(work) -> int:
    "Run `work` in a fork of this process, which has torch loaded already. Its exit status; minus the signal if one ended it."
    pid = os.fork()
    if pid == 0:
        code = 1
        signal.alarm(60)  # a child that hangs ends by itself
        try:
            code = work() or 0
        except BaseException as e:  # the child must never return into pytest
            print(repr(e), flush=True)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def snap(root, step, **more):
    "A snapshot whose every tensor tells the step."
    tensors = dict(STATE, mark=torch.full((100,), float(step)))
    return io.save_snapshot(root, f"step-{step}", {"model.safetensors": lambda p: io.save_tensors(p, tensors), "state.json": lambda p: io.write_json(p, dict(step=step)), **more})


def quiet(root):
    "newest_valid and the text of its notices."
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        found = io.newest_valid(root)
    return found, [str(n.message) for n in notices]


def litter(root) -> list[str]:
    return [p.name for p in Path(root).rglob(".tmp-*")]


# ---- F2: kill inside save ----------------------------------------------------------------------------------------------

CALLS = ("replace", "fsync", "open", "mkdir", "unlink")


def kill_at(n, after):
    "Make this process kill itself at its n-th file-system call, of whichever thread, before or after the call takes effect."
    count = itertools.count(1)

    def wrap(call):
        def wrapped(*args, **kwargs):
            number = next(count)
            if number == n and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*args, **kwargs)
            finally:
                if number == n and after:
                    os.kill(os.getpid(), signal.SIGKILL)
        return wrapped

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_step_of_a_save_costs_at_most_that_save(tmp_path, after):
    root, died, seen = tmp_path / "checkpoints", 0, set()
    snap(root, 1)
    for n in range(1, 200):
        def save(n=n):
            kill_at(n, after)
            snap(root, 2)
        code = in_child(save)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        died += 1
        left = litter(root)
        found, notices = quiet(root)
        seen.add(found.name)
        assert found.json("state.json")["step"] == int(found.name[5:]) and found.tensors("model.safetensors", finite=True)["mark"][0] == int(found.name[5:])
        assert litter(root) == [] and not found.skipped
        assert len(notices) == bool(left) and all("\n" not in text and "unfinished save" in text for text in notices)
        if found.name == "step-2":  # the kill came after the rename: the save counts
            io.remove_temp(root / "step-2")
    assert code == 0 and died > 14 and seen == {"step-1", "step-2"}
    assert quiet(root)[0].name == "step-2"


def test_a_kill_while_a_damaged_snapshot_is_replaced_leaves_the_one_before(tmp_path):
    snap(tmp_path, 1)
    for n in range(1, 200):
        if not (tmp_path / "step-2").exists():
            snap(tmp_path, 2)
        (tmp_path / "step-2" / "state.json").write_text("{}")

        def save(n=n):
            kill_at(n, False)
            snap(tmp_path, 2)
        code = in_child(save)
        found, _ = quiet(tmp_path)
        assert found.name == ("step-2" if code == 0 else found.name) and not io.damage(found.folder) and litter(tmp_path) == []
        if code == 0:
            return
    pytest.fail("the save never ended")


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_step_of_pruning_leaves_whole_snapshots(tmp_path, after):
    for n in range(1, 200):
        root = tmp_path / str(n)
        for step in (1, 2, 3):
            snap(root, step)

        def prune(n=n, root=root):
            kill_at(n, after)
            io.prune_snapshots(root, keep=1)
        code = in_child(prune)
        found, _ = quiet(root)
        assert found.name == "step-3" and litter(root) == []
        assert all(not io.damage(folder) for folder in io.list_snapshots(root))
        if code == 0:
            break
    assert code == 0 and n > 2 and [p.name for p in io.list_snapshots(root)] == ["step-3"]


def test_a_kill_inside_atomic_write_leaves_the_old_file_or_the_new(tmp_path):
    path, seen = tmp_path / "state.json", set()
    for n in range(1, 50):
        path.write_bytes(b"old")

        def write(n=n):
            kill_at(n, n % 2)
            io.atomic_write(path, b"new" * 5000)
        code = in_child(write)
        assert path.read_bytes() in (b"old", b"new" * 5000)
        seen.add(path.read_bytes()[:3])
        io.remove_stale_temps(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["state.json"]
        if code == 0:
            break
    assert code == 0 and seen == {b"old", b"new"}


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    "A kill cannot show the order that a power cut would need; the order of the calls can."
    calls = []
    for name in ("fsync", "replace"):
        def wrapped(*args, _name=name, _call=getattr(os, name)):
            is_folder = _name == "fsync" and os.path.isdir(f"/proc/self/fd/{args[0]}")
            calls.append("folder" if is_folder else _name)
            return _call(*args)
        monkeypatch.setattr(os, name, wrapped)
    io.atomic_write(tmp_path / "a", b"x")
    assert calls == ["fsync", "replace", "folder"]
    (tmp_path / "root").mkdir()
    calls.clear()
    snap(tmp_path / "root", 1)
    assert calls[-3:] == ["folder", "replace", "folder"]  # the manifest's folder, the rename of the snapshot, the root


def test_every_file_of_a_snapshot_is_on_the_disk_as_it_is_before_the_snapshot_has_its_name(tmp_path, monkeypatch):
    "Of each file, the size that it had when it was last forced to the disk, compared when the folder is renamed. Nothing is forced twice."
    on_disk, calls, seen = {}, [], {}
    fsync, replace = os.fsync, os.replace

    def synced(fd):
        status = os.fstat(fd)
        calls.append(status.st_ino)
        on_disk[status.st_ino] = status.st_size
        return fsync(fd)

    def renamed(a, b):
        if os.path.isdir(a):
            seen.update({p.name: on_disk.get(p.stat().st_ino) == p.stat().st_size for p in Path(a).iterdir()})
            seen["the folder itself"] = calls[-1] == os.stat(a).st_ino
        return replace(a, b)

    def plain(path): path.write_bytes(b"x" * 5000)
    def hashed(path): path.write_bytes(b"y" * 7000); return io.file_sha256(path)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    saved = snap(tmp_path, 1, **{"plain.bin": plain, "hashed.bin": hashed, "big.safetensors": lambda p: io.save_tensors(p, dict(w=torch.zeros(5_000_000)))})
    assert seen == dict.fromkeys([*saved.manifest.files, io.MANIFEST, "the folder itself"], True) and len(seen) == 7
    assert len(calls) == 8, "one for each file, one for the folder, one for the root"
    assert not io.damage(saved.folder)


def test_a_writer_that_writes_twice_or_fails_halfway_and_goes_on_leaves_whole_files(tmp_path):
    "Inside the hidden folder nothing is forced to the disk at once, but a file is still there as a whole or not at all."
    def twice(path):
        io.write_json(path, dict(x=1))
        with pytest.raises(RuntimeError), io.atomic_file(path) as f:
            f.write(b"half")
            raise RuntimeError
    saved = snap(tmp_path, 1, **{"x.json": twice})
    assert saved.json("x.json") == dict(x=1) and not io.damage(saved.folder) and litter(tmp_path) == [] and not io._unseen


def test_the_error_of_one_of_two_writers_is_the_error_of_the_snapshot(tmp_path):
    def wrong(path): raise KeyError("this one")
    for slow in (0.0, 0.05):
        with pytest.raises(KeyError, match="this one"):
            snap(tmp_path, 1, **{"a.bin": lambda p, s=slow: (time.sleep(s), p.write_bytes(b"a")), "b.bin": wrong})
        assert litter(tmp_path) == [] and io.list_snapshots(tmp_path) == []


def test_temporaries_of_a_living_writer_stay(tmp_path):
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        with io.atomic_file(tmp_path / "slow") as f:
            f.write(b"x")
            os.write(ready[1], b"1")
            os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    assert io.remove_stale_temps(tmp_path) == 0 and len(litter(tmp_path)) == 1
    os.write(go[1], b"1")
    os.waitpid(pid, 0)
    assert (tmp_path / "slow").read_bytes() == b"x" and not litter(tmp_path)


def test_temporaries_of_another_machine_go_after_a_day(tmp_path):
    other = tmp_path / ".tmp-ffffff-1-00000000"
    other.mkdir()
    assert io.remove_stale_temps(tmp_path) == 0
    os.utime(other, (0, 0))
    assert io.remove_stale_temps(tmp_path) == 1 and not other.exists()


def test_ctrl_c_inside_a_writer_leaves_nothing(tmp_path):
    snap(tmp_path, 1)

    def stop(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        snap(tmp_path, 2, **{"x.bin": stop})
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


# ---- F4: the disk is full ----------------------------------------------------------------------------------------------

def test_a_limit_on_file_size_is_a_DiskFull_and_the_old_snapshot_stays(tmp_path):
    snap(tmp_path, 1)
    big = dict(w=torch.zeros(100_000))

    def save():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            io.save_snapshot(tmp_path, "step-2", {"model.safetensors": lambda p: io.save_tensors(p, big)})
        except io.DiskFull as e:
            named = "model.safetensors" in e.filename and e.needed > 400_000 and e.free > 0 and f"{e.needed:,} bytes" in str(e)
            return 0 if named and isinstance(e, OSError) and e.errno == errno.ENOSPC else 2
        return 3
    assert in_child(save) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"] and quiet(tmp_path)[0].name == "step-1"


@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_at_any_call_is_a_DiskFull_and_the_old_snapshot_stays(tmp_path, monkeypatch, call, code):
    snap(tmp_path, 1)
    real, raised = getattr(os, call), 0
    for n in range(1, 60):
        count = [0]

        def full(*args, **kwargs):
            count[0] += 1  # noqa: B023  called in this round only
            if count[0] == n:  # noqa: B023
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)
        with monkeypatch.context() as m:
            m.setattr(os, call, full)
            try:
                snap(tmp_path, 2)
            except io.DiskFull as e:
                raised += 1
                assert str(tmp_path) in str(e) and e.free > 0 and "bytes are free" in str(e)
            else:
                if count[0] < n:
                    break
        assert litter(tmp_path) == []
        found, _ = quiet(tmp_path)
        assert found.name in ("step-1", "step-2") and not found.skipped
        io.remove_temp(tmp_path / "step-2")  # an error after the rename: whole all the same
    assert raised and quiet(tmp_path)[0].name == "step-2"


def test_a_writer_that_is_not_ours_gets_a_DiskFull_too(tmp_path):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(io.DiskFull, match="figure.png"):
        snap(tmp_path / "c", 1, **{"figure.png": full})
    assert list((tmp_path / "c").iterdir()) == []


def test_other_errors_keep_their_class(tmp_path):
    def broken(path):
        raise OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError) as e:
        snap(tmp_path / "c", 1, **{"x": broken})
    assert e.value.errno == errno.EIO and not isinstance(e.value, io.DiskFull)


def test_DiskFull_survives_the_way_out_of_a_worker(tmp_path):
    import pickle
    e = pickle.loads(pickle.dumps(io.disk_full(tmp_path / "x", 123)))
    assert (type(e), e.needed, e.filename) == (io.DiskFull, 123, str(tmp_path / "x")) and e.free > 0


# ---- F5: a folder that cannot be written -----------------------------------------------------------------------------------

def test_preflight_names_what_is_in_the_way(tmp_path):
    (tmp_path / "file").write_text("here first")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "none" / "run"):
        with pytest.raises(io.NotWritable, match="cannot write here"):
            io.preflight(folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_preflight_fails_on_a_folder_where_files_cannot_be_made(tmp_path, monkeypatch, code):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(io.NotWritable, match=str(tmp_path)) as e:
        io.preflight(tmp_path)
    assert e.value.errno == code and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_preflight_fails_on_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(io.NotWritable):
            io.preflight(tmp_path)
    finally:
        tmp_path.chmod(0o755)


def test_preflight_counts_bytes_and_leaves_nothing(tmp_path):
    with pytest.raises(io.DiskFull) as e:
        io.preflight(tmp_path, needed=10**18)
    assert e.value.needed == 10**18 and f"{e.value.free:,}" in str(e.value)
    assert io.preflight(tmp_path / "run", needed=10) == tmp_path / "run" and list((tmp_path / "run").iterdir()) == []


# ---- F6: damage -------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    "Two snapshots; tests damage the newer and must mend it."
    root = tmp_path_factory.mktemp("damage")
    snap(root, 1)
    snap(root, 2)
    return root


def refused_everywhere(root, path, whole):
    "The damaged snapshot is not chosen; opened by hand in spite of that, its tensors are refused as a whole."
    found, notices = quiet(root)
    assert found.name == "step-1" and len(found.skipped) == 1 and len(notices) == 1 and "step-2" in notices[0]
    if path.name == "model.safetensors":
        with pytest.raises(io.TensorFileError):
            whole.tensors("model.safetensors")


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
def test_truncation_at_every_sixteenth_falls_back(pair, file):
    path, whole = pair / "step-2" / file, io.newest_valid(pair)
    data = path.read_bytes()
    try:
        for sixteenth in range(16):
            path.write_bytes(data[:len(data) * sixteenth // 16])
            refused_everywhere(pair, path, whole)
    finally:
        path.write_bytes(data)
    assert quiet(pair)[0].name == "step-2"


def test_one_flipped_byte_anywhere_falls_back(pair):
    rng, whole = random.Random(0), io.newest_valid(pair)
    files = [pair / "step-2" / f for f in ("model.safetensors", "state.json", "manifest.json")]
    for i in range(200):
        path = files[i % 3]
        data = path.read_bytes()
        hurt = bytearray(data)
        hurt[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        path.write_bytes(hurt)
        try:
            refused_everywhere(pair, path, whole)
        finally:
            path.write_bytes(data)


def test_a_missing_file_falls_back_and_no_sound_snapshot_is_an_error(tmp_path):
    assert io.newest_valid(tmp_path) is None and io.newest_valid(tmp_path / "none") is None
    for step in (1, 2):
        snap(tmp_path, step)
    (tmp_path / "step-2" / "model.safetensors").unlink()
    assert quiet(tmp_path)[0].name == "step-1"
    (tmp_path / "step-1" / "manifest.json").unlink()
    with pytest.raises(io.SnapshotError, match="no sound snapshot.*step-1.*no manifest.*step-2.*missing"):
        io.newest_valid(tmp_path)


def test_order_does_not_depend_on_clocks_or_names(tmp_path):
    for i, step in enumerate((100, 20, 3)):
        snap(tmp_path, step)
        os.utime(tmp_path / f"step-{step}", (10**9 - i, 10**9 - i))  # the clock runs backwards
    assert [p.name for p in io.list_snapshots(tmp_path)] == ["step-3", "step-20", "step-100"]


def test_a_damaged_snapshot_is_replaced_and_a_sound_one_is_not(tmp_path):
    snap(tmp_path, 1)
    with pytest.raises(io.SnapshotError, match="sound"):
        snap(tmp_path, 1)
    (tmp_path / "step-1" / "state.json").write_text("")
    snap(tmp_path, 1)
    assert quiet(tmp_path)[0].name == "step-1" and litter(tmp_path) == []


def test_pruning_never_removes_the_only_sound_snapshot(tmp_path):
    for step in range(1, 6):
        snap(tmp_path, step)
    for step in (3, 4, 5):
        (tmp_path / f"step-{step}" / "model.safetensors").write_bytes(b"")
    assert io.prune_snapshots(tmp_path, keep=2) == ["step-1"]
    assert quiet(tmp_path)[0].name == "step-2"
    (tmp_path / "step-2" / "state.json").unlink()
    assert io.prune_snapshots(tmp_path, keep=1) == []  # nothing is sound: nothing goes
    with pytest.raises(io.SnapshotError, match="keep=0"):
        io.prune_snapshots(tmp_path, keep=0)


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "manifest.json", "x" * 101, "a\n", "/abs"])
def test_names_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(io.SnapshotError, match="cannot name"):
        io.save_snapshot(tmp_path, name, {})
    with pytest.raises(io.SnapshotError, match="cannot name"):
        io.save_snapshot(tmp_path, "ok", {name: lambda p: p.touch()})
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_points_outside_is_refused(tmp_path):
    (tmp_path / "secret").write_text("x")
    inside = tmp_path / "data"
    inside.mkdir()
    io.Manifest({"../secret": (1, io.file_sha256(tmp_path / "secret"))}).write(inside)
    with pytest.raises(io.JsonError, match="outside"):
        io.Manifest.read(inside)


# ---- F8: forged tensor files ---------------------------------------------------------------------------------------------------

def forge(path, header, numbers=bytes(8), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + numbers)
    return path


def entry(**changes):
    return dict(dtype="F32", shape=[2], data_offsets=[0, 8]) | changes


# The words are the library's where it is the library that refuses.
FORGED = dict(
    overlap=(dict(a=entry(), b=entry()), "invalid offset"),
    partial_overlap=(dict(a=entry(), b=entry(data_offsets=[4, 12])), "invalid offset"),
    gap=(dict(a=entry(data_offsets=[4, 8], shape=[1])), "invalid offset"),
    too_long=(dict(a=entry(data_offsets=[0, 16], shape=[4])), "not fully covered"),
    too_short=(dict(a=entry(data_offsets=[0, 4], shape=[1])), "not fully covered"),
    shape=(dict(a=entry(shape=[3])), "invalid shape"),
    negative=(dict(a=entry(shape=[-2])), "-2"),
    bool_shape=(dict(a=entry(shape=[True, 2])), "boolean"),
    overflow=(dict(a=entry(shape=[2**62, 4])), "overflow"),
    empty_overflow=(dict(a=entry(shape=[2**47, 2**47, 0], data_offsets=[0, 0]), b=entry()), "overflow"),
    empty_first=(dict(a=entry(shape=[0, 2**47, 2**47], data_offsets=[0, 0]), b=entry()), "shape"),
    empty_middle=(dict(a=entry(shape=[2**47, 0, 2**47], data_offsets=[0, 0]), b=entry()), "shape"),
    empty_negative=(dict(a=entry(shape=[0, 2**63], data_offsets=[0, 0]), b=entry()), "shape"),
    rank=(dict(a=entry(shape=[1] * 1000 + [2])), "shape"),
    dtype=(dict(a=entry(dtype="F33")), "F32"),
    dtype_list=(dict(a=entry(dtype=[])), "type"),
    dtype_packed=(dict(a=entry(dtype="F4", shape=[16])), "type"),
    dtype_complex=(dict(a=entry(dtype="C64", shape=[1])), "type"),
    offsets=(dict(a=entry(data_offsets=[8, 0])), "invalid offset"),
    offsets_text=(dict(a=entry(data_offsets="08")), "08"),
    no_dict=([1], "sequence"),
    text=(b"hello", "JSON"),
    empty=(b"", "JSON"),
    deep=(b'{"a":' * 100_000, "recursion limit"),
    brackets=(b"[" * 100_000, "sequence"),
    fields=(b'{"a": {}, "a": {}}', "missing field"),
    nan=(b'{"a": NaN}', "JSON"),
    metadata=({"__metadata__": {"a": 1}, "a": entry()}, "expected a string"),
)


@pytest.mark.parametrize("case", FORGED)
def test_forged_headers_get_a_typed_error(tmp_path, case):
    header, expected = FORGED[case]
    with pytest.raises(io.TensorFileError) as e:
        io.load_tensors(forge(tmp_path / "forged.safetensors", header))
    assert expected in str(e.value) and "forged.safetensors" in str(e.value) and len(str(e.value)) < 1000


@pytest.mark.parametrize("metadata", [b"not JSON", "[1]", '{"a": 1}', '{"a": "1", "a": "2"}', "[" * 1000, '"text"'])
def test_forged_metadata_of_ours_gets_a_typed_error(tmp_path, metadata):
    text = metadata.decode() if isinstance(metadata, bytes) else metadata
    with pytest.raises(io.TensorFileError, match="forged"):
        io.tensor_metadata(forge(tmp_path / "forged", {"__metadata__": {"hclab": text}, "a": entry()}))


def test_a_field_that_the_format_does_not_know_changes_nothing(tmp_path):
    "The library passes over it, as later versions of the format may need."
    got = io.load_tensors(forge(tmp_path / "later", dict(a=entry(x=1))))
    assert list(got) == ["a"] and torch.equal(got["a"], torch.zeros(2))


def test_a_file_that_is_cut_short_while_it_is_open_is_an_error_and_loaded_tensors_stay(tmp_path):
    path = tmp_path / "m"
    io.save_tensors(path, dict(w=torch.ones(2**20), v=torch.ones(2**20)))
    got = io.load_tensors(path)

    def cut():  # in a child: a mapped file would end the process with SIGBUS
        with pytest.raises(io.TensorFileError, match="m is damaged"), io._tensor_file(path) as f:
            os.truncate(path, 1000)
            f.get_tensor("w")
        return 0 if all(int(t.sum()) == 2**20 for t in got.values()) else 2
    assert in_child(cut) == 0


def test_tensors_that_share_memory_and_views_are_written_each_with_its_own_numbers(tmp_path):
    base = torch.arange(12.0)
    tensors = dict(whole=base, again=base, head=base[:4], tail=base[4:], table=base.reshape(3, 4), turned=base.reshape(3, 4).T, every=base[::2], same=base[3].expand(5),
                   leaf=torch.nn.Parameter(base), negative=torch._neg_view(base))
    before = {name: t.detach().clone() for name, t in tensors.items()}
    io.save_tensors(tmp_path / "m", tensors)
    got = io.load_tensors(tmp_path / "m", expected=tensors)
    assert got.keys() == tensors.keys() and all(torch.equal(got[name], t) and torch.equal(tensors[name], t) for name, t in before.items())
    got["whole"][0] = 99
    assert got["again"][0] == got["head"][0] == 0  # and none of them writes into the other or into the file
    assert io.load_tensors(tmp_path / "m")["whole"][0] == 0


def peak_growth(work, warm_up=lambda: None) -> int:
    "Bytes by which the peak of resident memory grows while a forked child does `work`. `warm_up` lets it page in the code first."
    read_end, write_end = os.pipe()

    def child():
        def status(key):
            return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
        warm_up()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the past
        before = status("VmRSS")
        work()
        os.write(write_end, str(status("VmHWM") - before).encode())
    assert in_child(child) == 0
    os.close(write_end)
    return int(os.read(read_end, 64))


on_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")


@on_linux
def test_a_header_that_claims_200_MB_is_refused_unread(tmp_path):
    path = tmp_path / "huge.safetensors"
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", 200 * 2**20))
        f.truncate(8 + 201 * 2**20)  # the claim is true: only the limit can refuse it

    def work():
        with pytest.raises(io.TensorFileError, match="209,715,200"):
            io.load_tensors(path)
    assert peak_growth(work) < 2**20
    with pytest.raises(io.TensorFileError, match="claims a header"):
        io.load_tensors(forge(tmp_path / "small", {}, length=200 * 2**20))


@on_linux
def test_loading_takes_little_more_memory_than_the_file(tmp_path):
    path, kept = tmp_path / "big.safetensors", []
    tensors = {f"layer{i}": torch.full((2**22,), 0.5) for i in range(4)} | dict(one=torch.full((2**24,), 0.25))  # pages are counted 2 MB at a time, hence large
    io.save_tensors(path, tensors)
    size = path.stat().st_size
    digest = io.file_sha256(path)
    assert size > 120 * 2**20
    small = tmp_path / "small"

    def warm_up():
        io.save_tensors(small, dict(w=torch.ones(2**20)))
        io.load_tensors(small, finite=True)
    assert 0.9 * size < peak_growth(lambda: kept.append(io.load_tensors(path, expected=tensors, finite=True, sha256=digest)), warm_up) < 1.2 * size
    assert peak_growth(lambda: io.save_tensors(tmp_path / "again", tensors), warm_up) < 0.5 * size  # written from the tensors themselves, piece by piece
    assert io.file_sha256(tmp_path / "again") == digest


def test_expected_names_shapes_types_and_finite_values(tmp_path):
    path = tmp_path / "m.safetensors"
    io.save_tensors(path, STATE)
    assert io.load_tensors(path, expected=STATE).keys() == STATE.keys()
    for change, words in ((dict(weight=torch.zeros(4, 3)), r"weight.*\[3, 4\].*\[4, 3\]"), (dict(weight=torch.zeros(3, 4).half()), "float32.*float16"),
                          (dict(wieght=torch.zeros(1)), "'wieght' is missing; did you mean 'weight'")):
        with pytest.raises(io.TensorFileError, match=words):
            io.load_tensors(path, expected=STATE | change)
    with pytest.raises(io.TensorFileError, match="'half' is not expected"):
        io.load_tensors(path, expected={k: v for k, v in STATE.items() if k != "half"})
    for bad in (float("nan"), float("inf")):
        io.save_tensors(path, dict(w=torch.tensor([1.0, bad, bad])))
        assert "w" in io.load_tensors(path)
        with pytest.raises(io.TensorFileError, match="2 of 3 values of 'w'"):
            io.load_tensors(path, finite=True)


def test_meta_tensors_are_enough_to_say_what_is_expected(tmp_path):
    io.save_tensors(tmp_path / "m", dict(w=torch.zeros(2)))
    io.load_tensors(tmp_path / "m", expected=dict(w=torch.empty(2, device="meta")))


@pytest.mark.parametrize("bad", [dict(a=3), dict(a=torch.zeros(2).to_sparse()), dict(a=torch.zeros(2, device="meta")), dict(a=torch.zeros(2, dtype=torch.complex64)),
                                 dict(a=torch.zeros([1] * 65)), {"a\ud800": torch.zeros(1)}, {"__metadata__": torch.zeros(1)}, {3: torch.zeros(1)}])
def test_what_the_format_cannot_hold_is_refused_before_a_file_is_made(tmp_path, bad):
    with pytest.raises(io.TensorFileError):
        io.save_tensors(tmp_path / "m", bad)
    with pytest.raises(io.TensorFileError):
        io.save_tensors(tmp_path / "m", STATE, metadata=dict(epoch=3))
    assert list(tmp_path.iterdir()) == []


def test_the_library_reads_ours_and_we_read_the_librarys(tmp_path):
    import safetensors.torch as library
    generator = torch.Generator().manual_seed(0)
    tensors = {t: torch.rand(3, 5, generator=generator).mul(9).to(dtype).T for t, dtype in ((t, getattr(torch, t)) for t in io._TYPES.values())} | dict(empty=torch.empty(0, 2), scalar=torch.tensor(2.5))
    io.save_tensors(tmp_path / "ours", tensors, dict(b="2", a="1"))
    theirs = library.load_file(tmp_path / "ours")
    library.save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "theirs", dict(a="1"))
    ours = io.load_tensors(tmp_path / "theirs")
    for name, t in tensors.items():
        assert torch.equal(theirs[name], t) and torch.equal(ours[name], t) and theirs[name].dtype == ours[name].dtype == t.dtype
    library.save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "bare")
    io.save_tensors(tmp_path / "ours_bare", tensors)
    assert (tmp_path / "bare").read_bytes() == (tmp_path / "ours_bare").read_bytes()  # ours is written by us, for the sake of its digest
    assert io.tensor_metadata(tmp_path / "theirs") == dict(a="1") and io.tensor_metadata(tmp_path / "ours") == dict(a="1", b="2")
    io.save_tensors(tmp_path / "reordered", dict(reversed(tensors.items())), dict(a="1", b="2"))
    assert (tmp_path / "reordered").read_bytes() == (tmp_path / "ours").read_bytes()
    many = {str(i): str(i) for i in range(20)}
    for i in range(20):  # the library's own order of so many keys varies from call to call
        io.save_tensors(tmp_path / f"many{i}", tensors, many if i % 2 else dict(reversed(many.items())))
    assert len({io.file_sha256(tmp_path / f"many{i}") for i in range(20)}) == 1 and io.tensor_metadata(tmp_path / "many0") == many


def test_files_of_the_time_before_the_library_are_read(tmp_path):
    "They have their metadata key by key."
    path = forge(tmp_path / "old", {"__metadata__": {"config": "{}", "provenance": "{}"}, "a": entry()})
    assert io.tensor_metadata(path) == dict(config="{}", provenance="{}") and io.load_tensors(path)["a"].shape == (2,)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_tensors_or_a_typed_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(data)
    with pytest.raises(io.TensorFileError):
        io.load_tensors(path)


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=20))
def test_json_comes_back_as_it_went(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    text = json.dumps(value)
    assert io.parse_json(text) == value
    path.write_text(text)
    assert io.read_json(path) == value


def test_a_large_or_deep_json_file_is_an_error_with_its_name(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text("[" * 10**6 + "]" * 10**6)
    with pytest.raises(io.JsonError, match="deep.json.*1,000,000 levels"):
        io.read_json(path)
    with pytest.raises(io.JsonError, match="larger than"):
        io.read_json(path, max_bytes=100)
    path.write_text('"' + "\\\"" * 10**6)  # an unclosed string must not take quadratic time
    with pytest.raises(io.JsonError):
        io.read_json(path)


def test_files_get_the_permissions_of_ordinary_new_files(tmp_path):
    before = os.umask(0o027)
    try:
        io.atomic_write(tmp_path / "a", b"")
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_importing_io_does_not_load_torch():
    import subprocess
    import sys
    code = "import sys, hclab.core.io, hclab.core.archive; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
