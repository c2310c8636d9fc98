"F7, F15, F16: hostile pickles and hostile archives. Nothing runs, nothing is written outside, nothing is left over."
import gzip
import io as stdio
import os
import pickle
import random
import stat
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from hclab.core import archive, io
from hclab.core.config import use_one_thread

use_one_thread()


@pytest.fixture
def place(tmp_path):
    "A folder with a canary beside the target; checks afterwards that only the archive was added."
    (tmp_path / "canary").write_text("alive")
    yield tmp_path
    assert (tmp_path / "canary").read_text() == "alive"
    assert {p.name for p in tmp_path.iterdir()} <= {"canary", "archive", "target"}


def tar(folder, *members, mode="w"):
    "A tar file of (name or TarInfo fields, content) pairs."
    with tarfile.open(folder / "archive", mode, format=tarfile.PAX_FORMAT) as t:
        for fields, content in members:
            info = tarfile.TarInfo()
            info.size = len(content)
            for key, value in (fields if isinstance(fields, dict) else dict(name=fields)).items():
                setattr(info, key, value)
            t.addfile(info, stdio.BytesIO(content))
    return folder / "archive"


def zipped(folder, *members):
    "A zip file of (name, mode bits, content) triples."
    with zipfile.ZipFile(folder / "archive", "w", zipfile.ZIP_DEFLATED) as z:
        for name, mode, content in members:
            info = zipfile.ZipInfo("x")
            info.filename = info.orig_filename = name
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            z.writestr(info, content)
    return folder / "archive"


def refused(path, folder, words, **limits):
    with pytest.raises(archive.ArchiveError, match=words) as e:
        archive.safe_extract(path, folder / "target", **limits)
    assert not (folder / "target").exists() and "archive" in str(e.value)


# ---- what is in order ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_good_tar_is_unpacked(place, mode):
    path = tar(place, (dict(name="./", type=tarfile.DIRTYPE), b""), ("a/b/c.txt", b"c"), (dict(name="a", type=tarfile.DIRTYPE), b""), ("ü.txt", b"u" * 10**5), ("empty", b""), mode=mode)
    target = archive.safe_extract(path, place / "target")
    assert {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()} == {"a/b/c.txt": b"c", "ü.txt": b"u" * 10**5, "empty": b""}


def test_a_good_zip_is_unpacked(place):
    (place / "target").mkdir()  # empty: allowed
    path = zipped(place, ("a/", stat.S_IFDIR | 0o755, b""), ("a/x.txt", stat.S_IFREG | 0o4777, b"x"), ("y", 0, b"y" * 10**5))
    target = archive.safe_extract(path, place / "target")
    assert (target / "a/x.txt").read_bytes() == b"x" and (target / "y").stat().st_size == 10**5
    assert not (target / "a/x.txt").stat().st_mode & 0o6111  # no set-uid, nothing executable


def test_a_full_target_is_left_alone(place):
    (place / "target").mkdir()
    (place / "target" / "mine").write_text("1")
    with pytest.raises(archive.ArchiveError, match="new folder"):
        archive.safe_extract(tar(place, ("mine", b"2")), place / "target")
    assert (place / "target" / "mine").read_text() == "1"


# ---- F16 ----------------------------------------------------------------------------------------------------------------------------

NAMES = ["../canary", "a/../../canary", "/etc/x", "//x", "..", "a/..", "C:/x", "c:x", "..\\canary", "a\nb", "x" * 256, "/".join(["d"] * 600)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_leave_the_folder_are_refused(place, name, kind):
    path = tar(place, ("good", b"1"), (name, b"dead")) if kind == "tar" else zipped(place, ("good", 0, b"1"), (name, 0, b"dead"))
    refused(path, place, "member")


KINDS = {tarfile.SYMTYPE: "symbolic link", tarfile.LNKTYPE: "hard link", tarfile.CHRTYPE: "device", tarfile.BLKTYPE: "device", tarfile.FIFOTYPE: "pipe", b"Z": "type"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("link", ["/etc/passwd", "../canary", "good"])
def test_members_that_are_no_plain_files_are_refused(place, kind, link):
    refused(tar(place, ("good", b"1"), (dict(name="odd", type=kind, linkname=link), b"")), place, f"'odd' is a.*{KINDS[kind]}")


def test_writing_through_a_link_is_impossible(place):
    refused(tar(place, (dict(name="a", type=tarfile.SYMTYPE, linkname=".."), b""), ("a/canary", b"dead")), place, "symbolic link")


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_zip_members_that_are_no_plain_files_are_refused(place, mode):
    refused(zipped(place, ("good", 0, b"1"), ("odd", mode | 0o777, b"../canary")), place, "'odd' is a")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("Walk", "walk"), ("A/x", "a/y"), ("a", "a/b"), ("a/b", "a"), ("a", "a"), ("é", "e\u0301"), ("straße", "STRASSE")])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_clash_on_some_system_are_refused(place, names, kind):
    path = tar(place, *((n, b"1") for n in names)) if kind == "tar" else zipped(place, *((n, 0, b"1") for n in names))
    refused(path, place, "clashes")



