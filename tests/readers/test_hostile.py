"""What a hostile or unlucky file may do to a reader: nothing. Each gives a whole clip or the reader's own error with the file's name and the place in it."""
import pickle, random, re, resource, subprocess, sys, time, tracemalloc, warnings, zipfile

import numpy as np
import pytest
import scipy.io
from formats import FORMATS, OWN

from hclab.data.motion import ClipError
from hclab.data.readers.bvh import BVHError

TEXT = ("bvh", "amc", "deepmimic", "uiprmd", "ntu", "pkummd")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "format -> (path, its bytes); each test puts back what it changed."
    made = {}
    for name, f in FORMATS.items():
        folder = tmp_path_factory.mktemp(name)
        path = f.write(folder, 3)
        made[name] = path, path.read_bytes()
    return made


def outcome(name, path, where=None):
    "The clip, or the message of an error that a reader may raise; anything else fails the test."
    f, began = FORMATS[name], time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)     # an overflow that nobody looked at
        try: found = f.read(path)
        except OWN as e:
            found = str(e)
            if isinstance(e, f.error): assert re.search(re.escape((where or path).name) + r"(:\d+: |\[|: )", found), f"no place in the file: {found}"
    assert time.monotonic() - began < 5, "a reader that hangs"
    if not isinstance(found, str):
        assert np.isfinite(found.joints.numpy()).all() and len(found) >= 1 and np.abs(found.joints.numpy()).max() < 1e6
    return found


def put(files, name, data):
    path = files[name][0]
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_cuts_and_flips_anywhere(files, name):
    path, good = files[name]
    rng = random.Random(name)
    whole = FORMATS[name].read(put(files, name, good))
    for _ in range(50):
        found = outcome(name, put(files, name, good[:rng.randrange(len(good))]))
        assert isinstance(found, str) or (found.skeleton == whole.skeleton and len(found) <= len(whole)), "a part that pretends to be another recording"
    for _ in range(50):
        data = bytearray(good)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        outcome(name, put(files, name, bytes(data)))
    put(files, name, good)


@pytest.mark.parametrize("name", [n for n in FORMATS if FORMATS[n].beside])
def test_cuts_and_flips_of_the_file_beside(files, name):
    path = files[name][0]
    for other in FORMATS[name].beside:
        beside, rng = path.with_name(other), random.Random(name)
        good = beside.read_bytes()
        for i in range(60):
            data = bytearray(good[:rng.randrange(len(good))] if i % 2 else good)
            if not i % 2: data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            beside.write_bytes(bytes(data))
            outcome(name, path, where=beside)
        beside.write_bytes(good)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("data", [b"", b"\n", b"\0" * 64, b"<!DOCTYPE html><html>404</html>", b"\xff\xfe" + "1\n".encode("utf-16-le") * 9, b"PK\x03\x04" + b"\0" * 40, b"9" * 100_000, b"{" * 50_000, b"[" * 50_000, b"( " * 50_000],
                         ids=["empty", "newline", "zeros", "html", "utf16", "half-a-zip", "one-number", "braces", "brackets", "parentheses"])
def test_files_of_another_kind(files, name, data):
    path, good = files[name]
    assert isinstance(outcome(name, put(files, name, data)), str)
    put(files, name, good)


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_or_nothing_in_place_of_the_file(files, name, tmp_path):
    path = tmp_path / files[name][0].name
    for make in (lambda: None, path.mkdir):
        make()
        with pytest.raises((OSError, *OWN), match="." if FORMATS[name].beside else re.escape(path.name)): FORMATS[name].read(path)


@pytest.mark.parametrize("name", TEXT)
def test_ends_of_lines_marks_and_odd_paths(files, name, tmp_path):
    path, good = files[name]
    want = FORMATS[name].read(put(files, name, good)).joints
    folder = tmp_path / "Ünïcode – 動き" / "a b"
    folder.mkdir(parents=True)
    for other in FORMATS[name].beside: (folder / other).write_bytes(path.with_name(other).read_bytes())
    for data in (good.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + good, good + b"\n\n", good.rstrip(b"\n")):
        (folder / path.name).write_bytes(data)
        assert np.array_equal(FORMATS[name].read(folder / path.name).joints.numpy(), want.numpy())


