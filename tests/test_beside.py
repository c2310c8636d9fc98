"Statistics that set drawn motion beside people: filters that filter, measures of motion that is known, verdicts that follow the numbers, and a stored table that holds no motion."
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hclab.data.beside import FEW, beside, contact, joint_angles, lowpass, measure, people_summary, quickness, ranges, spectral_edge, summary, verdict
from hclab.data.grammar import ACTIONS, generate
from hclab.data.motion import ClipError, place


@pytest.fixture(scope="module")
def walk(): return generate("walk", 4, 4, 60, layout="MOCAP20")


def shaken(clip, hz, metres=.01, joint=None):
    "`clip` with one joint (or all) swinging along x."
    joints, t = clip.joints.clone(), torch.arange(len(clip)) / clip.fps
    where = slice(None) if joint is None else [clip.skeleton.index(joint)]
    joints[:, where, 0] += metres * torch.sin(2 * torch.pi * hz * t)[:, None]
    return replace(clip, joints=joints)


def still(fps=60.0, seconds=4.0):
    "Somebody who does nothing at all."
    clip = generate("idle", 0, seconds, fps, layout="MOCAP20")
    return replace(clip, joints=clip.joints[:1].repeat(len(clip), 1, 1))


def test_lowpass_halves_at_the_edge_and_delays_nothing():
    clip = still()
    for hz, left in ((1.0, 1.0), (6.0, .5), (20.0, .0)):
        out = lowpass(shaken(clip, hz), 6.0).joints - clip.joints
        assert out[60:-60].abs().max() / .01 == pytest.approx(left, abs=.03)
    slow = shaken(clip, 1.0)
    assert (lowpass(slow, 6.0).joints - slow.joints)[30:-30].abs().max() < 3e-4, "a delay would show as a difference"
    assert lowpass(clip, 6.0).rotations is None and torch.allclose(lowpass(clip, 6.0).joints, clip.joints, atol=1e-6)


@pytest.mark.parametrize("hz, frames, says", [(0, 200, "low-pass at 0 Hz"), (31, 200, "needs more than 62 frames"), (6, 10, "too few")])
def test_what_cannot_be_filtered_is_said(hz, frames, says):
    with pytest.raises(ClipError, match=says): lowpass(still().slice(0, frames), hz)


def test_speed_and_jerk_of_a_sine():
    hz, size = 2.0, .05
    found = quickness(shaken(still(240.0), hz, size, "lwrist"))
    top = np.percentile(np.abs(np.cos(np.linspace(0, np.pi, 10001))), 95)
    assert found["hand speed"] == pytest.approx(size * 2 * np.pi * hz * top, rel=.02)
    assert found["hand jerk"] == pytest.approx(size * (2 * np.pi * hz)**3 * top, rel=.02)
    assert found["foot speed"] < 1e-6 and found["pelvis speed"] < 1e-6 and found["pelvis drop"] < 1e-6
    assert "hand jerk" not in quickness(still(), jerk=False)


def test_spectral_edge_finds_the_sine():
    for hz in (1.0, 3.0, 6.0): assert spectral_edge(shaken(still(), hz, joint="rwrist"), "wrist") == pytest.approx(hz, abs=.5)


def test_numbers_do_not_depend_on_place_heading_or_layout(walk):
    a, b = measure(walk), measure(place(walk, turn=73, shift=(3, -2)))
    assert set(a) == set(b) and all(a[k] == pytest.approx(b[k], rel=.02, abs=2e-3) for k in a)
    other = measure(generate("walk", 4, 4, 60, layout="NTU25"))
    for k in ("knee range", "elbow range", "cadence", "step length", "hand speed"): assert a[k] == pytest.approx(other[k], rel=.02), k
    assert "planted" not in measure(generate("walk", 4, 4, 60, layout="H36M17")), "no balls of the feet, no contact"


