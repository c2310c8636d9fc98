"Banks and teachers against naive loops, and their states after a restart."
import copy, math

import pytest, torch
from torch import nn
from hclab.core.io import load_tensors, save_tensors
from hclab.train.memory_bank import FeatureQueue, MemoryBank, draw_negatives
from hclab.train.schedule import Schedule
from hclab.train.teacher import Teacher, ema_update


def generator(seed=0): return torch.Generator().manual_seed(seed)


def rows(seed, *shape): return torch.randn(*shape, generator=generator(seed))


@pytest.mark.parametrize("sizes", [[3, 3, 3], [1]*9, [7, 2], [20], [0, 5, 0], [5, 5]])
def test_queue_is_a_list_that_forgets(sizes):
    queue = FeatureQueue(5, 4, generator())
    kept = list(queue.rows.clone())
    for i, n in enumerate(sizes):
        new = rows(i, n, 4)
        queue.push(new)
        kept = (kept + [x/x.norm() for x in new])[-5:]
    in_order = queue.rows.roll(-int(queue.cursor), 0)
    assert torch.allclose(in_order, torch.stack(kept), atol=1e-6)


def test_bank_is_a_loop_over_samples():
    bank, index, features = MemoryBank(6, 4, generator(), momentum=0.8), torch.tensor([4, 0, 4, 2]), rows(1, 4, 4)
    want = bank.rows.clone()
    for i in (0, 2, 4):
        mean = torch.stack([f/f.norm() for f, j in zip(features, index.tolist()) if j == i]).mean(0)
        want[i] = 0.8*want[i] + 0.2*mean
        want[i] /= want[i].norm()
    bank.update(index, features)
    assert torch.allclose(bank.rows, want, atol=1e-6)


def test_absent_and_zero_features_leave_a_direction():
    bank = MemoryBank(4, 3, generator())
    before = bank.rows.clone()
    bank.update(torch.arange(4), torch.stack([before[0], -before[1], torch.zeros(3), torch.full((3,), math.nan)]), present=torch.tensor([True, True, True, False]))
    assert torch.allclose(bank.rows, before, atol=1e-6)
    bank.update(torch.arange(4), rows(0, 4, 3), present=torch.zeros(4, dtype=torch.bool))
    assert torch.allclose(bank.rows.norm(dim=1), torch.ones(4))


def test_first_rows_come_from_the_generator_alone():
    torch.manual_seed(1)
    a = MemoryBank(5, 3, generator(7)).rows
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(MemoryBank(5, 3, generator(7)).rows, a) and torch.equal(torch.get_rng_state(), state) and not torch.equal(MemoryBank(5, 3, generator(8)).rows, a)


@pytest.mark.parametrize("make", [lambda seed: FeatureQueue(5, 4, generator(seed)), lambda seed: MemoryBank(5, 4, generator(seed))])
def test_restart_through_a_tensor_file(make, tmp_path):
    def step(m, i): m.push(rows(i, 3, 4)) if isinstance(m, FeatureQueue) else m.update(torch.tensor([0, 3, 4]), rows(i, 3, 4))
    whole = make(0)
    for i in range(6): step(whole, i)
    first = make(0)
    for i in range(3): step(first, i)
    save_tensors(tmp_path/"bank.safetensors", first.state_dict())
    second = make(99)
    second.load_state_dict(load_tensors(tmp_path/"bank.safetensors"))
    for i in range(3, 6): step(second, i)
    for key, value in whole.state_dict().items(): assert torch.equal(value, second.state_dict()[key])


def test_draws_are_fair_and_leave_the_own_row_out():
    own = torch.arange(6)
    drawn = draw_negatives(6, 6, 20_000, generator(), own)
    counts = torch.stack([r.bincount(minlength=6) for r in drawn])
    assert (counts.diagonal() == 0).all() and (counts[~torch.eye(6, dtype=torch.bool)]/20_000 - 0.2).abs().max() < 0.02
    assert torch.equal(drawn, draw_negatives(6, 6, 20_000, generator(), own)) and int(draw_negatives(6, 2, 5000, generator()).max()) == 5


