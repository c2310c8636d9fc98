"""F1, F3, F9, F10, F11, F27: trainings that are killed, stopped, changed, poisoned, or that run as two processes of which one fails."""
import json, os, random, shutil, signal, subprocess, sys, tempfile, time, warnings
from pathlib import Path

import pytest
import torch

from hclab.core.config import ConfigError
from hclab.core.io import damage, list_snapshots, load_tensors, read_json, read_manifest
from hclab.train.checkpoint import CheckpointError
from hclab.data.loading import Loader
from hclab.lab import launch
from hclab.train.loop import Callback, LoopConfig, NonFinite, fit, replay

sys.path.insert(0, str(Path(__file__).parent))
import nursery as N  # noqa: E402

KILLS = 50


class Nursery:
    "Talks to `nursery.py`."
    def __init__(self, log: Path):
        self.log = log
        self.process = subprocess.Popen([sys.executable, str(Path(__file__).parent/"nursery.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])})
        assert json.loads(self.process.stdout.readline()) == "ready"

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n"); self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, job, environment=None, **arguments) -> int:
        return self.ask(job=job, arguments=arguments, environment=environment or {}, log=str(self.log))

    def wait(self, pid, seconds=60): return self.ask(wait=pid, seconds=seconds)

    def run(self, job, environment=None, **arguments): return self.wait(self.start(job, environment, **arguments))

    def words(self): return self.log.read_text() if self.log.exists() else ""


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    started = Nursery(tmp_path_factory.mktemp("nursery")/"log.txt")
    yield started
    started.process.stdin.close(); started.process.wait(10)


@pytest.fixture
def tmp_path():
    "In memory where the system has such a folder: a kill does not lose what was written, and waiting for a disk a thousand times would take minutes."
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def fresh(folder: Path) -> str:
    folder.mkdir(parents=True)
    return str(folder)


def final(folder) -> dict:
    "Digests of everything in the newest checkpoint, and the curve."
    newest = list_snapshots(Path(folder)/"checkpoints")[0]
    assert not damage(newest)
    state = read_json(newest/"state.json")
    curve = [{k: v for k, v in json.loads(line).items() if k != "seconds_left"} for line in (Path(folder)/"metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in curve]
    assert steps == sorted(set(steps)), "metrics.jsonl has rows twice"
    return {"files": {k: v[1] for k, v in read_manifest(newest).files.items() if k.endswith(".safetensors") and not k.startswith("rng")},
            "step": state["step"], "curve": state["parts"]["position"]["curve"]}


# ------------------------------------------------------------------------------------------------ F1
def test_f1_fifty_kills_at_random_moments_change_no_bit(nursery, tmp_path):
    arguments = dict(steps=40, save_every=2)
    began = time.monotonic()
    assert nursery.run("train", folder=fresh(tmp_path/"whole"), **arguments) == 0, nursery.words()
    seconds, expected, rng, cut = time.monotonic() - began, final(tmp_path/"whole"), random.Random(0), 0
    for attempt in range(4*KILLS):
        folder = fresh(tmp_path/str(attempt))
        pid = nursery.start("train", folder=folder, **arguments)
        time.sleep(rng.uniform(0.0, seconds))
        os.kill(pid, signal.SIGKILL)
        if nursery.wait(pid) == 0: seconds *= 0.9; continue  # the machine has become faster: this kill came too late to count
        cut += 1
        saved = list_snapshots(Path(folder)/"checkpoints")
        assert not [problem for snapshot in saved for problem in damage(snapshot)], "a kill left a corrupt checkpoint under a real name"
        assert nursery.run("train", folder=folder, **arguments) == 0, nursery.words()[-2000:]
        assert final(folder) == expected, f"kill {cut}: the resumed run ended with other bits"
        assert not list((Path(folder)/"checkpoints").glob(".tmp-*")), "what the killed process left was not removed"
        if cut == KILLS: return
    raise AssertionError(f"only {cut} of {4*KILLS} kills came in time")


# ------------------------------------------------------------------------------------------------ F3
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_f3_a_signal_finishes_the_step_writes_and_says_so(nursery, tmp_path, number, code):
    assert nursery.run("train", folder=fresh(tmp_path/"whole")) == 0
    folder = fresh(tmp_path/"stopped")
    pid = nursery.start("train", folder=folder, pause=0.02, save_every=1000)
    for _ in range(500):
        if "step" in ((Path(folder)/"metrics.jsonl").read_text() if (Path(folder)/"metrics.jsonl").exists() else ""): break
        time.sleep(0.02)
    os.kill(pid, number)
    assert nursery.wait(pid, 20) == code
    step = final(folder)["step"]
    assert 5 <= step < 60 and f"stopped by {number.name} after step {step}" in nursery.words()
    assert nursery.run("train", folder=folder, save_every=1000) == 0
    assert final(folder) == final(tmp_path/"whole")


# ------------------------------------------------------------------------------------------------ F9
@pytest.mark.parametrize("change, named", [(dict(nonfinite="skip"), "nonfinite"), (dict(size=8), "batch"), (dict(noisy=False), "model"), (dict(clip_norm=2.0), "clip_norm")])
def test_f9_a_changed_run_is_refused_with_the_difference(tmp_path, change, named):
    folder = fresh(tmp_path/"run")
    N.train(folder, steps=4, save_every=2)
    before = final(folder)
    with pytest.raises(CheckpointError) as e: N.train(folder, **{"steps": 4, "save_every": 2, **change})
    assert named in str(e.value) and "init_from=" in str(e.value)
    assert final(folder) == before


def test_f9_init_from_takes_the_weights_and_says_which(tmp_path, capsys):
    N.train(fresh(tmp_path/"old"), steps=4, save_every=2)
    new, old = N.make(), load_tensors(list_snapshots(tmp_path/"old"/"checkpoints")[0]/"model.safetensors")
    fit(new, N.batch_at, lambda m, b: {"zero": 0*m(b["x"]).sum()}, LoopConfig(steps=1, lr=0.0, device="cpu"), init_from=tmp_path/"old"/"checkpoints")
    assert "9 of 9 tensors matched" in capsys.readouterr().out
    assert torch.equal(new[0].weight, old["0.weight"])


# ------------------------------------------------------------------------------------------------ F10
EPOCH = N.POINTS//16


@pytest.mark.parametrize("number, accumulate", [(EPOCH*2 - 1, 1), (EPOCH*2, 1), (EPOCH*2 + 1, 1), (EPOCH*2 + 3, 3), (EPOCH*2 + 4, 3), (EPOCH*2 + 5, 3)])
def test_f10_resume_at_epoch_borders_and_inside_an_accumulated_step(tmp_path, number, accumulate):
    N.train(fresh(tmp_path/"whole"), steps=20, save_every=1, accumulate=accumulate)
    folder = fresh(tmp_path/"cut")
    with pytest.raises(RuntimeError, match="cannot be read"): N.train(folder, steps=20, save_every=1, accumulate=accumulate, raise_at=number)
    assert final(folder)["step"] == number//accumulate
    N.train(folder, steps=20, save_every=1, accumulate=accumulate)
    expected, found = final(tmp_path/"whole"), final(folder)
    assert found == expected, "teacher, bank, optimiser, weights or curve differ"
    rates = [row["lr"] for row in found["curve"]]
    assert all(abs(b - a) < 0.01 for a, b in zip(rates, rates[1:])) and rates == [row["lr"] for row in expected["curve"]]


@pytest.mark.parametrize("first, second", [(0, 1), (1, 2), (2, 0)])
@pytest.mark.parametrize("stop", [EPOCH*2 - 1, EPOCH*2, EPOCH*2 + 1])
def test_f10_resume_with_another_number_of_workers(tmp_path, first, second, stop):
    def run(folder, workers, steps=15):
        loader = Loader(N.Rows(), 16, seed=3, workers=workers, collate=lambda rows: {k: torch.stack([r[k] for r in rows]) for k in rows[0]}, start_method="fork" if workers else None)
        class Cut(Callback):
            def after_step(self, run):
                if run.step == stop and cut: raise RuntimeError("cut")
        try: return fit(N.make(), loader, lambda m, b: {"mse": (m(b["x"]) - b["y"]).square().mean()}, LoopConfig(steps=steps, batch=16, log_every=1, save_every=1, device="cpu"), Path(folder), callbacks=[Cut()])
        finally: loader.close()
    cut = False
    run(fresh(tmp_path/"whole"), 0)
    cut = True
    with pytest.raises(RuntimeError, match="cut"): run(fresh(tmp_path/"cut"), first)
    cut = False
    run(tmp_path/"cut", second)
    assert final(tmp_path/"cut") == final(tmp_path/"whole")


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    ends = []
    for size, accumulate in ((16, 1), (8, 2), (4, 4)):
        N.train(fresh(tmp_path/str(size)), steps=10, size=size, accumulate=accumulate, noisy=False, out=str(tmp_path/f"{size}.safetensors"))
        ends.append(load_tensors(tmp_path/f"{size}.safetensors"))
    for other in ends[1:]:
        assert all(torch.allclose(ends[0][k], other[k], atol=1e-5) for k in ends[0] if k.startswith("model")), "accumulation changes the gradient"


# ------------------------------------------------------------------------------------------------ F11
def poisoned(kind: str, at: int = 13):
    "(data, loss, after_step) in which something is no number from step `at` on, or in it."
    def data(number):
        batch = N.batch_at(number)
        return {**batch, "x": batch["x"]*float("nan")} if kind == "batch" and number == at else batch
    def loss(model, batch):
        term = (model(batch["x"]) - batch["y"]).square().mean()
        if kind == "loss" and loss.calls == at: term = term + float("inf")
        if kind == "gradient" and loss.calls == at: term = term + 0*(model[0].weight.sum()*0).sqrt()  # value 0, gradient NaN
        loss.calls += 1
        return {"mse": term}
    loss.calls = 0
    def after_step(model):
        if kind == "weight" and loss.calls == at: model[0].weight.data[0, 0] = float("inf")
    return data, loss, after_step


CONFIG = LoopConfig(steps=30, batch=16, lr=0.01, log_every=5, save_every=1, device="cpu")


@pytest.mark.parametrize("kind", ["batch", "loss", "gradient", "weight"])
def test_f11_stop_leaves_a_capture_and_a_finite_last(tmp_path, kind):
    data, loss, after_step = poisoned(kind)
    folder = Path(fresh(tmp_path/"run"))
    with pytest.raises(NonFinite) as e: fit(N.make(), data, loss, CONFIG, folder, after_step=after_step)
    assert "step 1" in str(e.value) and e.value.capture.is_dir()
    last = load_tensors(list_snapshots(folder/"checkpoints")[0]/"model.safetensors", finite=True)
    assert last and final(folder)["step"] in (12, 13)
    if kind == "loss": loss.calls = 13
    if kind == "gradient": loss.calls = 13
    again = replay(e.value.capture, N.make(), loss)
    assert again.stop and again.step == 13, "the capture does not show the failure again"
    if kind in ("batch", "weight"): assert not replay(e.value.capture, N.make(), lambda m, b: {"zero": sum(p.nan_to_num(posinf=0).sum()*0 for p in m.parameters())}).stop or kind == "weight"


def test_f11_a_spoilt_teacher_never_reaches_the_last_checkpoint(tmp_path):
    teacher = N.make()
    def loss(model, batch):
        with torch.no_grad(): target = teacher(batch["x"])
        return {"mse": (model(batch["x"]) - batch["y"]).square().mean(), "teacher": (model(batch["x"]) - target).square().mean()}
    class Spoil(Callback):
        def after_step(self, run):
            if run.step == 12: teacher[0].weight.data.fill_(float("nan"))
    folder = Path(fresh(tmp_path/"run"))
    with pytest.raises(NonFinite, match="teacher.0.weight") as e:
        fit(N.make(), N.batch_at, loss, CONFIG, folder, callbacks=[Spoil()], state={"teacher": teacher})
    newest = list_snapshots(folder/"checkpoints")[0]
    assert load_tensors(newest/"teacher.safetensors", finite=True) and final(folder)["step"] == 11
    assert "teacher.0.weight was not finite before the step" in replay(e.value.capture, N.make(), loss, {"teacher": teacher}).stop


def test_f11_skip_leaves_no_trace_of_the_bad_batch(tmp_path):
    data, loss, after_step = poisoned("batch")
    model, folder = N.make(), Path(fresh(tmp_path/"run"))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        fit(model, data, loss, LoopConfig(**{**CONFIG.to_dict(), "nonfinite": "skip"}), folder)
    assert any("skipped, 1 so far" in str(w.message) for w in heard) and (folder/"captures/step-00000013").is_dir()
    assert all(torch.isfinite(t).all() for t in model.state_dict().values()), "running means took the NaN of the skipped batch"
    assert int(model[1].num_batches_tracked) == 29


def test_f11_skipping_for_ever_is_not_training():
    bad = lambda number: {**N.batch_at(number), "x": N.batch_at(number)["x"]*float("nan")}
    with pytest.raises(NonFinite, match="10 in a row"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(N.make(), bad, lambda m, b: {"mse": m(b["x"]).square().mean()}, LoopConfig(steps=50, nonfinite="skip", device="cpu"))


# ------------------------------------------------------------------------------------------------ F27
def pair(nursery, folder, job="train", seconds=30, each=({}, {}), **arguments) -> list:
    "Exit codes of two processes that train together."
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": launch.free_port(), "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "OMP_NUM_THREADS": 1}
    pids = [nursery.start(job, {**common, "RANK": r, "LOCAL_RANK": r}, folder=str(folder), **{**arguments, **each[r]}) for r in (0, 1)]
    until = time.monotonic() + seconds
    return [nursery.wait(pid, max(until - time.monotonic(), 0.1)) for pid in pids]


@pytest.mark.parametrize("size, accumulate", [(8, 1), (4, 2)])
def test_f27_two_processes_equal_one_on_the_joined_batch(nursery, tmp_path, size, accumulate):
    outs = [str(tmp_path/f"rank{r}.safetensors") for r in (0, 1)]
    codes = pair(nursery, fresh(tmp_path/"two"), noisy=False, size=size, accumulate=accumulate, steps=20, each=[dict(out=o) for o in outs])
    assert codes == [0, 0], nursery.words()[-3000:]
    assert nursery.run("train", folder=fresh(tmp_path/"one"), noisy=False, size=16, steps=20, out=str(tmp_path/"one.safetensors")) == 0
    one, ranks = load_tensors(tmp_path/"one.safetensors"), [load_tensors(o) for o in outs]
    assert all(torch.equal(ranks[0][k], ranks[1][k]) for k in one), "weights, teacher or bank differ between the processes"
    for name in one: assert torch.allclose(one[name], ranks[0][name], atol=1e-5), f"{name} differs from one process on the joined batch"
    terms = lambda folder: [row["mse"] for row in final(folder)["curve"]]
    assert torch.allclose(torch.tensor(terms(tmp_path/"two")), torch.tensor(terms(tmp_path/"one")), atol=1e-5)


def contrasted(nursery, folder, cut, **more):
    "What one process, or two, hold after training two encoders to agree; every rank's tensors, and the curve."
    outs = [str(folder) + f"-rank{r}.safetensors" for r in range(len(cut))]
    fresh(folder)
    if len(cut) == 1: codes = [nursery.run("contrast", folder=str(folder), cut=cut, out=outs[0], **more)]
    else: codes = pair(nursery, folder, job="contrast", cut=cut, each=[dict(out=o) for o in outs], **more)
    assert set(codes) == {0}, nursery.words()[-3000:]
    return [load_tensors(o) for o in outs], final(folder)["curve"]


@pytest.fixture(scope="module")
def alone(nursery, tmp_path_factory): return contrasted(nursery, tmp_path_factory.mktemp("contrast")/"one", [16])


@pytest.mark.parametrize("cut", [[8, 8], [5, 11], [15, 1]])
def test_f27_contrastive_training_on_two_processes_is_that_on_the_joined_batch(nursery, tmp_path, alone, cut):
    [one], curve = alone
    ranks, two = contrasted(nursery, tmp_path/"two", cut)
    assert all(torch.equal(ranks[0][k], ranks[1][k]) for k in one), "weights, teacher or banks differ between the processes"
    for name in one: assert torch.allclose(one[name], ranks[0][name], atol=1e-4), f"{name} differs from one process on the joined batch"
    for a, b in zip(curve, two, strict=True): assert all(a[k] == pytest.approx(b[k], abs=1e-4) for k in a), (a, b)
    assert curve[-1]["in_batch"] < 0.95*curve[0]["in_batch"], "nothing was learnt: the comparison would say nothing"


@pytest.mark.parametrize("each", [(dict(), dict(kill_at=27)), (dict(raise_at=26), dict())])
def test_f27_contrastive_training_that_loses_a_process_ends_and_resumes_with_the_same_bits(nursery, tmp_path, each):
    whole, curve = contrasted(nursery, tmp_path/"whole", [5, 11])
    codes = pair(nursery, fresh(tmp_path/"cut"), job="contrast", cut=[5, 11], each=each)
    assert None not in codes and all(codes), "a process still ran after 30 s, waiting for rows of the other"
    assert final(tmp_path/"cut")["step"] == 10
    outs = [str(tmp_path/f"again{r}.safetensors") for r in (0, 1)]
    assert pair(nursery, tmp_path/"cut", job="contrast", cut=[5, 11], each=[dict(out=o) for o in outs]) == [0, 0], nursery.words()[-3000:]
    again = [load_tensors(o) for o in outs]
    assert all(torch.equal(whole[r][k], again[r][k]) for r in (0, 1) for k in whole[0]) and final(tmp_path/"cut")["curve"] == curve


def test_f27_without_the_gather_two_processes_train_something_else(nursery, tmp_path, alone):
    [one], _ = alone
    ranks, _ = contrasted(nursery, tmp_path/"two", [8, 8], gather=False)
    assert any((one[k] - ranks[0][k]).abs().max() > 0.01 for k in one if k.startswith("model"))


@pytest.mark.parametrize("fault, each", [("raises", (dict(), dict(raise_at=15))), ("is killed", (dict(), dict(kill_at=15))), ("main is killed", (dict(kill_at=14), dict()))])
def test_f27_when_one_process_fails_all_end_soon(nursery, tmp_path, fault, each):
    codes = pair(nursery, fresh(tmp_path/"run"), each=each)
    assert None not in codes, f"a process still ran after 30 s when the other {fault}"
    assert all(code != 0 for code in codes), codes


def test_f27_different_lengths_are_refused_before_the_first_step(nursery, tmp_path):
    codes = pair(nursery, fresh(tmp_path/"run"), job="of_length", each=(dict(length=500), dict(length=20)))
    assert None not in codes and all(codes), codes
    assert "do not agree on their data: process 0 has 500; process 1 has 20" in nursery.words()


def test_f27_different_lengths_that_show_late(nursery, tmp_path):
    codes = pair(nursery, fresh(tmp_path/"run"), job="unchecked", each=(dict(length=500), dict(length=20)))
    assert None not in codes and all(codes), codes


def test_f27_different_settings_are_refused(nursery, tmp_path):
    codes = pair(nursery, fresh(tmp_path/"run"), each=(dict(clip_norm=1.0), dict(clip_norm=0.5)))
    assert None not in codes and all(codes) and "do not agree on their settings" in nursery.words()


def test_f3_two_processes_stop_together_when_one_is_told(nursery, tmp_path):
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": launch.free_port(), "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "OMP_NUM_THREADS": 1}
    folder = Path(fresh(tmp_path/"run"))
    pids = [nursery.start("train", {**common, "RANK": r, "LOCAL_RANK": r}, folder=str(folder), size=8, pause=0.02, save_every=1000) for r in (0, 1)]
    for _ in range(500):
        if (folder/"metrics.jsonl").exists() and (folder/"metrics.jsonl").stat().st_size: break
        time.sleep(0.02)
    os.kill(pids[1], signal.SIGTERM)
    assert [nursery.wait(pid, 20) for pid in pids] == [143, 143]
    assert 5 <= final(folder)["step"] < 60


LAUNCH = [sys.executable, "-m", "hclab.lab.launch", "hclab.methods.baselines.martinez:train_arm", "--profile", "smoke", "-p", "data.performers=[4,2,2]", "-p", "model.channels=32"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def test_f27_the_launcher_trains_an_arm_on_two_processes(tmp_path):
    done = subprocess.run([*LAUNCH, "--folder", str(tmp_path/"two"), "--processes", "2", "-p", "loop.steps=20", "-p", "loop.batch=16"], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_json(tmp_path/"two"/"result.json")["processes"] == 2 and '"val_mpjpe"' in done.stdout


def test_f3_the_launcher_passes_a_signal_on(tmp_path):
    process = subprocess.Popen([*LAUNCH, "--folder", str(tmp_path/"two"), "--processes", "2", "-p", "loop.steps=100000", "-p", "loop.log_every=10"], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path/"two"/"metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.stat().st_size: break
        time.sleep(0.1)
    process.terminate()
    words = process.communicate(timeout=60)[1]
    assert process.returncode == 143, words
    assert "stopped by SIGTERM after step" in words and final(tmp_path/"two")["step"] >= 10


@pytest.mark.parametrize("variable, name", [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
                                            ("ACCELERATE_USE_PARALLELISM_CONFIG", "parallelism")])
def test_one_network_spread_over_processes_is_refused_before_anything_begins(tmp_path, monkeypatch, capsys, variable, name):
    "Accelerate alone would train data-parallel on CPUs without a word, and save shards as if they were the network on GPUs."
    monkeypatch.setenv(variable, "true")
    assert launch.main(["hclab.lab.arms:example_arm", "--folder", str(tmp_path/"run"), "-p", "steps=3"]) == 2
    assert name in capsys.readouterr().err and not (tmp_path/"run").exists()
    monkeypatch.setenv(variable, "false")
    assert launch.main(["hclab.lab.arms:example_arm", "--folder", str(tmp_path/"run"), "-p", "steps=3"]) == 0


def test_the_loop_refuses_it_too(monkeypatch):
    "A script of one's own under `accelerate launch --use_fsdp` never meets the launcher of the house."
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="asks for FSDP"): fit(N.make(), N.batch_at, lambda m, b: {"mse": (m(b["x"]) - b["y"]).square().mean()}, CONFIG)
