"Momentum contrast, the mining loss and the quirks of the released code, against loops."
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hclab.core.config import ConfigError
from hclab.core.skeleton import Skeleton, SkeletonError, skeleton
from hclab.data.sequence_views import reflect_crop, shear
from hclab.methods.baselines.crossclr import STREAMS, CrosSCLR, CrosSCLRConfig, features, loss, mining_loss, prepare, pretrain, two_views
from hclab.models.stgcn import STGCNShape
from hclab.train.callbacks import Callback
from hclab.train.loop import LoopConfig
from hclab.train.moco import FollowKeys, MoCoConfig

CONFIG = CrosSCLRConfig(shape=STGCNShape(channels=(4, 6), halves=(1,), kernel=3, dropout=0.2), moco=MoCoConfig(queue=10, channels=5, momentum=0.9), mining_from=4, frames=6, optimiser="adamw",
                        drop_at=100, loop=LoopConfig(steps=8, batch=4, lr=1e-2, clip_norm=0.0, log_every=1, save_every=2, device="cpu"))


def some(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def noisy(sequence, mask, generator):
    return sequence + 0.1*torch.randn(sequence.shape, generator=generator), mask


def batch(number=0, config=CONFIG):
    x = some(4, 6, 25, 3, seed=number)
    return two_views(x, torch.ones(4, 6, dtype=torch.bool), torch.Generator().manual_seed(number), config, noisy)


def model_of(config=CONFIG):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CrosSCLR(config)


# ------------------------------------------------------------------------------------------------ mining
def naive_mining(positive, own, other, temperature, topk, context):
    N, K, total = *own.shape, 0.0
    for n in range(N):
        logits = [positive[n].item()] + [own[n, i].item() for i in range(K)]
        if context: logits += [own[n, i].item()*other[n, i].item() for i in range(K)]
        best = sorted(range(K), key=lambda i: -other[n, i].item())[:topk]
        right = [0] + [1 + i for i in best] + ([1 + K + i for i in best] if context else [])
        below = math.log(sum(math.exp(v/temperature) for v in logits))
        total += sum(below - logits[i]/temperature for i in right)/len(right)
    return total/N


@pytest.mark.parametrize("topk", [1, 3])
@pytest.mark.parametrize("context", [True, False])
def test_mining_loss_is_a_loop(topk, context):
    positive, own, other = some(5, dtype=torch.float64).tanh(), some(5, 7, seed=1, dtype=torch.float64).tanh(), some(5, 7, seed=2, dtype=torch.float64).tanh()
    for temperature in (0.07, 1.0):
        assert abs(float(mining_loss(positive, own, other, temperature, topk, context)) - naive_mining(positive, own, other, temperature, topk, context)) < 1e-9
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(mining_loss(positive, own[:, order], other[:, order], 0.1, topk, context), mining_loss(positive, own, other, 0.1, topk, context)), "the order of the queue says nothing"
    held = [t.clone().requires_grad_() for t in (positive, own, other)]
    assert torch.autograd.gradcheck(lambda *t: mining_loss(*t, 0.5, topk, context), held)


def test_mining_loss_where_all_is_alike_and_where_it_is_extreme():
    K, s, tau = 6, 0.5, 0.2
    alike = torch.full((3, K), s)
    below = math.log((1 + K)*math.exp(s/tau) + K*math.exp(s*s/tau))
    assert abs(float(mining_loss(alike[:, 0], alike, alike, tau)) - (below - (2*s + s*s)/(3*tau))) < 1e-5
    for tau in (1e-4, 1e4): assert mining_loss(some(3).tanh(), some(3, K).tanh(), some(3, K, seed=1).tanh(), tau).isfinite()
    with pytest.raises(ValueError, match="both queues must hold the same samples"): mining_loss(alike[:, 0], alike, alike[:, 1:])
    with pytest.raises(ValueError, match="topk=7 of a queue of 6"): mining_loss(alike[:, 0], alike, alike, topk=7)


def test_mined_terms_are_means_over_the_other_streams():
    b = batch()
    model = model_of(replace(CONFIG, shape=replace(CONFIG.shape, dropout=0.0))).eval()
    model.follow(4)
    with torch.no_grad():
        said = loss(model, b)
        q = {k: m.student(b["view1"][k], b["mask1"]) for k, m in model.streams.items()}
        same = {k: (q[k]*m.keys(b["view2"][k], b["mask2"])).sum(1) for k, m in model.streams.items()}
        near = {k: q[k] @ m.queue.rows.T for k, m in model.streams.items()}
    assert list(said) == [f"{k}_mined" for k in STREAMS]
    for u in STREAMS:
        want = sum(naive_mining(same[u], near[u], near[v], 0.07, 1, True) for v in STREAMS if v != u)/2
        assert abs(float(said[f"{u}_mined"]) - want) < 1e-4


# ------------------------------------------------------------------------------------------------ keys and queues
@pytest.mark.parametrize("phase", [0, 4])
def test_keys_get_no_gradient_and_rows_of_all_queues_belong_together(phase):
    model = model_of()
    model.follow(phase)
    rows = {k: m.queue.rows.clone() for k, m in model.streams.items()}
    for number in range(3):
        sum(loss(model, batch(number)).values()).backward()
        assert {int(m.queue.cursor) for m in model.streams.values()} == {4*(number + 1) % 10}
    for name, p in model.named_parameters(): assert (p.grad is None) == (".teacher." in name), name
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".teacher." in n)
    for k, m in model.streams.items(): assert not torch.equal(m.queue.rows, rows[k]) and torch.allclose(m.queue.rows.norm(dim=1), torch.ones(10), atol=1e-5)
    held = model.streams["joint"].queue.rows.clone()
    loss(model.eval(), batch())
    assert torch.equal(model.streams["joint"].queue.rows, held), "evaluation leaves the queue alone"


