"Attention against torch's own modules, masks, and windows against the rule of the released code, written out."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hclab.core.config import ConfigError
from hclab.models.transformer import Encoder, EncoderLayer, SelfAttention, attend, waves, waves_2d, weights_of
from hclab.models.windows import Windows, check_batch, shared_windows, window_count, window_frames


def test_a_layer_is_torchs_layer():
    "`nn.TransformerEncoderLayer`, pre-norm, with the same weights (its projections have biases: zeros)."
    ours = EncoderLayer(32, 48, heads=4, head=8).double().eval()
    theirs = nn.TransformerEncoderLayer(32, 4, 48, 0.0, "gelu", batch_first=True, norm_first=True).double().eval()
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(ours.look.ask.weight); theirs.self_attn.in_proj_bias.zero_()
        theirs.self_attn.out_proj.weight.copy_(ours.look.say.weight); theirs.self_attn.out_proj.bias.zero_()
        for a, b in ((theirs.norm1, ours.before_looking), (theirs.norm2, ours.before_thinking), (theirs.linear1, ours.think[0]), (theirs.linear2, ours.think[2])):
            nn.init.normal_(b.weight); nn.init.normal_(b.bias)
            a.weight.copy_(b.weight); a.bias.copy_(b.bias)
    x, allowed = torch.randn(3, 7, 32, dtype=torch.double), torch.rand(7, 7) > .4
    allowed.fill_diagonal_(True)
    assert torch.allclose(ours(x, allowed), theirs(x, src_mask=~allowed))


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (4, 9)])
def test_fused_is_what_is_written_out_with_its_gradient(shape):
    T, S = shape
    q, k, v = (torch.randn(2, 2, n, 4, dtype=torch.double, requires_grad=True) for n in (T, S, S))
    allowed = torch.rand(2, 1, T, S) > .3
    allowed[..., 0] = True
    grads = [torch.autograd.grad(attend(q, k, v, allowed, fused).square().sum(), (q, k, v)) for fused in (True, False)]
    assert all(torch.allclose(a, b) for a, b in zip(*grads, strict=True))
    assert torch.autograd.gradcheck(lambda q: attend(q, k.detach(), v.detach(), allowed, False), (q,))


def test_extreme_scores_stay_finite():
    big = 1e4*torch.ones(1, 1, 3, 4)
    for fused in (True, False): assert attend(big, big, big, None, fused).isfinite().all()
    assert torch.allclose(weights_of(big, big), torch.full((1, 1, 3, 3), 1/3))


def test_dropout_spares_the_weights_of_attention():
    layer = SelfAttention(16, 2, 4)
    assert not any(isinstance(m, nn.Dropout) for m in layer.modules()) and all(m.bias is None for m in layer.modules() if isinstance(m, nn.Linear))


def test_waves_by_their_formula():
    w = waves(9, 6)
    for p in range(9):
        for i in range(3):
            angle = p/10_000**(2*i/6)
            assert math.isclose(w[p, 2*i], math.sin(angle), abs_tol=1e-5) and math.isclose(w[p, 2*i + 1], math.cos(angle), abs_tol=1e-5)
    assert waves_2d(3, 5, 8).shape == (3, 5, 8)


def test_encoder_keeps_the_sum():
    "No norm at the end: with layers that say nothing, what goes in comes out."
    stack = Encoder(8, 8, 3, 2, 4)
    for layer in stack.layers: nn.init.zeros_(layer.look.say.weight); nn.init.zeros_(layer.think[2].weight); nn.init.zeros_(layer.think[2].bias)
    x = torch.randn(2, 4, 8)*100
    assert torch.equal(stack(x), x)


def by_the_code(frames, size, stride, dilate):
    "Windows one after the other until one has reached the end and the next would overrun."
    half = size//2*dilate
    N, found, i = frames + 2*half, [], 0
    while True:
        row = [i*stride + k*dilate for k in range(size)]
        found.append([min(r, N - 1) for r in row])
        if row[-1] >= N - half - 1 and row[-1] + stride > N - 1: return found
        i += 1


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 130), st.sampled_from([1, 3, 7]), st.integers(1, 9), st.integers(1, 5))
def test_windows_by_the_rule(frames, size, stride, dilate):
    w = Windows(size, stride, dilate)
    found = by_the_code(frames, size, stride, dilate)
    assert window_count(frames, w) == len(found) and window_frames(frames, w).tolist() == found
    seen = {f - w.pad for row in found for f in row}
    if stride <= size and dilate == 1: assert set(range(frames)) <= seen          # without gaps, every frame is in some window


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_one_table_for_a_batch(lengths):
    table, own = shared_windows(torch.tensor(lengths), Windows())
    for n, row in zip(lengths, own.tolist(), strict=True):
        count = window_count(n, Windows())
        assert row == [True]*count + [False]*(len(row) - count)
        assert torch.equal(table[:count].clamp(max=n + 11), window_frames(n, Windows()))


def test_counts_of_the_released_code():
    "Sheet, section 1.5."
    assert [window_count(n, Windows()) for n in (19, 30, 60, 100, 300)] == [3, 5, 9, 15, 43]
    assert all(window_count(n, Windows(7, 1, d)) == n for n in (30, 100) for d in (2, 4))


def test_what_is_refused():
    for wrong in (dict(size=4), dict(size=0), dict(stride=0), dict(dilate=0)):
        with pytest.raises(ConfigError): Windows(**wrong)
    with pytest.raises(ValueError, match="at least"): window_count(0, Windows())
    with pytest.raises(ValueError, match="even number"): waves(4, 5)
    with pytest.raises(ValueError, match="multiple of 4"): waves_2d(4, 4, 6)
    with pytest.raises(ValueError, match="no sequence"): check_batch(torch.zeros(0, 5, 25, 3), torch.zeros(0, 5, dtype=torch.bool))


@pytest.mark.parametrize("mask", [None, "all", "each"])
def test_the_last_token_costs_one_and_says_the_same(mask):
    draw = torch.Generator().manual_seed(5)
    stack = Encoder(16, 24, layers=3, heads=2, head=8).double()
    x = torch.randn(3, 6, 16, generator=draw, dtype=torch.double, requires_grad=True)
    allowed = {None: None, "all": torch.rand(6, 6, generator=draw) > .4, "each": torch.rand(3, 1, 1, 6, generator=draw) > .4}[mask]
    if allowed is not None: allowed[..., -1] = True
    whole, last = stack(x, allowed)[:, -1], stack.last(x, allowed)
    assert last.shape == (3, 16) and torch.allclose(whole, last, atol=1e-12)
    wanted = list(stack.parameters())
    for one, other in zip(torch.autograd.grad(whole.square().sum(), [x, *wanted]), torch.autograd.grad(last.square().sum(), [x, *wanted]), strict=True): assert torch.allclose(one, other, atol=1e-10)
    assert torch.allclose(stack.last(x, allowed, fused=False), last, atol=1e-12)
