"Sets of skeletons: who is in which part, what the tensors hold, few labels, and NTU's files by name."
from dataclasses import replace

import pytest
import torch

from hclab.core.config import ConfigError, samples_dir
from hclab.core.skeleton import skeleton
from hclab.data.readers import ntu
from hclab.data.sensor import ntu_cameras, sense
from hclab.data.sequence_views import SequenceAugment
from hclab.data.splits import take_of
from hclab.tasks.action import ActionConfig, Recogniser, accuracy, action_batch, embed, scored, together, train_action
from hclab.tasks.frame_labels import StreamConfig, clips_about, few_streams, make_streams, occurring
from hclab.tasks.skeleton_data import INDOORS, SkeletonDataConfig, data_files, even_frames, few, gather, make_part, make_parts, ntu_part

TINY = SkeletonDataConfig.for_profile("smoke", performers=5, actions=("walk", "wave", "squat"))
needs_samples = pytest.mark.skipif(samples_dir() is None or not (samples_dir()/"uiprmd").is_dir(), reason="UI-PRMD's recordings are not on this machine (HCLAB_SAMPLES)")


class MeanPose(torch.nn.Module):
    width = 75
    def forward(self, sequence, mask): return ((sequence*mask[..., None, None]).sum(1)/mask.sum(1)[:, None, None]).flatten(1)


def test_parts_share_nobody_and_repeat_to_the_bit():
    parts, again = make_parts(TINY), make_parts(TINY)
    people = [set(p.performers.tolist()) for p in parts.values()]
    assert sum(map(len, people)) == len(set.union(*people)) == 5
    assert all(torch.equal(parts[k].sequences, again[k].sequences) for k in parts)
    assert all(not d.sequences[~d.mask].any() and torch.isfinite(d.sequences).all() and not d.sequences[:, 0, 0, skeleton("NTU25").root].any() for d in parts.values())      # the root begins at the origin


def test_a_new_view_is_a_new_camera_and_other_numbers():
    parts = make_parts(replace(TINY, protocol="view"))
    assert set(parts["test"].cameras.tolist()) == {0} and not {0} & set(parts["train"].cameras.tolist())
    same = [parts["train"].subset(((parts["train"].performers == 0) & (parts["train"].labels == 1) & (parts["train"].cameras == c)).nonzero()[:, 0]) for c in (1, 2)]
    assert (same[0].sequences[0, 0, 0] - same[1].sequences[0, 0, 0]).abs().max() > .1


def test_even_frames_are_upright_and_near_the_truth():
    clip, camera = take_of("wave", 3, 0, 2.0, 15.0), ntu_cameras(1.5, 3.5)[1]
    seen = even_frames(sense(clip, camera, torch.Generator().manual_seed(0), severity=.3))
    height = seen[..., 2].amax(1) - seen[..., 2].amin(1)
    true = clip.joints[..., 2].amax(1) - clip.joints[..., 2].amin(1)
    assert seen.shape[1:] == (25, 3) and torch.isfinite(seen).all() and abs(float(height.median() - true.median())) < .12       # a little off: the camera looks down


def test_few_labels_by_class():
    data = make_part(TINY, "train")
    for share in (.01, .1, .5):
        kept = few(data, share, 3)
        for k in range(3): assert int((kept.labels == k).sum()) == max(1, round(share*int((data.labels == k).sum())))
    assert few(data, 1) is data
    for share in (0, -1, 1.1, 10):
        with pytest.raises(ValueError, match="above 0"): few(data, share)


def test_long_recordings_keep_their_middle():
    line = torch.arange(50.)[:, None, None].expand(50, 25, 3)
    kept = gather([([line], 0, 0, 0)], ("a",), "NTU25", 15.0, longest=10)
    assert torch.equal(kept.sequences[0, 0, :, 0, 0], torch.arange(10.)) and kept.mask.sum() == 10


def test_every_indoor_action_stays_before_the_camera():
    "A runner does not: that is why there is none."
    make_part(SkeletonDataConfig(performers=4, actions=INDOORS), "test")
    with pytest.raises(ValueError, match="comes within|too near|needs 0.5 m"): make_part(SkeletonDataConfig(performers=12, actions=("run",)), "train")


