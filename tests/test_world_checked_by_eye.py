"""Twelve samples of the drawn world that somebody looked at, at full size, with the labels beside the picture; here stands what was seen.

Facts and no hashes: another noise or another fold passes, a left that became right doesn't. Where a change of the world draws other people under these numbers, look at
the new ones (joints with their names, parts, garments, surface) and write down what you see."""
from functools import cache

import numpy as np
import pytest

from hclab.core.sample import validate
from hclab.core.skeleton import skeleton
from hclab.data.labels import BODY_PARTS, CHARTS, GARMENTS
from hclab.data.world import draw_sample, ready_made


class Seen:
    "A sample, asked in words; people are counted from 1 as in `instance_ids`."
    def __init__(self, name, index):
        self.s = s = validate(draw_sample(ready_made(name), index))
        self.layout, self.caption, self.rgb = skeleton(s["skeleton"]), s["caption"], s["image"].permute(1, 2, 0).numpy()
        self.who, self.parts, self.clothes, self.surface = *(s[k].numpy() for k in ("instance_ids", "body_parts", "garments")), s["iuv"][0].numpy().astype(int)

    def at(self, joint, person=1): return self.s["joints2d"][person - 1, self.layout.index(joint)].numpy()      # x, y in pixels
    def x(self, joint, person=1): return float(self.at(joint, person)[0])
    def y(self, joint, person=1): return float(self.at(joint, person)[1])
    def far(self, person=1): return float(self.s["joints3d"][person - 1, :, 2].mean())
    def shown(self, joint, person=1): return int(self.s["visibility"][person - 1, self.layout.index(joint)]) == 2
    def pixels(self, word, person=1): return (self.map_of(word) == self.names(word).index(word)) & (self.who == person)
    def count(self, word, person=1): return int(self.pixels(word, person).sum())
    def names(self, word): return BODY_PARTS if word in BODY_PARTS else GARMENTS
    def map_of(self, word): return self.parts if word in BODY_PARTS else self.clothes
    def wears(self, *words, person=1): return all(self.count(w, person) > 20 for w in words)
    def lacks(self, *words, person=1): return all(self.count(w, person) == 0 for w in words)

    def middle(self, word, person=1):
        "(x, y) of a part or garment."
        y, x = np.nonzero(self.pixels(word, person))
        assert len(x), f"no {word} of person {person} is seen"
        return np.array([x.mean(), y.mean()])

    def surfaced(self, chart, person=1): return (self.surface == CHARTS.index(chart)) & (self.who == person)

    def much(self, chart, person=1): return int(self.surfaced(chart, person).sum())     # pixels of a chart of the surface

    def lies(self, chart, person=1):
        "(x, y) of a chart of the surface."
        y, x = np.nonzero(self.surfaced(chart, person))
        assert len(x), f"no {chart} of the surface of person {person} is seen"
        return np.array([x.mean(), y.mean()])

    def colour(self, word, person=1): return np.median(self.rgb[self.pixels(word, person)], axis=0)

    def next_to(self, joint, word, person=1, within=14):
        "The named joint lies beside the named part's pixels: joints and maps mean the same side."
        y, x = np.nonzero(self.pixels(word, person))
        return np.hypot(x + .5 - self.x(joint, person), y + .5 - self.y(joint, person)).min() < within


@cache
def seen(name, index): return Seen(name, index)


def is_red(c): return c[0] > 1.6*c[1] and c[0] > 1.6*c[2]
def is_green(c): return c[1] > 1.3*c[0] and c[1] > 1.2*c[2]
def is_blue(c): return c[2] > 1.2*c[0] and c[2] > 1.1*c[1]
def is_yellow(c): return min(c[0], c[1]) > 2*c[2]


