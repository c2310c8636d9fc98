"The jigsaw: who is asked what, what of a solver is carried over to joints, and what stays as it was drawn."
from dataclasses import replace

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from hclab.core.config import ConfigError
from hclab.methods import jigsaw as jg
from hclab.models.cpm import CPM, map_layers
from hclab.tasks import pose2d
from hclab.tasks.pose2d import PoseConfig, build_network, find, pck
from hclab.tasks.pose_data import PARTS, PoseSet
from hclab.tasks.puzzle import beliefs, inverse
from hclab.train.loop import seeded

SOLVE = jg.JigsawConfig.for_profile("smoke")
POSE = PoseConfig.for_profile("smoke")
COUNT = dict(train=7, val=4, test=5)
SEED = 3       # of the solver: one that gets another share right of the people of each part
brief = lambda config, steps=3: replace(config, loop=replace(config.loop, steps=steps, batch=3, log_every=steps, save_every=steps))


def noise(part):
    "People of noise with joints; where they come from says of which part they are."
    g, n, size = torch.Generator().manual_seed(PARTS.index(part)), COUNT[part], round(POSE.data.image_size[0]*POSE.data.room)
    box = torch.tensor([[size*.2, size*.2, size*.8, size*.8]]).expand(n, 4)
    return PoseSet((torch.rand(n, 3, size, size, generator=g)*255).to(torch.uint8), torch.rand(n, 14, 2, generator=g)*size*.6 + size*.2, torch.full((n, 14), 2, dtype=torch.int8), box,
                   torch.ones(n), torch.full((n,), torch.nan), tuple((100*PARTS.index(part) + i, 0) for i in range(n)), POSE.data)