def write_ntu(folder, name, people=1, frames=24):
    g = torch.Generator().manual_seed(len(name))
    def track(k):
        joints = torch.randn(1, 25, 3, generator=g).clamp(-1, 1).mul(.5).expand(frames, 25, 3) + torch.randn(frames, 25, 3, generator=g)*.02 + torch.tensor([k, 0, 3.0])
        return ntu.Track(f"7205759{k}", torch.arange(frames), joints.contiguous(), torch.full((frames, 25), 2), torch.zeros(frames, 25, 2))
    ntu.write_skeleton(folder/f"{name}.skeleton", [track(k) for k in range(people)], frames)


def test_ntu_by_name(tmp_path):
    for name, people in (("S001C001P001R001A001", 1), ("S001C002P002R001A050", 2), ("S001C001P003R001A001", 1), ("S001C003P025R001A002", 1), ("S001C003P004R001A002", 0)): write_ntu(tmp_path, name, people)
    config = SkeletonDataConfig(dataset="ntu", folder=str(tmp_path))
    train, test = make_part(config, "train"), make_part(config, "test")
    assert train.performers.tolist() == [1, 2] and test.performers.tolist() == [3] and make_part(config, "val").performers.tolist() == [25]
    assert train.sequences.shape[1] == 2 and train.mask.any(2).tolist() == [[True, False], [True, True]] and train.labels.tolist() == [0, 49]
    sequence, _, whose = train.singles()
    assert len(sequence) == 3 and whose.tolist() == [0, 1, 1]
    assert [n for n, _ in data_files(config)] == sorted(f.name for f in tmp_path.iterdir()) and data_files(TINY) == ()
    assert ntu_part(ntu.parse_name("S001C001P001R001A001"), "view") == "test"
    with pytest.raises(ConfigError, match="holds no .skeleton file"): make_part(replace(config, folder=str(tmp_path/"none")), "train")


def test_of_three_bodies_the_two_that_move_most(tmp_path):
    "In the order of their motion, not of the file; each at every second frame, z up, about the first one's root."
    g = torch.Generator().manual_seed(3)
    def body(moves, x): return torch.rand(1, 25, 3, generator=g)*torch.tensor([.5, 1.7, .3]) + torch.randn(24, 25, 3, generator=g)*moves + torch.tensor([x, -1, 3.0])
    bodies = body(.005, -1.0), body(.04, 0.0), body(.02, 1.0)
    track = lambda k, joints: ntu.Track(f"7205759{k}", torch.arange(24), joints.contiguous(), torch.full((24, 25), 2), torch.zeros(24, 25, 2))
    for n, order in enumerate(((0, 1, 2), (2, 0, 1), (1, 2, 0))):
        ntu.write_skeleton(tmp_path/f"S001C00{n + 1}P001R001A050.skeleton", [track(k, bodies[k]) for k in order], 24)
    assert not any(ntu.is_object(t) for t in ntu.read_skeleton(tmp_path/"S001C001P001R001A050.skeleton").tracks)
    data = make_part(SkeletonDataConfig(dataset="ntu", folder=str(tmp_path)), "train")
    upright = [joints[::2][..., [0, 2, 1]]*torch.tensor([1, 1, -1]) for joints in bodies[1:]]
    wanted = torch.stack(upright) - upright[0][0, skeleton("NTU25").root]
    assert data.sequences.shape == (3, 2, 12, 25, 3) and data.mask.all() and data.cameras.tolist() == [0, 1, 2]
    assert all(torch.allclose(sequence, wanted, atol=1e-4) for sequence in data.sequences)