@pytest.mark.parametrize("name", FORMATS)
def test_odd_paths(name, tmp_path):
    folder = tmp_path / "Ünïcode – 動き" / "$(a) b"
    folder.mkdir(parents=True)
    assert len(FORMATS[name].read(FORMATS[name].write(folder, 2))) == 2


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("frames", [1, 2])
def test_one_frame_is_a_clip(name, frames, tmp_path):
    assert len(FORMATS[name].read(FORMATS[name].write(tmp_path, frames))) == frames


def edit(files, name, pattern, to, count=1, flags=re.M):
    "The text with `pattern` replaced where it comes first after a third of the file."
    good = files[name][1].decode()
    at = len(good) // 3
    changed = good[:at] + re.sub(pattern, to, good[at:], count=count, flags=flags)
    assert changed != good, "the edit must change something"
    return changed


NUMBER = r"(?<=[ ,\[])-?\d+\.\d+(?=[ ,\]\n])"


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("word", ["nan", "inf", "-inf", "1e999", "1e300", "NaN", "x", "1.5.2", "--1", "0x10"])
def test_a_number_that_is_none(files, name, word):
    "Not-a-number, infinity, absurd sizes and words: refused with the line, wherever they stand."
    found = outcome(name, put(files, name, edit(files, name, NUMBER, word)))
    assert isinstance(found, str), f"{word} was read as a number"
    put(files, name, files[name][1])


@pytest.mark.parametrize("name", TEXT)
def test_decimal_commas_are_refused(files, name):
    "A program in another language may write 0,5: that is no 5 and no 0."
    found = outcome(name, put(files, name, re.sub(r"(?<=\d)\.(?=\d)", ",", files[name][1].decode())))
    assert isinstance(found, str)
    put(files, name, files[name][1])


def _huge(text, pattern, to): return re.sub(pattern, to, text, count=1, flags=re.M)


HUGE = dict(bvh=(r"^Frames: \d+", "Frames: 999999999"), bvh_12=(r"^Frames: \d+", "Frames: " + "9" * 40), ntu=(r"\A\d+", "99999"), ntu_9=(r"\A\d+", "9" * 30), ntu_bodies=(r"\A(\d+)\n\d+", r"\1\n999999999"))


@pytest.mark.parametrize("case", HUGE)
def test_declared_counts_are_not_believed(files, case):
    name = case.split("_")[0]
    path = put(files, name, _huge(files[name][1].decode(), *HUGE[case]))
    tracemalloc.start()
    assert isinstance(outcome(name, path), str)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    put(files, name, files[name][1])
    assert peak < 3e6, f"{peak:,} bytes for a file of {len(files[name][1]):,}"