def part_of(people):
    (number,) = {sample//100 for sample, _ in people.origin}
    return PARTS[number]


@pytest.fixture(scope="module")
def people(): return {part: noise(part) for part in PARTS}


def watch(patch):
    "Note whose batches are trained on, and go on."
    asked, real = [], pose2d.training_batch
    for module in (jg, pose2d): patch.setattr(module, "training_batch", lambda people, *rest: asked.append(people) or real(people, *rest))
    return asked


@pytest.fixture(scope="module")
def solved(people, tmp_path_factory):
    folder = tmp_path_factory.mktemp("solver")
    with pytest.MonkeyPatch.context() as patch:
        asked = watch(patch)
        result = jg.solver_arm(brief(SOLVE), SEED, folder, people)
    return folder, result, asked


@pytest.fixture
def caught(monkeypatch):
    "Nothing is trained: the loop notes what it is handed, and makes a row of a curve."
    notes = []
    def fit(model, data, loss, config, **more):
        notes.append({"begin": {n: t.clone() for n, t in model.state_dict().items()}, "data": data, "optimiser": more["make_optimiser"](model), **more})
        return [{"step": config.steps, **{n: v.item() for n, v in loss(model, data(0)).items()}, **more["evaluate"](model)}]
    for module in (jg, pose2d): monkeypatch.setattr(module, "fit", fit)
    return notes


def arm(number=4, **changes): return jg.TransferConfig(brief(POSE), people=number, **changes)


# ------------------------------------------------------------------------------------------------ puzzles
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


# ------------------------------------------------------------------------------------------------ the solver's arm
def places(model, people, one_to_one, stage=-1):
    "Per cent of places that are right, read map by map or with the arrangement that the maps like best."
    puzzles, perms = jg.fixed_puzzles(people, SOLVE)
    with torch.no_grad(): scores = beliefs(model.eval()(puzzles)[:, stage], SOLVE.puzzle)      # (B, field, place)
    right = total = 0
    for score, perm in zip(scores, perms):
        lies = inverse(perm[None])[0]      # where each field's patch lies
        at = torch.from_numpy(linear_sum_assignment(score.numpy(), maximize=True)[1]) if one_to_one else score.argmax(1)
        said = {int(place): field for field, place in enumerate(at)}     # of two maps that claim a place the later is heard
        right, total = right + sum(said.get(int(lies[field])) == field for field in range(9)), total + 9
    return 100*right/total


def test_a_solver_is_trained_validated_and_tested_on_different_people(people, solved):
    folder, result, asked = solved
    assert asked and {part_of(p) for p in asked} == {"train"} and {len(p) for p in asked} == {COUNT["train"]}
    model = jg.Solver(SOLVE)
    model.cpm.load_state_dict(jg.machine_in(folder))
    told = {(part, alone): places(model, people[part], not alone) for part in PARTS for alone in (False, True)}
    assert len({told[part, False] for part in PARTS}) == 3 and told["test", False] != told["test", True], "else nothing is shown"
    assert result["test_places"] == pytest.approx(told["test", False]) and result["test_places_alone"] == pytest.approx(told["test", True]) and result["val_places"] == pytest.approx(told["val", False])
    assert result["test_places_by_stage"] == pytest.approx([places(model, people["test"], True, s) for s in range(SOLVE.stages)])
    with seeded(SEED): fresh = jg.Solver(SOLVE)
    assert result["untrained_val_places"] == pytest.approx(places(fresh, people["val"], True))
    assert result["people"] == {part: people[part].fingerprint for part in PARTS} and len(set(result["people"].values())) == 3


def test_seeds_of_a_solver_differ_in_weights_and_puzzles(people, caught):
    for seed in (0, 0, 1): jg.pretrain(people["train"], brief(SOLVE), seed, watch=people["val"])
    again, same, other = caught
    alike = lambda a, b: {n for n in a if torch.equal(a[n], b[n])}
    assert len(alike(again["begin"], same["begin"])) == len(again["begin"])
    drawn = {n for n, t in again["begin"].items() if t.ndim == 4}
    assert drawn and not drawn & alike(again["begin"], other["begin"])
    assert len(alike(again["data"](1), same["data"](1))) == 2 and not alike(again["data"](1), other["data"](1)) and not alike(again["data"](1), again["data"](2))
    assert other["seed"] == 1 and other["settings"] == brief(SOLVE)


# ------------------------------------------------------------------------------------------------ rates and optimisers
@pytest.mark.parametrize("make", [lambda p, c: jg.pretrain(p["train"], c(SOLVE), watch=p["val"]), lambda p, c: jg.transfer_arm(jg.TransferConfig(c(POSE), people=4), 0, None, None, p)])
def test_the_rate_follows_its_course(people, caught, make):
    steps = 40
    def config(of): return replace(brief(of, steps), warmup=.1)
    make(people, lambda of: config(of))
    first = caught[0]["optimiser"].param_groups[0]["lr"]
    course = [caught[0]["schedules"]["lr"](s) for s in range(steps)]
    assert course[:5] == pytest.approx([first*s/4 for s in range(5)]) and all(a > b for a, b in zip(course[4:], course[5:])) and course[-1] < .01*first
    make(people, lambda of: replace(config(of), course="steps", warmup=0.0, loop=replace(config(of).loop, decay=.333, decay_every=15)))
    assert [caught[1]["schedules"]["lr"](s) for s in (0, 14, 15, 29, 30, 39)] == pytest.approx([first*f for f in (1, 1, .333, .333, .333**2, .333**2)])


def test_the_defaults_are_the_reports():
    "Sheet, 7: batches of 10 and 12 at 4e-6, by the code base four times as much for weights and eight for biases, a third of it every 13,275 steps; 5 epochs of 340,000 puzzles."
    for config, batch, steps in ((jg.JigsawConfig(), 10, 5*34_000), (PoseConfig(), 12, 150*1600//12)):
        assert (config.loop.batch, config.loop.steps, config.optimiser, config.weight_decay) == (batch, steps, "sgd", 5e-4)
        optimiser = pose2d.optimiser_of(config)(torch.nn.Conv2d(1, 1, 1))
        assert [(g["lr"]*g["lr_scale"], g["momentum"]) for g in optimiser.param_groups] == [pytest.approx((1.6e-5, .9)), pytest.approx((3.2e-5, .9))]
        assert [pose2d.rate(config)["lr"](s) for s in (0, 13_274, 13_275)] == pytest.approx([4e-6, 4e-6, 4e-6*.333])
    cpu, like = jg.JigsawConfig.for_profile("cpu"), PoseConfig.for_profile("cpu")
    assert cpu.data == like.data and (cpu.loop.steps, cpu.loop.lr) == (1800, 4e-3) and cpu.optimiser == like.optimiser == "adamw"


def test_sgd_takes_the_steps_of_the_reports_code_and_learns(people):
    "Two steps with momentum, worked here from gradients; then a solver that lowers its loss."
    config = replace(brief(SOLVE, 2), optimiser="sgd", course="steps", warmup=0.0, init="torch", loop=replace(brief(SOLVE, 2).loop, lr=1e-4, log_every=1))
    with seeded(0): naive = jg.Solver(config)
    speed = {n: torch.zeros_like(p) for n, p in naive.named_parameters()}
    for number in range(2):
        naive.zero_grad()
        sum(jg.loss(naive.train(), jg.puzzle_batch(people["train"], number, config)).values()).backward()
        with torch.no_grad():
            for n, p in naive.named_parameters():
                speed[n] = .9*speed[n] + p.grad + 5e-4*p
                p -= 1e-4*(8 if n.endswith("bias") else 4)*speed[n]
    for (n, p), q in zip(jg.pretrain(people["train"], config)[0].named_parameters(), naive.parameters(), strict=True): assert torch.allclose(p, q, rtol=1e-4, atol=1e-6), n
    curve = jg.pretrain(people["train"], replace(config, loop=replace(config.loop, steps=24, lr=1e-5)))[1]
    assert curve[-1]["stage2"] < .5*curve[0]["stage2"]


# ------------------------------------------------------------------------------------------------ what is carried over
STARTS = {"scratch": (), "first": ("first.",), "first+trunk": ("first.", "trunk."), "all": ("first.", "trunk.", "later.")}


def belongs(name, scheme):
    "Said once more: a share of the layers, but for those whose size depends on the maps (two stages: the last of the first, the first and last mixing layer of the second)."
    return name.startswith(STARTS[scheme]) and not name.startswith(("first.7.", "later.0.mixing.0.", "later.0.mixing.8.")) if STARTS[scheme] else False


@pytest.mark.parametrize(("scheme", "slices", "frozen"), [("scratch", False, False), ("first", False, False), ("first+trunk", False, True), ("all", False, False), ("all", False, True), ("all", True, False)])
def test_the_network_that_is_trained_begins_as_its_scheme_says(people, solved, monkeypatch, scheme, slices, frozen):
    notes = {}
    def train_pose(build, config, seed, folder, sets, frozen=None):
        with seeded(seed): model = build(config)
        notes.update(state={n: t.clone() for n, t in model.state_dict().items()}, sets=sets, config=config, frozen=frozen(model) if frozen else None)
        return {"model": model, "unmoved": []}
    monkeypatch.setattr(jg, "train_pose", train_pose)
    config = arm(solver=scheme != "scratch", scheme=scheme, slices=slices, frozen=frozen)
    result = jg.transfer_arm(config, 5, None, {"solver": solved[0]} if config.solver else None, people)
    theirs, now = jg.machine_in(solved[0]), notes["state"]
    with seeded(5): plain = build_network(config.pose).state_dict()
    f, count = POSE.shape.features, 0
    for n in now:
        if belongs(n, scheme): wanted, parts = theirs[n], 1
        elif slices and n == "later.0.mixing.0.weight": wanted, parts = torch.cat([theirs[n][:, :f], plain[n][:, f:]], 1), 1
        elif slices and n.startswith("later.0.mixing.0."): wanted, parts = theirs[n], 1
        else: wanted, parts = plain[n], 0
        count += parts
        assert torch.equal(now[n], wanted), n
    assert result["carried"] == {"scheme": scheme, "solver": jg.fingerprint(*theirs.values()) if config.solver else "", "tensors": count} and (count > 0) == config.solver
    assert set(notes["frozen"] or ()) == ({n for n in now if belongs(n, scheme)} if frozen else set()) and notes["config"] == config.pose
    assert [part_of(notes["sets"][part]) for part in PARTS] == list(PARTS) and len(notes["sets"]["train"]) == 4 and all(notes["sets"][part] is people[part] for part in ("val", "test"))


@pytest.mark.parametrize(("changes", "which"), [(dict(solver=True, scheme="all", frozen=True), "all"), (dict(scheme="first+trunk", frozen=True), "first+trunk"), (dict(solver=True, scheme="first"), "scratch")])
def test_frozen_weights_are_the_solvers_to_the_end_and_the_result_says_so(people, solved, monkeypatch, changes, which):
    kept, real = {}, jg.train_pose
    monkeypatch.setattr(jg, "train_pose", lambda *given: kept.update(real(*given)) or dict(kept))
    result = jg.transfer_arm(arm(**changes), 2, None, {"solver": solved[0]} if changes.get("solver") else None, people)
    with seeded(2): drawn = build_network(POSE)
    began = jg.machine_in(solved[0]) if changes.get("solver") else drawn.state_dict()
    learnt = dict(kept["model"].named_parameters())
    assert set(result["unmoved"]) == {n for n in learnt if belongs(n, which)} and all(torch.equal(learnt[n], began[n]) for n in result["unmoved"])
    assert "model" not in result and result["people"] == {"train": jg.draw_people(people["train"], 4, 2).fingerprint, **{part: people[part].fingerprint for part in ("val", "test")}}


def test_a_machine_is_trained_validated_and_tested_on_different_people(people, monkeypatch):
    kept, real, asked = {}, jg.train_pose, watch(monkeypatch)
    monkeypatch.setattr(jg, "train_pose", lambda *given: kept.update(real(*given)) or dict(kept))
    result = jg.transfer_arm(arm(), 1, None, None, people)
    rows = jg.draw_people(people["train"], 4, 1).origin
    assert asked and {p.origin for p in asked} == {rows}
    scores = {part: pck(find(kept["model"], people[part], POSE.sigma), people[part]).value for part in PARTS}
    assert len(set(scores.values())) == 3, "else nothing is shown"
    assert (result["val_pck"], result["test_pck"]) == (scores["val"], scores["test"]) and result["train_people"] == 4


def test_who_is_labelled_is_drawn_by_the_seed(people, caught, solved):
    some = people["train"]
    few = {(n, seed): set(jg.draw_people(some, n, seed).origin) for n in (3, 5) for seed in range(6)}
    assert all(len(few[n, s]) == n and few[3, s] < few[5, s] for n, s in few) and len({frozenset(v) for (n, _), v in few.items() if n == 3}) > 2
    assert jg.draw_people(some, 7, 3).origin == some.origin, "all are everybody, in their order"
    rivals = [jg.transfer_arm(arm(**c), 4, None, {"solver": solved[0]} if c else None, people)["people"] for c in ({}, dict(solver=True, scheme="all", slices=True))]
    assert rivals[0] == rivals[1] != jg.transfer_arm(arm(), 5, None, None, people)["people"]


def test_seeds_of_a_machine_differ_in_weights_and_batches(people, caught):
    for seed in (0, 0, 1): jg.transfer_arm(arm(7), seed, None, None, people)
    again, same, other = caught
    alike = lambda a, b: {n for n in a if torch.equal(a[n], b[n])}
    assert len(alike(again["begin"], same["begin"])) == len(again["begin"])
    drawn = {n for n, t in again["begin"].items() if t.ndim == 4}
    assert drawn and not drawn & alike(again["begin"], other["begin"])
    assert {"images", "joints", "target"} <= alike(again["data"](1), same["data"](1)) and not {"images", "joints", "target"} & alike(again["data"](1), other["data"](1))


def test_a_carried_trunk_sees_what_the_solver_saw(solved):
    "In evaluation mode, where the statistics of what was normalised count."
    theirs, x = jg.machine_in(solved[0]), torch.rand(2, 3, *POSE.shape.image_size, generator=torch.Generator().manual_seed(0))
    solver, model = CPM(SOLVE.puzzle.count, SOLVE.stages, False, SOLVE.shape), build_network(POSE)
    solver.load_state_dict(theirs)
    jg.carry_over(theirs, model, "first+trunk")
    with torch.no_grad(): assert torch.equal(solver.eval().trunk(x), model.eval().trunk(x)) and torch.equal(solver.first[:-1](x), model.first[:-1](x))


# ------------------------------------------------------------------------------------------------ what is refused
def test_a_damaged_last_checkpoint_is_no_solver(people, tmp_path):
    jg.solver_arm(replace(SOLVE, loop=replace(SOLVE.loop, steps=4, batch=2, log_every=4, save_every=2)), 0, tmp_path, people)
    last = sorted((tmp_path/"checkpoints").glob("*/model.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="damaged.*--force"): jg.machine_in(tmp_path)


def test_what_cannot_be_carried_over_says_why(people, solved, tmp_path):
    with pytest.raises(ConfigError, match=r"needs=\(solver,\)"): jg.transfer_arm(arm(solver=True, scheme="all"), 0, None, None, people)
    with pytest.raises(ConfigError, match=r"solver=False takes weights from none, got \['maps'\].*needs=\(\)"): jg.transfer_arm(arm(), 0, None, {"maps": solved[0]}, people)
    with pytest.raises(ConfigError, match="got \\['a', 'b'\\]"): jg.transfer_arm(arm(solver=True, scheme="all"), 0, None, {"a": solved[0], "b": solved[0]}, people)
    with pytest.raises(ConfigError, match="holds no checkpoint"): jg.machine_in(tmp_path)
    with pytest.raises(ConfigError, match="people=8, but there are 7 training people"): jg.transfer_arm(arm(8), 0, None, None, people)
    wider = CPM(14, SOLVE.stages, False, replace(SOLVE.shape, features=20))
    with pytest.raises(ConfigError, match="both need the same shape"): jg.carry_over(jg.machine_in(solved[0]), wider, "all")
    with pytest.raises(ConfigError, match="did you mean 'first'"): jg.carried(wider, "frist")


@pytest.mark.parametrize(("make", "says"), [
    (lambda: arm(0), "people=0; at least one"), (lambda: arm(-2), "people=-2; at least one"), (lambda: arm(scheme="al"), "did you mean 'all'"),
    (lambda: arm(scheme="all"), "freezes nothing: that is scheme='scratch'"), (lambda: arm(scheme="first"), "takes nothing over"), (lambda: arm(solver=True), "takes nothing over and has nothing to freeze"), (lambda: arm(frozen=True), "nothing to freeze"),
    (lambda: arm(solver=True, scheme="first", slices=True), "slices=True adds"), (lambda: arm(scheme="all", frozen=True, slices=True), "slices=True adds"), (lambda: arm(solver=True, scheme="all", frozen=True, slices=True), "slices are parts"),
    (lambda: jg.TransferConfig(replace(POSE, network="resnet18"), scheme="all", frozen=True), "pose machine only"),
    (lambda: replace(SOLVE, warmup=-1.0), "JigsawConfig.warmup=-1.0; it is a share"), (lambda: replace(SOLVE, warmup=2.0), "warmup=2.0"), (lambda: replace(SOLVE, weight_decay=-1.0), "weight_decay=-1.0; it must be 0"),
    (lambda: replace(SOLVE, loop=replace(SOLVE.loop, steps=0)), "JigsawConfig.loop.steps=0; it must be at least 1"), (lambda: replace(SOLVE, optimiser="adam"), "did you mean 'adamw'"), (lambda: replace(SOLVE, course="cosin"), "did you mean 'cosine'"), (lambda: replace(SOLVE, answer="map"), "did you mean 'maps'")])
def test_settings_that_make_no_sense_are_refused(make, says):
    with pytest.raises(ConfigError, match=says): make()
