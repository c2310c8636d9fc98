"F27, the part of banks and centres: two gloo processes with batches of different lengths hold what one process holds after the joined batch."
import os

import pytest, torch
import torch.distributed as dist
from two_ranks import on_two_ranks

from hclab.train.losses.contrastive import info_nce
from hclab.train.losses.distillation import DinoLoss
from hclab.train.memory_bank import FeatureQueue, MemoryBank
from hclab.train.ranks import gather_rows, mean_over_ranks, world

CUTS = {0: slice(0, 3), 1: slice(3, 8)}   # what each rank sees of eight samples


def data(step):
    draw = torch.Generator().manual_seed(step)
    return torch.randn(8, 4, generator=draw), torch.randint(6, (8,), generator=draw), torch.rand(8, generator=draw) > 0.3


def states(parts=(slice(None),), rank=0):
    "What banks and centre hold after three steps; every process calls it with its own part."
    queue, bank, loss = FeatureQueue(7, 4, torch.Generator().manual_seed(5)), MemoryBank(6, 4, torch.Generator().manual_seed(6)), DinoLoss(4)
    for step in range(3):
        features, index, present = (x[parts[rank]] for x in data(step))
        queue.push(features)
        bank.update(index, features, present)
        loss.update_centre([features, 2*features])
    return {"queue": queue.rows, "cursor": queue.cursor, "bank": bank.rows, "centre": loss.centre}



def work(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        assert world() == (rank, 2)
        out = states((CUTS[0], CUTS[1]), rank)
        mine = data(9)[0][CUTS[rank]].double().requires_grad_()
        everything = gather_rows(mine, gradient=True)
        own = torch.arange(len(mine)) + (0 if rank == 0 else 3)
        (info_nce(mine, everything.roll(1, 1), own, 0.5)*len(mine)).backward()
        out |= {"gradient": mine.grad, "gathered": gather_rows(mine.detach()), "own gradient only": torch.autograd.grad(gather_rows(mine).sum(), mine)[0]}
        try: gather_nan(rank)
        except FloatingPointError: out["refused"] = torch.ones(1)
        out["none"] = mean_over_ranks(torch.ones(2) if rank else torch.zeros(2), rank)
        torch.save(out, f"{folder}/{rank}.pt")
    finally: dist.destroy_process_group()


def gather_nan(rank): FeatureQueue(3, 2, torch.Generator().manual_seed(0)).push(torch.full((2, 2), float("nan") if rank else 1.0))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory): return on_two_ranks(work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", ["queue", "cursor", "bank", "centre"])
def test_ranks_are_equal_and_equal_to_one_process(ranks, name):
    assert torch.equal(ranks[0][name], ranks[1][name]), "bit-equal on all ranks"
    assert torch.allclose(ranks[0][name], states()[name], atol=1e-6)


def test_gathering_keeps_the_right_gradients(ranks):
    x = data(9)[0].double().requires_grad_()
    (info_nce(x, x.roll(1, 1), None, 0.5)*8).backward()
    assert torch.allclose(torch.cat([r["gradient"] for r in ranks]), x.grad, atol=1e-10), "two ranks give the gradient of the joined batch"
    for r, cut in zip(ranks, CUTS.values()):
        assert torch.equal(r["gathered"], x.detach()) and torch.equal(r["own gradient only"], torch.ones(cut.stop - cut.start, 4, dtype=torch.float64))


def test_a_bad_batch_on_one_rank_stops_all(ranks):
    assert all("refused" in r for r in ranks)


def test_an_empty_rank_counts_for_nothing(ranks):
    assert all(torch.equal(r["none"], torch.ones(2)) for r in ranks)