def test_wrong_use_of_banks():
    with pytest.raises(ValueError, match="share of the old row"): MemoryBank(3, 2, generator(), momentum=1.0)
    with pytest.raises(ValueError, match="at least 1"): FeatureQueue(0, 2, generator())
    with pytest.raises(ValueError, match="another data set"): MemoryBank(3, 2, generator()).update(torch.tensor([-1]), torch.ones(1, 2))
    with pytest.raises(ValueError, match="one int64 index a feature"): MemoryBank(3, 2, generator()).update(torch.tensor([0, 1]), torch.ones(1, 2))


# ------------------------------------------------------------------------------------------------ teacher
def network(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def shaken(net, seed):
    with torch.no_grad():
        for i, p in enumerate(net.parameters()): p.add_(0.1*torch.randn(p.shape, generator=generator(100*seed + i)))
    net(rows(seed, 8, 4))
    return net


@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_teacher_is_a_naive_loop(buffers):
    student, momentum = network(0), Schedule("cosine", start=0.9, end=1.0, steps=20)
    teacher = Teacher(student, momentum, buffers)
    naive = {k: v.clone() for k, v in student.state_dict().items()}
    statistics = {k for k, _ in student.named_buffers()}
    for step in range(25):
        shaken(student, step)
        m = teacher.update(student, step)
        assert m == momentum(step)
        for k, v in student.state_dict().items():
            averaged = v.is_floating_point() and (k not in statistics or buffers == "average")
            naive[k] = m*naive[k] + (1 - m)*v if averaged else v.clone()
    for k, v in teacher.model.state_dict().items(): assert torch.allclose(v, naive[k], atol=1e-6), k


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["0.weight", "2.bias", "1.running_var"])
def test_a_bad_student_does_not_reach_the_teacher(bad, where):
    student = network(0)
    teacher = Teacher(student)
    before = copy.deepcopy(teacher.state_dict())
    with torch.no_grad(): student.state_dict()[where].view(-1)[-1] = bad
    with pytest.raises(FloatingPointError, match="left as it was"): teacher.update(student, 0)
    for k, v in teacher.state_dict().items(): assert torch.equal(v, before[k])


def test_teacher_gives_constants_and_keeps_its_mode():
    student = network(0)
    for training in (True, False):
        teacher = Teacher(student, training=training)
        for mode in (True, False): assert teacher.train(mode).model.training is training
        assert not teacher(rows(0, 8, 4).requires_grad_()).requires_grad and not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters()) and {id(p) for p in student.parameters()}.isdisjoint(id(p) for p in Teacher(student).parameters())


def test_restart_of_a_teacher(tmp_path):
    def run(student, teacher, steps):
        for i in steps: shaken(student, i); teacher.update(student, i)
    momentum = Schedule("cosine", start=0.9, end=1.0, steps=10)
    a = network(0)
    whole = Teacher(a, momentum)
    run(a, whole, range(6))
    b = network(0)
    first = Teacher(b, momentum)
    run(b, first, range(3))
    save_tensors(tmp_path/"teacher.safetensors", first.state_dict())
    second = Teacher(network(5), momentum)
    second.load_state_dict(load_tensors(tmp_path/"teacher.safetensors"))
    run(b, second, range(3, 6))
    for k, v in whole.state_dict().items(): assert torch.equal(v, second.state_dict()[k])


def test_half_precision_students_have_a_full_precision_teacher():
    student = network(0).bfloat16()
    teacher = Teacher(student, Schedule(start=0.999))
    with torch.no_grad():
        for p in student.parameters(): p.add_(1.0)
    before = teacher.model[0].weight.clone()
    for step in range(10): teacher.update(student, step)
    assert teacher.model[0].weight.dtype == torch.float32 and torch.allclose(teacher.model[0].weight - before, torch.full((5, 4), 1 - 0.999**10), atol=1e-4)


def test_wrong_use_of_teachers():
    with pytest.raises(ValueError, match="differ in '2.bias'|differ in '2.weight'"): ema_update(network(0), nn.Sequential(*list(network(0))[:2]), 0.9)
    with pytest.raises(ValueError, match="differ in '0.weight'"): ema_update(nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(2, 2)), 0.9)
    with pytest.raises(ValueError, match="copy, average"): Teacher(network(0), buffers="both")
