"MATLAB files: SciPy as the oracle, files built by hand as MATLAB writes them, and what a damaged or hostile file may do: nothing."
import struct, tracemalloc, zlib

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings, strategies as st

from hclab.data.readers.matlab import MAX_NESTING, MatError, read_mat


def element(kind, data): return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def small(kind, data): return struct.pack("<HH", kind, len(data)) + data.ljust(4, b"\0")


def matrix(cls, dims, payload, name=b"", flags=0):
    return element(14, element(6, struct.pack("<II", cls | flags << 8, 0)) + element(5, struct.pack(f"<{len(dims)}i", *dims)) + (small(1, name) if 0 < len(name) < 5 else element(1, name)) + payload)


def write(folder, *elements, head=b"MATLAB 5.0 MAT-file"):
    (folder / "x.mat").write_bytes(head.ljust(124) + b"\x00\x01IM" + b"".join(elements))
    return folder / "x.mat"


def cell(*items):
    out = np.empty((1, len(items)), object)
    for i, item in enumerate(items): out[0, i] = item
    return out


def plain(value):
    "What SciPy's loadmat gives, in the form of `read_mat`."
    if value.dtype.names: return [{n: plain(row[n]) for n in value.dtype.names} for row in value.ravel(order="F")]
    if value.dtype == object: return [plain(v) for v in value.ravel(order="F")]
    if value.dtype.kind == "U": return str(value[0]) if value.size else ""
    return value.item() if value.size == 1 else value


def same(a, b):
    if isinstance(a, np.ndarray): return isinstance(b, np.ndarray) and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, list): return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict): return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