def test_who_comes_later_comes_later(tmp_path):
    g, body = torch.Generator().manual_seed(0), torch.randn(1, 25, 3, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)*.5
    def track(name, frames): return ntu.Track(name, frames, body.expand(len(frames), 25, 3) + torch.randn(len(frames), 25, 3, generator=g)*.02 + torch.tensor([0, 0, 3.0]), torch.full((len(frames), 25), 2), torch.zeros(len(frames), 25, 2))
    ntu.write_skeleton(tmp_path/"S001C001P001R001A050.skeleton", [track("72057591", torch.arange(60)), track("72057592", torch.arange(30, 60))], 60)
    data = make_part(SkeletonDataConfig(dataset="ntu", folder=str(tmp_path)), "train")
    moves = (data.sequences[0, :, 1:] - data.sequences[0, :, :-1]).abs().sum((2, 3)) > 1e-4
    first = [int(m.nonzero()[0]) for m in moves]
    assert sorted(first) == [0, 14] and len(data.classes) == 60


def test_a_view_has_its_own_takes():
    with pytest.raises(ConfigError, match="set takes=1"): SkeletonDataConfig(protocol="view", takes=2)


@needs_samples
def test_exercises_of_uiprmd():
    right = SkeletonDataConfig(dataset="uiprmd", target="correct", longest=40)
    parts = make_parts(right)
    assert [sorted(set(p.performers.tolist())) for p in parts.values()] == [[1, 2, 3, 4, 5], [6], [7, 8]] and parts["train"].classes == ("incorrect", "correct")
    assert len(make_part(replace(right, target="action"), "val").classes) == 10 and data_files(right)[0][0] == "uiprmd"


def test_the_same_draw_for_both_people():
    sequences, mask = torch.randn(64, 2, 40, 25, 3), torch.ones(64, 2, 40, dtype=torch.bool)
    sequences[:, 1] = sequences[:, 0]
    moved, left = together(sequences, mask, SequenceAugment(chance=1.0), torch.Generator().manual_seed(0))
    assert torch.equal(moved[:, 0], moved[:, 1]) and torch.equal(left[:, 0], left[:, 1]) and left.sum() < mask.sum()


