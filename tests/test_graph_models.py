"The models of the lifting chapter: sums against loops, sizes against the papers, and what they refuse."
import math
from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck

import hclab.models.graph as graph
from hclab.core.config import ConfigError, use_one_thread
from hclab.core.skeleton import ADJACENCY_KINDS, Skeleton, adjacency, partitions, skeleton
from hclab.methods import global_node_gcn as gn
from hclab.methods.baselines import lcn, semgcn
from hclab.models.graph import GraphConv, LocallyConnected, NonLocal, SemGraphConv, decoupled, draw_weights, graph_mix, mix_plain, near_pairs
from hclab.tasks.lift_data import LiftSet
from hclab.tasks.lift_arm import check_layout, count_parameters, labelled_mse

use_one_thread()
LIFTERS = [(gn.GlobalNodeGCN, gn.GlobalNodeConfig(channels=8, blocks=1, classes=4, node=node), gn.loss) for node in gn.NODES] + [
    (semgcn.SemGCN, semgcn.SemGCNConfig(channels=8, blocks=1), semgcn.loss), (semgcn.SemGCN, semgcn.SemGCNConfig(channels=8, blocks=1, non_local=True), semgcn.loss),
    (lcn.LCN, lcn.LCNConfig(channels=4, blocks=1, dropout=0.0), lcn.loss)]
NAMES = [*gn.NODES, "semgcn", "non_local", "lcn"]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive(x, weight, mixing, term=None):
    "The sum, an edge at a time."
    out = torch.zeros(*x.shape[:2], weight.shape[2], dtype=x.dtype)
    for k, i, j in mixing.nonzero().tolist():
        out[:, i] += mixing[k, i, j] * (x[:, j] @ weight[k])
    return out if term is None else out + (term[None] if term.ndim == 1 else term)[:, None]


def shuffled(name, seed=3):
    "A layout with its joints in another order, and that order."
    s = skeleton(name)
    order = torch.randperm(len(s), generator=torch.Generator().manual_seed(seed)).tolist()
    at = {joint: place for place, joint in enumerate(order)}
    return order, Skeleton("SHUFFLED", tuple(s.names[j] for j in order), tuple((at[p], at[c]) for p, c in s.edges), tuple((at[a], at[b]) for a, b in s.pairs), at[s.root])


def filled(build, config):
    torch.manual_seed(0)
    model = build(config)
    if getattr(config, "node", "") == "classes":
        gn.fit_classes(model, draw(64, 16, 3, dtype=torch.float32))
    return model


def batch(n=6):
    return {"joints2d": draw(n, 16, 2, dtype=torch.float32), "joints3d": draw(n, 16, 3, seed=1, dtype=torch.float32)}


# ------------------------------------------------------------------------------------------------ the sum
@pytest.mark.parametrize("kind", ADJACENCY_KINDS)
@pytest.mark.parametrize("layout", ["H36M16", "H36M17", "COCO17"])
@pytest.mark.parametrize("term", [None, "bias", "pose"])
def test_the_sum_is_the_loop(kind, layout, term):
    J = len(skeleton(layout))
    mixing = decoupled(adjacency(layout, kind, dtype=torch.float64))
    x, weight = draw(5, J, 3), draw(2, 3, 4, seed=1)
    extra = None if term is None else draw(*((4,) if term == "bias" else (5, 4)), seed=2)
    expected = naive(x, weight, mixing, extra)
    dense = torch.einsum("kij,njc,kcd->nid", mixing, x, weight)
    assert torch.allclose(graph_mix(x, weight, mixing, extra), expected, atol=1e-12)
    assert term is not None or torch.allclose(dense, expected, atol=1e-12)


@pytest.mark.parametrize("n, chunk", [(1, 64), (4, 2), (5, 2), (7, 64), (3, 1)])
def test_pieces_change_nothing(monkeypatch, n, chunk):
    monkeypatch.setattr(graph, "CHUNK", chunk)
    mixing = decoupled(adjacency("H36M16", dtype=torch.float64)).requires_grad_()
    inputs = draw(n, 16, 3).requires_grad_(), draw(2, 3, 4, seed=1).requires_grad_(), mixing, draw(n, 4, seed=2).requires_grad_()
    seed = draw(n, 16, 4, seed=3)
    ours, plain = (torch.autograd.grad(f(*inputs), inputs, seed) for f in (graph_mix, mix_plain))
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(ours, plain))
    assert gradcheck(graph_mix, inputs)


