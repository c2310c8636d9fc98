"""Callbacks that a notebook cannot show: TensorBoard's files, the live bar, bfloat16 and the memory of an early stop."""
import pytest
import torch
from torch import nn

from hclab.core.config import ConfigError
from hclab.train.callbacks import EarlyStop, Progress, TensorBoard
from hclab.train.loop import LoopConfig, fit, seeded

X = torch.linspace(-1, 1, 64)[:, None]
CONFIG = LoopConfig(steps=40, lr=0.01, log_every=10, save_every=10, device="cpu")


def train(config=CONFIG, **more):
    with seeded(0): model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))
    return fit(model, lambda number: {"x": X, "y": 3*X}, lambda m, b: {"mse": (m(b["x"]) - b["y"]).square().mean()}, config, **more)


def test_tensorboard_files_hold_the_curve(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    curve = train(folder=tmp_path, callbacks=[TensorBoard()])
    events = reader.EventAccumulator(str(tmp_path/"tensorboard"))
    events.Reload()
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("mse")] == [(row["step"], row["mse"]) for row in curve]


def test_the_live_bar_changes_no_number_and_closes():
    bar = Progress(live=True)
    assert train(callbacks=[bar]) == train() and bar.bar.finished


def test_bfloat16_trains_and_is_another_precision():
    half, full = train(LoopConfig(**{**CONFIG.to_dict(), "precision": "bfloat16"})), train()
    assert half[-1]["mse"] < 0.8*half[0]["mse"] and half != full and abs(half[-1]["mse"] - full[-1]["mse"]) < 0.1*full[-1]["mse"]


def test_an_early_stop_is_final(tmp_path):
    stop = lambda: EarlyStop("mse", patience=1, least=100.0)
    first = train(folder=tmp_path, callbacks=[stop()])
    assert first[-1]["step"] < 40 and train(folder=tmp_path, callbacks=[stop()]) == first, "a run that stopped early must not go on when it is called again"


@pytest.mark.parametrize("wrong", [dict(precision="float16"), dict(device="gpu"), dict(nonfinite="ignore"), dict(accumulate=0)])
def test_settings_that_cannot_be_meant(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))): LoopConfig(**wrong)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("limit", [0.0, 0.1, 1e9])
def test_clipping_shortens_the_whole_gradient_and_tells_its_length_before(limit, accumulate):
    "One step of plain descent with rate 1 moves the weights by the gradient itself."
    with seeded(0): model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))
    before = [p.detach().clone() for p in model.parameters()]
    loss = lambda m, b: {"mse": (m(b["x"]) - b["y"]).square().mean()}
    want = torch.autograd.grad(loss(model, {"x": X, "y": 3*X})["mse"], list(model.parameters()))
    norm = torch.cat([g.flatten() for g in want]).norm().item()
    assert norm > 0.2
    config = LoopConfig(steps=1, lr=1.0, clip_norm=limit, accumulate=accumulate, log_every=1, device="cpu")
    part = lambda number: {"x": X[number::accumulate], "y": 3*X[number::accumulate]}
    [row] = fit(model, part, loss, config, make_optimiser=lambda m: torch.optim.SGD(m.parameters(), lr=1.0))
    factor = limit/norm if 0 < limit < norm else 1.0
    for p, old, g in zip(model.parameters(), before, want, strict=True): assert torch.allclose(old - p, factor*g, atol=1e-5)
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-5)