def test_one_stream_is_moco_with_keys_from_the_other_look():
    model, b = model_of(replace(CONFIG, streams=("joint",), mining_from=0, shape=replace(CONFIG.shape, dropout=0.0))), batch()
    assert not model.mining(), "nobody to help"
    moco, rows = model.streams["joint"], model.streams["joint"].queue.rows.clone()
    twin = model_of(model.config)
    said = loss(model, b)
    q, k = twin.streams["joint"](b["view1"]["joint"], b["mask1"]), twin.streams["joint"].keys(b["view2"]["joint"], b["mask2"])
    want = sum(-(q[n] @ k[n]/0.07) + torch.logsumexp(torch.cat([(q[n] @ k[n])[None], rows @ q[n]])/0.07, 0) for n in range(4))/4
    assert list(said) == ["joint"] and torch.allclose(said["joint"], want, atol=1e-4) and torch.allclose(moco.queue.rows[:4], k, atol=1e-5)


# ------------------------------------------------------------------------------------------------ quirks
def way_gone(config, step):
    model = model_of(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad: p.add_(1.0)
    model.follow(step)
    bias = lambda side: side.encoder.blocks[0].temporal.bias
    gone = {k: 1 - (bias(m.student) - bias(m.teacher.model)).mean().item() for k, m in model.streams.items()}
    joint = model.streams["joint"]
    return gone | {"head": 1 - (joint.student.head[-1].bias - joint.teacher.model.head[-1].bias).mean().item()}


@pytest.mark.parametrize("heads, follow, step, want", [
    ("own", "all", 0, (.1, .1, .1, .1)), ("own", "all", 4, (.1, .1, .1, .1)), ("own", "motion", 3, (.1, .1, .1, .1)), ("own", "motion", 4, (0, .1, 0, 0)),
    ("nested", "all", 0, (.1, .1, .1, 1 - .9**3)), ("nested", "all", 4, (.1, .1, .1, 1 - .9**3)), ("nested", "motion", 4, (0, .1, 0, .1))])
def test_whose_key_encoders_move(heads, follow, step, want):
    assert list(way_gone(replace(CONFIG, heads=heads, follow=follow), step).values()) == pytest.approx(want, abs=1e-5)


def test_nested_heads_share_the_layers_of_the_first_stream():
    own, nested = model_of(), model_of(replace(CONFIG, heads="nested"))
    for side in (lambda m: m.student, lambda m: m.teacher.model):
        joint, motion, bone = (side(m).head for m in nested.streams.values())
        assert motion[2] is joint is bone[2] and motion[0] is not bone[0] and [type(x) for x in motion[:2]] == [nn.Linear, nn.ReLU]
    assert nested.streams["motion"].student.head is not nested.streams["motion"].teacher.model.head
    assert len({id(m.student.head[2]) for m in own.streams.values()}) == 3
    loss(nested, batch())["bone"].backward()
    assert nested.streams["joint"].student.head[0].weight.grad.any() and nested.streams["joint"].student.encoder.blocks[0].spatial.weight.grad is None
    again = model_of(replace(CONFIG, heads="nested"))
    again.load_state_dict(nested.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), nested.state_dict().values(), strict=True))


# ------------------------------------------------------------------------------------------------ training
class Die(Callback):
    def after_step(self, run):
        if run.step == 5: raise KeyboardInterrupt


@pytest.mark.parametrize("heads", ["own", "nested"])
def test_a_killed_run_goes_on_with_the_same_keys_and_the_same_phase(tmp_path, monkeypatch, heads):
    import hclab.methods.baselines.crossclr as module
    config = replace(CONFIG, heads=heads)
    whole, curve = pretrain(lambda n: batch(n, config), config)
    assert "joint" in curve[3] and "joint_mined" in curve[4], "steps are counted from 0, rows after them"
    monkeypatch.setattr(module, "FollowKeys", lambda: type("Both", (Die, FollowKeys), {"after_step": lambda self, run: (FollowKeys.after_step(self, run), Die.after_step(self, run))})())
    with pytest.raises(KeyboardInterrupt): pretrain(lambda n: batch(n, config), config, folder=tmp_path)
    monkeypatch.setattr(module, "FollowKeys", FollowKeys)
    again, resumed = pretrain(lambda n: batch(n, config), config, folder=tmp_path)
    assert resumed == curve
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True): assert torch.equal(a, b), name