def test_batches_are_epochs():
    data, config = make_part(TINY, "train"), ActionConfig.for_profile("smoke", data=TINY, augment=SequenceAugment(chance=0.0))
    rows = len(data)//16*16
    labels = torch.cat([action_batch(data, n, config)["labels"] for n in range(rows//16)])
    assert torch.equal(labels.bincount(minlength=3) <= data.labels.bincount(minlength=3), torch.ones(3, dtype=torch.bool))
    one, two = (action_batch(data, 3, config, seed=1) for _ in range(2))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_who_is_absent_says_nothing():
    data = make_part(TINY, "val")
    sequences, mask = data.sequences[:4], data.mask[:4]
    more = torch.cat([sequences, torch.zeros_like(sequences)], 1)
    assert torch.allclose(embed(MeanPose(), more, torch.cat([mask, mask & False], 1)), embed(MeanPose(), sequences, mask))


def test_streams_are_averaged():
    data = make_part(TINY, "val")
    sure, n = torch.eye(3)[data.labels], len(data)
    parts = {"train": data, "val": data, "test": data}
    result = scored({"joint": {p: sure for p in ("val", "test")}, "bone": {p: torch.full((n, 3), 1/3) for p in ("val", "test")}}, parts)
    assert result["test_top1"] == 100 and result["test_by_stream"]["joint"] == 100 and result["test_by_stream"]["bone"] < 50


def test_frozen_stays_frozen_and_tuned_does_not():
    parts, kept = make_parts(TINY), []
    def build(kind):
        torch.manual_seed(0)
        kept.append(torch.nn.Linear(75, 8))
        class Net(torch.nn.Module):
            width = 8
            def __init__(self): super().__init__(); self.mean, self.out = MeanPose(), kept[-1]
            def forward(self, s, m): return self.out(self.mean(s, m))
        return Net()
    for protocol, changes in (("knn", False), ("linear", False), ("finetune", True)):
        train_action(build, ActionConfig.for_profile("smoke", data=TINY, protocol=protocol), 0, parts=parts)
        weight = kept[-1].weight.detach().clone()
        torch.manual_seed(0)
        assert torch.equal(weight, torch.nn.Linear(75, 8).weight) is not changes


def test_scores_that_do_not_fit_are_refused():
    for wrong in ((torch.zeros(3, 2), torch.zeros(2)), (torch.zeros(3), torch.zeros(3)), (torch.zeros(0, 2), torch.zeros(0))):
        with pytest.raises(ValueError, match="expected"): accuracy(*wrong)
    assert Recogniser(MeanPose(), 4).classify.weight.shape == (4, 75)


def test_a_sample_without_anybody_is_refused():
    sequences, mask = torch.ones(2, 1, 5, 25, 3), torch.ones(2, 1, 5, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(ValueError, match="sample 1 of 2 shows nobody"): embed(MeanPose(), sequences, mask)


def test_recorded_places_are_kept_on_demand():
    line = torch.arange(12.)[:, None, None].expand(12, 25, 3) + 5
    moved, kept = (gather([([line], 0, 0, 0)], ("a",), "NTU25", 15.0, 100, centred) for centred in (True, False))
    assert torch.equal(kept.sequences[0, 0], line) and torch.equal(moved.sequences[0, 0], line - 5)


def test_streams_of_pku_mmd(tmp_path):
    "Labels count from 1 in the file; 0 is background here. Left tests, video 10 validates."
    for name in ("0002-M", "0002-L", "0010-R"):
        body = (torch.randn(1, 75, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)*.5 + torch.randn(60, 75, generator=torch.Generator().manual_seed(4))*.02).tolist()
        for folder, text in (("skeleton", "\n".join(" ".join(f"{v:.5f}" for v in row + [0.0]*75) for row in body)), ("label", "1,5,20,2\n51,30,50,2\n")):
            (tmp_path/folder).mkdir(exist_ok=True)
            (tmp_path/folder/f"{name}.txt").write_text(text)
    config = StreamConfig(dataset="pkummd", folder=str(tmp_path))
    train, val, test = (make_streams(config, part) for part in ("train", "val", "test"))
    assert (train.names, val.names, test.names) == (("0002-M",), ("0010-R",), ("0002-L",)) and len(train.classes) == 52 and len(train.labels[0]) == 30
    assert [(p.label, p.start, p.end) for p in train.truths()] == [(1, 3, 10), (51, 15, 25)]
    lines = (tmp_path/"skeleton"/"0002-M.txt").read_text().splitlines()
    lost = " ".join(["0.00000"]*150)
    (tmp_path/"skeleton"/"0002-M.txt").write_text("\n".join([lost]*4 + lines[4:20] + [lost]*20 + lines[40:]))
    gone = make_streams(config, "train")
    assert gone.truths() == train.truths() and torch.equal(gone.sequences[0][10:20], gone.sequences[0][10:11].expand(10, -1, -1)) and not torch.equal(gone.sequences[0][9], gone.sequences[0][10]), "the clock goes on where nobody is seen; the last pose stays"
    assert torch.equal(gone.sequences[0][:2], gone.sequences[0][2:3].expand(2, -1, -1)) and torch.equal(gone.sequences[0][20:], train.sequences[0][20:])
    with pytest.raises(ConfigError, match="every n-th"): StreamConfig(dataset="pkummd", folder="x", fps=20)
    with pytest.raises(ConfigError, match="holds no video"): make_streams(StreamConfig(dataset="pkummd", folder=str(tmp_path/"none")), "train")


def test_drawn_streams_say_what_is_done_when():
    data = make_streams(StreamConfig.for_profile("smoke", performers=4, actions=("sit_down",), length=1), "test")
    assert data.classes == ("background", "sit_down", "stand_up") and all(len(x) == len(l) for x, l in zip(data.sequences, data.labels, strict=True))
    assert occurring(("wave",)) == ("background", "wave") and occurring(("fall",)) == ("background", "fall", "get_up")
    clips = clips_about(data.sequences[0], torch.arange(3), 2, data.layout)
    assert not clips[:, 3, skeleton(data.layout).root].any()          # the middle frame's root is the origin
    for share in (0, 1.5):
        with pytest.raises(ValueError, match="share"): few_streams(data, share)