def test_front_arms_spread_on_one_leg():
    "rgbd 13: faces us with both arms out; our left is his right. White shirt with stripes, green trousers, red shoes; the right knee is lifted before the left leg."
    p = seen("rgbd", 13)
    assert p.x("right_wrist") < p.x("right_elbow") < p.x("right_shoulder") < p.x("left_shoulder") < p.x("left_elbow") < p.x("left_wrist")
    assert p.middle("right hand")[0] < p.middle("left hand")[0] - 80 and p.next_to("right_wrist", "right hand") and p.next_to("left_wrist", "left hand")
    assert p.y("right_ankle") < p.y("left_ankle") - 10, "the right foot is off the floor"
    assert p.count("right thigh") > 2*p.count("left thigh"), "the right thigh hides the left one"
    assert all(p.shown(j) for j in ("nose", "left_eye", "right_eye", "left_wrist", "right_wrist"))
    assert p.wears("pants", "upper-clothes", "left-arm", "right-arm") and p.lacks("skirt", "coat", "left-leg", "right-leg") and is_green(p.colour("pants")) and is_red(p.colour("left-shoe"))
    assert p.middle("right-arm")[0] < p.middle("left-arm")[0] and p.middle("right-shoe")[1] < p.middle("left-shoe")[1]
    assert p.much("torso front") > 10*p.much("torso back") and p.much("right head") > 2*p.much("left head") and p.lies("right hand")[0] < p.lies("left hand")[0] - 80


def test_back_both_hands_up():
    "rgbd 11: turns her back and stretches; our left is her left. Yellow shirt, green trousers, a bun; a bit of the left cheek, no nose."
    p = seen("rgbd", 11)
    for side in ("left", "right"): assert p.y(f"{side}_wrist") < p.y(f"{side}_elbow") < p.y(f"{side}_shoulder") and p.y(f"{side}_wrist") < p.y(f"{side}_ear") - 15
    assert p.x("left_wrist") < p.x("left_shoulder") < p.x("right_shoulder") < p.x("right_wrist")
    assert p.middle("left hand")[0] < p.middle("right hand")[0] - 30 and max(p.middle("left hand")[1], p.middle("right hand")[1]) < 50
    assert not p.shown("nose") and not p.shown("right_eye") and p.shown("left_ear")
    assert is_yellow(p.colour("upper-clothes")) and is_green(p.colour("pants")) and p.middle("left-shoe")[0] < p.middle("right-shoe")[0]
    assert p.count("hair") > 2*p.count("face")
    assert p.much("torso back") > 5*p.much("torso front") and p.much("left head") > 2*p.much("right head") and p.lies("left hand")[0] < p.lies("right hand")[0] - 30


def test_left_side_drinks_with_the_right_hand():
    "rgbd 15: an old man seen from his left, facing our left; the right hand is at the mouth, the left arm hangs before the trunk. Dark blue shirt, black shorts, red shoes."
    p = seen("rgbd", 15)
    assert p.x("nose") < p.x("left_ear") and p.x("right_wrist") < p.x("right_shoulder")
    assert abs(p.y("right_wrist") - p.y("nose")) < 20 and p.y("left_wrist") > p.y("left_elbow") > p.y("left_shoulder")
    assert p.shown("left_shoulder") and p.shown("left_ankle") and not p.shown("right_shoulder") and not p.shown("right_knee")
    assert p.count("left-leg") > 4*p.count("right-leg") and p.count("left arm") > p.count("right arm") and p.middle("left-shoe")[1] > p.middle("right-shoe")[1]
    assert p.wears("pants", "left-leg") and p.lacks("skirt") and is_blue(p.colour("upper-clothes")) and is_red(p.colour("left-shoe")) and "left" in p.caption
    assert p.much("left head") > 500 > p.much("right head") == 0 and p.much("left arm inside") > 5*p.much("right arm inside") and p.lies("right hand")[1] < p.lies("left hand")[1] - 50


def test_right_side_reaches_up_with_the_right_hand():
    "rgbd 30: an old woman seen from her right, facing our right; the raised hand is the right one, the left arm is hidden behind her. Striped shirt, blue shorts."
    p = seen("rgbd", 30)
    low, high = np.nonzero((p.who == 1).any(1))[0][[-1, 0]]
    assert p.x("nose") > p.x("right_ear") and p.y("right_wrist") < p.y("nose") and p.middle("right hand")[1] < high + (low - high)/10
    assert p.y("left_wrist") > p.y("left_shoulder") + 20 and not p.shown("left_wrist") and p.lacks("left hand", "left-arm", "left forearm")
    assert p.wears("right-arm", "right-leg", "pants") and p.count("right-leg") > 2*p.count("left-leg") and p.middle("right foot")[1] > p.middle("left foot")[1]
    assert p.much("right head") > 50*p.much("left head") and p.much("right hand") > 50 > p.much("left hand") == 0 and p.much("right thigh front") > 100 > p.much("left thigh front")