def test_three_kinds_of_neighbours_and_strided_input():
    mixing = partitions("NTU25", dtype=torch.float64)
    x, weight = draw(3, 3, 25).transpose(1, 2), draw(len(mixing), 3, 4, seed=1)
    assert not x.is_contiguous() and torch.allclose(graph_mix(x, weight, mixing), naive(x, weight, mixing), atol=1e-12)


def test_only_what_wants_a_gradient_gets_one():
    x, weight, mixing = draw(3, 16, 2), draw(2, 2, 4, seed=1).requires_grad_(), decoupled(adjacency("H36M16", dtype=torch.float64))
    graph_mix(x, weight, mixing).sum().backward()
    assert x.grad is None and mixing.grad is None and weight.grad is not None
    with torch.no_grad():
        assert not graph_mix(x, weight, mixing).requires_grad


@pytest.mark.parametrize("shape", [(4, 17, 3), (4, 16, 2), (16, 3)])
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"x must be \(N, 16, 3\)"):
        graph_mix(torch.zeros(shape), torch.zeros(2, 3, 4), torch.zeros(2, 16, 16))


@pytest.mark.parametrize("decouple", [True, False])
@pytest.mark.parametrize("kind", ["symmetric", "row", "row_then_self"])
def test_another_order_of_joints_gives_the_same_features(decouple, kind):
    order, other = shuffled("H36M16")
    here, there = (GraphConv(3, 5, layout, kind, decouple) for layout in ("H36M16", other))
    there.load_state_dict(here.state_dict())
    x = draw(4, 16, 3, dtype=torch.float32)
    assert torch.allclose(there(x[:, order]), here(x)[:, order], atol=1e-5)
    assert not torch.allclose(here(x[:, order]), here(x)[:, order], atol=1e-2), "the layer does not see its skeleton"


def test_vanilla_is_decoupled_with_equal_matrices():
    one, two = GraphConv(3, 5, decouple=False), GraphConv(3, 5)
    with torch.no_grad():
        two.weight.copy_(one.weight.expand(2, -1, -1))
        two.bias.copy_(one.bias)
    x = draw(4, 16, 3, dtype=torch.float32)
    assert torch.allclose(one(x), two(x), atol=1e-5)


def test_initial_weights():
    matrix, pair, bias = torch.empty(2, 128, 128), torch.empty(2, 128, 128), torch.empty(64)
    draw_weights(matrix, bias), draw_weights(pair, init="pair")
    assert abs(matrix.abs().max() - math.sqrt(6/256)) < 1e-3 and abs(pair.abs().max() - 0.0268) < 5e-4 and bias.abs().max() <= 1/8
    with pytest.raises(ValueError, match="did you mean 'pair'"):
        draw_weights(matrix, init="pairs")


# ------------------------------------------------------------------------------------------------ SemGCN's and LCN's layers
def test_learnt_edges():
    layer = SemGraphConv(3, 4, "H36M17").double()
    assert len(layer.logits) == 17 + 2*16 and torch.allclose(layer.matrix(), adjacency("H36M17", "row", dtype=torch.float64))
    with torch.no_grad():
        layer.logits.copy_(draw(len(layer.logits)))
    matrix, near = layer.matrix(), adjacency("H36M17", "binary") > 0
    logits = torch.full((17, 17), -torch.inf, dtype=torch.float64)
    logits[near] = layer.logits.detach()
    assert torch.allclose(matrix, logits.softmax(1)) and (matrix[~near] == 0).all()
    x = draw(3, 17, 3, seed=1)
    assert torch.allclose(layer(x), naive(x, layer.weight, decoupled(matrix), layer.bias), atol=1e-12)
    assert gradcheck(lambda logits, weight: torch.func.functional_call(layer, {"logits": logits, "weight": weight}, (x,)), (layer.logits, layer.weight))


def test_non_local_block_is_the_formula():
    block = NonLocal(6).double().eval()
    with torch.no_grad():
        block.norm.weight.fill_(1.0)
    x, groups = draw(2, 16, 6), graph.SEMGCN_GROUPS
    asking, asked, value = block.asking(x), block.asked(x), block.value(x)
    heard = torch.zeros(2, 16, 3, dtype=torch.float64)
    for i in range(16):
        for a, b in groups:
            pair = torch.cat([asking[:, i], torch.maximum(asked[:, a], asked[:, b])], 1)
            heard[:, i] += torch.relu(block.affinity(pair)) / 8 * torch.maximum(value[:, a], value[:, b])
    assert torch.allclose(block(x), x + block.norm(block.back(heard).flatten(0, 1)).view_as(x), atol=1e-12)
    assert count_parameters(NonLocal(128)) == 33_472
    with pytest.raises(ValueError, match="give groups for this layout"):
        block(draw(2, 17, 6))