def npy(shape, descr="<f8", data=b""):
    "An .npy member that announces `shape`."
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    head += " " * (63 - (10 + len(head)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + data


ZIPPED = dict(h36m="positions_3d", pyskl_npz="keypoints", amass="poses")


@pytest.mark.parametrize("name", ZIPPED)
@pytest.mark.parametrize("kind", ["announced", "bomb", "quine", "hostile", "encrypted"])
def test_archives_that_lie(files, name, kind, tmp_path):
    path, good = files[name]
    target = tmp_path / "touched"
    with zipfile.ZipFile(path) as z: members = {i.filename: z.read(i) for i in z.infolist()}
    member = ZIPPED[name] + ".npy"
    if kind == "announced": members[member] = npy("(1000000000, 156)", data=b"\0" * 1000)
    if kind == "bomb": members[member] = npy("(5000000, 8)", data=b"\0" * 40_000_000)
    if kind == "quine": members[member] = b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 65535
    if kind == "hostile": members[member] = npy("()", "|O", pickle.dumps(Hostile(target)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for n, d in members.items(): z.writestr(n, d)
    if kind == "encrypted":
        data = bytearray(path.read_bytes())
        at = data.index(b"PK\x01\x02")
        data[at + 8] |= 1
        path.write_bytes(bytes(data))
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert isinstance(outcome(name, path), str) and not target.exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began < 200_000, "kilobytes that the announcement made us take"
    path.write_bytes(good)


class Hostile:
    "A pickle that would make a file when it is loaded as Python loads one."
    def __init__(self, path): self.path = path
    def __reduce__(self): return (open, (str(self.path), "w"))


@pytest.mark.parametrize("where", ["whole", "annotations", "entry", "keypoint"])
def test_a_pickle_that_would_run_code(files, tmp_path, where):
    bad, entry = Hostile(tmp_path / "touched"), dict(frame_dir="a", label=1, total_frames=1, keypoint=np.zeros((1, 1, 25, 3), np.float32))
    tree = dict(whole=bad, annotations=dict(split={}, annotations=bad), entry=dict(split={}, annotations=[bad]), keypoint=dict(split={}, annotations=[entry | dict(keypoint=bad)]))[where]
    for protocol in range(6):
        assert "refused" in outcome("pyskl", put(files, "pyskl", pickle.dumps(tree, protocol=protocol)))
    assert not (tmp_path / "touched").exists()
    put(files, "pyskl", files["pyskl"][1])


ARRAYS = dict(amass="poses", pyskl_npz="keypoints")


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("change", [lambda x: np.full_like(x, np.nan), lambda x: np.full_like(x, np.inf), lambda x: x[:0], lambda x: x[:, :-1], lambda x: x[..., None], lambda x: x.astype(str), lambda x: x.astype(np.complex128), lambda x: x * 1e6],
                         ids=["nan", "inf", "no-frames", "a-joint-less", "an-axis-more", "text", "complex", "million"])
def test_arrays_that_are_no_motion(files, name, change):
    path, good = files[name]
    with np.load(path) as z: content = dict(z)
    content[ARRAYS[name]] = change(content[ARRAYS[name]])
    np.savez(path, **content)
    found = outcome(name, path)
    path.write_bytes(good)
    assert isinstance(found, str)


@pytest.mark.parametrize("change", [lambda x: np.full_like(x, np.nan), lambda x: x[:0], lambda x: x[:, :31], lambda x: x * 1000, lambda x: x / 1000, lambda x: "walk", lambda x: [x], lambda x: x.astype(np.int64), lambda x: None],
                         ids=["nan", "no-frames", "31-joints", "millimetres", "kilometres", "text", "list", "whole-numbers", "none"])
def test_human36m_that_is_no_motion(files, change):
    path, good = files["h36m"]
    with np.load(path, allow_pickle=True) as z: tree = z["positions_3d"].item()
    tree["S9"]["Walking 1"] = change(tree["S9"]["Walking 1"])
    box = np.empty((), dtype=object); box[()] = tree
    np.savez(path, positions_3d=box)
    found = outcome("h36m", path)
    path.write_bytes(good)
    assert isinstance(found, str) and ("S9/Walking 1" in found or "h36m" in found)


@pytest.mark.parametrize("change", [lambda x: x * np.nan, lambda x: x[:0], lambda x: x[:, :-3], lambda x: x / 1000, lambda x: x * 1000, lambda x: x * 1j, lambda x: "text"],
                         ids=["nan", "no-frames", "27-joints", "metres", "micrometres", "complex", "text"])
def test_mpi_that_is_no_motion(files, change):
    path, good = files["mpi3dhp"]
    cells = scipy.io.loadmat(path)["annot3"]
    with np.errstate(invalid="ignore"): cells[0, 0] = change(cells[0, 0])
    scipy.io.savemat(path, dict(annot3=cells))
    found = outcome("mpi3dhp", path)
    path.write_bytes(good)
    assert isinstance(found, str)


@pytest.mark.parametrize("name, scale", [("ntu", 1000), ("pkummd", 1000), ("uiprmd", 1000), ("deepmimic", 1000)])
def test_another_unit_is_noticed(files, name, scale):
    "Millimetres where metres (or, for UI-PRMD, centimetres) belong."
    number = re.compile(r"-?\d+\.\d+")
    text = files[name][1].decode()
    if name == "deepmimic": text = text.replace("0.9,", "900.0,")
    else: text = number.sub(lambda m: f"{float(m[0]) * scale:.3f}", text)
    assert isinstance(outcome(name, put(files, name, text)), str)
    put(files, name, files[name][1])


def test_unknown_orders_and_channels(files):
    for old, new, says in (("Zrotation", "Wrotation", "unknown channel"), ("Zrotation Xrotation Yrotation", "Zrotation Zrotation Yrotation", "twice"), ("CHANNELS 3", "CHANNELS 7", "0 to 6"), ("CHANNELS 3", "CHANNELS 2", "")):
        found = outcome("bvh", put(files, "bvh", files["bvh"][1].decode().replace(old, new)))
        assert isinstance(found, str) and says in found
    put(files, "bvh", files["bvh"][1])
    path, good = files["amc"]
    asf = path.with_name("01.asf")
    keep = asf.read_text()
    for old, new, says in (("axis 0 0 0 XYZ", "axis 0 0 0 XYX", "unknown rotation order"), ("axis XYZ", "axis XY", "order"), ("order TX TY TZ RX RY RZ", "order TX TY TZ RX RY", "order must name"), ("dof rx", "dof rw", "dof")):
        asf.write_text(keep.replace(old, new, 1))
        found = outcome("amc", path, where=asf)
        assert isinstance(found, str) and says in found, found
    asf.write_text(keep)


def test_lost_tracking(files):
    "A joint that the sensor lost for a frame is filled and counted; one that it never saw, or a place without a state, is refused."
    rows = files["ntu"][1].decode().split("\n")
    joint = 4 + 6                                           # the first body's seventh joint
    lost = rows.copy()
    lost[joint - 1] = "0 0 0 0 0 0 0 0 0 0 0 0"
    found = outcome("ntu", put(files, "ntu", "\n".join(lost)))
    assert not isinstance(found, str) and "1 of 75 joints filled" in found.source
    never = [("0 0 0 0 0 0 0 0 0 0 0 0" if len(r.split()) == 12 else r) for r in rows]
    assert "is lost in all 3 frames" in outcome("ntu", put(files, "ntu", "\n".join(never)))
    nobody = "3\n0\n0\n0\n"
    assert "no body in any of 3 frames" in outcome("ntu", put(files, "ntu", nobody))
    put(files, "ntu", files["ntu"][1])


def test_readers_load_no_more_than_they_need():
    "Importing every reader leaves h5py, SciPy, matplotlib and pickle-like helpers of others alone; the command line's help loads no torch."
    code = ("import sys\nimport torch, numpy\nbefore = set(sys.modules)\n"
            "from hclab.data.readers import amass, asfamc, bvh, deepmimic, h36m, mpi3dhp, ntu, objects, pkummd, pyskl, uiprmd\n"
            "new = {m.split('.')[0] for m in set(sys.modules) - before}\nprint(sorted(new & {'h5py', 'scipy', 'matplotlib', 'plotly', 'pandas', 'IPython', 'typer', 'rich', 'sklearn', 'open3d'}))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_importing_a_reader_changes_nothing():
    code = ("from hclab.core import skeleton as s\nbefore = {k: dict(v) for k, v in s.ANATOMY.items()}, dict(s.SKELETONS), dict(s.RIGS)\n"
            "from hclab.data.readers import amass, asfamc, bvh, deepmimic, h36m, mpi3dhp, ntu, objects, pkummd, pyskl, uiprmd\n"
            "print(before == ({k: dict(v) for k, v in s.ANATOMY.items()}, s.SKELETONS, s.RIGS))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "True"


def test_the_errors_are_value_errors():
    assert all(issubclass(e, ValueError) for e in OWN) and BVHError in OWN and ClipError in OWN
