"""`hclab data show FILE` for each format: a picture, or one line and exit code 2."""
import pytest
from formats import FORMATS
from PIL import Image

from hclab.lab.cli import main

NEEDS = dict(amass="needs `body`")     # rotations without a body can't be drawn


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_shown(name, tmp_path, capsys):
    path = FORMATS[name].write(tmp_path, 24)
    code = main(["data", "show", str(path), "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    if name in NEEDS:
        assert code == 2 and NEEDS[name] in said.err and said.err.count("\n") == 1 and not (tmp_path / "out").exists()
        return
    assert code == 0, said.err
    sheets = list((tmp_path / "out").glob("*.png"))
    with Image.open(sheets[0]) as image: assert len(sheets) == 1 and min(image.size) > 100 and "read as: " in said.out + said.err


@pytest.mark.parametrize("name", FORMATS)
def test_a_broken_file_is_one_line_and_exit_2(name, tmp_path, capsys):
    path = FORMATS[name].write(tmp_path, 3)
    for data in (path.read_bytes()[:len(path.read_bytes()) // 3], b"", b"<html>"):
        if name == "mpi3dhp" and len(data) > 100: data = data[:200]     # camera 0 comes first, and would be whole
        path.write_bytes(data)
        assert main(["data", "show", str(path), "--out", str(tmp_path / "out")]) == 2
        err = capsys.readouterr().err
        assert path.name in err and err.count("\n") == 1 and "Traceback" not in err and not (tmp_path / "out").exists()


def test_an_unknown_archive(tmp_path, capsys):
    import numpy as np
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    assert main(["data", "show", str(tmp_path / "other.npz")]) == 2
    assert "it holds a" in capsys.readouterr().err
