"Every loss against a loop written here, a closed form at a degenerate point, a symmetry, and gradcheck in float64."
import math

import pytest, torch
from hclab.train.losses.contrastive import bank_info_nce, cross_modal_info_nce, info_nce, nt_xent, symmetric_info_nce, unit_rows
from hclab.train.losses import contrastive
from hclab.train.losses.distillation import DinoLoss, dino_loss, teacher_entropies
from hclab.train.losses.reconstruction import masked_reconstruction, patchify, random_mask, unpatchify


def rows(seed, *shape, scale=1.0):
    return scale*torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(x): return x/x.norm(dim=-1, keepdim=True)


def loop(anchors, positives, negatives, temperature, valid=None):
    "Anchor by anchor: negatives is a list of rows an anchor; sums of exponentials in plain Python numbers."
    total, count = 0.0, 0
    for i, (a, p) in enumerate(zip(unit(anchors), unit(positives))):
        if valid is not None and not valid[i]: continue
        logits = [float(a @ p)/temperature] + [float(a @ n)/temperature for n in negatives[i]]
        top = max(logits)
        total += -logits[0] + top + math.log(sum(math.exp(l - top) for l in logits))
        count += 1
    return total/count


def others(z, i, *without): return [row for j, row in enumerate(unit(z)) if j != i and j not in without]


# ------------------------------------------------------------------------------------------------ InfoNCE
@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_nt_xent_is_the_loop(temperature):
    a, b = rows(0, 9, 6), rows(1, 9, 6)
    z, positives = torch.cat([a, b]), torch.cat([b, a])
    negatives = [others(z, i, (i + 9) % 18) for i in range(18)]
    assert float(nt_xent(a, b, temperature)) == pytest.approx(loop(z, positives, negatives, temperature), rel=1e-10)


@pytest.mark.parametrize("valid", [None, torch.tensor([True, False, True, True, False])])
def test_info_nce_is_the_loop(valid):
    a, k, positive = rows(0, 5, 6), rows(1, 8, 6), torch.tensor([7, 0, 7, 3, 2])
    negatives = [others(k, int(p)) for p in positive]
    assert float(info_nce(a, k, positive, 0.1, valid)) == pytest.approx(loop(a, k[positive], negatives, 0.1, valid), rel=1e-10)


def test_symmetric_is_the_mean_of_both_directions():
    a, b = rows(0, 5, 6), rows(1, 5, 6)
    ways = [loop(x, y, [others(y, i) for i in range(5)], 0.1) for x, y in ((a, b), (b, a))]
    assert float(symmetric_info_nce(a, b, 0.1)) == pytest.approx(sum(ways)/2, rel=1e-10)
    valid = torch.tensor([True, True, False, True, False])
    assert torch.allclose(symmetric_info_nce(a, b, 0.1, valid), symmetric_info_nce(a[valid], b[valid], 0.1)), "a sample without a modality is no key either"


@pytest.mark.parametrize("draws", [None, 13])
def test_bank_is_the_loop(draws):
    a, p, bank = rows(0, 5, 6), rows(1, 5, 6), unit(rows(2, 11, 6))
    drawn = None if draws is None else torch.randint(11, (5, draws), generator=torch.Generator().manual_seed(3))
    negatives = [list(bank) if drawn is None else [bank[j] for j in drawn[i]] for i in range(5)]
    assert drawn is None or any(len(set(row.tolist())) < draws for row in drawn), "the test wants repetitions"
    assert float(bank_info_nce(a, p, bank, drawn, 0.07)) == pytest.approx(loop(a, p, negatives, 0.07), rel=1e-10)


def test_cross_modal_terms_are_bank_losses():
    features = {m: rows(i, 6, 4) for i, m in enumerate("abc")}
    banks = {m: unit(rows(10 + i, 9, 4)) for i, m in enumerate("abc")}
    present = {"a": torch.tensor([1, 1, 0, 1, 1, 0], dtype=torch.bool), "b": torch.tensor([1, 0, 1, 1, 1, 1], dtype=torch.bool)}
    terms = cross_modal_info_nce(features, banks, present=present)
    assert len(terms) == 6
    for name, value in terms.items():
        s, t = name.split("->")
        both = present.get(s, torch.ones(6, dtype=torch.bool)) & present.get(t, torch.ones(6, dtype=torch.bool))
        assert float(value) == pytest.approx(loop(features[s], features[t], [list(banks[t])]*6, 0.07, both), rel=1e-10), name


