"Schedules are pure functions: exact at their ends, continuous where they should be, and a resumed curve is the rest of the whole one."
import math

import pytest, torch
from hypothesis import given, settings, strategies as st
from hclab.core.config import ConfigError
from hclab.train.schedule import KINDS, Schedule, set_schedules

values = st.floats(1e-6, 10.0)
SMOOTH = ("linear", "cosine", "polynomial", "exponential", "constant")


@st.composite
def schedules(draw, kinds=tuple(KINDS)):
    steps = draw(st.integers(2, 5000))
    return Schedule(draw(st.sampled_from(kinds)), start=draw(values), end=draw(values), steps=steps, warmup=draw(st.integers(0, steps - 1)), warmup_start=draw(values),
                    power=draw(st.floats(1.0, 3.0)), gamma=draw(st.floats(0.5, 1.0)), every=draw(st.integers(20, 2000)), milestones=tuple(sorted(draw(st.lists(st.integers(0, 5000), max_size=3)))))


@settings(max_examples=150, deadline=None)
@given(schedules())
def test_ends(s):
    assert s(s.warmup) == pytest.approx(s.start*(s.gamma**sum(m <= s.warmup for m in s.milestones) if s.kind == "step" else 1))
    if s.warmup: assert s(0) == pytest.approx(s.warmup_start)
    if "end" in KINDS[s.kind]: assert s(s.steps) == pytest.approx(s.end) and s(10*s.steps) == s(s.steps)


@settings(max_examples=150, deadline=None)
@given(schedules(SMOOTH), st.floats(0, 6000))
def test_no_jump_at_any_point(s, at):
    "The slope of none of these exceeds the range of values times (pi + power) over the shortest stretch."
    reach = max(s.start, s.end, s.warmup_start)
    shortest = min(x for x in (s.warmup or 1e9, s.steps - s.warmup, s.every))
    for point in (at, s.warmup, s.steps): assert abs(s(point + 1e-4) - s(max(0.0, point - 1e-4))) <= 2e-4*reach*(math.pi + s.power)/shortest + 1e-9*reach


@settings(max_examples=100, deadline=None)
@given(schedules(), st.data())
def test_resume_has_no_step(s, data):
    "Settings that went through a checkpoint's JSON give the same floats, from any step on."
    at = data.draw(st.integers(0, s.steps))
    again = Schedule.from_json(s.to_json())
    assert [s(i) for i in range(at, at + 5)] == [again(i) for i in range(at, at + 5)] and again.hash() == s.hash()


@settings(max_examples=100, deadline=None)
@given(schedules(("linear", "cosine", "polynomial")))
def test_between_its_ends_and_one_way(s):
    way = [s(s.warmup + (s.steps - s.warmup)*i/50) for i in range(51)]
    assert min(s.start, s.end) - 1e-9 <= min(way) and max(way) <= max(s.start, s.end) + 1e-9
    assert all((b - a)*(s.end - s.start) >= -1e-12 for a, b in zip(way, way[1:]))


@pytest.mark.parametrize("wrong, words", [
    (dict(kind="cosin", steps=3), "did you mean 'cosine'"), (dict(kind="linear"), "give the length of the run"), (dict(kind="cosine", steps=5, warmup=5), "must be more than warmup=5"),
    (dict(warmup=-1), "no fewer than 0"), (dict(kind="exponential", every=0), "falls by gamma"), (dict(kind="step", milestones=(3, 1)), "must rise"),
    (dict(kind="step", gamma=0.0), "must be positive"), (dict(kind="polynomial", steps=3, power=0.0), "must be positive"), (dict(end=math.inf), "finite")])
def test_what_cannot_be_meant(wrong, words):
    with pytest.raises(ConfigError, match=words): Schedule(**wrong)


def test_bad_steps_and_groups():
    for step in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="from step 0 on"): Schedule()(step)
    w = torch.nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.SGD([dict(params=[w], lr_scale=0.5)], lr=1.0, weight_decay=0.1)
    decay = Schedule("linear", start=0.0, end=1.0, steps=10)
    for step, want in ((0, 0.0), (5, 0.5)):
        assert set_schedules(optimiser, step, lr=Schedule(start=0.2), weight_decay=decay) == {"lr": 0.2, "weight_decay": want}
        assert optimiser.param_groups[0]["lr"] == pytest.approx(0.1) and optimiser.param_groups[0]["weight_decay"] == want, "a decay that starts at 0 comes back"
    with pytest.raises(ValueError, match="no 'momentun'; did you mean 'momentum'"): set_schedules(optimiser, 0, momentun=decay)
