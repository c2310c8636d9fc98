"What the released code of Hi-TRS does otherwise: bodies, batches, what is trained, and where it starts."
from dataclasses import replace

import pytest
import torch

from hclab.core.config import ConfigError
from hclab.data.sequence_views import SequenceAugment
from hclab.methods.hitrs import HiTRS, HiTRSAction, PretextArm, pretext_arm
from hclab.methods.hitrs_released import Frozen, TwoBodies, released_action, released_arm, released_pretext, train_released, two_bodies
from hclab.tasks.action import action_batch
from hclab.tasks.skeleton_data import SkeletonDataConfig, make_parts
from hclab.train.loop import seeded

FEW = HiTRSAction.for_profile("smoke")
FEW = replace(FEW, action=replace(FEW.action, data=SkeletonDataConfig.for_profile("smoke", performers=4, takes=1), loop=replace(FEW.action.loop, steps=3, batch=8)))


@pytest.fixture(scope="module")
def parts(): return make_parts(FEW.action.data)


def test_training_and_test_see_the_same_two_bodies(parts):
    "Also where the second is seen for a while only."
    data = parts["train"]
    second = data.mask & (torch.arange(data.mask.shape[2]) < 9)
    pair = replace(data, sequences=torch.cat([data.sequences, -data.sequences*second[..., None, None]], 1), mask=torch.cat([data.mask, second], 1))
    batch = action_batch(pair, 0, replace(FEW.action, augment=SequenceAugment(chance=0.0)))
    learnt = two_bodies(batch["sequences"], batch["mask"])
    for row, sequence, mask in zip(batch["labels"], *learnt, strict=True): assert row in data.labels and mask[0].equal(mask[1]) and not sequence[1, 9:].any()
    asked = two_bodies(pair.sequences, pair.mask)
    assert all(any(torch.equal(sequence, other) for other in asked[0]) for sequence in learnt[0])


def test_the_linear_protocol_leaves_the_encoder_alone(parts):
    with seeded(0): encoder = HiTRS(FEW.model)
    before = {n: t.clone() for n, t in encoder.state_dict().items()}
    result = train_released(lambda kind: encoder, released_action(replace(FEW.action, protocol="linear")), parts=parts)
    assert all(torch.equal(before[n], t) for n, t in encoder.state_dict().items()) and result["trained"] == (encoder.width + 1)*len(parts["train"].classes)
    model = TwoBodies(Frozen(encoder), 3).train()
    assert not encoder.training and model.classify.training


def test_an_arm_starts_from_its_pre_training(tmp_path):
    first = PretextArm.for_profile("smoke", data=FEW.action.data)
    first = released_pretext(replace(first, pretext=replace(first.pretext, model=FEW.model, warmup=1, loop=replace(first.pretext.loop, steps=2, batch=8, save_every=1))))
    assert not first.data.centred and first.pretext.loop.batch == 2 and first.pretext.loop.accumulate == 4
    folder = tmp_path/"pre-joint"
    folder.mkdir()
    pretext_arm(first, 0, folder)
    plain, started = released_arm(FEW, 0), released_arm(FEW, 0, before={"pre-joint": folder})
    assert plain["curves"]["joint"][-1]["cross_entropy"] != started["curves"]["joint"][-1]["cross_entropy"] and plain["trained"] == started["trained"]


@pytest.mark.parametrize("batch", [30, 4])
def test_batches_that_four_do_not_divide_are_refused(batch):
    with pytest.raises(ConfigError, match="multiple of 4"): released_action(replace(FEW.action, loop=replace(FEW.action.loop, batch=batch)))


def test_neighbours_are_not_in_the_released_code(parts):
    knn = replace(FEW.action, protocol="knn")
    with pytest.raises(ConfigError, match="finetune"): released_action(knn)
    with pytest.raises(ConfigError, match="trains nothing"): train_released(lambda kind: None, knn, parts=parts)
