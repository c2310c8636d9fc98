"Motion prediction: what is cut, what is scored, what the decoder computes, and what is refused."
import math

import matplotlib
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hclab.core.metrics import MetricError
from hclab.core.skeleton import skeleton
from hclab.data.sequence_views import SequenceViewError
from hclab.tasks.motion_prediction import (FLOORS, HORIZONS, MotionPredictor, Pairs, PoseDecoder, PredictionConfig, PredictionError, compare, cut_pairs, error_map, fit_predictor, future_errors, horizon_frames, horizon_mpjpe, predict,
                                           prediction_loss, score_rows, show_prediction, simple_predictions)
from hclab.train.loop import LoopConfig

matplotlib.use("agg")
SMALL = PredictionConfig(past=10, future=6, stride=3, hidden=8, dropout=0.0, loop=LoopConfig(steps=60, batch=8, lr=1e-2, device="cpu"))


def gen(seed=0): return torch.Generator().manual_seed(seed)


class Mean(nn.Module):
    "Mean over real frames of a linear map."
    def __init__(self, joints, width=5):
        super().__init__()
        self.width, self.map = width, nn.Linear(3*joints, width)

    def forward(self, sequence, mask): return (self.map(sequence.flatten(2))*mask[..., None]).sum(1)/mask.sum(1, keepdim=True)


def predictor(config=SMALL, layout="H36M17", seed=0, **more):
    torch.manual_seed(seed)
    return MotionPredictor(Mean(len(skeleton(layout))), layout, PredictionConfig.from_dict({**config.to_dict(), "start_still": False, **more}))


def pairs(n=3, past=10, future=6, joints=17, seed=0):
    x = torch.randn(n, past + future, joints, 3, generator=gen(seed))
    return Pairs(x[:, :past], x[:, past:], torch.ones(n, future, dtype=torch.bool), torch.arange(n), torch.zeros(n, dtype=torch.int64))


# ------------------------------------------------------------------------------------------------ pairs
@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(1, 8), st.integers(1, 6), st.integers(1, 9), st.booleans())
@settings(max_examples=80, deadline=None)
def test_windows_by_a_loop(lengths, past, future, stride, partial):
    T = max(*lengths, 1)
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]
    x = torch.randn(len(lengths), T, 2, 3, generator=gen())*mask[..., None, None]
    wanted = [(b, s) for b, n in enumerate(lengths) for s in range(0, T, stride) if s + past + (1 if partial else future) <= n]
    if not wanted:
        with pytest.raises(PredictionError, match="the longest sequence has"): cut_pairs(x, mask, past, future, stride, partial)
        return
    got = cut_pairs(x, mask, past, future, stride, partial)
    assert list(zip(got.source.tolist(), got.start.tolist(), strict=True)) == wanted
    for k, (b, s) in enumerate(wanted):
        real = min(future, lengths[b] - s - past)
        assert torch.equal(got.past[k], x[b, s:s + past]) and torch.equal(got.future[k, :real], x[b, s + past:s + past + real])
        assert got.mask[k].tolist() == [True]*real + [False]*(future - real) and not got.future[k, real:].any()


def test_batches_follow_their_number():
    p = pairs(20)
    a, b, c, d = p.batch(3, 8, 1), p.batch(3, 8, 1), p.batch(4, 8, 1), p.batch(3, 8, 2)
    assert torch.equal(a["past"], b["past"]) and not torch.equal(a["past"], c["past"]) and not torch.equal(a["past"], d["past"])
    assert a["future"].shape == (8, 6, 17, 3) and len(p.select(p.source > 15)) == 4


# ------------------------------------------------------------------------------------------------ simple answers and scores
def test_standing_still_costs_nothing_where_nobody_moves():
    still = torch.randn(2, 1, 17, 3, generator=gen()).expand(-1, 40, -1, -1)
    p = cut_pairs(still, torch.ones(2, 40, dtype=torch.bool), 16, 20, 1)
    for row in compare({}, p).values():
        for result in row.values(): assert abs(result.value) < 1e-3 and result.n == len(p)


