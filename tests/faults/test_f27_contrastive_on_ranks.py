"F27, the part of losses that compare samples: two gloo processes, with batches of equal and of different lengths, have the loss and the gradient of one process with the joined batch."
import pytest, torch
import torch.distributed as dist
from two_ranks import on_two_ranks

from hclab.train.losses.contrastive import bank_info_nce, cross_modal_info_nce, info_nce, nt_xent, symmetric_info_nce, unit_rows
from hclab.train.ranks import gather_rows, own_place

CUTS = {"4 and 4": 4, "3 and 5": 3, "0 and 8": 0, "7 and 1": 7}   # how many of eight samples the first rank has
MODALITIES = ("rgb", "depth", "pose")


def numbers(seed, *shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def samples(rows=slice(None)):
    "Eight samples of three modalities, one of them missing here and there, with the rows of a bank that each anchor draws; of them, some."
    integers = torch.randint(12, (8, 5), generator=torch.Generator().manual_seed(9))
    everything = {**{m: numbers(i, 8, 6) for i, m in enumerate(MODALITIES)}, "drawn": integers, "depth is there": torch.tensor([1, 1, 0, 1, 0, 1, 1, 1]).bool()}
    return {name: value[rows] for name, value in everything.items()}


class Network(torch.nn.Module):
    "An encoder a modality and a temperature that is learnt, as it is with CLIP."
    def __init__(self):
        super().__init__()
        self.weights = torch.nn.ParameterDict({m: torch.nn.Parameter(numbers(20 + i, 6, 4)) for i, m in enumerate(MODALITIES)})
        self.log_temperature = torch.nn.Parameter(torch.tensor(-1.0, dtype=torch.float64))

    def forward(self, batch): return {m: torch.tanh(batch[m] @ self.weights[m]) for m in MODALITIES}, self.log_temperature.exp()


BANKS = {m: unit_rows(numbers(30 + i, 12, 4)) for i, m in enumerate(MODALITIES)}


def joined(features): return {m: gather_rows(x, gradient=True) for m, x in features.items()}


def cross_modal(network, batch):
    features, t = network(batch)
    terms = cross_modal_info_nce(joined(features), BANKS, drawn=gather_rows(batch["drawn"]), temperature=t, present={"depth": gather_rows(batch["depth is there"])})
    return sum(terms.values())


def with_all(loss):
    "A loss of two modalities' features over the rows of all ranks."
    def of(network, batch):
        features, t = network(batch)
        x = joined(features)
        return loss(x["rgb"], x["depth"], t, batch)
    return of


def own_anchors(network, batch):
    "Each rank keeps its anchors and weighs them by their share: the cheaper form of the page on ranks."
    features, t = network(batch)
    keys = gather_rows(features["depth"], gradient=True)
    before, total = own_place(len(batch["rgb"]))
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    if len(batch["rgb"]) == 0: return 0*(features["rgb"].sum() + keys.sum() + t)   # still takes part in the way back
    return info_nce(features["rgb"], keys, torch.arange(len(batch["rgb"])) + before, t)*len(batch["rgb"])*ranks/total


FORMS = {"info_nce": with_all(lambda a, b, t, batch: info_nce(a, b, temperature=t)),
         "info_nce, some anchors": with_all(lambda a, b, t, batch: info_nce(a, b, temperature=t, valid=gather_rows(batch["depth is there"]))),
         "nt_xent": with_all(lambda a, b, t, batch: nt_xent(a, b, t)),
         "symmetric": with_all(lambda a, b, t, batch: symmetric_info_nce(a, b, t, gather_rows(batch["depth is there"]))),
         "whole bank": with_all(lambda a, b, t, batch: bank_info_nce(a, b, BANKS["depth"], temperature=t)),
         "drawn from a bank": with_all(lambda a, b, t, batch: bank_info_nce(a, b, BANKS["depth"], gather_rows(batch["drawn"]), t, gather_rows(batch["depth is there"]))),
         "cross-modal": cross_modal, "own anchors": own_anchors}
IN_BATCH = ("info_nce", "nt_xent", "symmetric")


def without_gather(name):
    "The same form on the own rows only."
    pair = {"info_nce": info_nce, "nt_xent": nt_xent, "symmetric": symmetric_info_nce}[name]
    def of(network, batch):
        features, t = network(batch)
        return pair(features["rgb"], features["depth"], temperature=t)
    return of


def loss_and_gradients(form, batch):
    "Value, and the gradient of every parameter, averaged over the ranks as data-parallel training does."
    network = Network()
    loss = form(network, batch)
    loss.backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in network.named_parameters()}
    if dist.is_initialized():
        for gradient in found.values(): dist.all_reduce(gradient); gradient /= dist.get_world_size()
    return {"loss": loss.detach(), **found}


