"The puzzle: what is cut, what is asked, how answers are read."
import itertools

import numpy as np
import pytest
import torch

from hclab.core.heatmap import HeatmapConfig
from hclab.tasks.puzzle import (ENCODINGS, PatchHead, PooledHead, PuzzleConfig, PuzzleError, assigned, beliefs, centres, chance, check_permutations, class_loss, cut, draw_permutations, inverse, lay, puzzle_scores, read_maps,
                                squared, targets)


def gen(seed=0): return torch.Generator().manual_seed(seed)


small = PuzzleConfig(size=60, gap=2, centres="true", maps=HeatmapConfig(size=(15, 15), stride=4.0, sigma=1.7, background="first"))


def test_the_reports_example_of_a_label():
    "label[p] = original index of the patch now at p; [8,5,1,9,3,7,6,2,4] counted from 1."
    perm = torch.tensor([[8, 5, 1, 9, 3, 7, 6, 2, 4]]) - 1
    numbers = torch.arange(9.)[None, :, None, None, None].expand(1, 9, 3, 18, 18)/10      # patch k is grey k/10
    laid = lay(numbers, perm, small)
    for place, field in enumerate([7, 4, 0, 8, 2, 6, 5, 1, 3]):
        y, x = divmod(place, 3)
        assert torch.allclose(laid[0, :, 20*y:20*y + 18, 20*x:20*x + 18], torch.tensor(field/10.))
    assert torch.allclose(laid[0, 0, 18:20], torch.tensor(128/255)), "gaps are grey"


def test_one_in_eight_is_the_chance_of_derangements():
    perms = [p for p in itertools.permutations(range(5)) if all(i != j for i, j in enumerate(p))]
    right = np.mean([np.mean(np.equal(p, q)) for p in perms for q in perms])
    assert len(perms) == 44 and abs(100*right - 100/4) < 1e-9, "with five patches by enumeration: one in four"
    assert chance(PuzzleConfig()) == 12.5 and abs(chance(PuzzleConfig(deranged=False)) - 100/9) < 1e-9


def test_draws_are_permutations_and_follow_the_generator():
    for deranged in (True, False):
        c = PuzzleConfig(deranged=deranged)
        a, b = (draw_permutations(c, 500, gen(3)) for _ in range(2))
        assert torch.equal(a, b) and a.shape == (500, 9) and (a.sort(1).values == torch.arange(9)).all()
        assert bool((a == torch.arange(9)).any()) != deranged
        counts = torch.bincount(draw_permutations(c, 40_000, gen(4))[:, 0], minlength=9)[int(deranged):].float()
        assert ((counts/counts.mean() - 1).abs() < .06).all(), "each field comes to place 0 equally often"


def test_cut_and_laid_straight_is_the_picture():
    images = torch.rand(2, 3, 60, 60, generator=gen())
    straight = lay(cut(images, small), torch.arange(9).expand(2, 9), small)
    for y in (0, 20, 40):
        for x in (0, 20, 40): assert torch.equal(straight[..., y:y + 18, x:x + 18], images[..., y:y + 18, x:x + 18])


def test_a_long_picture_loses_its_ends():
    image = torch.zeros(1, 3, 60, 100)
    image[..., 20:80] = torch.rand(3, 60, 60, generator=gen())
    assert torch.equal(squared(image, 60), image[..., 20:80])