def test_locally_connected_is_a_masked_dense_layer():
    near = near_pairs("H36M17")
    assert int(near.sum()) == 175 and torch.equal(near, near.T)
    layer = LocallyConnected(3, 4, near).double()
    dense = layer.dense().view(17, 3, 17, 4)
    assert (dense.permute(2, 0, 1, 3)[~near] == 0).all() and dense.count_nonzero() == layer.weight.numel()
    x = draw(5, 17, 3)
    expected = layer.bias.expand(5, -1, -1).clone()
    for number, (i, j) in enumerate(near.nonzero().tolist()):
        expected[:, i] += x[:, j] @ layer.weight[number]
    assert torch.allclose(layer(x), expected, atol=1e-12)
    assert gradcheck(layer, x[:1].clone().requires_grad_())


# ------------------------------------------------------------------------------------------------ sizes
@pytest.mark.parametrize("settings, parameters", [
    (dict(), 689_155), (dict(channels=256), 2_689_027), (dict(classes=50), 676_355), (dict(classes=200), 714_755), (dict(channels=256, classes=50), 2_663_427),
    (dict(channels=256, classes=200), 2_740_227), (dict(node="embedding"), 669_939), (dict(node="embedding", embedding=20), 673_139), (dict(node="unsupervised"), 689_155),
    (dict(context="pooled"), 689_155), (dict(bias="both", norm="shared"), 688_103), (dict(bias="both", norm="local"), 688_103), (dict(bias="none"), 688_000), (dict(bias="both"), 690_407),
    (dict(node="none"), 16*128**2 + 37*128 + 3), (dict(node="none", channels=205), 679_988), (dict(node="none", channels=410), 2_704_773)])
def test_global_node_sizes(settings, parameters):
    assert count_parameters(gn.GlobalNodeGCN(gn.GlobalNodeConfig(**settings))) == parameters


def test_baseline_sizes():
    assert count_parameters(semgcn.SemGCN()) == 267_343
    assert count_parameters(semgcn.SemGCN(semgcn.SemGCNConfig(non_local=True))) == 434_703
    assert count_parameters(lcn.LCN(lcn.LCNConfig(layout="H36M17"))) == 4_365_363


def test_equal_parameters():
    assert gn.match_channels(gn.GlobalNodeConfig(node="none"), 689_155).channels == 206
    exact = gn.GlobalNodeConfig(channels=37)
    assert gn.match_channels(replace(exact, channels=5), count_parameters(gn.GlobalNodeGCN(exact))) == exact


# ------------------------------------------------------------------------------------------------ the global node
def test_update_is_simultaneous_and_the_mean_is_taken_first():
    conv, x, u = gn.NodeConv(4, 4, 4, gn.GlobalNodeConfig()).double(), draw(2, 16, 4), draw(2, 4, seed=1)
    joints, node = conv(x, u)
    assert torch.allclose(node, (x @ conv.hear.weight.T).mean(1) + u @ conv.keep.weight.T, atol=1e-12)
    assert torch.allclose(joints, naive(x, conv.joints.weight, conv.joints.mixing, u @ conv.tell.weight.T + conv.joints.bias), atol=1e-6)


def test_the_pooled_context_has_no_memory():
    config = gn.GlobalNodeConfig(context="pooled")
    conv, x = gn.NodeConv(4, 4, 4, config), draw(2, 16, 4, dtype=torch.float32)
    assert torch.equal(conv(x, torch.zeros(2, 4))[1], conv(x, torch.ones(2, 4))[1])
    assert not torch.equal(conv(x, torch.zeros(2, 4))[0], conv(x, torch.ones(2, 4))[0])


@pytest.mark.parametrize("node, silent", [("none", 0), ("unsupervised", 4), ("classes", 2), ("embedding", 2)])
@pytest.mark.parametrize("context", ["node", "pooled"])
def test_silent_weights(node, silent, context):
    model = filled(gn.GlobalNodeGCN, gn.GlobalNodeConfig(channels=8, blocks=2, classes=4, node=node, context=context))
    kept = context == "pooled" and silent > 0    # S of the first layer reads the joints there, not the zeros of the node
    assert len(gn.silent_weights(model, batch(32))) == silent - kept