def refused(rank, kind):
    "What gather_rows says when the ranks give it different things; both ranks must come back."
    x = {"width": torch.zeros(2, 3 + rank), "type": torch.zeros(2, 3, dtype=(torch.float32, torch.float64)[rank]), "gradient": torch.zeros(2, 3, requires_grad=rank == 0),
         "shape": torch.zeros(2, *(3,)*(1 + rank))}[kind]
    try: gather_rows(x, gradient=True)
    except ValueError as e: return str(e)
    return "nothing"


def types(rank):
    "Rows of every type that a batch has, joined."
    return {str(d): gather_rows((torch.arange(6).reshape(3, 2)[rank:] % 2).to(d)).to(torch.float64) for d in (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8)}


def work(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        out = {}
        for cut, first in CUTS.items():
            mine = samples((slice(0, first), slice(first, 8))[rank])
            out |= {(name, cut): loss_and_gradients(form, mine) for name, form in FORMS.items()}
        out |= {(name, "alone"): loss_and_gradients(without_gather(name), samples((slice(0, 4), slice(4, 8))[rank])) for name in IN_BATCH}
        out["refused"] = {kind: refused(rank, kind) for kind in ("width", "type", "gradient", "shape")}
        out["types"] = types(rank)
        flat = numbers(50 + rank, 2, 3).requires_grad_()
        gather_rows(flat, gradient=True).sum().backward()
        out["sum"] = flat.grad
        with torch.no_grad(): out["no gradient"] = gather_rows(flat, gradient=True).requires_grad
        torch.save(out, f"{folder}/{rank}.pt")
    finally: dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory): return on_two_ranks(work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", FORMS)
def test_two_ranks_are_one_process_on_the_joined_batch(ranks, name, cut):
    one, two = loss_and_gradients(FORMS[name], samples()), [r[name, cut] for r in ranks]
    if name == "own anchors": assert torch.allclose((two[0]["loss"] + two[1]["loss"])/2, one["loss"], atol=1e-12)
    else: assert torch.equal(two[0]["loss"], two[1]["loss"]) and torch.allclose(two[0]["loss"], one["loss"], atol=1e-12), "the value differs from the joined batch"
    used = [k for k in one if k != "loss" and one[k].abs().max() > 1e-3]
    assert len(used) >= 3, "this form hardly has a gradient: the comparison would say nothing"
    for k in one:
        if k == "loss": continue
        assert torch.equal(two[0][k], two[1][k]) and torch.allclose(two[0][k], one[k], atol=1e-12), f"the gradient of {k} differs from the joined batch"


@pytest.mark.parametrize("name", IN_BATCH)
def test_without_the_gather_the_ranks_train_something_else(ranks, name):
    one, alone = loss_and_gradients(FORMS[name] if name != "symmetric" else with_all(lambda a, b, t, batch: symmetric_info_nce(a, b, t)), samples()), ranks[0][name, "alone"]
    assert (alone["loss"] - one["loss"]).abs() > 0.1 and (alone["weights.rgb"] - one["weights.rgb"]).norm() > 0.1*one["weights.rgb"].norm()


@pytest.mark.parametrize("kind, words", [("width", "rank 1 has rows of (4,) float32"), ("type", "rank 1 has rows of (3,) float64"), ("shape", "rank 1 has rows of (3, 3)"),
                                         ("gradient", "rank 1 has rows of (3,) float32 without a gradient")])
def test_rows_that_cannot_be_joined_are_refused_on_both_ranks(ranks, kind, words):
    said = [r["refused"][kind] for r in ranks]
    assert said[0] == said[1] and words in said[0], said


def test_rows_of_every_type_and_evaluation_without_gradients(ranks):
    want = torch.tensor([[0, 1], [0, 1], [0, 1], [0, 1], [0, 1]], dtype=torch.float64)
    assert all(torch.equal(value, want) for r in ranks for value in r["types"].values())
    assert all(torch.equal(r["sum"], torch.full((2, 3), 2.0, dtype=torch.float64)) and not r["no gradient"] for r in ranks)