def test_lies_on_the_back_feet_towards_us():
    "rgbd 147: has fallen on the back; head at our left, feet at our right and nearer. The right arm is on our side of the trunk. Sleeveless black shirt, light trousers, blue shoes."
    p = seen("rgbd", 147)
    assert p.x("nose") < p.x("right_hip") < p.x("right_knee") < p.x("right_ankle") and p.y("right_ankle") > p.y("right_hip") > p.y("right_shoulder")
    assert p.y("right_wrist") > p.y("left_wrist") + 20 and p.next_to("right_wrist", "right hand") and p.next_to("left_wrist", "left hand")
    z = p.s["joints3d"][0, :, 2]
    assert z[p.layout.index("right_ankle")] < z[p.layout.index("right_hip")] < z[p.layout.index("nose")], "the feet are nearer than the hips, these nearer than the face"
    assert p.count("right-shoe") > 2*p.count("left-shoe") and is_blue(p.colour("right-shoe")) and p.lacks("left-leg", "right-leg", "skirt")
    box = p.s["boxes"][0]
    assert (box[2] - box[0]) > 1.5*(box[3] - box[1]), "wider than tall"
    assert p.much("torso front") > 10*p.much("torso back") and p.much("right head") > 3*p.much("left head") and p.lies("right hand")[1] > p.lies("left hand")[1] + 20


def test_lies_on_the_back_head_towards_us():
    "rgbd 228: lies with the head towards us, face up; our left is her left. A brown shirt with a ring on the chest, a blue skirt, bare legs, long hair under the shoulders."
    p = seen("rgbd", 228)
    assert p.y("left_ankle") < p.y("left_knee") < p.y("left_hip") < p.y("left_shoulder") < p.y("left_ear"), "feet above, head below in the picture"
    assert p.x("left_shoulder") < p.x("right_shoulder") and p.x("left_hip") < p.x("right_hip") and p.x("left_ankle") < p.x("right_ankle")
    assert p.middle("left hand")[0] < 120 < 190 < p.middle("right hand")[0] and p.count("left-arm") > p.count("right-arm")
    assert p.shown("nose") and p.shown("left_eye") and p.shown("right_eye")
    assert p.wears("skirt", "left-leg", "right-leg", "hair", "face") and p.lacks("pants") and is_blue(p.colour("skirt")) and p.count("hair") > p.count("face")
    assert p.much("torso front") > 10*p.much("torso back") and p.much("left head") > 2*p.much("right head") and p.lies("left hand")[0] < p.lies("right hand")[0] - 80


def test_front_marches_in_a_skirt_with_the_right_knee_up():
    "rgbd 128: an old woman with long white hair comes towards us; the right knee is up, the left foot on the ground. Checked sleeves to the wrists, a blue skirt, red shoes."
    p = seen("rgbd", 128)
    assert p.x("right_shoulder") < p.x("nose") < p.x("left_shoulder") and p.y("right_knee") < p.y("left_knee") - 5 and p.y("right_ankle") < p.y("left_ankle") - 10
    assert p.middle("right-shoe")[0] < p.middle("left-shoe")[0] and p.middle("right-shoe")[1] < p.middle("left-shoe")[1] - 10
    assert p.wears("skirt", "right-leg", "left-leg", "hair") and p.lacks("pants", "coat", "right-arm") and is_blue(p.colour("skirt")) and is_red(p.colour("left-shoe"))
    assert p.middle("right foot")[0] < p.middle("left foot")[0] and p.colour("hair").min() > .5, "white hair"
    assert p.much("torso front") > 50*p.much("torso back") and p.lies("right foot")[1] < p.lies("left foot")[1] - 10 and p.lies("right thigh front")[0] < p.lies("left thigh front")[0] - 10