numbers = st.one_of(*[st.lists(st.integers(0, 100), min_size=n, max_size=n).map(lambda v, d=d: np.array(v, d).reshape(2, -1)) for n in (2, 6) for d in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")],
                    st.floats(-1e9, 1e9).map(lambda v: np.array([[v]])), st.just(np.zeros((0, 0))), st.just(np.arange(24.).reshape(2, 3, 4)))
texts = st.text("abcäé漢", min_size=1, max_size=9)
values = st.recursive(st.one_of(numbers, texts), lambda v: st.one_of(st.lists(v, min_size=1, max_size=3).map(lambda x: cell(*x)), st.dictionaries(st.sampled_from(["x", "name", "a_longer_name"]), v, min_size=1, max_size=3)), max_leaves=12)


@settings(max_examples=150, deadline=None)
@given(content=st.dictionaries(st.sampled_from(["joints", "RELEASE", "v"]), values, min_size=1), packed=st.booleans())
def test_agrees_with_scipy(tmp_path_factory, content, packed):
    path = tmp_path_factory.getbasetemp() / "oracle.mat"
    scipy.io.savemat(path, content, do_compression=packed)
    want = {k: plain(v) for k, v in scipy.io.loadmat(path).items() if not k.startswith("__")}
    found = read_mat(path)
    assert found.keys() == want.keys() and all(same(want[k], found[k]) for k in want), (want, found)


def test_a_file_as_matlab_writes_it(tmp_path):
    "Whole doubles in bytes, text in 16-bit characters, short values in the tag, names of 32 characters, an empty place of no bytes."
    point = (matrix(6, (1, 1), small(2, bytes([7]))), matrix(4, (1, 1), small(4, "1".encode("utf-16-le"))), struct.pack("<II", 14, 0))
    names = b"".join(n.ljust(32, b"\0") for n in (b"x", b"is_visible", b"id"))
    path = write(tmp_path, matrix(2, (1, 1), small(5, struct.pack("<I", 32)) + element(1, names) + b"".join(point), b"p"),
                 matrix(6, (2, 2), small(2, bytes([1, 2, 3, 4])), b"m"), matrix(9, (1, 3), element(2, b"\1\0\1"), b"flag", flags=2), matrix(4, (1, 4), element(4, "zwölf"[:4].encode("utf-16-le")), b"text"))
    found = read_mat(path)
    assert found["p"][0]["x"] == 7.0 and isinstance(found["p"][0]["x"], float) and found["p"][0]["is_visible"] == "1" and found["p"][0]["id"].size == 0
    assert found["m"].tolist() == [[1, 3], [2, 4]] and found["m"].dtype == float and found["flag"].tolist() == [[1, 0, 1]] and found["text"] == "zwöl"


def test_only_what_is_asked_for(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", dict(a=1, b=2))
    assert read_mat(tmp_path / "a.mat", "b") == dict(b=2)
    with pytest.raises(MatError, match="no variable 'c'; is this the right file"): read_mat(tmp_path / "a.mat", "c")
    with pytest.raises(FileNotFoundError): read_mat(tmp_path / "none.mat")

    class Own(ValueError): pass
    with pytest.raises(Own): read_mat(tmp_path / "a.mat", "c", error=Own)


def nested(levels):
    inner = matrix(6, (1, 1), element(9, bytes(8)))
    for _ in range(levels): inner = matrix(1, (1, 1), inner)
    return inner


ODD = {
    "8000 levels": (lambda: [nested(8000)], f"{MAX_NESTING + 1} deep"), "a cell of two billion": (lambda: [matrix(1, (2**31 - 1, 1), b"")], "2,147,483,647 values"), "a product that overflows": (lambda: [matrix(1, (2**31 - 1,) * 4, b"")], "values are announced"),
    "structs without fields": (lambda: [matrix(2, (2**31 - 1, 1), small(5, struct.pack("<I", 32)) + element(1, b""))], None), "negative": (lambda: [matrix(6, (-1, 1), b"")], "sizes"), "one size": (lambda: [matrix(6, (1,), b"")], "sizes"),
    "inner sizes that lie": (lambda: [matrix(6, (2, 2), struct.pack("<II", 9, 4096))], "4,096 bytes are announced"), "too few": (lambda: [matrix(6, (2, 2), element(9, bytes(24)))], "24 bytes for 2 x 2"), "complex": (lambda: [matrix(6, (1, 1), element(9, bytes(8)) * 2, flags=8)], "complex"),
    "a function": (lambda: [matrix(16, (1, 1), b"")], "a function"), "an object": (lambda: [matrix(3, (1, 1), b"")], "an object"), "newer": (lambda: [matrix(17, (1, 1), b"")], "newer class"), "sparse": (lambda: [matrix(5, (1, 1), b"")], "sparse"),
    "a table of text": (lambda: [matrix(4, (2, 2), small(2, b"abcd"))], "one line"), "bad text": (lambda: [matrix(4, (1, 1), small(16, b"\xff"))], "utf-8"), "class 200": (lambda: [matrix(200, (1, 1), b"")], "class 200"), "garbage": (lambda: [b"\x01" * 64], "type 16843009"),
    "names cut off": (lambda: [matrix(2, (1, 1), small(5, struct.pack("<I", 32)) + element(1, b"abc"))], "cut off"), "a name of 0": (lambda: [matrix(2, (1, 1), small(5, bytes(4)) + element(1, b"abc"))], "length"),
    "packed garbage": (lambda: [element(15, b"garbage!")], "packed variable is damaged"), "packed and cut": (lambda: [element(15, zlib.compress(nested(1))[:-8])], "ends early"), "a bomb": (lambda: [element(15, zlib.compress(bytes(10**7)))], "more than 1,000,000 bytes"),
}


@pytest.mark.parametrize("name", ODD)
def test_hostile_files(tmp_path, name):
    make, says = ODD[name]
    path = write(tmp_path, *make())
    tracemalloc.start()
    try: 
        if says is None: read_mat(path, max_bytes=10**6)
        else:
            with pytest.raises(MatError, match=says) as e: read_mat(path, max_bytes=10**6)
            assert str(e.value).startswith(f"{path}:128")
        assert tracemalloc.get_traced_memory()[1] < 2e7
    finally: tracemalloc.stop()


@pytest.mark.parametrize("data, says", [(b"", "MATLAB 5"), (b"x" * 300, "MATLAB 5"), (b"MATLAB 7.3 MAT-file".ljust(128), "HDF5"), (b"\x89HDF\r\n\x1a\n" + bytes(200), "HDF5"), (b"MATLAB 5.0".ljust(124) + b"\x01\x00MI", "little-endian"), (b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + b"abc", "truncated")])
def test_files_of_another_kind(tmp_path, data, says):
    (tmp_path / "x.mat").write_bytes(data)
    with pytest.raises(MatError, match=says): read_mat(tmp_path / "x.mat")


def content(): return dict(p=np.array([(1.5, "ann", cell(1.0, "b"))], dtype=[("x", object), ("name", object), ("c", object)]).reshape(1, 1), joints=np.arange(42.).reshape(3, 14))


@pytest.mark.parametrize("packed", [False, True])
def test_every_truncation_is_refused(tmp_path, packed):
    scipy.io.savemat(tmp_path / "x.mat", content(), do_compression=packed)
    data = (tmp_path / "x.mat").read_bytes()
    ends = []
    for n in range(len(data)):
        (tmp_path / "x.mat").write_bytes(data[:n])
        try: ends.append((n, list(read_mat(tmp_path / "x.mat"))))
        except MatError: pass
    assert [names for _, names in ends] == [[], ["p"]], "only cuts between two variables leave a file"
    for n, _ in ends:
        (tmp_path / "x.mat").write_bytes(data[:n])
        with pytest.raises(MatError): read_mat(tmp_path / "x.mat", "joints")


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_nothing_but_its_own_error_escapes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.mat"
    scipy.io.savemat(path, content(), do_compression=data.draw(st.booleans()))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))): raw[data.draw(st.integers(100, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try: read_mat(path)
    except MatError as e: assert str(e).startswith(f"{path}:")
