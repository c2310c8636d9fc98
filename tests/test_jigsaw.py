"The jigsaw: what a solver is asked, what of it is carried over to joints, and what stays as it was drawn."
from dataclasses import replace

import pytest
import torch

from hclab.core.config import ConfigError
from hclab.methods import jigsaw as jg
from hclab.models.cpm import CPM, map_layers
from hclab.tasks.pose2d import PoseConfig, build_network
from hclab.tasks.pose_data import PoseSet
from hclab.train.loop import seeded

SOLVE = jg.JigsawConfig.for_profile("smoke")
POSE = PoseConfig.for_profile("smoke")
brief = lambda config, steps=2: replace(config, loop=replace(config.loop, steps=steps, batch=2, log_every=steps, save_every=steps))


@pytest.fixture(scope="module")
def people():
    "Noise with joints: enough to see what moves."
    g, n, size = torch.Generator().manual_seed(0), 6, round(POSE.data.image_size[0]*POSE.data.room)
    box = torch.tensor([[size*.2, size*.2, size*.8, size*.8]]).expand(n, 4)
    some = PoseSet((torch.rand(n, 3, size, size, generator=g)*255).to(torch.uint8), torch.rand(n, 14, 2, generator=g)*size*.6 + size*.2, torch.full((n, 14), 2, dtype=torch.int8), box,
                   torch.ones(n), torch.full((n,), torch.nan), tuple((i, 0) for i in range(n)), POSE.data)
    return {part: some for part in ("train", "val", "test")}


@pytest.fixture(scope="module")
def solved(people, tmp_path_factory):
    folder = tmp_path_factory.mktemp("solver")
    return folder, jg.solver_arm(brief(SOLVE), 0, folder, people)


def arm(**changes): return jg.TransferConfig(brief(POSE), people=4, **changes)


def test_permuted_labels_change_the_answers_and_nothing_else(people):
    true, false = (jg.puzzle_batch(people["train"], 3, replace(SOLVE, labels=labels)) for labels in jg.LABELS)
    assert torch.equal(true["puzzles"], false["puzzles"]) and not torch.equal(true["perms"], false["perms"])
    asked = jg.fixed_puzzles(people["val"], SOLVE)[1]
    assert torch.equal(asked, jg.fixed_puzzles(people["val"], replace(SOLVE, labels="permuted"))[1]), "a test asks for the truth, whatever was trained"


@pytest.mark.parametrize("answer", jg.ANSWERS)
def test_every_answer_learns_from_its_own_loss(people, answer):
    config = replace(SOLVE, answer=answer)
    with seeded(0): model = jg.Solver(config)
    batch = jg.puzzle_batch(people["train"], 0, config)
    terms = jg.loss(model, batch)
    assert list(terms) == [f"stage{s + 1}" for s in range(1 if answer == "patches" else SOLVE.stages)]
    sum(terms.values()).backward()
    idle = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    assert idle == ({f"cpm.{map_layers(model.cpm)[0]}.{kind}" for kind in ("weight", "bias")} if answer == "patches" else set()), "classes are read before the layer that paints"
    found = jg.solve(model, batch["puzzles"])
    assert torch.equal(found.sort(1).values, torch.arange(9).expand_as(found)), "one to one is a permutation"


def test_a_perfect_map_is_read_as_the_truth():
    "Maps that are the targets give every place back, in both readings of the report."
    for encoding in ("place", "origin"):
        puzzle = replace(SOLVE.puzzle, encoding=encoding)
        perms = jg.draw_permutations(puzzle, 7, torch.Generator().manual_seed(2))
        maps, _ = jg.targets(perms, puzzle)
        assert torch.equal(jg.read_maps(maps, puzzle), perms)


def test_sgd_has_the_gains_of_the_reports_code(people):
    "Four on weights, eight on biases, whatever the schedule says."
    config = replace(brief(SOLVE, 4), optimiser="sgd", warmup=0.0)
    with seeded(0): model = jg.Solver(config)
    optimiser = jg.optimiser_of(config)(model)
    from hclab.train.schedule import Schedule, set_schedules
    set_schedules(optimiser, 0, lr=Schedule("cosine", start=1e-3, steps=4))
    rates = {id(p): g["lr"] for g in optimiser.param_groups for p in g["params"]}
    for name, p in model.named_parameters(): assert rates[id(p)] == pytest.approx(1e-3*(4 if name.endswith("weight") else 8)), name
    curve = jg.pretrain(people["train"], replace(config, loop=replace(config.loop, lr=4e-6)))[1]
    assert curve[-1]["stage1"] < 1e4