def test_a_bomb_is_stopped_at_the_quota(place):
    "Fifty megabytes against a quota of ten take the same path as ten gigabytes against four; in one member and in many."
    class Zeros:
        def read(self, n):
            return bytes(n)
    with gzip.open(place / "archive", "wb", compresslevel=1) as f, tarfile.open(fileobj=f, mode="w|") as t:
        info = tarfile.TarInfo("zeros")
        info.size = 5 * 10**7
        t.addfile(info, Zeros())
    refused(place / "archive", place, "zeros.*max_bytes", max_bytes=10**7)
    refused(tar(place, *((f"f{i}", bytes(10**6)) for i in range(12)), mode="w:gz"), place, "'f10'.*max_bytes", max_bytes=10**7)
    refused(zipped(place, ("zeros", 0, bytes(10**7))), place, "max_bytes", max_bytes=10**6)


def test_a_zip_that_lies_about_its_size_is_refused(place):
    path = zipped(place, ("zeros", 0, bytes(10**6)))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24:at + 28] = (10).to_bytes(4, "little")  # the directory claims ten bytes
    path.write_bytes(data)
    refused(path, place, "damaged|declares", max_bytes=1000)


def test_a_header_bomb_is_stopped(place):
    path = tar(place, (dict(name="x", pax_headers={"comment": "y" * 2 * 10**7}), b"1"), mode="w:gz")
    refused(path, place, "header")


def test_too_many_files_are_refused(place):
    refused(tar(place, *((f"f{i}", b"") for i in range(30))), place, "'f20'.*max_files", max_files=20)
    refused(zipped(place, *((f"d{i}/", 0, b"") for i in range(30))), place, "'d20/'.*max_files", max_files=20)


def test_a_truncated_or_flipped_archive_is_refused_or_right(place):
    rng = random.Random(0)
    content = rng.randbytes(3000)
    for path in (tar(place, ("a", content), ("b", content), mode="w:gz"), zipped(place, ("a", 0, content), ("b", 0, content))):
        data = path.read_bytes()
        for i in range(116):
            hurt = bytearray(data[:len(data) * i // 16] if i < 16 else data)
            if i >= 16:
                hurt[rng.randrange(len(hurt))] ^= rng.randrange(1, 256)
            path.write_bytes(hurt)
            try:
                archive.safe_extract(path, place / "target")
            except archive.ArchiveError as e:
                assert "archive" in str(e)
            else:  # a byte that means nothing, such as a time or a name
                assert i >= 16 and all(p.read_bytes() == content for p in (place / "target").rglob("*") if p.is_file())
            io.remove_temp(place / "target")
    assert not [p for p in place.iterdir() if ".tmp-" in p.name]


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04", b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\0", bytes(100), b"<html>" * 200])
def test_what_is_no_archive_is_refused(place, data):
    (place / "archive").write_bytes(data)
    refused(place / "archive", place, "damaged")


