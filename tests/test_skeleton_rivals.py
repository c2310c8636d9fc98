"Rivals on skeletons: what they are shown, and that an arm begins where its pre-training ended."
import copy
from dataclasses import replace

import pytest
import torch

from hclab.core.config import ConfigError
from hclab.data.sequence_views import STREAMS
from hclab.methods.baselines import crossclr, mcc
from hclab.methods.baselines.crossclr import CrosSCLRConfig
from hclab.methods.baselines.mcc import MCCConfig
from hclab.lab.skeleton_rivals import (CrosSCLRArm, MCCArm, Prepared, RivalAction, RivalFrames, RivalNet, RivalPrediction, crossclr_arm, drawn_batches, mcc_arm, rival_action_arm,
                                                     rival_encoder, rival_frames_arm, rival_prediction_arm)
from hclab.models.stgcn import STGCN, STGCNShape
from hclab.tasks.action import ActionConfig
from hclab.tasks.frame_labels import FrameConfig, StreamConfig
from hclab.tasks.motion_prediction import PredictionTask
from hclab.tasks.skeleton_data import SkeletonDataConfig
from hclab.train.loop import LoopConfig, seeded

TINY = STGCNShape(channels=(6, 8), halves=(1,), kernel=3, dropout=0.0, init="torch")
NET = RivalNet(shape=TINY, frames=12)
DATA = SkeletonDataConfig.for_profile("smoke", actions=("walk", "wave"), performers=4)
QUICK = LoopConfig(steps=3, batch=4, lr=1e-3, log_every=3, save_every=3, device="cpu")
SPACE = CrosSCLRArm(DATA, NET, CrosSCLRConfig.for_profile("smoke", shape=TINY, streams=("joint", "motion"), loop=QUICK))
TIME = MCCArm(DATA, NET, MCCConfig.for_profile("smoke", shape=TINY, loop=QUICK))


def people(n=3, frames=20):
    with seeded(1): x = torch.randn(n, frames, 25, 3).cumsum(1)*.02 + torch.randn(n, 1, 25, 3)*.3
    mask = torch.arange(frames) < torch.tensor([frames, frames - 5, frames - 2])[:n, None]
    return x*mask[..., None, None], mask


@pytest.mark.parametrize("kind", ["joint", "bone", "motion"])
def test_where_and_how_turned_changes_nothing(kind):
    with seeded(0): net = Prepared(STGCN("NTU25", TINY), NET, kind).eval()
    x, mask = people()
    turn = torch.tensor([[.8, -.6, 0], [.6, .8, 0], [0, 0, 1.]])
    moved = (x @ turn.T + torch.tensor([1., -2., .5]))*mask[..., None, None]
    with torch.no_grad():
        assert torch.allclose(net(x, mask), net(moved, mask), atol=1e-4) and not torch.allclose(net(x, mask)[0], net(x, mask)[1], atol=1e-4)
        assert torch.allclose(net.of_clips(x[:, :7]), net.of_clips(moved[:, :7]), atol=1e-4)
        still = Prepared(net.encoder, replace(NET, turn=False), kind)
        assert not torch.allclose(still(x, mask), still(moved, mask), atol=1e-4), "without turning, a turn shows"


def test_arms_hand_weights_over(tmp_path):
    space, time = tmp_path/"space", tmp_path/"time"
    for folder in (space, time): folder.mkdir()
    for said in (crossclr_arm(SPACE, 0, space), mcc_arm(TIME, 0, time)):
        assert 0 <= said["val_neighbours"] <= 100 and said["curve"] and said["parameters"] == sum(p.numel() for p in STGCN("NTU25", TINY).parameters())
    same = lambda a, b: all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    joint, motion, later = rival_encoder(NET, "joint", {"a": space}), rival_encoder(NET, "motion", {"a": space}), rival_encoder(NET, "motion", {"b": time})
    assert same(joint, rival_encoder(NET, "joint", {"a": space})) and not same(joint, motion) and not same(motion, later)
    with pytest.raises(ConfigError, match="for the bone stream.*Pre-train that stream"): rival_encoder(NET, "bone", {"a": space})
    with pytest.raises(ConfigError, match="for the joint stream.*MCC's is the motion stream"): rival_encoder(NET, "joint", {"b": time})
    with pytest.raises(ConfigError, match="missing or of another shape"): rival_encoder(replace(NET, shape=replace(TINY, channels=(6, 9))), "joint", {"a": space})
    with pytest.raises(ConfigError, match="one pre-training"): rival_encoder(NET, "joint", {"a": space, "b": time})
    one = RivalAction(NET, ActionConfig.for_profile("smoke", data=DATA, protocol="linear", streams=("joint", "motion")))
    said = rival_action_arm(one, 0, None, {"a": space})
    assert set(said["test_by_stream"]) == {"joint", "motion"} and 0 <= said["floor_top1"] <= 100