def test_counter_measures():
    images = torch.rand(4, 3, 60, 60, generator=gen())
    normal = cut(images*.3 + .5, PuzzleConfig(**vars(small) | dict(normalise=True)))
    assert torch.allclose(normal.mean((2, 3, 4)), torch.tensor(.5), atol=.03) and normal.std((2, 3, 4)).max() < .3
    grey = cut(images, PuzzleConfig(**vars(small) | dict(grey=1.0)), gen())
    assert torch.equal(grey[:, :, 0], grey[:, :, 1]) and torch.equal(grey[:, :, 0], grey[:, :, 2])
    moved = cut(images, PuzzleConfig(**vars(small) | dict(shift=2)), gen())
    assert torch.equal(moved[:, :, 1], cut(images, small)[:, :, 1]) and not torch.equal(moved[:, :, 0], cut(images, small)[:, :, 0]), "green stays"
    ramp = torch.linspace(0, 1, 60).expand(1, 3, 60, 60).contiguous()
    narrow = cut(ramp, PuzzleConfig(**vars(small) | dict(crop=.5)), gen(5))
    whole = cut(ramp, small)
    spread = lambda p: float((p.amax(-1) - p.amin(-1)).mean())
    assert .3 < spread(narrow)/spread(whole) < .7, "a patch shows half of its field"
    with pytest.raises(PuzzleError, match="give a generator"): cut(images, PuzzleConfig(**vars(small) | dict(crop=.7)))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_maps_say_where(encoding):
    c = PuzzleConfig(**vars(small) | dict(encoding=encoding))
    perm = torch.tensor([[1, 2, 0, 4, 5, 3, 7, 8, 6]])
    maps, weights = targets(perm, c)
    at = maps[0, 1:].flatten(1).argmax(1)
    for k in range(9):
        want = perm[0].tolist().index(k) if encoding == "place" else int(perm[0, k])
        y, x = divmod(int(at[k]), 15)
        assert (y//5, x//5) == divmod(want, 3)
    assert weights.all() and torch.equal(read_maps(maps, c), perm)


def test_the_reports_middles():
    found = centres(PuzzleConfig())/8 - .5
    assert torch.allclose(found[[0, 4, 8]], torch.tensor([[8., 8.], [24., 24.], [39., 39.]])), "rows and columns of its table"
    assert torch.allclose(centres(PuzzleConfig(centres="true"))[0], torch.tensor([59.5, 59.5]))


def test_each_gets_its_own_and_the_sum_is_the_best():
    scores = torch.rand(20, 5, 5, generator=gen(2))
    for s, found in zip(scores, assigned(scores)):
        best = max(itertools.permutations(range(5)), key=lambda p: float(s[range(5), p].sum()))
        assert tuple(found.tolist()) == best, "against all 120"
    assert torch.equal(assigned(scores, False), scores.argmax(-1))


def test_two_maps_for_one_place_leave_another_without():
    maps, _ = targets(torch.tensor([[1, 0, 2, 3, 4, 5, 6, 7, 8]]), small)
    maps[0, 2] = maps[0, 1]     # fields 0 and 1 both claim place 1
    alone, pair = read_maps(maps, small, False)[0], read_maps(maps, small)[0]
    assert alone[0] == -1 and sorted(pair.tolist()) == list(range(9))
    assert beliefs(maps, small).shape == (1, 9, 9)


def test_classes_learn_with_the_fair_head_only():
    "Features that name their patch: the fair head reads them, the pooled one has no weights to do so."
    torch.manual_seed(0)
    perms = draw_permutations(small, 256, gen(1))
    features = torch.nn.functional.one_hot(perms, 9).float().permute(0, 2, 1).unflatten(2, (3, 3)).repeat_interleave(4, 2).repeat_interleave(4, 3)
    head = PatchHead(9)
    optimiser = torch.optim.Adam(head.parameters(), 3e-3)
    for _ in range(150):
        optimiser.zero_grad(); class_loss(head(features), perms).backward(); optimiser.step()
    fresh = draw_permutations(small, 200, gen(9))
    seen = torch.nn.functional.one_hot(fresh, 9).float().permute(0, 2, 1).unflatten(2, (3, 3)).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert puzzle_scores(head(seen).argmax(-1), fresh)["places"].value > 80
    assert not list(PooledHead().parameters()) and PooledHead()(features[:, :1]).shape == (256, 9, 9)


@pytest.mark.parametrize("perms, said", [([[0, 1, 2, 3, 4, 5, 6, 7, 7]], "no permutation"), ([[1, 2, 3, 4, 5, 6, 7, 8, 9]], "counts from 1"), ([[0, 1]], "expected (B, 9)"), ([[.5]*9], "whole numbers")])
def test_what_is_no_permutation(perms, said):
    with pytest.raises(PuzzleError) as e: check_permutations(torch.tensor(perms), 9)
    assert said in str(e.value)


@pytest.mark.parametrize("make, said", [(lambda: cut(torch.rand(1, 3, 11, 500), small), "at least 4"), (lambda: cut(torch.rand(1, 1, 60, 60), small), "grey ones repeat"), (lambda: cut(torch.rand(1, 4, 60, 60), small), "RGBA"),
                                        (lambda: cut((torch.rand(1, 3, 60, 60)*255).byte(), small), "floats in"), (lambda: PuzzleConfig(encoding="orgin"), "origin"), (lambda: PuzzleConfig(size=100), "report's centres"),
                                        (lambda: PuzzleConfig(size=16, centres="true"), "at least 4"), (lambda: PuzzleConfig(crop=0.0), "from .1 to 1"), (lambda: assigned(torch.full((1, 3, 3), torch.nan)), "NaN"),
                                        (lambda: PooledHead()(torch.rand(1, 2, 9, 9)), "one map"), (lambda: class_loss(torch.rand(2, 9, 8), torch.zeros(2, 9)), "logits")])
def test_mistakes_are_explained(make, said):
    with pytest.raises(PuzzleError) as e: make()
    assert said in str(e.value), e.value


def test_inverse_is_one():
    perms = draw_permutations(small, 50, gen())
    assert torch.equal(perms.gather(1, inverse(perms)), torch.arange(9).expand(50, 9))
