"Hi-TRS: sizes against the released code, clips and masks against their definition, the three questions, where arms begin, and what is refused."
import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from hclab.core.config import ConfigError
from hclab.core.skeleton import skeleton
from hclab.data.sequence_views import STREAMS, SequenceAugment, mask_joints
from hclab.methods.hitrs import (HiTRS, HiTRSAction, HiTRSConfig, HiTRSFrames, HiTRSPrediction, Pretext, PretextArm, PretextConfig, action_arm, answers, clip_answers, clip_mask, draw_swaps, encoder_of, fixed_questions, frame_answers, frames_arm,
                                 loss, moving_clips, prediction_arm, pretext_arm, pretext_batch, pretext_optimiser, pretrain, shown, usable_sequences, video_answers)
from hclab.models.windows import Windows, window_count
from hclab.tasks import action as recognition
from hclab.tasks.action import ActionConfig, Recogniser
from hclab.tasks.frame_labels import FrameConfig, StreamConfig
from hclab.tasks.skeleton_data import SkeletonDataConfig, SkeletonSet
from hclab.train.loop import LoopConfig, seeded

SMALL = HiTRSConfig(width=8, heads=2, head=4, layers=1, dropout=0.0)
QUIET = SequenceAugment(chance=0.0)


def drawn(frames=(40, 40, 40), joints=25, seed=0, dtype=torch.float32):
    "Random walks as sequences (B,T,J,3) with their mask."
    g, length = torch.Generator().manual_seed(seed), torch.tensor(frames)
    mask = torch.arange(int(length.max())) < length[:, None]
    return torch.randn(len(frames), int(length.max()), joints, 3, generator=g, dtype=dtype).cumsum(1)*.05*mask[..., None, None], mask


def count(module): return sum(p.numel() for p in module.parameters())


def as_set(sequence, mask, labels=None):
    n = len(sequence)
    return SkeletonSet(sequence[:, None], mask[:, None], torch.arange(n) % 2 if labels is None else labels, torch.arange(n), torch.zeros(n, dtype=torch.long), ("a", "b"), "NTU25", 15.0)


def test_every_weight_of_the_paper_is_counted():
    full = HiTRS("NTU25")
    assert (count(full.frame), count(full.clip), count(full.video), count(full)) == (891_008, 1_851_776, 4_175_104, 6_917_888)
    assert count(HiTRS("UIPRMD22")) == 6_912_128 and count(Pretext(PretextConfig())) == 7_051_143
    assert count(Recogniser(full, 60)) == 6_948_668 and full.width == 512 and full.frame_width == 256


def test_only_two_tensors_depend_on_the_joints():
    a, b = HiTRS(SMALL).state_dict(), HiTRS(replace(SMALL, layout="UIPRMD22")).state_dict()
    assert [n for n in a if a[n].shape != b[n].shape] == ["frame.place", "clip.place"]