# ------------------------------------------------------------------------------------------------ where arms begin
@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    "CrosSCLR on three streams and MCC, pre-trained: the folders, and (name, stream) -> the ST-GCN."
    x, mask = people()
    before = {name: tmp_path_factory.mktemp(name) for name in ("space", "time")}
    views = CrosSCLRConfig.for_profile("smoke", shape=TINY, streams=STREAMS, loop=replace(QUICK, steps=2, save_every=2, log_every=2))
    space, _ = crossclr.pretrain(drawn_batches(x, mask, 3, 0, lambda x, m, g: crossclr.two_views(*crossclr.prepare(x, m, "NTU25", 12, "z"), g, views)), views, 0, before["space"])
    later = MCCConfig.for_profile("smoke", shape=TINY, loop=views.loop)
    time, _ = mcc.pretrain(drawn_batches(x, mask, 3, 0, lambda x, m, g: mcc.clips(x, m, g, later)), later, 1, before["time"])
    return before, {**{("space", kind): space.encoder(kind) for kind in STREAMS}, ("time", "motion"): time.encoder()}


def assert_begins(taught, monkeypatch, task, arm, name, kinds, **settings):
    "The networks that are trained, in their order, are those that `name` was taught, each its own stream's; without a pre-training they are nobody's."
    (before, known), found = taught, []
    def untrained(model, *args, **kwargs):
        found.append(copy.deepcopy(model.encoder))
        return [dict(val_acc=0.0, val_frames=0.0, val_mpjpe=0.0)]
    monkeypatch.setattr(f"hclab.tasks.{task}.fit", untrained)
    same = lambda a, b: all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    whose = lambda net: [who for who, other in known.items() if same(net.encoder, other)]
    arm({name: before[name]}); arm(None)
    assert [net.kind for net in found] == 2*list(kinds)
    assert [whose(net) for net in found] == [[(name, kind)] for kind in kinds] + [[]]*len(kinds)
    assert all(getattr(net, k, getattr(net.config, k, None)) == v for net in found for k, v in settings.items())


@pytest.mark.parametrize("name, kinds", [("space", STREAMS), ("time", ("motion",))])
def test_recognition_begins_where_each_stream_was_taught(taught, monkeypatch, name, kinds):
    config = RivalAction(NET, ActionConfig.for_profile("smoke", data=DATA, protocol="finetune", streams=kinds))
    assert_begins(taught, monkeypatch, "action", lambda before: rival_action_arm(config, 5, None, before), name, kinds, turn=True)


@pytest.mark.parametrize("name, kinds", [("space", STREAMS), ("time", ("motion",))])
def test_detection_begins_where_each_stream_was_taught(taught, monkeypatch, name, kinds):
    config = RivalFrames(NET, FrameConfig.for_profile("smoke", streams=StreamConfig.for_profile("smoke", performers=4, length=2), kinds=kinds))
    assert_begins(taught, monkeypatch, "frame_labels", lambda before: rival_frames_arm(config, 5, None, before), name, kinds, dilate=config.frames.dilate)


@pytest.mark.parametrize("name, kind", [("space", "joint"), ("space", "bone"), ("time", "motion")])
def test_prediction_begins_where_its_stream_was_taught(taught, monkeypatch, name, kind):
    base = PredictionTask.for_profile("smoke")
    config = RivalPrediction(NET, kind, replace(base, data=replace(base.data, performers=4, actions=("walk", "wave"))))
    assert_begins(taught, monkeypatch, "motion_prediction", lambda before: rival_prediction_arm(config, 5, None, before), name, (kind,), turn=False, frames=NET.frames)


def test_detection_and_prediction():
    streams = StreamConfig.for_profile("smoke", performers=4, length=2)
    said = rival_frames_arm(RivalFrames(NET, FrameConfig.for_profile("smoke", streams=streams, kinds=("joint", "bone"), loop=replace(QUICK, batch=8))), 0)
    assert set(said["curves"]) == {"joint", "bone"} and "mAP_a@0.5" in said and "models" not in said
    base = PredictionTask.for_profile("smoke")
    said = rival_prediction_arm(RivalPrediction(NET, "joint", replace(base, data=replace(base.data, performers=4, actions=("walk", "wave")), prediction=replace(base.prediction, loop=QUICK))), 0)
    assert said["zero_velocity_limbs"] > 0 and said["test_limbs"] > 0


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ConfigError, match="set net.layout and method.layout"): crossclr_arm(replace(SPACE, net=replace(NET, layout="UIPRMD22")), 0)
    with pytest.raises(ConfigError, match="set net.layout and method.layout"): mcc_arm(replace(TIME, method=replace(TIME.method, shape=replace(TINY, kernel=5))), 0)
    with pytest.raises(ConfigError, match="two frames"): RivalNet(frames=1)
    with pytest.raises(ConfigError, match="did you mean 'bone'"): FrameConfig(kinds=("bones",))
    with pytest.raises(ConfigError, match="share"): PredictionTask(share=0)


def test_batches_are_functions_of_number_and_seed():
    x, mask = people()
    make = lambda a, m, g: {"x": a, "draw": torch.rand(1, generator=g)}
    one, two = (drawn_batches(x, mask, 2, seed, make) for seed in (0, 0))
    assert torch.equal(one(5)["x"], two(5)["x"]) and torch.equal(one(5)["draw"], two(5)["draw"]) and not torch.equal(one(5)["draw"], one(6)["draw"])
    assert len(drawn_batches(x, mask, 8, 0, make)(0)["x"]) == 3
