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