@given(st.integers(4, 12), st.integers(1, 20), st.floats(-.2, .2))
@settings(max_examples=30, deadline=None)
def test_on_a_straight_line(past, frames, speed):
    t = torch.arange(float(past + frames), dtype=torch.float64)[None, :, None, None]
    line = t*torch.tensor([speed, 0, 0], dtype=torch.float64) + torch.randn(1, 1, 5, 3, generator=gen(), dtype=torch.float64)
    real, k = torch.ones(1, frames, dtype=torch.bool), torch.arange(1., frames + 1)
    simple = simple_predictions(line[:, :past], frames)
    for name, late in zip(FLOORS, (0, None, .5, 1.5), strict=True):     # how many frames ago its pose was right
        errors = future_errors(simple[name], line[:, past:], real)[0, :, 0]
        assert torch.allclose(errors.float(), torch.zeros(frames) if late is None else 1000*abs(speed)*(k + late), atol=1e-3), name


def test_a_frame_of_each_horizon():
    assert horizon_frames(HORIZONS, 30, 20) == [2, 5, 11, 17] and horizon_frames(HORIZONS, 50, 30) == [4, 9, 19, 29] and horizon_frames((80, 320, 1000), 25, 25) == [1, 7, 24]
    assert horizon_frames((33.33, 133), 30, 20) == [0, 3], "milliseconds may be rounded"
    truth = torch.zeros(2, 20, 4, 3, dtype=torch.float64)
    guess = truth + torch.arange(1., 21.)[None, :, None, None]*torch.tensor([0, .003, .004])     # frame k is 5 (k+1) mm off
    scores = horizon_mpjpe(guess, truth, torch.ones(2, 20, dtype=torch.bool))
    assert [round(scores[f"{ms} ms"].value, 3) for ms in HORIZONS] == [15, 30, 60, 90] and round(scores["all"].value, 3) == 5*10.5
    assert all(round(r.value, 6) == 0 for r in horizon_mpjpe(guess, truth, torch.ones(2, 20, dtype=torch.bool), root=1).values()), "the root takes a common shift away"
    with pytest.raises(MetricError, match="protocol"): scores["all"] < horizon_mpjpe(guess, truth, torch.ones(2, 20, dtype=torch.bool), root=1)["all"]


def test_masked_futures_are_never_scored_nor_learnt():
    p = pairs()
    mask = p.mask.clone(); mask[0, 2:], mask[1] = False, False
    wild = torch.where(mask[..., None, None], p.future, torch.full_like(p.future, torch.nan))
    masked = Pairs(p.past, p.future*mask[..., None, None], mask, p.source, p.start)
    guess = p.future + .1
    naive = [1000*math.dist(guess[n, k, j].tolist(), p.future[n, k, j].tolist()) for n in range(3) for k in range(6) if mask[n, k] for j in range(17)]
    for prediction in (guess, torch.where(mask[..., None, None], guess, wild)):
        result = horizon_mpjpe(prediction, masked.future, mask, 30, (100,))
        assert abs(result["all"].value - sum(naive)/len(naive)) < 1e-3 and result["all"].n == 2 and result["100 ms"].n == 1
    model = predictor()
    batch = dict(past=p.past, future=masked.future, mask=mask)
    prediction_loss(model, batch)["mse"].backward()
    gradients = [w.grad.clone() for w in model.parameters()]
    model.zero_grad()
    prediction_loss(model, {**batch, "future": masked.future + 100*~mask[..., None, None]})["mse"].backward()
    assert all(torch.equal(a, w.grad) for a, w in zip(gradients, model.parameters(), strict=True)), "what is masked is not learnt"
    squares = [(model(p.past)[n, k] - p.future[n, k]).square().mean().item() for n in range(3) for k in range(6) if mask[n, k]]
    assert abs(prediction_loss(model, batch)["mse"].item() - sum(squares)/len(squares)) < 1e-4