@pytest.mark.parametrize("piece", [1, 17, 40, 10**9])
def test_pieces_do_not_matter(piece, monkeypatch):
    a, b = (rows(s, 40, 8).requires_grad_() for s in (0, 1))
    whole = torch.autograd.grad(nt_xent(a, b, 0.1), (a, b))
    monkeypatch.setitem(contrastive._CACHE, "cpu", piece*80)
    for x, y in zip(whole, torch.autograd.grad(nt_xent(a, b, 0.1), (a, b))): assert torch.allclose(x, y, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_contrastive_closed_forms(n):
    same = torch.ones(n, 5, dtype=torch.float64)
    assert float(nt_xent(same, same)) == pytest.approx(math.log(2*n - 1) if n > 1 else 0.0, abs=1e-12)
    assert float(info_nce(same, same)) == pytest.approx(math.log(n), abs=1e-12)
    assert float(bank_info_nce(same, same, unit(same))) == pytest.approx(math.log(n + 1), abs=1e-12)
    axes = torch.eye(7, dtype=torch.float64)[:n]
    assert float(info_nce(axes, axes, temperature=0.5)) == pytest.approx(math.log(1 + (n - 1)*math.exp(-2)), abs=1e-12)


def test_contrastive_symmetries():
    a, b, order = rows(0, 7, 5), rows(1, 7, 5), torch.randperm(7, generator=torch.Generator().manual_seed(2))
    turn = torch.linalg.qr(rows(3, 5, 5)).Q
    for same in (nt_xent(b, a), nt_xent(a[order], b[order]), nt_xent(3*a, 0.2*b), nt_xent(a @ turn, b @ turn)): assert torch.allclose(same, nt_xent(a, b))
    assert torch.allclose(symmetric_info_nce(a, b), symmetric_info_nce(b, a))
    bank = unit(rows(4, 9, 5))
    assert torch.allclose(bank_info_nce(a, b, bank), bank_info_nce(a, b, bank.flip(0)))


@pytest.mark.parametrize("loss", [
    lambda a, b, bank: nt_xent(a, b, 0.1), lambda a, b, bank: symmetric_info_nce(a, b, 0.1), lambda a, b, bank: info_nce(a, b, torch.tensor([3, 0, 0, 2]), 0.1, torch.tensor([True, True, False, True])),
    lambda a, b, bank: bank_info_nce(a, b, bank, None, 0.1), lambda a, b, bank: bank_info_nce(a, b, bank, torch.tensor([[0, 0, 1], [2, 3, 4], [4, 4, 4], [1, 2, 0]]), 0.1),
    lambda a, b, bank: sum(cross_modal_info_nce({"x": a, "y": b}, {"x": bank, "y": bank}).values())])
def test_contrastive_gradients(loss):
    assert torch.autograd.gradcheck(loss, (rows(0, 4, 3).requires_grad_(), rows(1, 4, 3).requires_grad_(), unit(rows(2, 5, 3))))


def test_no_gradient_no_work():
    a = rows(0, 4, 3).requires_grad_()
    with torch.no_grad(): assert not nt_xent(a, a).requires_grad
    assert not nt_xent(a.detach(), a.detach()).requires_grad
    detached = bank_info_nce(a, rows(1, 4, 3), unit(rows(2, 5, 3)).requires_grad_())
    detached.backward()
    assert a.grad is not None


# ------------------------------------------------------------------------------------------------ DINO
def slow_dino(student, teacher, centre, cold, hot):
    total, pairs = 0.0, 0
    for t, p in enumerate(teacher):
        for v, s in enumerate(student):
            if t == v: continue
            q = torch.softmax((p - centre)/cold, -1)
            total, pairs = total - (q*torch.log_softmax(s/hot, -1)).sum(-1).mean(), pairs + 1
    return total/pairs


@pytest.mark.parametrize("large, small", [(2, 8), (2, 0), (1, 1), (3, 2)])
def test_dino_is_the_loop(large, small):
    student, teacher, centre = list(rows(0, large + small, 4, 9)), list(rows(1, large, 4, 9)), rows(2, 9)
    for s in student: s.requires_grad_()
    ours, theirs = dino_loss(student, teacher, centre, 0.1, 0.04), slow_dino(student, teacher, centre, 0.04, 0.1)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-10)
    for a, b in zip(torch.autograd.grad(ours, student, allow_unused=True), torch.autograd.grad(theirs, student, allow_unused=True)):
        assert (a is None and b is None) or torch.allclose(a, b, atol=1e-12)