def test_a_damaged_last_checkpoint_is_no_solver(people, tmp_path):
    jg.solver_arm(replace(SOLVE, loop=replace(SOLVE.loop, steps=4, batch=2, log_every=4, save_every=2)), 0, tmp_path, people)
    last = sorted((tmp_path/"checkpoints").glob("*/model.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="damaged.*--force"): jg.machine_in(tmp_path)


@pytest.mark.parametrize("scheme", jg.SCHEMES)
def test_a_scheme_carries_over_what_it_says(solved, scheme):
    with seeded(1): model = build_network(POSE)
    before = {n: w.clone() for n, w in model.state_dict().items()}
    theirs = jg.machine_in(solved[0])
    names = jg.carry_over(theirs, model, scheme)
    now = model.state_dict()
    assert names == jg.carried(model, scheme) and not {n.rsplit(".", 1)[0] for n in names} & set(map_layers(model))
    for n in now: assert torch.equal(now[n], theirs[n] if n in names else before[n]), n


@pytest.mark.parametrize(("changes", "which"), [(dict(solver=True, scheme="all", frozen=True), "all"), (dict(scheme="first+trunk", frozen=True), "first+trunk")])
def test_frozen_weights_stay_and_the_others_learn(people, solved, monkeypatch, changes, which):
    kept = {}
    from hclab.methods import jigsaw
    real = jigsaw.train_pose
    def watched(build, *rest):
        def built(config):
            kept["model"] = build(config)
            kept["before"] = {n: p.detach().clone() for n, p in kept["model"].named_parameters()}
            return kept["model"]
        return real(built, *rest)
    monkeypatch.setattr(jigsaw, "train_pose", watched)
    jg.transfer_arm(arm(**changes), 0, None, {"solver": solved[0]} if changes.get("solver") else None, people)
    moved = {n for n, p in kept["model"].named_parameters() if not torch.equal(p, kept["before"][n])}
    still = set(jg.carried(kept["model"], which)) & set(kept["before"])
    assert not moved & still and moved == set(kept["before"]) - still


def test_a_carried_trunk_sees_what_the_solver_saw(solved):
    "In evaluation mode, where the statistics of what was normalised count."
    theirs, x = jg.machine_in(solved[0]), torch.rand(2, 3, *POSE.shape.image_size, generator=torch.Generator().manual_seed(0))
    solver, model = CPM(SOLVE.puzzle.count, SOLVE.stages, False, SOLVE.shape), build_network(POSE)
    solver.load_state_dict(theirs)
    jg.carry_over(theirs, model, "first+trunk")
    with torch.no_grad(): assert torch.equal(solver.eval().trunk(x), model.eval().trunk(x)) and torch.equal(solver.first[:-1](x), model.first[:-1](x))


def test_layers_that_nobody_carries_over_are_drawn_alike(solved):
    "Arms of one seed differ in what they were given, and in nothing else."
    with seeded(3): plain = build_network(POSE)
    with seeded(3): given = build_network(POSE)
    names = jg.carry_over(jg.machine_in(solved[0]), given, "all", slices=True)
    whole = {n for n in names if "[" not in n}
    for (n, a), b in zip(plain.state_dict().items(), given.state_dict().values(), strict=True):
        if n in whole or ".mixing.0." in n: continue
        assert torch.equal(a, b), n
    f = POSE.shape.features
    for s in range(len(plain.later)): assert torch.equal(plain.later[s].mixing[0].weight[:, f:], given.later[s].mixing[0].weight[:, f:])


def test_the_same_seed_gives_the_same_numbers(people, solved):
    config = arm(solver=True, scheme="all", slices=True)
    a, b = (jg.transfer_arm(config, 1, None, {"solver": solved[0]}, people) for _ in range(2))
    assert a == b and a["train_people"] == 4


def test_what_cannot_be_carried_over_says_why(people, solved, tmp_path):
    with pytest.raises(ConfigError, match=r"needs=\(solver,\)"): jg.transfer_arm(arm(solver=True, scheme="all"), 0, None, None, people)
    with pytest.raises(ConfigError, match="holds no checkpoint"): jg.machine_in(tmp_path)
    with pytest.raises(ConfigError, match="6 training people"): jg.transfer_arm(replace(arm(), people=7), 0, None, None, people)
    wider = CPM(14, SOLVE.stages, False, replace(SOLVE.shape, features=20))
    with pytest.raises(ConfigError, match="both need the same shape"): jg.carry_over(jg.machine_in(solved[0]), wider, "all")
    with pytest.raises(ConfigError, match="did you mean 'first'"): jg.carried(wider, "frist")
    with pytest.raises(ConfigError, match="pose machine only"): jg.TransferConfig(replace(POSE, network="resnet18"), scheme="all")