def test_classes_follow_the_poses_and_not_the_unlabelled_joints():
    model = filled(gn.GlobalNodeGCN, LIFTERS[2][1])
    poses = model.centres.view(-1, 16, 3)
    assert gn.pose_class(model, poses).tolist() == list(range(4))
    hidden, labelled = poses.clone(), torch.ones(4, 16, dtype=torch.bool)
    hidden[:, 5], labelled[:, 5] = torch.nan, False
    assert gn.pose_class(model, hidden, labelled).tolist() == list(range(4))
    with pytest.raises(ValueError, match="call fit_classes"):
        gn.pose_class(gn.GlobalNodeGCN(LIFTERS[2][1]), poses)
    with pytest.raises(ValueError, match="cannot make 4 classes"):
        gn.fit_classes(model, poses[:3])


def test_classes_of_the_body_frame_do_not_see_the_viewpoint():
    poses = draw(20, 16, 3, dtype=torch.float32)
    turn = torch.linalg.qr(draw(3, 3, dtype=torch.float32))[0]
    turn = turn*torch.linalg.det(turn)
    assert torch.allclose(gn.in_body_frame(poses @ turn), gn.in_body_frame(poses), atol=1e-5)
    model = gn.fit_classes(gn.GlobalNodeGCN(replace(LIFTERS[2][1], class_space="body")), poses)
    assert torch.equal(gn.pose_class(model, poses), gn.pose_class(model, poses @ turn))
    mirrored = gn.in_body_frame(poses * torch.tensor([-1.0, 1, 1]))
    assert not torch.allclose(mirrored, gn.in_body_frame(poses), atol=1e-2), "a mirror image is another pose"


@pytest.mark.parametrize("setting", [dict(node="class"), dict(bias="joints"), dict(norm="batch"), dict(context="mean"), dict(class_space="world")])
def test_unknown_switch(setting):
    with pytest.raises(ConfigError, match="nown"):
        gn.GlobalNodeConfig(**setting)


# ------------------------------------------------------------------------------------------------ every lifter
@pytest.mark.parametrize("build, config, loss", LIFTERS, ids=NAMES)
def test_round_trip_and_shapes(build, config, loss, tmp_path):
    from hclab.train.loop import load_model, save_model
    model = filled(build, config).eval()
    save_model(tmp_path / "m.safetensors", model)
    again = load_model(tmp_path / "m.safetensors", lambda values: build(type(config).from_dict(values)))
    x = batch()["joints2d"]
    assert model(x).shape == (6, 16, 3) and torch.equal(again(x), model(x))


@pytest.mark.parametrize("build, config, loss", LIFTERS, ids=NAMES)
def test_wrong_joints_are_refused(build, config, loss):
    model = filled(build, config)
    for wrong in (torch.zeros(2, 17, 2), torch.zeros(2, 16, 3), torch.zeros(16, 2)):
        with pytest.raises(ValueError, match="convert the layout"):
            model(wrong)
    with pytest.raises(ValueError, match="is for H36M16, the set is in H36M17"):
        check_layout(config, LiftSet(torch.zeros(1, 17, 2), torch.zeros(1, 17, 3), ("walk",), "H36M17", "camera", torch.zeros(1).long(), torch.zeros(1)))


@pytest.mark.parametrize("build, config, loss", LIFTERS, ids=NAMES)
def test_unlabelled_joints_teach_nothing(build, config, loss):
    data = batch()
    labelled = torch.ones(6, 16, dtype=torch.bool)
    labelled[:, 11] = False
    grads = []
    for value in (0.0, torch.nan):
        model = filled(build, config)
        joints3d = data["joints3d"].clone()
        joints3d[:, 11] = value
        sum(loss(model, {**data, "joints3d": joints3d, "labelled": labelled}).values()).backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.isfinite(a).all() and torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("build, config, loss", LIFTERS, ids=NAMES)
def test_gradients_in_float64(build, config, loss):
    model = filled(build, config).double().eval()
    x = draw(2, 16, 2).requires_grad_()
    assert gradcheck(model, x, atol=1e-5)


@pytest.mark.parametrize("build, config, loss", LIFTERS, ids=NAMES)
def test_export_gives_the_same_answer(build, config, loss):
    model, x = filled(build, config).eval(), batch(3)["joints2d"]
    exported = torch.export.export(model, (x,)).module()
    assert torch.allclose(exported(x), model(x), atol=1e-4)


def test_nothing_labelled():
    prediction = torch.ones(2, 16, 3, requires_grad=True)
    labelled_mse(prediction, torch.full((2, 16, 3), torch.nan), torch.zeros(2, 16, dtype=torch.bool)).backward()
    assert (prediction.grad == 0).all()
