"""A process that loads torch once and forks a child for every job, so that killing fifty trainings takes seconds and not minutes.

Speaks JSON lines: {"job": name, "arguments": {...}, "environment": {...}} -> pid; {"wait": pid, "seconds": s} -> exit code, negative for a signal,
null when it still runs (it is then killed). It never trains itself: a fork after torch has started its threads can hang."""
import json, os, signal, sys, time, traceback
from pathlib import Path

import accelerate  # noqa: F401  loaded before the forks
import torch
import torch._dynamo  # optimisers and DistributedDataParallel load it at their first step; in the parent it is loaded once
import torch.distributed
from torch import nn

from hclab.core.config import use_one_thread
from hclab.core.io import save_tensors
from hclab.train.callbacks import Follow
from hclab.train.loop import Callback, LoopConfig, fit, seeded
from hclab.train.losses.contrastive import cross_modal_info_nce, nt_xent
from hclab.train.memory_bank import FeatureQueue, MemoryBank, draw_negatives
from hclab.train.ranks import gather_rows
from hclab.train.schedule import Schedule
from hclab.train.teacher import Teacher

POINTS = 96
X = torch.randn(POINTS, 8, generator=torch.Generator().manual_seed(0))
Y = X.roll(1, 1).tanh()


def batch_at(number: int, size: int = 16) -> dict:
    "Shuffled epochs, as a pure function of the number."
    epoch, position = divmod(number, POINTS//size)
    rows = torch.randperm(POINTS, generator=torch.Generator().manual_seed(epoch))[position*size:(position + 1)*size]
    return {"x": X[rows], "y": Y[rows]}


def make(noisy: bool = True) -> nn.Module:
    "A small network; the noisy one has what depends on the batch and on chance."
    extra = [nn.BatchNorm1d(16), nn.Dropout(0.2)] if noisy else []
    with seeded(0): return nn.Sequential(nn.Linear(8, 16), *extra, nn.Tanh(), nn.Linear(16, 8))


def train(folder, steps=60, save_every=5, size=16, accumulate=1, pause=0.0, noisy=True, raise_at=-1, kill_at=-1, rank=0, out="", data=None, save_folder=True, **settings):
    "Train with everything that must survive: batch norm, dropout, a teacher, a bank, schedules. `raise_at`, `kill_at`: batch number."
    use_one_thread()
    model = make(noisy)
    teacher, bank = Teacher(model, Schedule("cosine", start=0.9, end=1.0, steps=60)), FeatureQueue(64, 8, torch.Generator().manual_seed(0))

    def loss(model, batch):
        found = model(batch["x"])
        near = (found @ bank.rows.clone().T).logsumexp(1).mean()
        return {"mse": (found - batch["y"]).square().mean(), "teacher": 0.1*(found - teacher(batch["x"])).square().mean(), "bank": 0.01*near}

    class Push(Callback):
        "The bank takes the newest outputs after the step, so that all parts of a step see the same rows."
        def after_step(self, run):
            for _, batch in run.batches: bank.push(model.eval()(batch["x"]))
            model.train()

    def source(number):
        if number == raise_at: raise RuntimeError(f"batch {number} cannot be read")
        if number == kill_at: os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(pause)
        return batch_at(number, size)

    config = LoopConfig(steps=steps, batch=size, accumulate=accumulate, log_every=5, save_every=save_every, device="cpu", **settings)
    curve = fit(model, data or source, loss, config, Path(folder) if save_folder else None, callbacks=[Follow(teacher), Push()], state={"teacher": teacher, "bank": bank},
                schedules={"lr": Schedule("cosine", start=0.01, steps=60, warmup=5), "weight_decay": Schedule("linear", start=0.0, end=0.1, steps=60)},
                make_optimiser=lambda m: torch.optim.AdamW(m.parameters()))
    if out: save_tensors(out, {f"{part}.{k}": v for part, m in (("model", model), ("teacher", teacher), ("bank", bank)) for k, v in m.state_dict().items()})
    return curve


def two_views(number: int, world: int, cut) -> dict:
    "Of the joined batch of 16 points, as two modalities of which one is missing here and there, the part of one process: `cut` says how many each has."
    step, rank = divmod(number, world)
    joined = batch_at(step)
    draw = torch.Generator().manual_seed(1000 + step)
    index = torch.randperm(POINTS, generator=draw)[:16]
    rows = {"a": joined["x"], "b": joined["y"] + 0.1*torch.randn(16, 8, generator=draw), "index": index, "there": torch.rand(16, generator=draw) > 0.3,
            "drawn": draw_negatives(POINTS, 16, 12, draw, index)}
    first = sum(cut[:rank])
    return {name: value[first:first + cut[rank]] for name, value in rows.items()}


def contrast(folder, cut, steps=20, out="", gather=True, kill_at=-1, raise_at=-1, **settings):
    "Train two encoders to agree, with a bank of every sample and a teacher; each process has `cut[rank]` of the 16 samples of a step."
    use_one_thread()
    model = nn.ModuleDict({"a": make(noisy=False), "b": make(noisy=False)})
    teacher, banks = Teacher(model["a"], Schedule("cosine", start=0.9, end=1.0, steps=60)), {m: MemoryBank(POINTS, 8, torch.Generator().manual_seed(i)) for i, m in enumerate("ab")}
    join = (lambda x: gather_rows(x, gradient=x.is_floating_point())) if gather else (lambda x: x)

    def loss(model, batch):
        features = {m: join(model[m](batch[m])) for m in "ab"}
        cross = cross_modal_info_nce(features, {m: banks[m].rows.clone() for m in "ab"}, drawn=join(batch["drawn"]), temperature=0.5, present={"b": join(batch["there"])})
        taught = gather_rows(teacher(batch["a"])) if gather else teacher(batch["a"])
        return {"in_batch": nt_xent(features["a"], features["b"]), **cross, "teacher": 0.1*(features["a"] - taught).square().mean()}

    class Update(Callback):
        "The banks and the teacher take what the step has learnt."
        def after_step(self, run):
            teacher.update(model["a"], run.step)
            for _, batch in run.batches:
                with torch.no_grad():
                    banks["a"].update(batch["index"], model["a"](batch["a"]))
                    banks["b"].update(batch["index"], model["b"](batch["b"]), batch["there"])

    config = LoopConfig(steps=steps, batch=16, log_every=5, save_every=10, device="cpu", **settings)
    world = int(os.environ.get("WORLD_SIZE", 1))

    def source(number):
        if number == raise_at: raise RuntimeError(f"batch {number} cannot be read")
        if number == kill_at: os.kill(os.getpid(), signal.SIGKILL)
        return two_views(number, world, cut)

    fit(model, source, loss, config, Path(folder), callbacks=[Update()], state={"teacher": teacher, "bank_a": banks["a"], "bank_b": banks["b"]},
        schedules={"lr": Schedule("cosine", start=0.05, steps=60, warmup=5)}, make_optimiser=lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9))
    parts = {"model": model, "teacher": teacher, "bank_a": banks["a"], "bank_b": banks["b"]}
    if out: save_tensors(out, {f"{part}.{k}": v for part, m in parts.items() for k, v in m.state_dict().items()})


