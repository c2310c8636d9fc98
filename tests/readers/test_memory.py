"""No reader holds more than twice what it returns: the peak of a process that reads one long file of each format, against the bytes returned.

PKU-MMD and pyskl, which return samples, are measured in their own tests."""
import os, subprocess, sys
from pathlib import Path

import pytest
from formats import FORMATS

# format -> frames that make a clip of several megabytes, small beside which are the interpreter's own ups and downs
FRAMES = dict(bvh=5_000, amc=9_000, deepmimic=9_000, uiprmd=8_000, ntu=9_000, h36m=15_000, mpi3dhp=14_000, amass=11_000)
CODE = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from formats import FORMATS, h36m, ntu, uiprmd
f, path = FORMATS[sys.argv[1]], Path(sys.argv[2])
def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"): return int(line.split()[1]) * 1024
reads = dict(h36m=lambda p: h36m.clip_of(h36m.read_positions(p), "S9", "Walking 1", "H36M32"), ntu=ntu.read_skeleton, uiprmd=uiprmd.read_uiprmd)
read = reads.get(sys.argv[1], f.read)
def tensors(x):
    if isinstance(x, torch.Tensor): return x.numel() * x.element_size()
    if isinstance(x, tuple): return sum(map(tensors, x))
    return sum(map(tensors, vars(x).values())) if type(x).__name__ in ("Clip", "Repetition", "Recording", "Track") else 0
read(Path(sys.argv[3]))            # what the first use of libraries takes
before = peak()
clip = read(path)
size = tensors(clip)
print(peak() - before, size)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("name", FRAMES)
def test_the_peak_is_at_most_twice_the_clip(name, tmp_path):
    (tmp_path / "small").mkdir()
    small, long = FORMATS[name].write(tmp_path / "small", 8), FORMATS[name].write(tmp_path, FRAMES[name])
    env = os.environ | dict(OMP_NUM_THREADS="1", MALLOC_ARENA_MAX="1", PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
    out = subprocess.run([sys.executable, "-c", CODE.format(here=str(Path(__file__).parent)), name, str(long), str(small)], capture_output=True, text=True, env=env)
    assert out.returncode == 0, out.stderr[-500:]
    grown, size = map(int, out.stdout.split())
    print(f"{name}: {grown / 1e6:.1f} MB for a clip of {size / 1e6:.1f} MB, {grown / size:.2f} times")
    assert size > 2e6 and grown <= 2 * size + 2e6, f"{grown / 1e6:.1f} MB for a clip of {size / 1e6:.1f} MB"
