"""One small valid file of each format, written here: what the tests on hostile input, on memory and on left and right share."""
import json, math, pickle
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.io
import torch
from drawing import drawn, kinect

from hclab.core.geometry import Camera
from hclab.core.skeleton import SMPL22, skeleton
from hclab.data.grammar import generate
from hclab.data.motion import Clip, ClipError, join
from hclab.data.readers import amass, asfamc, bvh, deepmimic, h36m, mpi3dhp, ntu, pkummd, pyskl, uiprmd

JSON_TURNS = dict(hips=4, spine=8, neck=12, rhip=16, rankle=21, rshoulder=25, lhip=30, lankle=35, lshoulder=39)   # columns of quaternions, by hand


def _walk(frames, fps=30.0, layout="NTU25"):
    "A drawn walk of a second or two; a longer one begins again and again."
    return drawn("walk", 1, min(frames, 40), fps, layout).repeat(-(-frames // 40), 1, 1)[:frames].contiguous()


def _bvh(folder, frames):
    clip = generate("walk", 1, seconds=min(frames, 40) / 30 + .2, layout="FIGURE").resample(30.0).slice(0, min(frames, 40))
    if frames > 40: clip = join([clip] * -(-frames // 40), carry=False).slice(0, frames)
    bvh.write_bvh(clip, folder / "walk.bvh")
    return folder / "walk.bvh"


def _bone(name, direction, length, dof=""):
    return "\n".join([" begin", " id 1", f" name {name}", f" direction {direction}", f" length {length}", " axis 0 0 0 XYZ", *([f" dof {dof}"] if dof else []), " end", ""])


def _amc(folder, frames):
    "Somebody who stands with arms out, facing +z of the file, whose left is +x there."
    both = lambda n, x, y, length, dof="": _bone("l" + n, f"{x} {y} 0", length, dof) + _bone("r" + n, f"{-x} {y} 0", length, dof)
    asf = (":version 1.10\n:name VICON\n:units\n length 0.45\n angle deg\n:root\n order TX TY TZ RX RY RZ\n axis XYZ\n position 0 0 0\n orientation 0 0 0\n:bonedata\n"
           + both("hipjoint", 1, 0, 2) + both("femur", 0, -1, 7, "rx ry rz") + both("tibia", 0, -1, 7, "rx") + _bone("lfoot", "0 0 1", 2) + _bone("rfoot", "0 0 1", 2) + _bone("thorax", "0 1 0", 9, "rx ry rz") + both("clavicle", 1, 0, 3)
           + both("humerus", 1, 0, 5, "rx ry rz") + both("radius", 1, 0, 3, "rx") + both("wrist", 1, 0, 2, "ry")
           + ":hierarchy\n begin\n root lhipjoint rhipjoint thorax\n lhipjoint lfemur\n lfemur ltibia\n ltibia lfoot\n rhipjoint rfemur\n rfemur rtibia\n rtibia rfoot\n thorax lclavicle rclavicle\n"
           " lclavicle lhumerus\n lhumerus lradius\n lradius lwrist\n rclavicle rhumerus\n rhumerus rradius\n rradius rwrist\n end\n")
    dofs = dict(root=6, thorax=3, lfemur=3, ltibia=1, rfemur=3, rtibia=1, lhumerus=3, lradius=1, lwrist=1, rhumerus=3, rradius=1, rwrist=1)
    rng, amc = np.random.default_rng(0), ["#!OML:ASF", ":FULLY-SPECIFIED", ":DEGREES"]
    for f in range(frames):
        amc.append(str(f + 1))
        amc += [f"{n} " + ("0 15 0 0 0 0" if n == "root" else " ".join(f"{v:.5f}" for v in rng.uniform(-3, 3, k))) for n, k in dofs.items()]
    (folder / "01.asf").write_text(asf)
    (folder / "01_01.amc").write_text("\n".join(amc) + "\n")
    return folder / "01_01.amc"


def _json(folder, frames):
    rows = np.zeros((frames, 44)); rows[:, 0], rows[:, 2] = .02, .9
    for at in JSON_TURNS.values(): rows[:, at] = 1
    rows[:, 13] = .1 * np.sin(np.arange(frames))
    (folder / "humanoid3d_stand.txt").write_text(json.dumps(dict(Loop="wrap", Frames=[[round(x, 5) for x in r] for r in rows.tolist()])))
    return folder / "humanoid3d_stand.txt"


def _uiprmd(folder, frames):
    rest = np.array([[0, 85, -230], [0, 28, 0], [0, 20, 0], [0, .7, 0], [0, 6, 0], [0, 15, 0], [1.5, -.5, .2], [14, 0, 0], [27, 0, 0], [24, 0, 0], [-1.5, -.5, .2], [-14, 0, 0], [-27, 0, 0], [-24, 0, 0],
                     [7, 0, 3.5], [0, -36, 0], [0, -39, 0], [0, 0, 13], [-7, 0, 3.5], [0, -36, 0], [0, -39, 0], [0, 0, 13]])
    for kind, x in (("positions", np.tile(rest, (frames, 1, 1))), ("angles", np.zeros((frames, 22, 3)))):
        (folder / f"m01_s02_e03_{kind}.txt").write_text("\n".join(",".join(f"{v:.4f}" for v in row.ravel()) for row in x) + "\n")
    return folder / "m01_s02_e03_positions.txt"


def _ntu(folder, frames):
    joints = kinect(_walk(frames))
    track = ntu.Track("72057594037931101", torch.arange(frames), joints * torch.tensor([-1., -1, 1]), torch.full((frames, 25), 2, dtype=torch.int8), torch.full((frames, 25, 2), 500.))
    ntu.write_skeleton(folder / "S001C002P003R002A013.skeleton", [track], frames)
    return folder / "S001C002P003R002A013.skeleton"


def _pku(folder, frames):
    one = kinect(_walk(frames)).flatten(1)
    (folder / "0002-L.txt").write_text("\n".join(" ".join(f"{v:.6f}" for v in row) for row in torch.cat([one, one * 0], 1).tolist()) + "\n")
    return folder / "0002-L.txt"


def _h36m(folder, frames):
    box = np.empty((), dtype=object)
    box[()] = {"S9": {"Walking 1": _walk(frames, 50.0, "H36M32").numpy()}}
    np.savez(folder / "data_3d_h36m.npz", positions_3d=box)
    return folder / "data_3d_h36m.npz"


def _mpi(folder, frames):
    seventeen = _walk(frames, 25.0, "MPI3DHP17").double()
    world = seventeen[:, 14:15].repeat(1, 28, 1)
    world[:, list(mpi3dhp.RELEVANT)] = seventeen
    cells, text = np.empty((14, 1), dtype=object), "Skeletool Camera Calibration File V1.0\n"
    y_up, row = torch.tensor([[1., 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64), lambda m: " ".join(f"{v:.9g}" for v in m.flatten().tolist())
    for i, a in enumerate(np.linspace(0, 6, 14)):
        c, K, E = Camera.look_at((3.5 * math.cos(a), 3.5 * math.sin(a), 1.4), (0, 0, .9), 1500, (2048, 2048)), torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
        K[:3, :3], E[:3, :3], E[:3, 3] = c.K, c.R @ y_up, c.t * 1000
        cells[i, 0] = (c.to_camera(world) * 1000).flatten(1).numpy()
        text += f"name {i}\n sensor 10 10\n size 2048 2048\n animated 0\n intrinsic {row(K)}\n extrinsic {row(E)}\n radial 0\n"
    (folder / "S1" / "Seq1").mkdir(parents=True, exist_ok=True)
    (folder / "S1" / "Seq1" / "camera.calibration").write_text(text)
    scipy.io.savemat(folder / "S1" / "Seq1" / "annot.mat", dict(annot3=cells))
    return folder / "S1" / "Seq1" / "annot.mat"


def _pyskl(folder, frames):
    entry = dict(frame_dir="S001C001P001R001A059", label=58, total_frames=frames, keypoint=kinect(_walk(frames)).numpy()[None])
    (folder / "ntu60.pkl").write_bytes(pickle.dumps(dict(split=dict(xsub_train=[entry["frame_dir"]]), annotations=[entry]), protocol=4))
    return folder / "ntu60.pkl"


def _pyskl_npz(folder, frames):
    pyskl.save_npz(folder / "ntu60.npz", pyskl.read_pyskl(_pyskl(folder, frames)))
    return folder / "ntu60.npz"


def smpl_body():
    "(22,3) metres: rest joints of a made-up person, y up, left +x, arms out."
    steps, out = dict(hip=(.08, -.09, 0), knee=(.02, -.4, 0), ankle=(0, -.4, -.03), foot=(.02, -.05, .12), spine1=(0, .11, 0), spine2=(0, .13, 0), spine3=(0, .06, 0), neck=(0, .2, 0), head=(0, .08, .05),
                      collar=(.08, .11, 0), shoulder=(.1, .03, 0), elbow=(.26, 0, 0), wrist=(.25, 0, 0)), torch.zeros(22, 3)
    for j, (name, p) in enumerate(zip(SMPL22.names, SMPL22.parents)):
        if p >= 0: out[j] = out[p] + torch.tensor(steps[name.split("_")[-1]]) * torch.tensor([-1. if name.startswith("right") else 1, 1, 1])
    return out


def _amass(folder, frames):
    poses = np.random.default_rng(0).normal(0, .02, (frames, 156)); poses[:, :3] += [math.pi / 2, 0, 0]    # stands up: y of the model is z of the world
    np.savez(folder / "01_01_poses.npz", poses=poses, trans=np.zeros((frames, 3)), betas=np.zeros(16), gender=np.array("female"), mocap_framerate=np.array(120.0))
    return folder / "01_01_poses.npz"


def _from_camera(sequence, layout, fps=30.0):
    "A clip of a sample's first person, as if the camera were level."
    x = sequence[0]
    return Clip(torch.stack([x[..., 0], x[..., 2], -x[..., 1]], -1), skeleton(layout), fps, "", "")


def _read_pku(path):
    bodies, _ = pkummd.read_bodies(path)
    return _from_camera(bodies, "NTU25")


def _read_entry(annotations): return _from_camera(pyskl.to_sample(annotations, annotations.entries[0])["sequence"], annotations.layout)


@dataclass(frozen=True)
class Format:
    write: Callable              # (folder, frames) -> path of the file
    read: Callable               # path -> Clip
    error: type                  # the reader's own
    wrists: tuple = ("left_wrist", "right_wrist")
    beside: tuple = ()           # files that must lie beside it: (name relative to the file's folder, ...)
    toes: tuple = ()             # (ankle, toe): where somebody who stands looks to; none: somebody who walks


FORMATS = dict(
    bvh=Format(_bvh, lambda p: bvh.read_bvh(p, unit_metres=.01), bvh.BVHError),
    amc=Format(_amc, lambda p: asfamc.read_asfamc(p.with_name("01.asf"), p), asfamc.AcclaimError, ("lwrist", "rwrist"), ("01.asf",), ("ltibia", "lfoot")),
    deepmimic=Format(_json, deepmimic.read_deepmimic, deepmimic.DeepMimicError, ("lwrist", "rwrist"), toes=("lankle", "ltoe")),
    uiprmd=Format(_uiprmd, lambda p: uiprmd.read_uiprmd(p).clip, uiprmd.UIPRMDError, ("left_hand", "right_hand"), ("m01_s02_e03_angles.txt",), ("left_foot", "left_toes")),
    ntu=Format(_ntu, lambda p: ntu.to_clip(ntu.read_skeleton(p)), ntu.NTUError),
    pkummd=Format(_pku, _read_pku, pkummd.PKUError),
    h36m=Format(_h36m, lambda p: h36m.clip_of(h36m.read_positions(p), "S9", "Walking 1"), h36m.H36MError),
    mpi3dhp=Format(_mpi, mpi3dhp.clip_of, mpi3dhp.MPIError, beside=("camera.calibration",)),
    pyskl=Format(_pyskl, lambda p: _read_entry(pyskl.read_pyskl(p)), pyskl.PysklError),
    pyskl_npz=Format(_pyskl_npz, lambda p: _read_entry(pyskl.load_npz(p)), pyskl.PysklError),
    amass=Format(_amass, lambda p: amass.to_clip(amass.read_amass(p), smpl_body()), amass.AMASSError, toes=("left_ankle", "left_foot")),
)
OWN = tuple({f.error for f in FORMATS.values()} | {ClipError})
