"F12: half precision at temperature 0.01, zero vectors, one sample, nothing visible: finite value and gradient, or a ValueError that says what to do."
import math

import pytest, torch
from hclab.train.losses.contrastive import bank_info_nce, cross_modal_info_nce, info_nce, nt_xent, symmetric_info_nce, unit_rows
from hclab.train.losses.distillation import DinoLoss, dino_loss
from hclab.train.losses.reconstruction import masked_reconstruction, normalise_patches
from hclab.train.memory_bank import FeatureQueue, MemoryBank

BANK = unit_rows(torch.randn(40, 16, generator=torch.Generator().manual_seed(9)))
DRAWN = torch.randint(40, (8, 30), generator=torch.Generator().manual_seed(8))
CONTRASTIVE = {
    "nt_xent": lambda a, b, t: nt_xent(a, b, t),
    "info_nce": lambda a, b, t: info_nce(a, b, temperature=t),
    "symmetric": lambda a, b, t: symmetric_info_nce(a, b, t),
    "bank": lambda a, b, t: bank_info_nce(a, b, BANK, temperature=t),
    "drawn": lambda a, b, t: bank_info_nce(a, b, BANK, DRAWN[:len(a)], t),
    "cross": lambda a, b, t: sum(cross_modal_info_nce({"x": a, "y": b}, {"x": BANK, "y": BANK}, temperature=t).values()),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def pair(seed=0, n=8): return (torch.randn(n, 16, generator=torch.Generator().manual_seed(seed + i)) for i in range(2))


def finite(loss, *inputs):
    "Value, after checking that it and all gradients are finite."
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*inputs)
    value.backward()
    assert value.isfinite() and value.dtype in (torch.float32, torch.float64)
    for x in inputs: assert x.grad is not None and x.grad.isfinite().all() and x.grad.dtype == x.dtype
    return value.item(), max(float(x.grad.abs().max()) for x in inputs)


@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.01, 1e-4, 100.0])
def test_low_and_high_temperature(name, dtype, temperature):
    a, b = (x.to(dtype) for x in pair())
    for other in (b, a, -a): finite(lambda x, y: CONTRASTIVE[name](x, y, temperature), a, other)


@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_autocast_does_not_reach_the_loss(name, dtype):
    a, b = pair()
    plain, _ = finite(lambda x, y: CONTRASTIVE[name](x, y, 0.01), a, b)
    with torch.autocast("cpu", dtype=dtype): mixed, _ = finite(lambda x, y: CONTRASTIVE[name](x, y, 0.01), a, b)
    assert mixed == plain


@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_tiny_and_huge_vectors(name, dtype):
    a, b = (x.to(dtype) for x in pair())
    for scale in (0.0, 1e-7, 60_000.0/8):
        some = a.clone()
        some[::2] *= scale
        value, slope = finite(lambda x, y: CONTRASTIVE[name](x, y, 0.1), some, b)
        assert slope < 100, "no vector, however short, may have a gradient that wrecks the step"
    finite(lambda x, y: CONTRASTIVE[name](x, y, 0.1), 0*a, 0*b)


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_one_sample_and_none(name):
    a, b = pair()
    value, _ = finite(lambda x, y: CONTRASTIVE[name](x, y, 0.1), a[:1], b[:1])
    if name in ("nt_xent", "info_nce", "symmetric"): assert abs(value) < 1e-5
    with pytest.raises(ValueError, match="batch is empty; skip this step"): CONTRASTIVE[name](a[:0], b[:0], 0.1)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="must be positive"): CONTRASTIVE[name](a, b, wrong)


def test_nobody_has_the_modality():
    a, b = pair()
    nobody = torch.zeros(8, dtype=torch.bool)
    for loss in (lambda x, y: info_nce(x, y, valid=nobody), lambda x, y: symmetric_info_nce(x, y, valid=nobody), lambda x, y: bank_info_nce(x, y, BANK, valid=nobody),
                 lambda x, y: sum(cross_modal_info_nce({"x": x, "y": y}, {"x": BANK, "y": BANK}, present={"y": nobody}).values())):
        assert finite(loss, a, b) == (0.0, 0.0)