def test_back_teenager_with_long_hair_and_skirt():
    "rgbd 16: a teenager from behind; black hair over the shoulders hides the neck, the left arm hangs on our left, the right hand is before the face and hidden. A blue skirt."
    p = seen("rgbd", 16)
    assert p.x("left_shoulder") < p.x("right_shoulder") and p.x("left_ankle") < p.x("right_ankle") and p.middle("left-shoe")[0] < p.middle("right-shoe")[0]
    assert not any(p.shown(j) for j in ("nose", "left_eye", "right_eye")) and p.count("face") < 10 and p.count("hair") > 800 and p.colour("hair").max() < .25
    assert p.y("right_wrist") < p.y("right_shoulder") and not p.shown("right_wrist") and p.lacks("right hand", "right forearm") and p.shown("left_wrist") and p.wears("left-arm")
    assert p.wears("skirt", "left-leg", "right-leg") and p.lacks("pants") and is_blue(p.colour("skirt")) and p.caption.startswith("A teenager with long black hair")
    assert p.much("torso back") > 20*p.much("torso front") and p.much("left hand") > 50 > p.much("right hand") == 0 and p.lies("left calf back")[0] < p.lies("right calf back")[0] - 15


def test_depth_pose_from_the_front():
    "depth_pose 2: fifteen joints of ITOP; a woman faces us in a room and lifts the right foot. Her crown is cut off by the picture's edge. Blue sleeves, a black skirt."
    p = seen("depth_pose", 2)
    assert p.s["skeleton"] == "ITOP15" and p.x("right_hand") < p.x("right_elbow") < p.x("right_shoulder") < p.x("neck") < p.x("left_shoulder") < p.x("left_elbow") < p.x("left_hand")
    assert p.y("right_foot") < p.y("left_foot") - 8 and p.middle("right foot")[1] < p.middle("left foot")[1] and p.middle("right foot")[0] < p.middle("left foot")[0]
    assert p.next_to("right_hand", "right hand") and p.next_to("left_hand", "left hand") and p.next_to("right_foot", "right foot") and p.next_to("left_foot", "left foot")
    assert p.wears("skirt", "left-leg", "right-leg", "face") and p.lacks("pants") and is_blue(p.colour("upper-clothes")) and p.colour("skirt").max() < .2 and p.middle("right-arm")[0] < p.middle("left-arm")[0]
    assert float(p.s["boxes"][0, 1]) < 0 <= float(p.s["visible_boxes"][0, 1])
    assert p.much("torso front") > 50*p.much("torso back") and p.lies("right hand")[0] < p.lies("left hand")[0] - 80 and p.lies("right foot")[1] < p.lies("left foot")[1] - 8
    holes = (p.s["depth"][0].numpy() == 0) & (p.who > 0)
    assert 0 < holes.sum() < .2*(p.who > 0).sum(), "a sensor's depth has some holes on her, and not many"


def test_sports_from_behind():
    "sports 2: fourteen joints of LSP, whose first six are the legs from right to left; seen from behind on a beach, arms out. Our left is her left."
    p = seen("sports", 2)
    assert p.s["skeleton"] == "LSP14" and p.layout.names[0] == "right_ankle" and p.layout.names[5] == "left_ankle"
    assert p.x("left_wrist") < p.x("left_elbow") < p.x("left_shoulder") < p.x("neck") < p.x("right_shoulder") < p.x("right_elbow") < p.x("right_wrist")
    assert p.x("left_ankle") < p.x("right_ankle") and p.middle("left-shoe")[0] < p.middle("right-shoe")[0] and p.middle("left hand")[0] < p.middle("right hand")[0] - 90
    assert p.y("head_top") < p.y("neck") and p.count("face") < 40 and p.count("hair") > 300 and p.wears("skirt") and p.lacks("pants")
    assert p.much("torso back") > 20*p.much("torso front") and p.lies("left hand")[0] < p.lies("right hand")[0] - 90 and p.lies("left calf back")[0] < p.lies("right calf back")[0] - 15