def test_dino_gradients_closed_form_and_pairs():
    student, teacher = [x.clone().requires_grad_() for x in rows(0, 4, 3, 5)], list(rows(1, 2, 3, 5))
    assert torch.autograd.gradcheck(lambda *s: dino_loss(s, teacher, 0.1, 0.2, 0.3), student)
    flat = [torch.zeros(2, 64)]*10
    assert float(dino_loss(flat, flat[:2])) == pytest.approx(math.log(64), rel=1e-6)
    t = teacher[0].requires_grad_()
    dino_loss(student, teacher).backward()
    assert t.grad is None, "nothing flows into the teacher"


def test_dino_at_the_published_size():
    "Independent logits of a normalised head start near 11.27 with K = 65,536 (ln K = 11.09)."
    draw = torch.Generator().manual_seed(0)
    head = unit_rows(torch.randn(65_536, 64, generator=draw))
    s, t = ([unit_rows(torch.randn(1, 64, generator=draw)) @ head.T for _ in range(n)] for n in (4, 2))
    assert 10.2 < float(dino_loss(s, t)) < 13


def test_centre_is_the_running_mean():
    loss, want = DinoLoss(6, centre_momentum=0.7), torch.zeros(6)
    for step in range(5):
        teacher = [rows(step, 3, 6).float(), rows(50 + step, 3, 6).float()]
        loss([*teacher, teacher[0]], teacher)
        want = 0.7*want + 0.3*torch.cat(teacher).mean(0)
    assert torch.allclose(loss.centre, want, atol=1e-6)


def test_entropies_tell_collapse_apart():
    certain = [50*torch.eye(8)]
    assert teacher_entropies(certain)["used"] == pytest.approx(1.0) and teacher_entropies(certain)["unsure"] == pytest.approx(0.0, abs=1e-6)
    assert teacher_entropies([torch.zeros(3, 8)]) == pytest.approx({"used": 1.0, "unsure": 1.0})
    assert teacher_entropies([50*torch.eye(8)[:1].repeat(4, 1)]) == pytest.approx({"used": 0.0, "unsure": 0.0}, abs=1e-6)


# ------------------------------------------------------------------------------------------------ reconstruction
@pytest.mark.parametrize("normalise", [True, False])
def test_reconstruction_is_the_loop(normalise):
    said, truth, mask = rows(0, 3, 10, 12), rows(1, 3, 10, 12), random_mask(3, 10, 0.7, torch.Generator().manual_seed(0))
    errors = []
    for b, l in mask.nonzero().tolist():
        t = truth[b, l]
        if normalise: t = (t - t.mean())/(t.var() + 1e-6).sqrt()
        errors.append(float(((said[b, l] - t)**2).mean()))
    assert float(masked_reconstruction(said, truth, mask, normalise)) == pytest.approx(sum(errors)/len(errors), rel=1e-10)
    assert torch.autograd.gradcheck(lambda x: masked_reconstruction(x, truth, mask, normalise), said.requires_grad_())


def test_reconstruction_closed_forms():
    truth, mask = rows(0, 2, 6, 48), random_mask(2, 6, 0.5, torch.Generator().manual_seed(0))
    assert masked_reconstruction(truth, truth, mask, normalise=False) == 0
    assert float(masked_reconstruction(0*truth, truth, mask)) == pytest.approx(47/48, rel=1e-4), "unbiased variance: (D - 1)/D for a prediction of zero"
    assert torch.allclose(masked_reconstruction(rows(1, 2, 6, 48), truth, mask), masked_reconstruction(rows(1, 2, 6, 48), 3*truth + 0.4, mask), atol=1e-4), "brightness and contrast do not count"


@pytest.mark.parametrize("size, patch", [((64, 32), 8), ((16, 48), 16), ((5, 7), 1)])
def test_patches_tile_any_rectangle(size, patch):
    images = rows(0, 2, 3, *size)
    assert torch.equal(unpatchify(patchify(images, patch), size, patch), images)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.75, 1.0])
def test_masks_hide_exactly_as_many(ratio):
    mask = random_mask(50, 40, ratio, torch.Generator().manual_seed(1))
    assert (mask.sum(1) == round(40*ratio)).all() and torch.equal(mask, random_mask(50, 40, ratio, torch.Generator().manual_seed(1)))
    assert ratio in (0.0, 1.0) or (mask.double().mean(0) - ratio).abs().max() < 0.35, "every place is hidden now and then"