def test_angles_of_a_known_pose():
    clip = still()
    angles = joint_angles(clip)
    assert angles["knee"].shape == (2, len(clip)) and angles["trunk"].shape == (1, len(clip))
    assert angles["knee"].max() < 15 and angles["trunk"].max() < 12 and abs(angles["hip"]).max() < 20 and max(ranges(clip).values()) < 1e-3
    joints = clip.joints.clone()
    i = {n: clip.skeleton.index(n) for n in clip.skeleton.names}
    forearm = (joints[0, i["lwrist"]] - joints[0, i["lelbow"]]).norm()
    upper = torch.nn.functional.normalize(joints[0, i["lelbow"]] - joints[0, i["lshoulder"]], dim=0)
    aside = torch.nn.functional.normalize(torch.linalg.cross(upper, torch.tensor([.3, .5, .8])), dim=0)
    joints[:, i["lwrist"]] = joints[:, i["lelbow"]] + forearm * aside
    assert joint_angles(replace(clip, joints=joints))["elbow"][0] == pytest.approx(90, abs=.1)


def test_contact_tells_standing_walking_and_skating(walk):
    stands = contact(still())
    assert stands["planted"] == 1 and stands["slide"] < 1e-6
    assert .4 < contact(walk)["planted"] < .65 and contact(walk)["slide"] < .05
    skates = replace(still(), joints=still().joints + torch.arange(240)[:, None, None] / 60 * torch.tensor([.2, 0, 0]))
    assert contact(skates)["slide"] == pytest.approx(.2, abs=.01)
    assert contact(replace(still(), joints=still().joints + torch.arange(240)[:, None, None] / 60 * torch.tensor([2.0, 0, 0])))["planted"] == 0


def test_verdict_follows_the_middle_of_people():
    people = summary(range(1, 12))
    assert (people["p10"], people["p50"], people["p90"], people["n"]) == (2, 6, 10, 11)
    for ours, says in ((1.9, "too smooth"), (2, "like people"), (10, "like people"), (10.1, "too rough")): assert verdict("hand jerk", ours, people) == says
    assert verdict("knee at most", 99, people) == "too high" and verdict("hand speed", 99, summary(range(FEW - 1))) == "too few"
    assert summary([1, math.nan, None, 3])["n"] == 2 and math.isnan(summary([])["p50"])


def test_rows_are_what_both_have():
    rows = beside({"walk": {"cadence": [100, 110], "other": [1]}}, {"walk": {"cadence": summary([100] * 9), "speed": summary([1] * 9)}, "run": {"cadence": summary([1] * 9)}})
    assert [(r["action"], r["measure"]) for r in rows] == [("walk", "cadence")] and rows[0]["ratio"] == pytest.approx(1.05) and rows[0]["verdict"] == "too fast"


def test_stored_numbers_are_numbers_of_people():
    stored = people_summary()
    assert "computed" in stored["about"] and "commit" in stored["about"] and "CMU" in stored["about"]
    for action, measures in stored["people"].items():
        assert action in ACTIONS
        for name, m in measures.items():
            assert set(m) == {"p10", "p50", "p90", "n", "subjects"} and m["p10"] <= m["p50"] <= m["p90"] and m["n"] >= 1 and m["subjects"], (action, name)
    walk = stored["people"]["walk"]
    assert 95 < walk["cadence"]["p50"] < 125 and 50 < walk["knee range"]["p50"] < 70 and walk["cadence"]["n"] > 40
    assert not any("jerk" in name for action in ("squat", "sit_down", "stand_up", "lunge") for name in stored["people"][action]), "a Kinect's jerk is its noise"


def test_the_grammar_walks_like_people():
    "What the comparison mended must stay mended: medians of a dozen performers inside people's middle 80 %."
    rows = [measure(generate("walk", n, 4, 30, seed=n, layout="MOCAP20")) for n in range(12)]
    people = people_summary()["people"]["walk"]
    for name in ("cadence", "step length", "hand jerk", "pelvis jerk", "hand speed", "knee range", "hip range", "elbow range"):
        ours = float(np.median([r[name] for r in rows]))
        assert people[name]["p10"] <= ours <= people[name]["p90"], (name, ours)
