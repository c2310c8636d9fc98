"""Drawn people for the tests of the readers: joints on any layout, what the drawing lacks prolonging its limb."""
import torch

from hclab.core.skeleton import convert, skeleton
from hclab.data.grammar import generate


def drawn(action="walk", performer=1, frames=60, fps=30.0, layout="NTU25"):
    "(T,J,3) float32 metres, world z up, the first pelvis over the origin."
    clip = generate(action, performer, seconds=frames / fps + .2).resample(fps)
    target = skeleton(layout)
    joints, mask, _ = convert(clip.joints, clip.skeleton, target)
    known = set(mask.nonzero().flatten().tolist())
    while len(known) < len(target):
        for j, p in enumerate(target.parents):
            if j not in known and p in known:
                joints[:, j] = joints[:, p] + .3 * (joints[:, p] - joints[:, max(target.parents[p], 0)])
                known.add(j)
    return (joints - torch.cat([joints[:1, :1, :2], torch.zeros(1, 1, 1)], -1))[:frames].contiguous()


def kinect(joints, at=(0, 3, 0)):
    "World joints in a Kinect's axes (x to its left, y up, z forward), 1 m above the floor."
    w = joints + torch.tensor(at, dtype=torch.float32)
    return torch.stack([-w[..., 0], w[..., 2] - 1, w[..., 1]], -1)


def skeleton_text(bodies, frames, places=None):
    """A .skeleton file: `bodies` is a list of (id, first frame, (T,25,3) in the Kinect's axes, (T,25) states).

    `places` gives the columns of joints (25,3) in both pictures, (x, y) of depth and (x, y) of colour; None: everything at one place."""
    rows = [str(frames)]
    for f in range(frames):
        here = [(i, xyz[f - first], s[f - first]) for i, first, xyz, s in bodies if first <= f < first + len(xyz)]
        rows.append(str(len(here)))
        for i, xyz, s in here:
            rows += [f"{i} 0 1 0 1 0 0 0.0123 -0.4 2", "25"]
            columns = [[277.4, 191.8, 1036.2, 519.1]]*len(xyz) if places is None else list(zip(*(c.tolist() for c in places(xyz))))
            rows += [" ".join(f"{v:.7g}" for v in (*joint, *at)) + f" -0.2 0.03 0.98 -0.05 {int(t)}" for joint, at, t in zip(xyz.tolist(), columns, s.tolist())]
    return "\n".join(rows) + "\n"
