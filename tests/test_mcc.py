"MCC-style pre-training: where the clips lie, what the continuity term is, and who gets a gradient."
import math
from dataclasses import replace

import pytest
import torch

from hclab.core.config import ConfigError
from hclab.methods.baselines.mcc import MCC, MCCConfig, clips, continuity_loss, loss, pretrain, read_at, shuffle_time
from hclab.models.stgcn import STGCNShape
from hclab.train.loop import LoopConfig
from hclab.train.moco import MoCoConfig

CONFIG = MCCConfig(shape=STGCNShape(channels=(4, 6), halves=(1,), kernel=3, dropout=0.2), moco=MoCoConfig(queue=9, channels=5, momentum=0.9), frames=6, shuffled=2, optimiser="adamw",
                   drop_at=100, loop=LoopConfig(steps=6, batch=4, lr=1e-2, clip_norm=0.0, log_every=1, save_every=2, device="cpu"))


def some(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch(number=0, config=CONFIG):
    return clips(some(4, 20, 25, 3, seed=number), torch.arange(20) < torch.tensor([[20], [12], [5], [2]]), torch.Generator().manual_seed(number), config)


def model_of(config=CONFIG):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MCC(config)


@pytest.mark.parametrize("seed", range(5))
def test_clips_lie_where_they_should(seed):
    lengths = torch.tensor([30, 17, 4, 2]).repeat(20)
    ramp = torch.arange(30.)[None, :, None, None].expand(80, 30, 2, 3)
    out = clips(ramp, torch.arange(30) < lengths[:, None], torch.Generator().manual_seed(seed), replace(CONFIG, share=(0.2, 0.5), speeds=(0.5, 2.0)))
    t = {name: x[..., 0, 0] for name, x in out.items()}
    for name in ("clip", "other_speed", "next"):
        assert (t[name] >= -1e-4).all() and (t[name] <= lengths[:, None] - 1 + 1e-4).all(), "never a frame of the padding"
        assert torch.allclose(t[name].diff(dim=1), t[name].diff(dim=1)[:, :1].expand(-1, 5), atol=1e-4), "even in time"
    span = {name: x[:, -1] - x[:, 0] for name, x in t.items() if name != "shuffled"}
    assert torch.allclose(t["next"][:, 0], t["clip"][:, -1], atol=1e-4) and torch.allclose(span["next"], span["clip"], atol=1e-4)
    speed, share = span["other_speed"]/span["clip"], span["clip"]/(lengths - 1)
    assert 0.5 - 1e-3 <= speed.min() < 0.8 and 1.3 < speed.max() <= 2.0 + 1e-3 and 0.2 - 1e-3 <= share.min() and share.max() <= 0.5 + 1e-3
    assert ((t["clip"][:, 0] + span["clip"]/2 - t["other_speed"][:, 0] - span["other_speed"]/2).abs() <= (lengths - 1)/2 + 1e-3).all()


def test_a_look_is_drawn_for_each_clip_before_the_shuffle():
    x, mask, seen = some(3, 12, 25, 3), torch.ones(3, 12, dtype=torch.bool), []
    def look(clip, g):
        seen.append(clip.shape)
        return clip + torch.rand(len(clip), 1, 1, 1, generator=g)*100
    out = clips(x, mask, torch.Generator().manual_seed(0), CONFIG, look)
    assert seen == [(3, 6, 25, 3)]*3 and out["shuffled"].shape == (3, 2, 6, 25, 3)
    for s in range(2): assert torch.allclose(out["shuffled"][:, s].sort(1).values, out["next"].sort(1).values)
    assert clips(x, mask, torch.Generator(), replace(CONFIG, shuffled=0))["shuffled"].shape == (3, 0, 6, 25, 3)


def test_moments_between_frames():
    x, at = some(2, 5, 3, 3), torch.tensor([[0.0, 3.25], [4.0, 0.5]])
    said = read_at(x, at)
    for b in range(2):
        for n in range(2):
            low, w = int(at[b, n]), at[b, n].item() % 1
            assert torch.allclose(said[b, n], x[b, low]*(1 - w) + (x[b, low + 1]*w if w else 0), atol=1e-6)
    assert torch.equal(read_at(x[:, :1], torch.zeros(2, 3)), x[:, :1].expand(2, 3, 3, 3))
    with pytest.raises(ValueError, match="each from 0 to 4"): read_at(x, at + 0.5)


def test_no_shuffle_is_the_order_itself():
    ramp = torch.arange(3.)[None, :, None, None].expand(500, 3, 1, 1)
    out = shuffle_time(ramp, torch.Generator().manual_seed(0))[..., 0, 0]
    assert torch.equal(out.sort(1).values, ramp[..., 0, 0]) and not ((out == torch.arange(3)).all(1) | (out == torch.arange(2, -1, -1)).all(1)).any()


def test_continuity_is_a_loop():
    p, f, s = (torch.nn.functional.normalize(some(*shape, seed=n, dtype=torch.float64), dim=-1) for n, shape in enumerate(((4, 3), (4, 3), (4, 2, 3))))
    want = 0.0
    for i in range(4):
        below = sum(math.exp(float(p[i] @ f[j])/0.3) for j in range(4)) + sum(math.exp(float(p[i] @ s[i, k])/0.3) for k in range(2))
        want += (math.log(below) - float(p[i] @ f[i])/0.3)/4
    assert abs(float(continuity_loss(p, f, s, 0.3)) - want) < 1e-9
    same = torch.ones(4, 1)
    assert abs(float(continuity_loss(same, same, torch.ones(4, 3, 1))) - math.log(7)) < 1e-5, "guessing"
    held = [t.clone().requires_grad_() for t in (p, f, s)]
    assert torch.autograd.gradcheck(lambda *t: continuity_loss(*t, 0.3), held)
    with pytest.raises(ValueError, match=r"expected \(N,d\), \(N,d\) and \(N,S,d\)"): continuity_loss(p, f, s[:, 0])


def test_who_learns_and_what_is_remembered():
    model = model_of()
    terms = loss(model, batch())
    assert list(terms) == ["consistency", "continuity"] and int(model.moco.queue.cursor) == 4
    sum(terms.values()).backward()
    for name, p in model.named_parameters(): assert (p.grad is None) == (".teacher." in name), name
    assert list(loss(model_of(replace(CONFIG, continuity=0.0)), batch())) == ["consistency"]
    plain, double = (loss(model_of(replace(CONFIG, continuity=w, shape=replace(CONFIG.shape, dropout=0.0))), batch())["continuity"] for w in (1.0, 2.0))
    assert torch.allclose(2*plain, double)


def test_a_run_in_two_parts_is_the_run(tmp_path):
    whole, curve = pretrain(batch, CONFIG)
    def die(n):
        if n == 3: raise KeyboardInterrupt
        return batch(n)
    with pytest.raises(KeyboardInterrupt): pretrain(die, CONFIG, folder=tmp_path)
    again, resumed = pretrain(batch, CONFIG, folder=tmp_path)
    assert resumed == curve and all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_what_is_refused():
    x, mask = some(2, 5, 25, 3), torch.arange(5) < torch.tensor([[5], [1]])
    with pytest.raises(ValueError, match="sequence 1 has 1 real frame"): clips(x, mask, torch.Generator(), CONFIG)
    for wrong, words in ((dict(share=(0.2, 0.7)), "up to 0.5"), (dict(speeds=(0.0, 1.0)), "rising positive"), (dict(speeds=(1.0, 3.0)), "longer than the sequence"), (dict(optimiser="sdg"), "did you mean 'sgd'")):
        with pytest.raises(ConfigError, match=words): MCCConfig(**wrong)