def test_any_encoder_will_do():
    class Mean(nn.Module):
        width = 3
        def forward(self, sequence, mask): return (sequence*mask[..., None, None]).sum((1, 2))/mask.sum(1)[:, None]
    model = CrosSCLR(CONFIG, make_encoder=Mean)
    assert set(loss(model, batch())) == set(STREAMS)
    x, mask = some(4, 6, 25, 3), torch.ones(4, 6, dtype=torch.bool)
    said = features(model, x, mask)
    assert torch.allclose(said["joint"], x.sum((1, 2))/6, atol=1e-5) and torch.allclose(said["motion"], (x[:, -1] - x[:, 0]).sum(1)/6, atol=1e-5) and said["all"].shape == (4, 9) and torch.allclose(said["all"].norm(dim=1), torch.full((4,), 3**.5))
    assert model.training and isinstance(model.encoder("bone"), Mean)


# ------------------------------------------------------------------------------------------------ what goes in
def test_prepared_sequences_look_ahead_from_the_origin():
    lengths = torch.tensor([9, 5, 2])
    mask = torch.arange(9) < lengths[:, None]
    x = some(3, 9, 25, 3)*mask[..., None, None]
    out, there = prepare(x, mask, frames=4)
    assert out.shape == (3, 4, 25, 3) and there.all() and out[:, :, 20].abs().max() < 1e-6 and (out[..., 8, 2] - out[..., 4, 2]).abs().max() < 1e-5 and (out[..., 8, 0] >= out[..., 4, 0]).all()
    assert torch.equal(out[..., 1], prepare(x, mask, frames=4, turn=False)[0][..., 1])
    turned = x @ torch.tensor([[0.6, 0, 0.8], [0, 1, 0], [-0.8, 0, 0.6]])
    assert torch.allclose(prepare(turned, mask, frames=4)[0], out, atol=1e-5), "wherever the camera stands"
    with pytest.raises(SkeletonError, match=r"SNAKE has no left_shoulder; use prepare\(..., turn=False\)"): prepare(x, mask, Skeleton("SNAKE", tuple("abcdefghijklmnopqrstuvwxy"), ()))
    upper = prepare(some(2, 9, 22, 3), torch.ones(2, 9, dtype=torch.bool), "UIPRMD22", 4)[0]
    at = [skeleton("UIPRMD22").index(n) for n in ("left_upper_arm", "right_upper_arm", "chest")]
    assert (upper[:, :, at[0], 2] - upper[:, :, at[1], 2]).abs().max() < 1e-5 and upper[:, :, at[2]].abs().max() < 1e-6, "shoulders and thorax by anatomy, not by name"


def test_two_looks_are_drawn_apart_and_streams_of_a_look_together():
    b = batch()
    for view in (b["view1"], b["view2"]): assert torch.equal(view["motion"][:, :-1], view["joint"][:, 1:] - view["joint"][:, :-1]) and not view["motion"][:, -1].any() and torch.equal(view["bone"][:, :, 0], view["joint"][:, :, 0] - view["joint"][:, :, 1])
    assert 0 < F.mse_loss(b["view1"]["joint"], b["view2"]["joint"]) < 0.1 and set(b) == {"view1", "view2", "mask1", "mask2"}
    x, mask = some(4, 6, 25, 3), torch.ones(4, 6, dtype=torch.bool)
    g = torch.Generator().manual_seed(2)
    want = [shear(reflect_crop(x, mask, g), g, 0.5) for _ in range(2)]
    said = two_views(x, mask, torch.Generator().manual_seed(2), CONFIG)
    assert torch.equal(said["view1"]["joint"], want[0]) and torch.equal(said["view2"]["joint"], want[1])


@pytest.mark.parametrize("wrong, words", [(dict(heads="nest"), "did you mean 'nested'"), (dict(follow="motions"), "did you mean 'motion'"), (dict(streams=("joint", "joint")), "each once"), (dict(topk=0), "1 to"),
                                          (dict(streams=("joint", "bone"), follow="motion"), "no key encoder would ever move"), (dict(optimiser="adam"), "did you mean 'adamw'")])
def test_settings_that_cannot_be(wrong, words):
    with pytest.raises(ConfigError, match=words): CrosSCLRConfig(**wrong)


def test_published_sizes_are_the_defaults():
    c = CrosSCLRConfig()
    assert (c.moco.queue, c.moco.momentum, c.moco.temperature, c.moco.channels, c.loop.batch, c.loop.lr, c.weight_decay, c.frames, c.shear, c.topk, c.context) == (32_768, 0.999, 0.07, 128, 128, 0.1, 1e-4, 50, 0.5, 1, True)
    assert (c.shape.channels, c.mining_from/c.loop.steps, round(c.drop_at/c.loop.steps, 4), c.optimiser) == ((16,)*4 + (32,)*3 + (64,)*2 + (256,), 0.5, 0.8333, "sgd")