def test_the_clip_mask_by_its_words():
    F_, J = 7, 25
    allowed = clip_mask(F_, J)
    for a in range(F_*J):
        for b in range(F_*J): assert allowed[a, b] == (a == b or a//J != b//J)
    assert allowed[-1].all() and allowed[:, -1].all() and allowed.shape == (176, 176)


@pytest.mark.parametrize("name", ["NTU25", "UIPRMD22", "H36M17", "COCO17"])
def test_any_layout(name):
    J = len(skeleton(name).names)
    sequence, mask = drawn((21, 30), J)
    net = HiTRS(replace(SMALL, layout=name)).eval()
    assert net(sequence, mask).shape == (2, 32) and net.each_frame(sequence, mask).shape == (2, 30, 16)


def test_padding_changes_nothing_for_anybody():
    sequence, mask = drawn((19, 64, 33), dtype=torch.double)
    net = HiTRS(SMALL).double().eval()
    more, there = F.pad(sequence, (0, 0, 0, 0, 0, 25)), F.pad(mask, (0, 25))
    assert torch.allclose(net(sequence, mask), net(more, there)) and torch.allclose(net.each_frame(sequence, mask), net.each_frame(more, there)[:, :64])


def test_frames_are_read_once():
    sequence, mask = drawn((30, 20))
    net, rows = HiTRS(SMALL).eval(), []
    net.frame.register_forward_hook(lambda module, inputs, out: rows.append(len(inputs[0])))
    net.each_frame(sequence, mask)
    assert rows == [51]          # 50 real ones and one of zeros, for 50 overlapping clips


def test_each_frames_clip_is_its_own():
    sequence, mask = drawn((30,), dtype=torch.double)
    net = HiTRS(SMALL).double().eval()
    said, changed = net.each_frame(sequence, mask), sequence.clone()
    changed[0, 20] += 1
    moved = (net.each_frame(changed, mask) - said).abs().sum(-1)[0] > 1e-9
    assert moved.nonzero()[:, 0].tolist() == [t for t in range(30) if (t - 20) % 4 == 0 and abs(t - 20) <= 12]


def test_spoilt_joints_are_what_the_sheet_says():
    sequence, mask = torch.randn(40, 60, 25, 3, generator=torch.Generator().manual_seed(1)), torch.ones(40, 60, dtype=torch.bool)
    mask[:20, 50:] = False
    sequence = sequence*mask[..., None, None]
    spoilt, selected = mask_joints(sequence, mask, torch.Generator().manual_seed(2))
    assert not selected[~mask].any() and abs(float(selected[mask].float().mean()) - .15) < .004
    constant = (spoilt == 1).all(-1) & selected
    same = (spoilt == sequence).all(-1) & selected
    n = int(selected.sum())
    assert abs(int(constant.sum())/n - .8) < .015 and abs(int(same.sum())/n - .1) < .015 and torch.equal(spoilt[~selected], sequence[~selected])


def test_swaps_lie_apart():
    orders = draw_swaps(torch.tensor([2, 3, 5, 9]).repeat(300), torch.Generator().manual_seed(0))
    for n, order in zip([2, 3, 5, 9]*300, orders.tolist()):
        moved = [i for i, o in enumerate(order) if o != i]
        assert len(moved) == 2 and moved[1] < n and (moved == [0, 1] if n == 2 else moved[1] - moved[0] >= 2) and sorted(order) == list(range(9))


def test_nobody_moves_nobody_is_asked():
    sequence, mask = torch.ones(3, 40, 25, 3), torch.ones(3, 40, dtype=torch.bool)
    assert (moving_clips(sequence, mask, torch.Generator(), Windows()) == -1).all()
    config = PretextConfig(model=SMALL, augment=QUIET)
    batch = pretext_batch(sequence, mask, config, torch.Generator().manual_seed(0))
    terms = loss(Pretext(config), batch)
    assert float(terms["clip_order"].detach()) == 0 and all(t.isfinite() for t in terms.values())
    sum(terms.values()).backward()


def test_loss_term_by_term_as_the_sheet_has_it():
    "Each term written out sample by sample, from the modules alone."
    config = PretextConfig(model=SMALL, augment=QUIET, asked=2, weights=(1, 2, .5, .1))
    with seeded(3): model = Pretext(config).double().eval()
    sequence, mask = drawn((40, 26, 60), dtype=torch.double)
    batch = pretext_batch(sequence, mask, config, torch.Generator().manual_seed(5))
    terms, encoder = {k: v.item() for k, v in loss(model, batch).items()}, model.encoder
    pose, clips, videos, expected, came = [], [], [], [], []
    for b in range(3):
        n = int(mask[b].sum())
        padded = F.pad(batch["sequence"][b, :n], (0, 0, 0, 0, 6, 6))
        seen = encoder.frame(padded)
        for t in range(n):
            for j in range(25):
                if batch["selected"][b, t, j]: pose += F.smooth_l1_loss(10*model.where(seen[t + 6, j]), 10*batch["target"][b, t, j], reduction="none").tolist()
        for first, swap in zip(batch["clip"][b].tolist(), batch["swap"][b].tolist(), strict=True):
            at = [first + 2*k for k in range(7)]
            for label, order in ((1, range(7)), (0, swap)):
                scores = model.swapped(encoder.clip(seen[[at[o] for o in order]][None]))
                clips.append(F.cross_entropy(scores, torch.tensor([label])).item())
        windows = [[min(7*i + 2*k, n + 11) for k in range(7)] for i in range(window_count(n, Windows()))]
        said = torch.cat([encoder.clip(seen[w][None]) for w in windows])
        own = torch.ones(1, len(windows) - 1, dtype=torch.bool)
        for label, order in ((1, range(len(windows) - 1)), (0, batch["order"][b].tolist()[:len(windows) - 1])):
            token = encoder.video(said[list(order)][None], own)
            videos.append(F.cross_entropy(model.ordered(token), torch.tensor([label])).item())
            if label: expected.append(F.normalize(model.future(token)[0], dim=0)); came.append(F.normalize(said[-1], dim=0))
    likeness = torch.stack(expected) @ torch.stack(came).T/.07
    mean = lambda x: sum(x)/len(x)
    by_hand = {"pose": mean(pose), "clip_order": mean(clips), "video_order": mean(videos), "future": F.cross_entropy(likeness, torch.arange(3)).item()}
    for (name, value), weight in zip(by_hand.items(), config.weights, strict=True): assert math.isclose(terms[name], weight*value, rel_tol=2e-4), (name, terms[name], value)


def test_what_came_is_not_taught():
    config = PretextConfig(model=SMALL, augment=QUIET, levels=("video",))
    model, (sequence, mask) = Pretext(config), drawn((40, 40))
    batch = pretext_batch(sequence, mask, config, torch.Generator().manual_seed(0))
    batch["sequence"] = batch["sequence"].clone().requires_grad_()
    _, _, expected, came = video_answers(model, model.encoder.see(batch["sequence"], batch["mask"]), batch)
    assert expected.requires_grad and not came.requires_grad


def test_two_exchanged_windows_of_the_shortest():
    "Nineteen frames have three clips; two are left, and these are exchanged."
    sequence, mask = drawn((19, 19))
    config = PretextConfig(model=SMALL, augment=QUIET)
    batch = pretext_batch(sequence, mask, config, torch.Generator().manual_seed(0))
    assert batch["counts"].tolist() == [2, 2] and batch["order"].tolist() == [[1, 0], [1, 0]]
    assert usable_sequences(as_set(sequence, mask))[0].shape == (2, 19, 25, 3)
    short, there = drawn((18, 12))
    with pytest.raises(ConfigError, match="19 frames, which three clips need; the longest has 18"): usable_sequences(as_set(short, there))


def test_a_batch_in_which_some_cannot_be_asked():
    "Too short, and still: the others are asked, nothing is NaN."
    sequence, mask = drawn((40, 12, 40))
    sequence[2] = sequence[2, :1]*mask[2, :, None, None]
    config = PretextConfig(model=SMALL, augment=QUIET)
    model, batch = Pretext(config), pretext_batch(sequence, mask, config, torch.Generator().manual_seed(0))
    seen = model.encoder.see(batch["sequence"], batch["mask"])
    assert len(clip_answers(model, seen, batch)[1]) == 4 and len(video_answers(model, seen, batch)[1]) == 4      # two of three each, twice
    assert all(t.isfinite() for t in loss(model, batch).values()) and len(frame_answers(model, seen, batch)[0]) == int(batch["selected"].sum())


def test_decay_spares_what_the_code_spares():
    model = Pretext(PretextConfig(model=SMALL))
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, free = ([names[id(p)] for p in g["params"]] for g in pretext_optimiser(model, 1e-3, .01).param_groups)
    assert len(decayed) + len(free) == len(names) and all(n.endswith("weight") for n in decayed)
    for part in ("bias", "place", "token", "before_looking.weight", "before_thinking.weight", "into.2.weight"):
        assert any(n.endswith(part) for n in free) and not any(n.endswith(part) for n in decayed)


def test_resumed_training_is_the_same(tmp_path):
    sequence, mask = drawn((40,)*6)
    config = PretextConfig(model=SMALL, loop=LoopConfig(steps=6, batch=4, lr=1e-3, log_every=3, save_every=3, device="cpu"), warmup=2)
    whole, _ = pretrain(as_set(sequence, mask), config, seed=1)
    class Killed(RuntimeError): pass
    import hclab.methods.hitrs as h
    asked, keep = [], h.pretext_batch
    def dies(*args, **kwargs):
        asked.append(1)
        if len(asked) == 6: raise Killed
        return keep(*args, **kwargs)
    h.pretext_batch = dies
    try:
        with pytest.raises(Killed): pretrain(as_set(sequence, mask), config, seed=1, folder=tmp_path)
    finally: h.pretext_batch = keep
    again, _ = pretrain(as_set(sequence, mask), config, seed=1, folder=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_arms_hand_weights_over(tmp_path):
    data = SkeletonDataConfig.for_profile("smoke", actions=("walk", "wave"), performers=4)
    pretext = PretextConfig.for_profile("smoke", model=SMALL, loop=LoopConfig(steps=4, batch=4, lr=1e-3, log_every=2, save_every=2, device="cpu"), warmup=1)
    result = pretext_arm(PretextArm(data, pretext), 0, tmp_path)
    assert {"test_pose_mm", "val_future_acc", "parameters", "curve"} <= set(result)
    net, fresh = encoder_of(SMALL, tmp_path), encoder_of(SMALL)
    assert not torch.equal(net.frame.place, fresh.frame.place)
    action = ActionConfig.for_profile("smoke", data=data, protocol="knn")
    scored = action_arm(HiTRSAction(SMALL, action), 0, None, {"pretext-joint": tmp_path})
    assert 0 <= scored["test_top1"] <= 100 and scored["chance_top1"] == pytest.approx(50, abs=10)
    with pytest.raises(ConfigError, match="must end in each stream"): action_arm(HiTRSAction(SMALL, action), 0, None, {"pretext-bone": tmp_path})
    with pytest.raises(ConfigError, match="of the network; missing or of another shape"): encoder_of(replace(SMALL, layout="UIPRMD22"), tmp_path)
    with pytest.raises(ConfigError, match="people of NTU25 for a network of UIPRMD22"): pretext_arm(PretextArm(data, replace(pretext, model=replace(SMALL, layout="UIPRMD22"))), 0)


@pytest.mark.parametrize("change, words", [
    (lambda s, m: (s[:, :, :17], m), "17 joints, the network was built for 25"), (lambda s, m: (s*float("nan"), m), "is not finite"), (lambda s, m: (s*0, m & False), "has no frame"),
    (lambda s, m: (s[:, :0], m[:, :0]), "no frames"), (lambda s, m: (s[0], m), r"expected \(B, T, J, 3\)"), (lambda s, m: (s, m.float()), "bool"), (lambda s, m: (s[:0], m[:0]), "no sequence")])
def test_bad_sequences_are_refused(change, words):
    with pytest.raises(ValueError, match=words): HiTRS(SMALL)(*change(*drawn((30, 30))))


def test_settings_are_checked():
    for wrong in (dict(levels=("frames",)), dict(levels=()), dict(stream="bones"), dict(weights=(1, 1)), dict(weights=(1, 1, 1, -1)), dict(asked=0), dict(moves=-1)):
        with pytest.raises(ConfigError): PretextConfig(**wrong)
    for wrong in (dict(width=7), dict(layers=0)):
        with pytest.raises(ConfigError): HiTRSConfig(**wrong)
    assert PretextConfig.from_dict(PretextConfig(model=SMALL).to_dict()) == PretextConfig(model=SMALL)



def test_detection_and_prediction_start_from_a_pre_training(tmp_path):
    streams = StreamConfig.for_profile("smoke", performers=4, length=2)
    quick = LoopConfig(steps=3, batch=8, lr=1e-3, log_every=3, save_every=3, device="cpu")
    result = frames_arm(HiTRSFrames(SMALL, FrameConfig.for_profile("smoke", streams=streams, loop=quick)), 0)
    assert {"mAP_a@0.5", "mAP_v@0.5", "missed", "test_frames", "curves"} <= set(result) and "models" not in result
    kept = json.loads(json.dumps(result))["example"]
    assert kept["true"] and all(0 <= start < end <= kept["seconds"] and kept["classes"][label] != "background" for start, end, label, *_ in kept["true"] + kept["found"])
    base = HiTRSPrediction.for_profile("smoke")
    small = replace(base, model=SMALL, task=replace(base.task, data=replace(base.task.data, performers=4, actions=("walk", "wave")), prediction=replace(base.task.prediction, loop=quick)))
    said = json.loads(json.dumps(prediction_arm(small, 0)))
    true, guess, last = (torch.tensor(said["example"][part]) for part in ("true", "said", "last"))
    assert true.shape == guess.shape == (small.task.prediction.future, 25, 3) and last.shape == (25, 3) and 0 < (true[0] - last).norm(dim=-1).mean() < .5
    assert said["zero_velocity"] > 0 and set(said["test_by_horizon"]["network"]) == {"200 ms", "400 ms", "600 ms", "all"}
    with pytest.raises(ConfigError, match="give both the same"): replace(small.task, data=replace(small.task.data, fps=12.0))
    with pytest.raises(ConfigError, match="must end in each stream"): frames_arm(HiTRSFrames(SMALL), 0, None, {"a": tmp_path, "b": tmp_path})


# ------------------------------------------------------------------------------------------------ where arms begin
@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    "A pre-training of each stream: name -> folder, and stream -> its network. The names come in another order than the streams."
    sequence, mask = drawn((40,)*6)
    before, known = {}, {}
    for n, kind in enumerate(reversed(STREAMS)):
        before[f"pretext-{kind}"] = folder = tmp_path_factory.mktemp(kind)
        config = PretextConfig(model=SMALL, stream=kind, loop=LoopConfig(steps=2, batch=4, lr=1e-2, log_every=2, save_every=2, device="cpu"), warmup=1)
        known[kind] = pretrain(as_set(sequence, mask), config, seed=n, folder=folder)[0].encoder
    return before, known


def begins(monkeypatch, task, arm):
    "The encoders that an arm hands to a task's training, in their order, as they are before the first step."
    found = []
    def untrained(model, *args, **kwargs):
        found.append(copy.deepcopy(model.encoder))
        return [dict(val_acc=0.0, val_frames=0.0, val_mpjpe=0.0)]
    monkeypatch.setattr(f"hclab.tasks.{task}.fit", untrained)
    arm()
    return found


def same(a, b): return a.state_dict().keys() == b.state_dict().keys() and all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def assert_each_begins_with_its_own(found, known, kinds, dilate=1):
    assert [getattr(e, "kind", "joint") for e in found] == list(kinds)
    for kind, encoder in zip(kinds, found, strict=True):
        inner = encoder if kind == "joint" else encoder.encoder
        assert [other for other in known if same(inner, known[other])] == [kind], f"the {kind} stream begins elsewhere"
        assert kind == "joint" or (encoder.dilate, encoder.direction) == (dilate, "backward")


@pytest.mark.parametrize("protocol", ["finetune", "linear", "knn"])
def test_recognition_begins_where_each_stream_was_taught(taught, monkeypatch, protocol):
    before, known = taught
    sequence, mask = drawn((20,)*6)
    monkeypatch.setattr("hclab.tasks.action.make_parts", lambda config: {part: as_set(sequence, mask) for part in ("train", "val", "test")})
    config = HiTRSAction(SMALL, ActionConfig.for_profile("smoke", protocol=protocol, streams=STREAMS))
    if protocol == "finetune": found = begins(monkeypatch, "action", lambda: action_arm(config, 5, None, before))
    else:           # features of a frozen encoder, of all parts: whoever is asked for them
        asked, keep = [], recognition.features
        monkeypatch.setattr(recognition, "features", lambda encoder, data: (asked.append(encoder), keep(encoder, data))[1])
        action_arm(config, 5, None, before)
        found = list(dict.fromkeys(e for e in asked if not isinstance(e, recognition.PoseStatistics)))
    assert_each_begins_with_its_own(found, known, STREAMS)


def test_detection_begins_where_each_stream_was_taught(taught, monkeypatch):
    before, known = taught
    frames = FrameConfig.for_profile("smoke", streams=StreamConfig.for_profile("smoke", performers=4, length=2), kinds=STREAMS)
    assert_each_begins_with_its_own(begins(monkeypatch, "frame_labels", lambda: frames_arm(HiTRSFrames(SMALL, frames), 5, None, before)), known, STREAMS, frames.dilate)
    one = replace(frames, kinds=("bone",))
    assert_each_begins_with_its_own(begins(monkeypatch, "frame_labels", lambda: frames_arm(HiTRSFrames(SMALL, one), 5, None, before)), known, ("bone",), frames.dilate)
    alone, = begins(monkeypatch, "frame_labels", lambda: frames_arm(HiTRSFrames(SMALL, one), 5))
    assert not any(same(alone.encoder, net) for net in known.values()), "without a pre-training it begins with none"


def test_prediction_begins_where_joints_were_taught(taught, monkeypatch):
    before, known = taught
    base = HiTRSPrediction.for_profile("smoke")
    config = replace(base, model=SMALL, task=replace(base.task, data=replace(base.task.data, performers=4, actions=("walk", "wave"))))
    assert_each_begins_with_its_own(begins(monkeypatch, "motion_prediction", lambda: prediction_arm(config, 5, None, before)), known, ("joint",))
    alone, = begins(monkeypatch, "motion_prediction", lambda: prediction_arm(config, 5))
    assert not same(alone, known["joint"])


def test_a_clip_says_what_it_says_in_its_stream():
    sequence, mask = drawn((40,), dtype=torch.double)
    net = HiTRS(SMALL).double().eval()
    clips = torch.stack([sequence[0, t - 12:t + 13:4] for t in range(12, 28)])
    assert torch.allclose(net.of_clips(clips), net.each_frame(sequence, mask)[0, 12:28])


def test_the_same_questions_of_the_same_set():
    sequence, mask = drawn((40,)*70)
    config = PretextConfig(model=SMALL)
    one, two = (fixed_questions(as_set(sequence, mask), config) for _ in range(2))
    assert [len(b["mask"]) for b in one] == [64] and all(torch.equal(one[0][k], two[0][k]) for k in one[0])
    assert [len(b["mask"]) for b in fixed_questions(as_set(sequence[:5], mask[:5]), config)] == [5]
    model = Pretext(config).train()
    assert set(answers(model, one)) == {"pose_mm", "mean_pose_mm", "clip_acc", "video_acc", "future_acc"} and model.training


def test_a_joint_is_not_told_by_its_own_frame():
    "Sheet, checklist 3: one layer, seen from joint 11 of frame 3."
    level, features = HiTRS(SMALL).double().clip, torch.randn(1, 7, 25, 8, dtype=torch.double, generator=torch.Generator().manual_seed(1), requires_grad=True)
    said = level.mix(level.tokens(features), level.allowed)[0, 3*25 + 11]
    slope = torch.autograd.grad(said.square().sum(), features)[0][0].abs().sum(-1)
    assert slope[3, 11] > 0 and slope[3].count_nonzero() == 1 and (slope[torch.arange(7) != 3] > 0).all()


def test_an_untrained_network_guesses():
    "Sheet, checklist 9: order questions between 0.6 and 1.2, the future near ln B, at the paper's size."
    sequence, mask = drawn((40,)*64)
    config = PretextConfig(augment=QUIET)
    with seeded(0): model = Pretext(config).eval()
    with torch.no_grad(): terms = {k: float(v) for k, v in loss(model, pretext_batch(sequence, mask, config, torch.Generator().manual_seed(0))).items()}
    assert .6 < terms["clip_order"] < 1.2 and .6 < terms["video_order"] < 1.2 and abs(terms["future"] - math.log(64)) < .25, terms


def test_motion_is_that_of_the_released_code_also_in_clips():
    sequence, mask = drawn((30,))
    steps = pretext_batch(sequence, mask, PretextConfig(model=SMALL, stream="motion", augment=QUIET), torch.Generator(), changed=False)["target"]
    assert torch.equal(steps[0, 1:], sequence[0, 1:] - sequence[0, :-1]) and not steps[0, 0].any()
    even = torch.arange(30.)[None, :, None, None].expand(1, 30, 25, 3)*.02
    seen = []
    net = HiTRS(SMALL).eval()
    net.frame.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    shown(net, "motion", 4).of_clips(even[:, 1:26:4])
    assert torch.allclose(seen[0], torch.tensor(.02)), "metres a frame of the sequence, at the edges, too"


def moves_of(sequence):
    "(T,) the mean path a frame of a clip's joints, about each frame of a sequence (T,J,3): every second one from six before to six after, where there is one before it."
    steps = [[(sequence[f] - sequence[f - 1]).norm(dim=-1).mean() for f in range(t - 6, t + 7, 2) if 1 <= f < len(sequence)] for t in range(len(sequence))]
    return torch.stack([torch.stack(s).mean() for s in steps])


@pytest.mark.parametrize("kind", STREAMS)
def test_whether_something_moves_is_asked_of_joints(kind):
    "At a threshold at which about half of the clips count; so many are drawn that each of them comes."
    sequence, mask = drawn((40,)*6)
    config = PretextConfig(model=SMALL, stream=kind, augment=QUIET, asked=400, moves=.08)
    clips = pretext_batch(sequence, mask, config, torch.Generator().manual_seed(4))["clip"]
    for own, joints in zip(clips, sequence, strict=True):
        counts = moves_of(joints) > .08
        assert 5 < int(counts.sum()) < 35 and own.unique().tolist() == counts.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_that_stands_still_makes_a_loss_no_number(dtype):
    "F11, F12: people at the origin, a batch of one, the shortest sequence."
    sequence, mask = torch.zeros(1, 19, 25, 3), torch.ones(1, 19, dtype=torch.bool)
    model, config = Pretext(PretextConfig(model=SMALL)), PretextConfig(model=SMALL)
    batch = pretext_batch(sequence, mask, config, torch.Generator().manual_seed(0), changed=False)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32): terms = loss(model, batch)
    sum(terms.values()).backward()
    assert all(torch.isfinite(v) for v in terms.values()) and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