def test_a_full_disk_while_unpacking_leaves_nothing(place, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(archive, "_copy", full)
    with pytest.raises(io.DiskFull, match="target"):
        archive.safe_extract(tar(place, ("a", b"1")), place / "target")


# ---- F7 and F15 -------------------------------------------------------------------------------------------------------------------------

class Touch:
    "Makes a file when it is unpickled."
    def __init__(self, path): self.path = str(path)

    def __reduce__(self): return os.mkdir, (self.path,)


def test_hostile_files_of_every_kind_are_refused_and_run_nothing(tmp_path):
    mark, files = tmp_path / "ran", tmp_path / "files"
    files.mkdir()
    for protocol in range(6):
        (files / f"p{protocol}.npy").write_bytes(pickle.dumps(Touch(mark), protocol))
        (files / f"g{protocol}.bin").write_bytes(gzip.compress(pickle.dumps([Touch(mark)], protocol)))
    torch.save(Touch(mark), files / "new.pth")
    torch.save(Touch(mark), files / "old.pth", _use_new_zipfile_serialization=False)
    np.save(files / "a.npy", np.array([Touch(mark)], dtype=object), allow_pickle=True)
    np.savez(files / "a.npz", fine=np.ones(2), bad=np.array([Touch(mark)], dtype=object))
    np.save(files / "field.npy", np.zeros(1, dtype=[("a", "f4"), ("b", "O")]), allow_pickle=True)
    for path in sorted(files.iterdir()):
        with pytest.raises(archive.PickleRefused, match=f"{path.name}.*convert_untrusted"):
            archive.refuse_pickle(path)
        with pytest.raises(io.TensorFileError):
            io.load_tensors(path)
    assert not mark.exists()


def test_load_tensors_says_how_to_convert(tmp_path):
    torch.save(dict(w=torch.ones(1)), tmp_path / "w.pth")
    with pytest.raises(io.TensorFileError, match="convert_untrusted"):
        io.load_tensors(tmp_path / "w.pth")


def test_harmless_files_are_not_called_pickles(tmp_path):
    np.save(tmp_path / "a", np.ones(3))
    np.savez(tmp_path / "b", a=np.ones(3), named=np.zeros(1, dtype=[("O", "f4")]))
    io.save_tensors(tmp_path / "c", dict(w=torch.ones(2)))
    for i, text in enumerate((b"", b"0.5 1.25\n", b"{}", b'{"a": [1]}', b"[1, 2]", b"(1, 2)", b"I am a text.\n", b"Name,x,y\na,1,2\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"HIERARCHY\nROOT Hips\n")):
        (tmp_path / f"t{i}").write_bytes(text)
    zipped(tmp_path, ("x.txt", 0, b"x"))
    assert {p.name: archive.pickle_kind(p) for p in tmp_path.iterdir() if archive.pickle_kind(p)} == {}


def test_untrusted_checkpoints_are_converted_or_refused(tmp_path):
    mark, out = tmp_path / "ran", tmp_path / "out.safetensors"
    weights = dict(model={"a.w": torch.rand(3, 2).T, "a.b": torch.nn.Parameter(torch.ones(2))}, epoch=3)
    torch.save(weights, tmp_path / "good.pth")
    assert archive.convert_untrusted(tmp_path / "good.pth", out) == ["epoch"]
    got = io.load_tensors(out)
    assert got.keys() == {"model.a.w", "model.a.b"} and torch.equal(got["model.a.w"], weights["model"]["a.w"])
    out.unlink()
    torch.save(dict(w=torch.ones(2), extra=Touch(mark)), tmp_path / "bad.pth")
    with pytest.raises(archive.PickleRefused, match="mkdir"):
        archive.convert_untrusted(tmp_path / "bad.pth", out)
    torch.save(dict(w=torch.zeros(1).expand(10**9)), tmp_path / "bomb.pth")  # four bytes that claim four gigabytes
    with pytest.raises(archive.PickleRefused):
        archive.convert_untrusted(tmp_path / "bomb.pth", out, max_bytes=10**7)
    assert not mark.exists() and sorted(p.name for p in tmp_path.iterdir()) == ["bad.pth", "bomb.pth", "good.pth"]


def test_a_conversion_that_hangs_is_ended(tmp_path, monkeypatch):
    (tmp_path / "x.pth").write_bytes(b"x")
    import subprocess

    def late(*args, timeout, **kwargs):
        raise subprocess.TimeoutExpired(args[0], timeout)
    monkeypatch.setattr(archive.subprocess, "run", late)
    with pytest.raises(archive.PickleRefused, match="more than 6 s"):
        archive.convert_untrusted(tmp_path / "x.pth", tmp_path / "y", seconds=3)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]
