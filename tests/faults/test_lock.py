"F20: two runs in one folder. The second is refused and told by whom; a dead run's lock is taken over."
import json
import os
import signal
import socket
import warnings

import pytest

from hclab.core import io


def hold(path, how="wait"):
    "A forked process that holds the lock; returns (its pid, a function that lets it go on)."
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with io.file_lock(path):
                if how == "with a child" and os.fork() == 0:  # a worker that outlives its parent
                    signal.alarm(60)
                    os.close(go[1])
                    os.read(go[0], 1)
                    os._exit(0)
                os.write(ready[1], b"1")
                os.read(go[0], 1)
        os._exit(0)
    assert os.read(ready[0], 1) == b"1"
    return pid, lambda: os.write(go[1], b"11")


def notices(path) -> list[str]:
    "Take and release the lock; what was said on the way."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with io.file_lock(path):
            assert json.loads(path.read_text()) == dict(pid=os.getpid(), host=socket.gethostname())
    assert path.read_text() == ""
    return [str(w.message) for w in said]


def test_the_second_run_is_refused_by_name_until_the_first_ends(tmp_path):
    path = tmp_path / ".lock"
    pid, let_go = hold(path)
    with pytest.raises(io.FolderLocked, match=f"process {pid} on {socket.gethostname()}") as e:
        with io.file_lock(path):
            pytest.fail("both hold the lock")
    assert (e.value.pid, e.value.host) == (pid, socket.gethostname()) and str(path) in str(e.value)
    let_go()
    assert os.waitpid(pid, 0)[1] == 0
    assert notices(path) == []


@pytest.mark.parametrize("how", ["alone", "with a child"])
def test_the_lock_of_a_killed_run_is_taken_over_and_said(tmp_path, how):
    path = tmp_path / ".lock"
    pid, let_go = hold(path, how)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    said = notices(path)
    let_go()
    assert len(said) == 1 and str(pid) in said[0] and "\n" not in said[0]
    assert notices(path) == []


def test_a_lock_of_another_machine_is_not_taken_over(tmp_path):
    path = tmp_path / ".lock"
    path.write_text(json.dumps(dict(pid=1, host="another-machine")))
    with pytest.raises(io.FolderLocked, match="process 1 on another-machine.*delete the file"):
        with io.file_lock(path):
            pass
    assert "another-machine" in path.read_text()
    path.unlink()
    assert notices(path) == []


@pytest.mark.parametrize("text", ["", "{", "[1]", "\0\0", '"x"'])
def test_a_damaged_lock_file_is_no_holder(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    notices(tmp_path / ".lock")


def test_an_error_inside_releases_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with io.file_lock(tmp_path / ".lock"):
            1 / 0  # noqa: B018
    assert notices(tmp_path / ".lock") == [] and not io._held


def test_the_same_process_is_refused_as_well(tmp_path):
    with io.file_lock(tmp_path / ".lock"):
        with pytest.raises(io.FolderLocked):
            with io.file_lock(tmp_path / ".lock"):
                pass
        with io.file_lock(tmp_path / "other"):
            pass


def test_a_deleted_lock_file_does_not_let_two_in_by_a_race(tmp_path, monkeypatch):
    "The file is deleted between opening and locking: the lock on the ghost does not count."
    path, real, ghosts = tmp_path / ".lock", os.open, []

    def opens(*args, **kwargs):
        fd = real(*args, **kwargs)
        if not ghosts and str(args[0]) == str(path):
            ghosts.append(fd)
            path.unlink()
        return fd
    monkeypatch.setattr(os, "open", opens)
    with io.file_lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert ghosts


def test_of_many_at_once_exactly_one_gets_in(tmp_path):
    path, (out, inp), (gate_out, gate_in), (end_out, end_in) = tmp_path / ".lock", os.pipe(), os.pipe(), os.pipe()
    pids = []
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            os.read(gate_out, 1)
            try:
                with io.file_lock(path):
                    os.write(inp, b"y")
                    os.read(end_out, 1)  # hold it until all have tried
            except io.FolderLocked:
                os.write(inp, b"n")
            os._exit(0)
        pids.append(pid)
    os.write(gate_in, b"1" * 20)
    answers = b""
    while len(answers) < 20:
        answers += os.read(out, 20)
    os.write(end_in, b"1")
    for pid in pids:
        os.waitpid(pid, 0)
    assert sorted(answers) == sorted(b"n" * 19 + b"y")