def test_the_simple_answers_are_always_there():
    p = pairs()
    assert list(compare({"mine": p.future}, p, at_ms=(100,))) == [*FLOORS, "mine"]
    rows = score_rows(compare({"mine": p.future}, p, at_ms=(100,)))
    assert rows[-1] == {"prediction": "mine", "100 ms": 0.0, "all": 0.0}
    with pytest.raises(PredictionError, match="always scored"): compare({"zero velocity": p.future}, p)


# ------------------------------------------------------------------------------------------------ decoder and predictor
@pytest.mark.parametrize("detach", [True, False])
def test_the_decoder_by_its_equations(detach):
    torch.manual_seed(1)
    d = PoseDecoder(4, 3, 6, .5, detach, start_still=False).eval().double()
    code, pose = torch.randn(2, 4, generator=gen(), dtype=torch.float64), torch.randn(2, 3, 3, generator=gen(1), dtype=torch.float64)
    out = d(code, pose, 7)
    for n in range(2):
        first = d.start(code[n])
        h, c, x = first[:6], first[6:], pose[n].flatten()
        for k in range(7):
            gates = d.cell.weight_ih @ x + d.cell.bias_ih + d.cell.weight_hh @ h + d.cell.bias_hh
            i, f, g, o = gates[:6].sigmoid(), gates[6:12].sigmoid(), gates[12:18].tanh(), gates[18:].sigmoid()
            c = f*c + i*g
            h = o*c.tanh()
            x = x + d.step.weight @ h + d.step.bias
            assert torch.allclose(out[n, k].flatten(), x)


def test_detached_feedback_stops_the_gradient_through_poses_only():
    pose = torch.randn(2, 3, 3, generator=gen())
    grads = {}
    for detach in (True, False):
        torch.manual_seed(1)
        d = PoseDecoder(4, 3, 6, 0.0, detach, start_still=False)
        d(torch.randn(2, 4, generator=gen()), pose, 4)[:, -1].sum().backward()
        grads[detach] = d.step.bias.grad.clone()
        assert d.start.weight.grad.abs().sum() > 0, "the state always carries it"
    assert torch.allclose(grads[True], torch.full_like(grads[True], 2.0)), "one step a window: the last"
    assert not torch.allclose(grads[False], grads[True]) and grads[False].abs().max() > 4


def test_moved_scene_moved_prediction_and_padding():
    model, x, shift = predictor().eval(), pairs().past, torch.tensor([5.0, -3.0, 1.0])
    here = model(x)
    assert here.shape == (3, 6, 17, 3) and torch.allclose(model(x + shift), here + shift, atol=1e-4)
    assert not torch.allclose(predictor(centre=False).eval()(x + shift), predictor(centre=False).eval()(x) + shift, atol=1e-2)
    padded, mask = torch.cat([x, torch.zeros(3, 5, 17, 3)], 1), torch.arange(15).expand(3, -1) < 10
    assert torch.allclose(model(padded, mask), here, atol=1e-5)
    assert torch.equal(predict(model, x, size=2), torch.cat([predict(model, x[:2]), predict(model, x[2:])])) and model.training is False


def test_untrained_it_stands_still_and_it_can_learn_a_window_by_heart():
    t = torch.arange(16.)[None, :, None, None]
    x = torch.randn(8, 1, 17, 3, generator=gen()) + .05*t*torch.randn(8, 1, 17, 3, generator=gen(1))
    p = Pairs(x[:, :10], x[:, 10:], torch.ones(8, 6, dtype=torch.bool), torch.arange(8), torch.zeros(8, dtype=torch.int64))
    model = predictor(start_still=True, hidden=32)
    assert torch.allclose(predict(model, p.past), simple_predictions(p.past, 6)["zero velocity"], atol=1e-6)
    before = prediction_loss(model, p.batch(0, 8))["mse"].item()
    curve = fit_predictor(model, p)
    assert prediction_loss(model, p.batch(0, 8))["mse"].item() < .3*before
    again = predictor(start_still=True, hidden=32)
    assert fit_predictor(again, p)[-1]["mse"] == curve[-1]["mse"], "the same seed, the same curve"


