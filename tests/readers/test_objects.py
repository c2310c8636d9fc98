"""The reader of pickles and object arrays: what comes back, what is refused, and that nothing hostile leaves a trace."""
import io, os, pickle, subprocess, sys, tracemalloc, zipfile

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hclab.data.readers.objects import ObjectError, read_npz, read_pickle

TREE = {"S1": {"Walking 1": np.arange(12, dtype=np.float32).reshape(2, 2, 3), "Eating": [np.asfortranarray(np.arange(6).reshape(2, 3)), np.zeros((0, 3))]}, "label": np.int64(7), "size": (1080, 1920),
        "none": None, "score": .5, "big": np.array([1, 2], ">i4"), "raw": b"\x00\xff", "flag": True, "text": np.array(["a", "bc"]), "half": np.ones((2, 3), np.float16), "minus": -2**62, "empty": b""}


def same(a, b):
    if isinstance(a, dict): return set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return np.array_equal(a, b) and np.asarray(a).dtype == np.asarray(b).dtype


def put(folder, data, name="x.pkl"):
    (folder / name).write_bytes(data)
    return folder / name


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_back(tmp_path, protocol):
    assert same(read_pickle(put(tmp_path, pickle.dumps(TREE, protocol=protocol))), TREE)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_objects_and_of_plain_arrays(tmp_path, save):
    save(tmp_path / "x.npz", tree=np.array(TREE, dtype=object), many=np.array([{"a": 1}, None], dtype=object), plain=np.arange(6.).reshape(2, 3), fortran=np.asfortranarray(np.arange(6).reshape(2, 3)), zero=np.array(3))
    found = read_npz(tmp_path / "x.npz")
    assert same(found["tree"], TREE) and same(found["many"], [{"a": 1}, None]) and same(found["plain"], np.arange(6.).reshape(2, 3)) and same(found["fortran"], np.arange(6).reshape(2, 3)) and found["zero"][()] == 3
    assert list(read_npz(tmp_path / "x.npz", ("plain",))) == ["plain"]
    with pytest.raises(ObjectError, match="no array called 'x'; it holds fortran, many"): read_npz(tmp_path / "x.npz", ("x",))


def test_names_of_numpy_before_2(tmp_path):
    data = pickle.dumps(TREE, protocol=2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core.multiarray" in data and same(read_pickle(put(tmp_path, data)), TREE)


class Call:
    def __init__(self, *call): self.call = call
    def __reduce__(self): return self.call[0], tuple(self.call[1:])


def hostile(trace):
    "name -> pickle that would make the folder `trace`, or harm in another way."
    at, command = str(trace), f"__import__('os').mkdir({str(trace)!r})"
    calls = dict(mkdir=Call(os.mkdir, at), eval=Call(eval, command), exec=Call(exec, command), system=Call(os.system, f"mkdir {at}"), popen=Call(subprocess.Popen, ["mkdir", at]), getattr=Call(getattr, np.ndarray, "dump"),
                 numpy=Call(np.fromfile, at), save=Call(np.save, at, 1), load=Call(np.load, at, None, True), imported=Call(__import__, "antigravity"))
    out = {f"{k}{p}": pickle.dumps({"S1": [v]}, protocol=p) for k, v in calls.items() for p in (0, 2, 4)}
    raw = at.encode()
    return out | dict(inst=b"(S'" + raw + b"'\nios\nmkdir\n.", obj=b"(cos\nmkdir\nS'" + raw + b"'\no.", newobj=b"\x80\x02cos\nmkdir\nU\x01a\x85\x81.", ext=b"\x80\x02\x82\x01.", persid=b"Pid\n.", binpersid=b"\x80\x02K\x01Q.",
                      stack_global=b"\x80\x04\x8c\x05numpy\x8c\x08fromfile\x93.", dotted=b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.dump\x93.", bare=b"\x80\x02cnumpy\nndarray\n.", joined=b"cnumpy\nndarray.__init__\n.",
                      build=b"\x80\x02}}U\x01aK\x01sb.", setattr=b"\x80\x02cnumpy\nndarray\n}U\x01aK\x01sb.", reduce_text=b"\x80\x02U\x02os)R.", key_list=b"\x80\x02}]K\x01s.", key_array=pickle.dumps({(1,): 2}, protocol=2),
                      sets=pickle.dumps({1}), itself=b"\x80\x02]q\x00h\x00a.", itself_dict=b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", pending=b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R.",
                      terabyte=b"\x80\x04\x8e" + (10**12).to_bytes(8, "little"), memo=b"\x80\x02Nr\xff\xff\xff\xff0jaaaa.", empty=b"", stop=b".", two=b"NN.", mark=b"(.", popped=b"0.", unknown=b"\x80\x04\xff.", future=b"\x80\xff}.",
                      deep=b"\x80\x04]\x94" + b"]h\x00aq\x000" * 10**6 + b"h\x00.", wide=b"]" * 10**6, tuples=b"\x80\x02N" + b"\x85" * 10**6 + b".", tuple_key=b"\x80\x02}N" + b"\x85" * 10**5 + b"Ns.", long=b"\x80\x02\x8b\xff\xff\xff\x7f1")


NAMES = list(hostile("/x"))


@pytest.mark.parametrize("name", NAMES)
def test_hostile_pickles_are_refused_and_leave_no_trace(tmp_path, name):
    trace = tmp_path / "trace"
    path = put(tmp_path, hostile(trace)[name], "bad file.pkl")
    with pytest.raises(ObjectError) as e: read_pickle(path)
    assert str(e.value).startswith(f"{path}:") and len(str(e.value)) < 500, str(e.value)
    assert not trace.exists() and "antigravity" not in sys.modules


def test_the_traps_do_work(tmp_path):
    "Where the traps of this file do nothing even when run, the tests above show nothing."
    for name in ("mkdir0", "eval2", "exec4", "system4"):
        pickle.loads(hostile(tmp_path / name)[name])
        assert (tmp_path / name).exists(), name


def test_hostile_object_arrays(tmp_path):
    np.savez(tmp_path / "x.npz", positions_3d=np.array({"S1": Call(os.mkdir, str(tmp_path / "trace"))}, dtype=object))
    with pytest.raises(ObjectError, match=r"x.npz\[positions_3d\]:\d+: .*mkdir"): read_npz(tmp_path / "x.npz")
    assert not (tmp_path / "trace").exists()


def npy(header, data=b""): return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize("data, says", [
    (npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"), "needs 8,000,000,000,000"), (npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (0, 99999999999999999999), }"), "array|dimension|large|int"),
    (npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }"), "header"), (npy(b"{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (), }"), "header"), (npy(b"__import__('os').mkdir('trace')"), "header"),
    (npy(b"(" * 9000), "header"), (npy(b"{'descr': '|V8', 'fortran_order': False, 'shape': (1,), }", b"12345678"), "array type"),
    (b"\x93NUMPY\x09\x00\x00\x00", "version 9"), (b"PK", "announced"), (b"", "announced"), (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "header of")])