class Rows:
    "The points as a data set for a `Loader`."
    def __len__(self): return POINTS
    def __getitem__(self, index): return {"x": X[index], "y": Y[index]}


class Sized:
    "Batches with a length, as a data set would have."
    def __init__(self, length): self.length = length
    def __len__(self): return self.length
    def __call__(self, number):
        if number >= self.length: raise IndexError(f"batch {number} of {self.length}")
        return batch_at(number)


def of_length(folder, length, **more):
    "Train on data of a given length."
    train(folder, data=Sized(length), **more)


def unchecked(folder, length, **more):
    "The same where the length cannot be known beforehand."
    sized = Sized(length)
    train(folder, data=lambda number: sized(number), **more)


JOBS = {"train": train, "contrast": contrast, "of_length": of_length, "unchecked": unchecked}


def child(request: dict) -> None:
    "Run a job and leave without the parent's clean-up."
    code = 1
    try:
        os.environ.update({k: str(v) for k, v in request.get("environment", {}).items()})
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1); os.dup2(log, 2)
        JOBS[request["job"]](**request["arguments"])
        code = 0
    except SystemExit as e: print(e); code = e.code
    except BaseException: traceback.print_exc()
    sys.stdout.flush(); sys.stderr.flush()
    os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    "Exit code of a child."
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
    return None


if __name__ == "__main__":
    use_one_thread()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request: answer = wait(request["wait"], request["seconds"])
        else:
            answer = os.fork()
            if answer == 0: child(request)
        print(json.dumps(answer), flush=True)