# ------------------------------------------------------------------------------------------------ pictures
def test_the_map_reads_limbs_outwards_and_means_errors():
    import matplotlib.pyplot as plt
    p, s = pairs(4, future=6), skeleton("H36M17")
    errors = future_errors(p.future + torch.arange(17.)[:, None]*.01, p.future, p.mask)
    image = error_map(errors, p.mask, s, 30)
    names = [label.get_text() for label in image.axes.get_yticklabels()]
    assert names[:6] == ["left hip", "left knee", "left foot", "left shoulder", "left elbow", "left wrist"] and len(names) == 17
    row = names.index("right wrist")
    assert abs(float(image.get_array()[row, 0]) - 1000*.16*3**.5) < 1e-2
    fig = show_prediction(p.future[0], {"a": p.future[0], "b": p.future[0] + .1}, s, 30, (100, 200))
    assert [ax.get_title() or ax.get_title(loc="left") for ax in fig.axes] == ["100 ms: 0 mm", "200 ms: 0 mm", "100 ms: 173 mm", "200 ms: 173 mm"]
    plt.close("all")


# ------------------------------------------------------------------------------------------------ refusals
FULL = torch.ones(1, 6, dtype=torch.bool)


class Wrong(Mean):
    def forward(self, sequence, mask): return super().forward(sequence, mask)[:, :-1]


@pytest.mark.parametrize("call, words", [
    (lambda: cut_pairs(torch.ones(1, 15, 17, 3), torch.ones(1, 15, dtype=torch.bool), 10, 6), "15 frames, a window needs 10 \\+ 6"), (lambda: cut_pairs(torch.ones(1, 15, 17, 3), torch.ones(1, 15, dtype=torch.bool), 10, 5, 0), "at least one frame"),
    (lambda: PredictionConfig(past=0), "past=0"), (lambda: PredictionConfig(dropout=1.0), "dropout=1.0"), (lambda: simple_predictions(torch.zeros(1, 3, 17, 3), 5), "at least 4 frames"),
    (lambda: horizon_frames((150,), 30, 20), "133.3 or 166.7 ms"), (lambda: horizon_frames((700,), 30, 20), "frame 21 of a prediction of 20"), (lambda: horizon_frames((0,), 30, 20), "frame 0"),
    (lambda: future_errors(torch.zeros(1, 6, 17, 3), torch.zeros(1, 5, 17, 3), FULL), "expected"), (lambda: future_errors(torch.zeros(1, 6, 17, 3), torch.zeros(1, 6, 17, 3), ~FULL), "nothing can be scored"),
    (lambda: future_errors(torch.full((1, 6, 17, 3), torch.nan), torch.zeros(1, 6, 17, 3), FULL), "window 0, frame 0 is not finite"), (lambda: horizon_mpjpe(torch.zeros(1, 6, 17, 3), torch.zeros(1, 6, 17, 3), torch.arange(6)[None] < 2, 30, (100,)), "real frame at 100 ms"),
    (lambda: MotionPredictor(nn.Identity(), "H36M17"), "no whole number `width`"), (lambda: predictor()(torch.zeros(1, 10, 16, 3)), "17, 3\\) metres of H36M17"), (lambda: predictor()(torch.zeros(1, 10, 17, 3), torch.zeros(1, 10, dtype=torch.bool)), "no real frame"),
    (lambda: MotionPredictor(Wrong(17), "H36M17", SMALL)(torch.zeros(2, 10, 17, 3)), r"gave \(2, 4\), expected \(2, 5\)"), (lambda: error_map(torch.zeros(1, 6, 5), FULL, "COCO17"), "of COCO17")])
def test_refusals_say_what_to_do(call, words):
    with pytest.raises(PredictionError, match=words): call()


def test_nan_is_refused_before_it_is_cut():
    x = torch.ones(1, 20, 17, 3); x[0, 7, 2] = torch.nan
    with pytest.raises(SequenceViewError, match="joint 2 in frame 7"): cut_pairs(x, torch.ones(1, 20, dtype=torch.bool), 10, 6)