def test_npy_headers_are_checked_before_memory_is_asked_for(tmp_path, data, says):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as z: z.writestr("a.npy", data)
    tracemalloc.start()
    with pytest.raises(ObjectError, match=says): read_npz(tmp_path / "x.npz")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_zip_bombs_and_broken_zips(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(2**23, np.float32))
    with pytest.raises(ObjectError, match="zip bomb"): read_npz(tmp_path / "bomb.npz")
    with pytest.raises(ObjectError, match="are allowed"): read_npz(tmp_path / "bomb.npz", max_bytes=1000)
    with pytest.raises(ObjectError, match="are allowed"): read_pickle(put(tmp_path, b"N."), max_bytes=1)
    with zipfile.ZipFile(tmp_path / "many.npz", "w") as z:
        for i in range(1001): z.writestr(f"{i}.npy", b"")
    with pytest.raises(ObjectError, match="members"): read_npz(tmp_path / "many.npz")
    good = io.BytesIO(); np.savez_compressed(good, a=np.random.default_rng(0).random(1000))
    for cut in (10, 100, 4000, len(good.getvalue()) - 5):
        with pytest.raises(ObjectError, match="not a whole|truncated"): read_npz(put(tmp_path, good.getvalue()[:cut], "cut.npz"))
    with pytest.raises(FileNotFoundError): read_npz(tmp_path / "nothing.npz")


def test_every_truncation_of_a_pickle_is_refused(tmp_path):
    data = pickle.dumps(TREE, protocol=4)
    for n in range(0, len(data) - 1, 7):
        with pytest.raises(ObjectError): read_pickle(put(tmp_path, data[:n]))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_nothing_but_its_own_error_escapes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.pkl"
    base = bytearray(pickle.dumps(TREE, protocol=data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 6))): base[data.draw(st.integers(0, len(base) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(base) if data.draw(st.booleans()) else data.draw(st.binary(max_size=60)))
    try: read_pickle(path)
    except ObjectError: pass


def test_arrays_are_held_once(tmp_path):
    tree = {f"a{i}": np.random.default_rng(i).random((1000, 500)) for i in range(4)}
    path = put(tmp_path, pickle.dumps(tree, protocol=4))
    del tree
    tracemalloc.start()
    kept = read_pickle(path)
    now, peak = tracemalloc.get_traced_memory(); tracemalloc.stop()
    assert len(kept) == 4 and peak < 1.5 * 16e6, f"{peak / 16e6:.2f} times the data"