@pytest.mark.parametrize("garbage", [1e30, math.nan, math.inf])
def test_garbage_of_a_missing_modality_stays_out(garbage):
    a, b = pair()
    has = torch.tensor([True]*5 + [False]*3)
    loud = torch.where(has[:, None], b, torch.full_like(b, garbage))
    loss = lambda y: cross_modal_info_nce({"x": a, "y": y}, {"x": BANK, "y": BANK}, present={"y": has})
    for name, value in loss(b).items(): assert torch.allclose(value, loss(loud)[name])
    finite(lambda x: sum(loss(x).values()), loud)
    finite(lambda x, y: symmetric_info_nce(x, y, valid=has), a, loud)
    finite(lambda x: info_nce(x, a, valid=has), loud)


def test_a_draw_without_the_anchor_nearest_row_does_not_underflow():
    "At 0.01 a row that was not drawn can have a logit 200 above all that were."
    a = BANK[:1].clone().requires_grad_()
    value = bank_info_nce(a, -BANK[:1], torch.cat([BANK[:1], -BANK[:1]]), torch.tensor([[1, 1]]), 0.01)
    value.backward()
    assert value.item() == pytest.approx(math.log(3), abs=1e-4) and a.grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1000.0])
def test_dino(dtype, scale):
    draw = torch.Generator().manual_seed(0)
    crops = [(scale*torch.randn(3, 20, generator=draw)).to(dtype) for _ in range(5)]
    for cold, hot in ((0.04, 0.1), (0.01, 0.01)): finite(lambda *s: dino_loss(s, [x.detach() for x in crops[:2]], 0.0, hot, cold), *crops)
    finite(lambda *s: dino_loss(s, [x[:1] for x in crops[:2]]), *(x[:1] for x in crops))
    with torch.autocast("cpu", dtype=torch.bfloat16): finite(lambda *s: dino_loss(s, [x.detach() for x in crops[:2]]), *crops)
    with pytest.raises(ValueError, match="skip this step"): dino_loss([x[:0] for x in crops], [x[:0] for x in crops[:2]])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_batch_cannot_poison_a_centre_or_a_bank(bad):
    draw = torch.Generator().manual_seed(0)
    loss, queue, bank = DinoLoss(6), FeatureQueue(7, 4, draw), MemoryBank(7, 4, draw)
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in (loss, queue, bank)]
    logits, features = torch.zeros(3, 6), torch.ones(3, 4)
    logits[1, 2] = features[2, 1] = bad
    for f in (lambda: loss([logits]*3, [logits]*2), lambda: queue.push(features), lambda: bank.update(torch.arange(3), features)):
        with pytest.raises(FloatingPointError, match="left as it was"): f()
    for module, state in zip((loss, queue, bank), states):
        for key, value in module.state_dict().items(): assert torch.equal(value, state[key])


@pytest.mark.parametrize("dtype", DTYPES)
def test_reconstruction(dtype):
    draw = torch.Generator().manual_seed(0)
    said, truth = (torch.randn(2, 6, 12, generator=draw).to(dtype) for _ in range(2))
    every, none = torch.ones(2, 6, dtype=torch.bool), torch.zeros(2, 6, dtype=torch.bool)
    flat = torch.full_like(truth, 0.7)
    for normalise in (True, False):
        for target in (truth, flat, 0*truth): finite(lambda x: masked_reconstruction(x, target, every, normalise), said)
        assert finite(lambda x: masked_reconstruction(x, truth, none, normalise), said) == (0.0, 0.0)
        finite(lambda x: masked_reconstruction(x[:1, :1], truth[:1, :1], every[:1, :1], normalise), said)
    assert normalise_patches(flat).abs().max() < 1e-3
    poisoned = said.masked_fill(~(some := torch.eye(2, 6, dtype=torch.bool))[..., None], math.nan).requires_grad_()
    masked_reconstruction(poisoned, truth, some).backward()
    assert poisoned.grad.isfinite().all(), "what is said of visible patches is never read"
    with pytest.raises(ValueError, match="True where hidden"): masked_reconstruction(said, truth, every.float())
