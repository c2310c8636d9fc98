"ST-GCN against loops, symmetries and its own promises about padding."
import pytest
import torch
from torch import nn

from hclab.core.config import ConfigError
from hclab.core.skeleton import SKELETONS, Skeleton, hops, partitions, skeleton
from hclab.models.stgcn import QUARTER, STGCN, MaskedBatchNorm, SpatialGraphConv, STBlock, STGCNShape, centre_joint, check_sequences

TINY = STGCNShape(channels=(4, 6, 8), halves=(1,), kernel=3, dropout=0.0)


def some(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tiny(layout="NTU25", shape=TINY, **more):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = STGCN(layout, shape, **more)
        with torch.no_grad():      # away from the start, where edges count alike and statistics are trivial
            for name, t in (*net.named_parameters(), *net.named_buffers()):
                if name.endswith("importance") or "running" in name or name.endswith("bias"): t.uniform_(0.5, 1.5)
    return net


def masked(lengths, T):
    return torch.arange(T) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("layout", ["NTU25", "COCO17", "LSP14"])
def test_spatial_convolution_is_the_sum_over_neighbours(layout):
    s = skeleton(layout)
    centre, away = centre_joint(s), hops(s)[centre_joint(s)].tolist()
    conv = SpatialGraphConv(2, 3, s)
    with torch.no_grad():
        for n, p in enumerate(conv.parameters()): p.copy_(some(*p.shape, seed=n))
    x, out = some(2, 2, 4, len(s), seed=9), torch.zeros(2, 3, 4, len(s))
    near = [{j} | {a for e in s.edges for a in e if j in e and a != j} for j in range(len(s))]
    for j in range(len(s)):
        for i in near[j]:
            kind = 0 if i == j else 1 if away[i] < away[j] else 2
            for d in range(3):
                message = sum(x[:, c, :, i]*conv.weight[kind, c, d] for c in range(2)) + conv.bias[kind, d]
                out[:, d, :, j] += message*conv.importance[kind, j, i]/len(near[j])
    assert torch.allclose(conv(x), out, atol=1e-5)
    assert torch.allclose(conv.mixing.sum((0, 2)), torch.ones(len(s))) and away[centre] == 0


def test_temporal_convolution_and_stride_are_those_of_a_loop():
    block = STBlock(2, 3, 2, "COCO17", STGCNShape(kernel=5)).eval()
    x = some(2, 3, 7, 17)
    y, naive = block.temporal(x), torch.zeros(2, 3, 4, 17)
    for t in range(4):
        for k in range(5):
            if 0 <= 2*t + k - 2 < 7: naive[:, :, t] += torch.einsum("dc,bcj->bdj", block.temporal.weight[:, :, k, 0], x[:, :, 2*t + k - 2])
    assert torch.allclose(y, naive + block.temporal.bias[:, None, None], atol=1e-5)
    _, later = block(x[:, :2], masked([7, 4], 7))
    assert later.tolist() == masked([4, 2], 4).tolist()


def test_norm_is_pytorchs_on_real_frames():
    x, mask = some(3, 4, 6, 5).mul(3).add(1), masked([6, 3, 1], 6)
    ours, theirs = MaskedBatchNorm(4), nn.BatchNorm1d(4)
    real = torch.stack([x[b, :, t, j] for b in range(3) for t in range(6) for j in range(5) if mask[b, t]])
    for _ in range(3): said, wanted = ours(x, mask), theirs(real)
    got = torch.stack([said[b, :, t, j] for b in range(3) for t in range(6) for j in range(5) if mask[b, t]])
    assert torch.allclose(got, wanted, atol=1e-5) and not said.permute(0, 2, 3, 1)[~mask].any()
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True): assert torch.allclose(a.float(), b.float(), atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_gradient_of_the_whole_network(training):
    "PyTorch's 4-D batch norm gets it wrong for some strides; finite differences would notice."
    net, mask = tiny("LSP14").double().train(training), masked([6, 4], 6)
    for block in net.blocks: block.inner.momentum = block.outer.momentum = 0.0
    x = some(2, 6, 14, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: net(y, mask)[:, :2], x, fast_mode=True)
    assert torch.autograd.gradcheck(lambda y: net(y, mask.new_ones(2, 6))[:, :2], x, fast_mode=True)


def test_one_cell_depends_on_what_it_can_see():
    net = tiny(shape=STGCNShape(channels=(4, 4, 4), halves=(2,), kernel=3, dropout=0.0)).eval()
    x = some(1, 30, 25, 3).requires_grad_()
    felt = torch.autograd.grad(net.maps(x, masked([30], 30))[0, :, 8, 7].sum(), x)[0][0].abs().sum(2) > 0
    assert felt.any(1).nonzero()[:, 0].tolist() == list(range(13, 20)), "16 +- 3 frames"
    assert set(felt.any(0).nonzero()[:, 0].tolist()) == {j for j in range(25) if hops("NTU25")[7, j] <= 3}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("more", [1, 2, 9])
def test_padding_and_what_stands_in_it_change_nothing(training, more):
    x, mask = some(3, 10, 25, 3), masked([10, 7, 2], 10)
    there = torch.cat([x.masked_fill(~mask[..., None, None], float("nan")), torch.full((3, more, 25, 3), float("inf"))], 1)
    longer = torch.cat([mask, mask.new_zeros(3, more)], 1)
    a, b = tiny().train(training), tiny().train(training)
    assert torch.allclose(a(x, mask), b(there, longer), atol=1e-5)
    assert all(torch.allclose(p.float(), q.float(), atol=1e-5) for p, q in zip(a.buffers(), b.buffers()))
    maps = a.eval().maps(x, mask)
    assert maps.shape == (3, 8, 5, 25) and not maps[2, :, 1:].any()
    with torch.no_grad(): assert torch.allclose(a(x, mask)[1], a(x[1:2, :7], mask[1:2, :7])[0], atol=1e-5)


def test_gradient_does_not_reach_the_padding():
    x, mask = some(2, 8, 25, 3).requires_grad_(), masked([8, 3], 8)
    g, = torch.autograd.grad(tiny()(x, mask).square().sum(), x)
    assert not g[1, 3:].any() and g[1, :3].any() and g.isfinite().all()


def test_relabelled_joints_give_the_same_answer():
    s, order = skeleton("NTU25"), torch.randperm(25, generator=torch.Generator().manual_seed(3)).tolist()
    place = {j: at for at, j in enumerate(order)}
    other = Skeleton("OTHER", tuple(s.names[j] for j in order), tuple((place[p], place[c]) for p, c in s.edges), tuple((place[l], place[r]) for l, r in s.pairs), place[s.root])
    here, there = tiny(), STGCN(other, TINY, centre="spine_shoulder").eval()
    state = dict(here.eval().state_dict())
    for name, t in state.items():
        if name.endswith("importance"): state[name] = t[:, order][:, :, order]
        if name.startswith("norm.") and t.ndim: state[name] = t.view(25, 3)[order].flatten()
    there.load_state_dict(state)
    x, mask = some(2, 9, 25, 3), masked([9, 5], 9)
    assert torch.allclose(here(x, mask), there(x[:, :, order], mask), atol=1e-5)
    assert torch.allclose(here.maps(x, mask)[..., order], there.maps(x[:, :, order], mask), atol=1e-5)


def test_the_centre_goes_by_anatomy():
    assert {n: s.names[centre_joint(s)] for n, s in SKELETONS.items()} == dict(
        COCO17="nose", H36M16="thorax", H36M17="thorax", H36M32="thorax", NTU25="spine_shoulder", MPII16="thorax", LSP14="neck", ITOP15="neck", UIPRMD22="chest",
        CMU31="thorax", MOCAP20="thorax", MPI3DHP17="neck", WHOLEBODY133="nose")
    twins = Skeleton("TWINS", ("left_hip", "right_hip"), ((0, 1),), ((0, 1),))
    assert centre_joint(twins) == twins.root, "no joint on the middle line"
    for s in SKELETONS.values(): assert STGCN(s, TINY)(some(1, 4, len(s), 3), masked([4], 4)).shape == (1, 8)


def test_sizes_of_the_published_networks():
    count = lambda shape: sum(p.numel() for p in STGCN(shape=shape).parameters())
    naive, inputs, K, J = 2*75, 3, 3, 25
    for b, c in enumerate((64,)*4 + (128,)*3 + (256,)*3):
        naive += K*(inputs + 1)*c + K*J*J + 2*c + (9*c + 1)*c + 2*c
        if b and inputs != c: naive += (inputs + 1)*c + 2*c
        inputs = c
    assert count(STGCNShape()) == naive == 3_083_412 and round((naive + 257*60)/1e6, 1) == 3.1
    assert STGCN(shape=QUARTER).width == 256
    assert not any(n.endswith("importance") for n, _ in STGCN(shape=STGCNShape(importance=False)).named_parameters())


def test_state_goes_round_and_the_model_is_what_it_says():
    a, b = tiny(), STGCN(shape=TINY)
    b.load_state_dict(a.state_dict())
    x, mask = some(2, 5, 25, 3), masked([5, 4], 5)
    assert torch.equal(a.eval()(x, mask), b.eval()(x, mask)) and a.width == 8
    assert all(n in dict(a.named_parameters()) or "running" in n or "tracked" in n for n in a.state_dict()), "the graph is no weight"


@pytest.mark.parametrize("change, error, words", [
    (lambda x, m: (x[:, :, :17], m), ValueError, r"\(B, T, 25, 3\) metres of NTU25, got \(2, 6, 17, 3\)"),
    (lambda x, m: (x[0], m), ValueError, "got"), (lambda x, m: (x, m.int()), ValueError, "of bool"), (lambda x, m: (x, m[:, :4]), ValueError, r"got \(2, 4\)"),
    (lambda x, m: (x, m & torch.tensor([[True], [False]])), ValueError, "sequence 1 of 2 has no real frame; leave it out"),
    (lambda x, m: (x[:, :0], m[:, :0]), ValueError, "no real frame"), (lambda x, m: (x[:0], m[:0]), ValueError, "no real frame"),
    (lambda x, m: (x.index_fill(1, torch.tensor([2]), float("nan")), m), ValueError, "sequence 0, frame 2: spine_base is not finite; fill the gap")])
def test_what_is_refused(change, error, words):
    with pytest.raises(error, match=words): check_sequences(*change(some(2, 6, 25, 3), masked([6, 5], 6)), "NTU25")


def test_settings_that_cannot_be():
    for wrong, words in ((dict(kernel=4), "take 5 or 3"), (dict(halves=(10,)), "no block 10"), (dict(channels=(8, 0)), "at least 1"), (dict(dropout=1.0), "share"), (dict(init="norml"), "did you mean 'normal'")):
        with pytest.raises(ConfigError, match=words): STGCNShape(**wrong)
    with pytest.raises(ValueError, match="no spread"): tiny()(some(1, 1, 25, 3)[:, :, :1].expand(1, 1, 25, 3), masked([1], 1))


def test_partitions_that_it_stands_on():
    parts = partitions("NTU25", "spatial", "spine_shoulder")
    assert parts.shape == (3, 25, 25) and torch.allclose(parts.sum((0, 1)), torch.ones(25))