def test_crowd_of_three_one_behind_another():
    "crowd 5: two men with their backs to us, in green (the nearest) and in blue; behind the blue one a third runs, of whom an elbow and the right foot are seen, at our right of him."
    p = seen("crowd", 5)
    assert len(p.s["boxes"]) == 3 and p.far(2) < p.far(1) < p.far(3)
    assert is_green(p.colour("upper-clothes", 2)) and is_blue(p.colour("upper-clothes", 1)) and p.middle("upper-clothes", 2)[0] < p.middle("upper-clothes", 1)[0]
    for n in (1, 2): assert p.x("left_shoulder", n) < p.x("right_shoulder", n) and p.middle("left foot", n)[0] < p.middle("right foot", n)[0]
    assert not p.shown("nose", 2) and p.shown("right_elbow", 3) and not any(p.shown(j, 3) for j in ("nose", "left_ankle", "left_wrist", "right_hip"))
    assert p.wears("coat", "right-shoe", person=3) and p.lacks("left-shoe", "hair", "face", person=3) and p.middle("right-shoe", 3)[0] > p.middle("right-shoe", 1)[0]
    assert int((p.who == 3).sum()) < .2*int((p.who == 1).sum())
    for n in (1, 2): assert p.much("torso back", n) > 10*p.much("torso front", n) and p.lies("left calf back", n)[0] < p.lies("right calf back", n)[0] - 10
    assert p.much("right foot", 3) > 50 > p.much("left foot", 3) == 0


def test_crowd_of_seven_in_a_room():
    "crowd 2: near us a woman in purple with a skirt (2, facing our left) and one in a dark jacket from behind (6); a bowing girl from her left (5); the first, from behind, hides the seventh."
    p = seen("crowd", 2)
    assert len(p.s["boxes"]) == 7 and p.far(6) < p.far(2) < p.far(5) < p.far(1) < p.far(4) < p.far(3) < p.far(7)
    assert p.wears("skirt", "upper-clothes", person=2) and p.wears("coat", "pants", person=6) and p.lacks("skirt", person=6) and p.wears("skirt", "left-leg", person=5)
    assert p.x("nose", 2) < p.x("left_ear", 2) and p.shown("nose", 2) and not p.shown("nose", 6) and not p.shown("nose", 1)
    assert p.x("nose", 5) < p.x("left_hip", 5) - 15 and p.y("left_shoulder", 5) < p.y("left_hip", 5) < p.y("left_shoulder", 5) + 40, "she bows to our left"
    assert p.shown("left_shoulder", 5) and not p.shown("right_shoulder", 5) and p.count("left-leg", 5) > p.count("right-leg", 5) and p.count("left arm", 5) > p.count("right arm", 5)
    assert p.x("left_shoulder", 1) < p.x("right_shoulder", 1) and p.x("left_shoulder", 6) < p.x("right_shoulder", 6)
    a, b = p.s["boxes"][0].numpy(), p.s["boxes"][6].numpy()
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    assert wide*tall > .5*(b[2] - b[0])*(b[3] - b[1]) and 0 < (p.who == 7).sum() < .15*(p.who == 1).sum(), "most of the seventh is behind the first"
    assert not p.s["visibility"][6].eq(2).any()
    assert p.much("left head", 2) > 3*p.much("right head", 2) and p.much("left head", 5) > 20*p.much("right head", 5) and p.much("left thigh back", 5) > 2*p.much("right thigh back", 5)
    for n in (1, 6): assert p.much("torso back", n) > 20*p.much("torso front", n) and p.lies("left calf back", n)[0] < p.lies("right calf back", n)[0] - 10


# ------------------------------------------------------------------------------------------------ the facts can fail
def swapped(names): return np.array([names.index(n.replace("left", "L").replace("right", "left").replace("L", "right")) for n in names])


def wrong_joints(p): p.s = {**p.s, **{k: p.s[k][:, swapped(p.layout.names)] for k in ("joints2d", "joints3d", "visibility")}}
def wrong_parts(p): p.parts = swapped(BODY_PARTS)[p.parts]
def wrong_garments(p): p.clothes = swapped(GARMENTS)[p.clothes]
def wrong_iuv(p): p.surface = swapped(CHARTS)[p.surface]


_whole, FACTS = seen, [f for name, f in list(globals().items()) if name.startswith("test_")]


@pytest.mark.parametrize("facts", FACTS, ids=lambda f: f.__name__[5:])
@pytest.mark.parametrize("fault", [wrong_joints, wrong_parts, wrong_garments, wrong_iuv], ids=lambda f: f.__name__)
def test_sides_that_are_swapped_are_noticed(facts, fault, monkeypatch):
    def broken(name, index):
        p = Seen.__new__(Seen)
        p.__dict__.update(vars(_whole(name, index)))
        fault(p)
        return p
    monkeypatch.setitem(globals(), "seen", broken)
    with pytest.raises(AssertionError): facts()
