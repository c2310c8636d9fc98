"""No reader holds more than twice what it returns: the peak of a process that reads one long file of each format, against the bytes returned.

PKU-MMD and pyskl, which return samples, are measured in their own tests."""
import json, os, subprocess, sys
from pathlib import Path

import pytest
from formats import FORMATS

# format -> frames that make a clip of several megabytes, small beside which are the interpreter's own ups and downs
FRAMES = dict(bvh=4_000, amc=8_000, deepmimic=8_000, uiprmd=6_000, ntu=6_000, h36m=15_000, mpi3dhp=10_000, amass=10_000)
SLACK = 2e6      # bytes: blocks of frames that are worked on at a time
# one process imports everything, and a child of it reads each file: a child's peak starts where its own life does
CODE = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import ctypes
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)     # no huge pages, which round each array up by as much as 2 MB
from formats import FORMATS, h36m, ntu, uiprmd

def peak(): return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def size(x):
    if isinstance(x, torch.Tensor): return x.numel() * x.element_size()
    if isinstance(x, tuple): return sum(map(size, x))
    return sum(map(size, vars(x).values())) if type(x).__name__ in ("Clip", "Repetition", "Recording", "Track") else 0

# Human3.6M's file has 32 joints; UI-PRMD and NTU return more than a clip
reads = dict(h36m=lambda p: h36m.clip_of(h36m.read_positions(p), "S9", "Walking 1", "H36M32"), ntu=ntu.read_skeleton, uiprmd=uiprmd.read_uiprmd)
for name, (small, long) in json.loads(sys.argv[2]).items():
    if child := os.fork(): os.waitpid(child, 0); continue
    read = reads.get(name, FORMATS[name].read)
    read(Path(small))              # what the first use of a library takes
    before = peak()
    found = read(Path(long))
    print(json.dumps([name, peak() - before, size(found)]), flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def peaks(tmp_path_factory):
    "format -> (bytes by which the process grew, bytes returned)"
    files = {}
    for name, frames in FRAMES.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "small").mkdir()
        files[name] = str(FORMATS[name].write(folder / "small", 8)), str(FORMATS[name].write(folder, frames))
    env = os.environ | dict(OMP_NUM_THREADS="1", MALLOC_ARENA_MAX="1", PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
    out = subprocess.run([sys.executable, "-c", CODE, str(Path(__file__).parent), json.dumps(files)], capture_output=True, text=True, env=env)
    return {name: (grown, size) for name, grown, size in map(json.loads, out.stdout.splitlines())} or pytest.fail(out.stderr[-500:])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("name", FRAMES)
def test_the_peak_is_at_most_twice_what_is_returned(name, peaks):
    grown, size = peaks[name]
    print(f"{name}: {grown / 1e6:.1f} MB for {size / 1e6:.1f} MB, {grown / size:.2f} times")
    assert size > 2e6 and grown <= 2 * size + SLACK, f"{grown / 1e6:.1f} MB for {size / 1e6:.1f} MB"
