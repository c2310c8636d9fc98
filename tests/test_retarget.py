"""Motion on other bodies: every layout onto every rig, directions kept, round trips, sliding feet, hands, heads and soles, and what is refused."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from hclab.core.config import samples_dir
from hclab.core.geometry import quaternion_rotate
from hclab.core.skeleton import SKELETONS, Skeleton, anatomy, mirror, rest_pose, skeleton
from hclab.data.figure import FIGURE, offsets_of
from hclab.data.grammar import generate
from hclab.data.measures import flexion
from hclab.data.motion import Clip, join, place
from hclab.data.performers import Performer
from hclab.data.readers.bvh import read_bvh, skeleton_of, write_bvh
from hclab.data.retarget import Retargeted, feet_of, relayout, retarget, slide, world_rotations
from hclab.data.rigs import NEEDED, RetargetError, Rig, a_pose_body, completed, figure_rig, leg_length, parts_of, points_of, rig_from_bones, rig_of, standing_rig

LIMBS = [(f"{s}_{a}", f"{s}_{b}") for s in ("left", "right") for a, b in (("hip", "knee"), ("knee", "ankle"), ("shoulder", "elbow"), ("elbow", "wrist"))]
FROM_FIGURE = ("COCO17", "H36M16", "H36M17", "H36M32", "NTU25", "MPII16", "LSP14", "ITOP15", "UIPRMD22", "CMU31", "MOCAP20", "MPI3DHP17")
samples = pytest.mark.skipif(samples_dir() is None, reason="HCLAB_SAMPLES is not set")


def makehuman(k=1.0, turn=np.eye(3)):
    "An A-pose body with MakeHuman's names, more spine and neck bones than others, twist bones, several fingers and toes; in any axes."
    rows = [("root", "", (0, .02, .93))]
    rows += [(f"spine0{n}", "root" if n == 5 else f"spine0{n + 1}", (0, .03 - .01 * abs(n - 3), .93 + .09 * (5 - n))) for n in (5, 4, 3, 2, 1)]
    rows += [("neck01", "spine01", (0, .02, 1.42)), ("neck02", "neck01", (0, .01, 1.46)), ("neck03", "neck02", (0, .0, 1.5)), ("head", "neck03", (0, -.005, 1.54)), ("jaw", "head", (0, -.03, 1.55))]
    for s, sign in (("L", 1), ("R", -1)):
        def add(name, parent, x, y, z, s=s, sign=sign): rows.append((f"{name}.{s}", parent if parent in ("root", "spine01", "head") else f"{parent}.{s}", (sign * x, y, z)))
        add("eye", "head", .03, -.08, 1.6); add("breast", "spine01", .08, -.1, 1.25)
        add("clavicle", "spine01", .02, .0, 1.38); add("shoulder01", "clavicle", .08, .02, 1.4); add("upperarm01", "shoulder01", .16, .03, 1.38); add("upperarm02", "upperarm01", .25, .035, 1.29)
        add("lowerarm01", "upperarm02", .35, .04, 1.19); add("lowerarm02", "lowerarm01", .43, .03, 1.11); add("wrist", "lowerarm02", .52, .02, 1.02)
        add("metacarpal1", "wrist", .54, .02, 1.0); add("finger3-1", "metacarpal1", .585, .02, .955); add("finger3-2", "finger3-1", .61, .02, .93); add("finger1-1", "wrist", .53, -.01, 1.0); add("finger1-2", "finger1-1", .55, -.04, .97)
        add("pelvis", "root", .02, .01, .92); add("upperleg01", "pelvis", .1, .01, .9); add("upperleg02", "upperleg01", .11, .005, .7); add("lowerleg01", "upperleg02", .12, 0, .49)
        add("lowerleg02", "lowerleg01", .125, .02, .28); add("foot", "lowerleg02", .13, .03, .08); add("toe3-1", "foot", .15, -.1, .02); add("toe3-2", "toe3-1", .155, -.14, .015)
    names, parents, heads = zip(*rows)
    return rig_from_bones(names, parents, k * np.array(heads) @ np.asarray(turn, float).T)


RIGS = dict(figure=figure_rig(2), makehuman=makehuman(), child=rig_from_bones(*a_pose_body(.6, 0)), H36M17=standing_rig("H36M17"), H36M16=standing_rig("H36M16"), H36M32=standing_rig("H36M32"),
            UIPRMD22=standing_rig("UIPRMD22"), CMU31=standing_rig("CMU31"), MOCAP20=standing_rig("MOCAP20"))


def directions(clip, points=None):
    "(T,8,3) unit vectors of arms and legs; a layout's foot or hand stands in for ankle and wrist."
    at = points_of(clip.skeleton, points)
    at = {f"{s}_{p}": at[f"{s}_{q}"] for s in ("left", "right") for p, q in (("ankle", "foot"), ("wrist", "hand")) if f"{s}_{q}" in at} | at
    return torch.nn.functional.normalize(torch.stack([clip.joints[:, at[b]].double() - clip.joints[:, at[a]].double() for a, b in LIMBS], 1), dim=-1)


def degrees(u, v): return torch.rad2deg(torch.atan2(torch.linalg.cross(u, v).norm(dim=-1), (u * v).sum(-1)))


def bare(clip): return Clip(clip.joints, clip.skeleton, clip.fps, clip.action, clip.performer)


def centred_gap(a, b): return (a.joints - a.joints[:, :1] - b.joints + b.joints[:, :1]).norm(dim=-1)


# ------------------------------------------------------------------------------------------------ every layout, every rig
@pytest.mark.parametrize("layout", (*FROM_FIGURE, "FIGURE"))
@pytest.mark.parametrize("rig", RIGS)
def test_limbs_keep_their_directions(layout, rig):
    clip = generate("punch", 5, .6, 25, layout=layout)
    out = retarget(clip, RIGS[rig])
    assert isinstance(out, Retargeted) and out.rotations is not None and len(out) == len(clip) and out.skeleton == RIGS[rig].skeleton
    assert degrees(directions(clip), directions(out)).max() < .03
    assert torch.allclose(out.offsets, torch.from_numpy(RIGS[rig].offsets).float())
    assert abs(out.joints[..., 2].min()) < .12, "near the floor"


@pytest.mark.parametrize("layout", SKELETONS)
def test_a_standing_person_of_every_layout_is_one_frame(layout):
    s = skeleton(layout)
    out = retarget(Clip(rest_pose(s)[None], s, 30, "stand", 0), RIGS["makehuman"])
    assert len(out) == 1 and degrees(directions(Clip(rest_pose(s)[None], s, 30, "stand", 0)), directions(out)).max() < .03
    up, toes = out.joint("head")[0] - out.joint("root")[0], out.joint("toe3-1.L")[0] - out.joint("foot.L")[0]
    assert up[2] > .5 and toes[1] < -.1 and abs(toes[0]) < .08, "faces -y as the source does, feet ahead"


def test_the_same_body_gets_itself_back():
    for rig in (figure_rig(5), standing_rig("CMU31"), makehuman()):
        clip = retarget(generate("bow", 5, 1, layout="FIGURE"), rig)
        again = retarget(clip, rig)
        assert (again.joints - clip.joints).norm(dim=-1).max() < .002 and again.derived == {} and abs(again.scale - 1) < 1e-6


def test_joints_follow_from_positions_alone_where_proportions_are_equal():
    clip = generate("walk", 5, 2, layout="FIGURE", seed=1)
    gap = (retarget(bare(clip), figure_rig(5)).joints - clip.joints).norm(dim=-1)
    assert gap.max() < .012 and gap.mean() < .001


# ------------------------------------------------------------------------------------------------ round trips
@pytest.mark.parametrize("via", ("makehuman", "child", "CMU31", "H36M32", "UIPRMD22"))
@pytest.mark.parametrize("action", ("walk", "punch", "sit_down"))
def test_figure_to_rig_to_figure(via, action):
    clip = generate(action, 5, 1.5, layout="FIGURE")
    there = retarget(clip, RIGS[via])
    for back in (retarget(there, figure_rig(5)), retarget(bare(there), figure_rig(5))): assert degrees(directions(clip), directions(back)).max() < .03
    told = [j for j, n in enumerate(FIGURE.names) if not any(w in n for w in ("hand", "thumb"))] if via in ("makehuman", "child") else []
    if told: assert centred_gap(retarget(there, figure_rig(5)), clip)[:, told].max() < .003, "a spine of five bones forgets nothing"


def test_equal_proportions_agree_in_the_world():
    clip = generate("walk", 4, 2, layout="FIGURE")
    back = retarget(retarget(clip, makehuman()), figure_rig(4))
    assert (back.joints[:, 0] - clip.joints[:, 0]).norm(dim=-1).max() < .005, "the path returns too"


@pytest.mark.parametrize("a", SKELETONS)
def test_layout_to_layout_to_layout(a):
    first = relayout(generate("throw", 4, .2, layout="FIGURE"), a, placeholders=True)
    for b in SKELETONS:
        there = relayout(first, b, placeholders=True); back = relayout(there, a, placeholders=True)
        both = [i for i, p in enumerate(anatomy(skeleton(a))) if p in anatomy(skeleton(b))]
        assert torch.equal(back.joints[:, both], first.joints[:, both])
        assert {skeleton(a).names[i] for i in both} | {*back.derived, *back.missing} == set(skeleton(a).names) and not {*back.derived} & {*back.missing}
        assert not {skeleton(a).names[i] for i in both} & {*back.derived, *back.missing}
        assert there.rotations is None and (not there.missing or pytest.raises(RetargetError, relayout, first, b))


def test_derived_joints_are_what_they_say():
    clip = generate("wave", 3, .5, layout="COCO17")
    out = relayout(clip, "H36M16")
    assert out.derived["hip"] == "mean of left_hip, right_hip" and torch.allclose(out.joint("hip"), (clip.joint("left_hip") + clip.joint("right_hip")) / 2)
    with pytest.raises(RetargetError, match=r"left_hand_tip.*NTU25.*placeholders"): relayout(clip, "NTU25")
    shown = relayout(clip, "NTU25", placeholders=True)
    assert "left_hand_tip" in shown.missing and torch.equal(shown.joint("left_hand_tip"), shown.joint("left_hand"))


def test_a_file_s_rig_is_named_by_its_bones(tmp_path):
    clip = retarget(generate("walk", 3, 1, layout="FIGURE"), makehuman())
    assert torch.equal(relayout(clip, "LSP14", placeholders=True).joint("left_knee"), clip.joint("lowerleg01.L"))
    write_bvh(clip, tmp_path / "body.bvh")
    back = read_bvh(tmp_path / "body.bvh")
    assert degrees(directions(back), directions(clip)).max() < .05 and degrees(directions(retarget(back, RIGS["CMU31"])), directions(clip)).max() < .05


# ------------------------------------------------------------------------------------------------ what positions can't tell
def test_rotations_tell_the_twist():
    "A straight arm that turns about itself moves no joint but the hand's; its rotations say it."
    rig = rig_from_bones(*a_pose_body())
    still = retarget(generate("idle", 3, .4, layout="FIGURE"), rig)
    q = still.rotations.clone(); j = rig.skeleton.index("lowerarm01.L")
    along = torch.nn.functional.normalize(still.offsets[rig.skeleton.index("lowerarm02.L")], dim=0)
    half = torch.linspace(0, .6, len(q))
    turn = torch.cat([half.cos()[:, None], half.sin()[:, None] * along], -1)
    from hclab.core.geometry import quaternion_multiply
    from hclab.data.motion import forward_kinematics
    q[:, j] = quaternion_multiply(q[:, j], turn)
    twisted = replace(still, joints=forward_kinematics(rig.skeleton, still.offsets, q, still.joints[:, 0]), rotations=q)
    out = retarget(twisted, makehuman())
    W, W0 = world_rotations(out.skeleton, out.rotations), world_rotations(out.skeleton, retarget(still, makehuman()).rotations)
    k = out.skeleton.index("wrist.L")
    got = 2 * torch.rad2deg(torch.acos((W[-1, k] * W0[-1, k]).sum().abs().clamp(max=1)))
    assert abs(got - 2 * np.degrees(.6)) < 2 and degrees(directions(twisted), directions(out)).max() < .03


def test_elbows_and_knees_stay_hinges():
    "Bones below a hinge turn against those above about one axis of the upper one, and only one way."
    out = retarget(bare(generate("squat", 3, 3, layout="FIGURE")), figure_rig(1))
    for hinge, sign in (("left_knee", 1), ("right_knee", 1), ("left_elbow", -1), ("right_elbow", -1)):
        q = out.rotations[:, FIGURE.index(hinge)]
        q = q * q[:, :1].sign()
        assert q[:, [1, 3]].abs().max() < .02 and (sign * q[:, 2]).min() > -.02 and (hinge.endswith("elbow") or (sign * q[:, 2]).max() > .4)


def test_heads_follow_faces_and_say_when_they_can_not():
    clip = generate("phone", 5, 2, layout="FIGURE")
    look = lambda c: torch.nn.functional.normalize(c.joint("nose") - (c.joint("left_ear") + c.joint("right_ear")) / 2, dim=-1)
    for layout, most in (("COCO17", 1), ("H36M17", 12)):
        src = bare(clip) if layout == "FIGURE" else generate("phone", 5, 2, layout=layout)
        assert degrees(look(clip), look(retarget(src, figure_rig(5)))).max() < most, layout
    assert "chest" in retarget(generate("phone", 5, 1, layout="LSP14"), figure_rig(5)).derived["head"]


def test_what_was_inferred_is_said():
    said = retarget(generate("walk", 3, 1, layout="H36M17"), RIGS["makehuman"]).derived
    assert "forearm" in said["left_wrist"] and "shank" in said["right_ankle"] and "toes" in " ".join(said)
    assert "hand stands in" in retarget(generate("walk", 3, 1, layout="ITOP15"), RIGS["makehuman"]).derived["left_wrist place"]
    assert retarget(generate("walk", 3, 1, layout="FIGURE"), RIGS["makehuman"]).derived == {}


# ------------------------------------------------------------------------------------------------ feet and floor
def soles(clip, side, heel, ball):
    "(T,) degrees that the sole points down towards the toes."
    v = clip.joint(ball.replace("*", side)) - clip.joint(heel.replace("*", side))
    return torch.rad2deg(torch.asin(-v[:, 2] / v.norm(dim=-1)))


@pytest.mark.parametrize("layout", ("FIGURE", "NTU25", "MOCAP20"))
def test_soles_roll_with_the_source(layout):
    clip = generate("walk", 3, 3, layout="FIGURE", seed=1)
    src = clip if layout == "FIGURE" else generate("walk", 3, 3, layout=layout, seed=1)
    out = retarget(src, figure_rig(Performer(stature=1.4, foot_ratio=1.1)))
    error = (soles(out, "left", "*_heel", "*_foot") - soles(clip, "left", "*_heel", "*_foot")).abs()
    assert error.max() < (1 if layout == "FIGURE" else 8) and soles(out, "left", "*_heel", "*_foot").max() > 25, "the heel comes up"


def test_a_lunge_s_back_foot_is_not_taken_for_flat():
    clip = generate("lunge", 6, 3, layout="FIGURE")
    out = retarget(clip, figure_rig(1))
    assert out.derived == {} and (soles(out, "right", "*_heel", "*_foot") - soles(clip, "right", "*_heel", "*_foot")).abs().max() < .5
    there = retarget(clip, makehuman())
    assert (soles(retarget(there, figure_rig(1)), "right", "*_heel", "*_foot") - soles(clip, "right", "*_heel", "*_foot")).abs().max() < .5


@pytest.mark.parametrize("layout", ("H36M17", "COCO17"))
def test_feet_without_toes_lie_flat_and_push_off(layout):
    out = retarget(generate("walk", 3, 3, layout=layout, seed=1), figure_rig(3))
    true = generate("walk", 3, 3, layout="FIGURE", seed=1)
    stands = feet_of(true)[:, 0]
    roll = soles(out, "left", "*_heel", "*_foot")
    assert roll[stands].abs().median() < 6 and roll.max() > 20
    assert (soles(true, "left", "*_heel", "*_foot") - roll).abs().median() < 12
    assert out.joint("left_foot")[:, 2].min() > -.05 and out.joint("left_heel")[:, 2].min() > -.05


@pytest.mark.parametrize("rig", ("makehuman", "child", "figure"))
def test_feet_do_not_slide_where_the_path_is_scaled(rig):
    clip = generate("walk", 3, 3, layout="FIGURE", seed=1)
    stands = feet_of(clip)
    plain, scaled, held = (slide(retarget(clip, RIGS[rig], **how), stands) for how in (dict(scale=1.0), {}, dict(lock=True)))
    assert scaled < .04 and held <= scaled and held < .01
    if rig == "child": assert plain > .3, "the measure sees feet that are dragged"


def test_the_floor_is_where_it_was():
    for z in (0.0, -1.3):
        clip = place(generate("idle", 3, 1, layout="FIGURE"))
        clip = replace(clip, joints=clip.joints + torch.tensor([0, 0, z]))
        for rig in ("child", "makehuman", "CMU31"):
            out = retarget(clip, RIGS[rig])
            lowest = out.joints[..., 2].min() - z
            assert -.005 < lowest < .04, rig
    high = retarget(generate("idle", 3, 1, layout="FIGURE"), RIGS["makehuman"], floor=-.5)
    assert abs(float(high.joints[..., 2].min()) + .5) < .04


def test_a_known_sole_height_is_used():
    rig = makehuman(); thick = Rig(rig.skeleton, rig.offsets, None, None, .14)
    low = [float(retarget(generate("idle", 3, 1, layout="FIGURE"), r).joint("foot.L")[:, 2].mean()) for r in (rig, thick)]
    assert abs(low[1] - .14) < .01 and low[1] > low[0] + .03


# ------------------------------------------------------------------------------------------------ symmetry, axes, chains
def test_left_is_left():
    clip = generate("punch", 5, 1, layout="NTU25")
    rig = makehuman()
    other = retarget(replace(clip, joints=mirror(clip.joints, clip.skeleton)), rig)
    assert (mirror(retarget(clip, rig).joints, rig.skeleton) - other.joints).abs().max() < 1e-4


def test_axes_and_frames_of_a_rig_do_not_matter():
    clip = generate("bow", 5, 1, layout="FIGURE")
    want = retarget(clip, makehuman()).joints
    y_up = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    assert (retarget(clip, makehuman(turn=y_up)).joints - want).abs().max() < 1e-4
    # every joint in a frame of its own: offsets in turned frames and a zero pose that is no pose at all
    rig, g = makehuman(), torch.Generator().manual_seed(0)
    own = torch.nn.functional.normalize(torch.randn(len(rig.skeleton), 4, generator=g, dtype=torch.float64), dim=-1)
    inverse = own * torch.tensor([1, -1, -1, -1])
    from hclab.core.geometry import quaternion_multiply
    offsets = torch.stack([quaternion_rotate(inverse[p], torch.from_numpy(rig.offsets[j])) if p >= 0 else torch.zeros(3, dtype=torch.float64) for j, p in enumerate(rig.skeleton.parents)])
    local = torch.stack([quaternion_multiply(inverse[p], own[j]) if p >= 0 else own[j] for j, p in enumerate(rig.skeleton.parents)])
    odd = Rig(rig.skeleton, offsets.numpy(), local.numpy())
    out = retarget(clip, odd)
    assert (out.joints - want).abs().max() < 1e-3
    with pytest.raises(RetargetError, match="no standing pose"): Rig(rig.skeleton, offsets.numpy())
    # and as a source, with the standing frame given
    again = retarget(out, rig, source=odd)
    assert (again.joints - want).abs().max() < 2e-3
    assert "could not be used" in retarget(out, rig).derived["twist"], "rotations of a zero pose that doesn't stand are not used in silence"


def test_twist_bones_share_and_ends_stay_exact():
    rig = makehuman(); parts = parts_of(rig)
    names = lambda chain: [rig.skeleton.names[j] for j in parts.chains[chain]]
    assert names("spine") == ["spine05", "spine04", "spine03", "spine02"] and names("chest") == ["spine01"] and names("neck") == ["neck01", "neck02", "neck03"] and names("head") == ["head"]
    assert names("left_upper") == ["upperarm01.L", "upperarm02.L"] and names("left_collar") == ["clavicle.L", "shoulder01.L"] and names("left_shank") == ["lowerleg01.L", "lowerleg02.L"]
    for bone, segment in (("jaw", "head"), ("eye.L", "head"), ("breast.R", "chest"), ("finger1-2.L", "left_hand"), ("pelvis.L", "pelvis"), ("toe3-2.R", "right_toes")):
        assert parts.segment[rig.skeleton.index(bone)] == segment
    out = retarget(generate("drink", 5, 2, layout="FIGURE"), rig)
    W = world_rotations(out.skeleton, out.rotations)
    angle = lambda a, b: torch.rad2deg(2 * torch.acos((W[:, out.skeleton.index(a)] * W[:, out.skeleton.index(b)]).sum(-1).abs().clamp(max=1)))
    whole, first = angle("lowerarm01.R", "wrist.R"), angle("lowerarm01.R", "lowerarm02.R")
    assert whole.max() > 20 and (first <= whole + 1).all() and first.max() > 5, "the forearm shares the hand's turn"
    steps = torch.stack([angle(a, b) for a, b in (("root", "spine05"), ("spine05", "spine04"), ("spine04", "spine03"), ("spine03", "spine02"), ("spine02", "spine01"))])
    assert steps.max() < .7 * angle("root", "spine01").max() + 5, "no bone of the spine bends alone"


def test_no_jumps():
    out = retarget(bare(generate("jumping_jack", 3, 3, 50, layout="FIGURE")), RIGS["makehuman"])
    W = world_rotations(out.skeleton, out.rotations)
    step = torch.rad2deg(2 * torch.acos((W[1:] * W[:-1]).sum(-1).abs().clamp(max=1)))
    assert step.max() < 45 and (out.rotations[1:] * out.rotations[:-1]).sum(-1).min() > 0


def test_result_is_a_clip_like_any_other():
    out = retarget(generate("walk", 3, 1, layout="FIGURE"), RIGS["child"])
    part = out.slice(5, 20).resample(25)
    assert isinstance(part, Retargeted) and part.scale == out.scale and part.rotations is not None and "Clip(" in repr(out) and len(join([out, out])) == 2 * len(out)
    assert abs(out.scale - leg_length(completed(RIGS["child"])) / leg_length(completed(figure_rig(3)))) < .01


# ------------------------------------------------------------------------------------------------ refused
def broken(change):
    clip = generate("walk", 0, .5)
    change(clip.joints)
    return clip


@pytest.mark.parametrize("clip, says", [
    (lambda: broken(lambda j: j.__setitem__((slice(4, 6), 3), float("nan"))), r"2 of 25 frames.*: 4, 5;"), (lambda: broken(lambda j: j.mul_(1000)), r"millimetres\?"), (lambda: broken(lambda j: j.mul_(100)), r"centimetres\?"),
    (lambda: broken(lambda j: j.__setitem__((slice(None), 5), j[:, 4])), "left_hip and left_knee lie at one place"), (lambda: broken(lambda j: j.__setitem__((slice(None), 1), j[:, 4])), "where the person faces"),
    (lambda: Clip(generate("walk", 0, .5).joints, Skeleton("rig7", tuple(f"b{i}" for i in range(17)), skeleton("H36M17").edges), 50, "walk", 0), r"rig7 has no bone for left_hip, left_knee.*points=\{bone: point\}")])
def test_clips_that_can_not_be_moved(clip, says):
    with pytest.raises(RetargetError, match=says): retarget(clip(), RIGS["figure"])


def test_wrong_joint_count():
    clip = generate("walk", 0, .5); object.__setattr__(clip, "joints", clip.joints[:, :16])
    for f in (lambda: retarget(clip, RIGS["figure"]), lambda: relayout(clip, "COCO17")):
        with pytest.raises(RetargetError, match="16 joints given, but H36M17 has 17"): f()


BONES = a_pose_body()


@pytest.mark.parametrize("make, says", [
    (lambda: rig_from_bones(BONES[0], BONES[1], 1000 * BONES[2]), r"millimetres\?"), (lambda: rig_from_bones(BONES[0], BONES[1], BONES[2][:-1]), "heads"), (lambda: rig_from_bones(BONES[0], ["nobody", *BONES[1][1:]], BONES[2]), "'nobody' is the parent"),
    (lambda: rig_from_bones([n.replace("foot.R", "hoof") for n in BONES[0]], [n.replace("foot.R", "hoof") for n in BONES[1]], BONES[2]), "no bone for right_ankle; give points"),
    (lambda: rig_from_bones(BONES[0], BONES[1], BONES[2] * (-1, 1, 1)), "toes point backwards"), (lambda: rig_from_bones(BONES[0], BONES[1], BONES[2] * (1, 1, 0)), "legs of 0.05"),
    (lambda: Rig(FIGURE, offsets_of(Performer())[:-1]), r"shape \(50, 3\), got \(49, 3\)"), (lambda: Rig(FIGURE, offsets_of(Performer()) * np.nan), "not finite"),
    (lambda: Rig(FIGURE, offsets_of(Performer()), None, {"left_hipp": "left_hip"}), "did you mean 'left_hip'"), (lambda: Rig(FIGURE, offsets_of(Performer()), None, {"left_hip": "left_thigh"}), "Accepted: "),
    (lambda: Rig(FIGURE, offsets_of(Performer()), None, {"left_hip": "left_hip", "left_knee": "left_hip"}), "given to two bones"),
    (lambda: rig_of(generate("walk", 0, .5)), "no rotations"), (lambda: rig_of(generate("walk", 0, .5, layout="FIGURE"), rest=99), "no frame"),
    (lambda: parts_of(standing_rig("NTU25")), "the chest on the pelvis"), (lambda: retarget(generate("walk", 0, .5), "H36M17"), "must be a Rig"), (lambda: retarget(generate("walk", 0, .5), RIGS["child"], scale=0), "scale")])
def test_rigs_that_can_not_be(make, says):
    with pytest.raises(RetargetError, match=says): make()


def test_zero_length_bones_of_a_rig():
    x = offsets_of(Performer()); x[FIGURE.index("right_ankle")] = 0
    with pytest.raises(RetargetError, match="right_knee and right_ankle lie at one place"): Rig(FIGURE, x)


def test_names_of_other_rigs_are_known():
    mixamo = ["mixamorig:Hips", "mixamorig:Spine", "mixamorig:Neck", "mixamorig:Head"] + [f"mixamorig:{s}{b}" for s in ("Left", "Right") for b in ("Shoulder", "Arm", "ForeArm", "Hand", "UpLeg", "Leg", "Foot", "ToeBase")]
    at = points_of(skeleton_of(mixamo, [-1, 0, 1, 2, *[1, 4, 5, 6, 0, 8, 9, 10], *[1, 12, 13, 14, 0, 16, 17, 18]], "mixamo"))
    assert set(NEEDED) <= set(at) and mixamo[at["left_shoulder"]].endswith("LeftArm") and mixamo[at["right_collar"]].endswith("RightShoulder")
    old = ["Hips", "Chest", "Neck", "Head"] + [f"{s}{b}" for s in ("Left", "Right") for b in ("Collar", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle")]
    at = points_of(skeleton_of(old, [-1, 0, 1, 2, *[1, 4, 5, 6, 0, 8, 9], *[1, 11, 12, 13, 0, 15, 16]], "old"))
    assert set(NEEDED) <= set(at) and old[at["left_shoulder"]] == "LeftShoulder"


# ------------------------------------------------------------------------------------------------ recordings
def recordings():
    from hclab.data.readers.asfamc import read_asfamc
    from hclab.data.readers.deepmimic import read_expmap38, read_mocap20
    from hclab.data.readers.uiprmd import read_uiprmd, steady
    at = samples_dir()
    yield "AMC", read_asfamc(at / "cmu/02.asf", at / "cmu/02_01.amc").slice(0, 240)
    yield "BVH", read_bvh(at / "cmu/cmu_12_01_walk.bvh").slice(1, 240)
    yield "exponential maps", next(read_expmap38(at / "motions/cmu_expmap38_30hz.npz")).slice(0, 90)
    for kind in ("cmu", "deepmimic"): yield kind, next(read_mocap20(at / "motions/mocap_joints20_30hz.npz", source=kind)).slice(0, 90)
    repetition = read_uiprmd(at / "uiprmd/original/correct/m01_s02_e01_positions.txt.gz")
    yield "Kinect", repetition.clip
    yield "Kinect, rotations", steady(repetition)


@samples
def test_recordings_keep_their_limbs_and_their_feet():
    for name, clip in recordings():
        for rig in ("makehuman", "child", "figure", "CMU31"):
            out = retarget(clip, RIGS[rig]); held = retarget(clip, RIGS[rig], lock=True)
            assert degrees(directions(clip), directions(out)).max() < .03, (name, rig)
            stands = feet_of(clip, RIGS[rig].at)
            assert slide(held, stands) < .5 * max(slide(clip, stands), .02), (name, rig)
            low = float(out.joints[..., 2].quantile(.01) if out.joints.numel() < 1e7 else 0); floor = float(np.quantile(clip.joints[..., 2].min(1).values, .05))
            assert abs(low - floor) < .12, (name, rig, low, floor)


@samples
def test_recorded_rigs_are_targets_too():
    clip = generate("walk", 3, 2, layout="FIGURE", seed=1)
    rigs = {name: c for name, c in recordings() if c.rotations is not None}
    for name, c in rigs.items():
        rig = rig_of(c, rest=0 if name.startswith("Kinect") else None)
        out = retarget(clip, rig)
        assert degrees(directions(clip), directions(out)).max() < .03 and slide(out, feet_of(clip)) < .08, name
        assert flexion(out, "left_hip" if "left_hip" in points_of(out.skeleton) and "left_hip" in out.skeleton.names else out.skeleton.names[rig.at["left_hip"]], out.skeleton.names[rig.at["left_knee"]], out.skeleton.names[rig.at["left_ankle"]]).max() > 30
    assert len(rigs) >= 3


@samples
def test_rotations_and_positions_of_a_recording_agree():
    "Frames of trunk and limbs from AMC's angles and from its points alone: no part turned the wrong way round."
    (clip,) = (c for name, c in recordings() if name == "AMC")
    a, b = (world_rotations(o.skeleton, o.rotations) for o in (retarget(c, RIGS["makehuman"]) for c in (clip, bare(clip))))
    angle = torch.rad2deg(2 * torch.acos((a * b).sum(-1).abs().clamp(max=1)))
    for bone, most in (("root", 8), ("spine01", 8), ("head", 15), ("upperleg02.L", 15), ("lowerleg01.R", 15), ("upperarm02.L", 25), ("lowerarm01.R", 25), ("foot.L", 15)):
        assert angle[:, RIGS["makehuman"].skeleton.index(bone)].median() < most, (bone, float(angle[:, RIGS["makehuman"].skeleton.index(bone)].median()))
