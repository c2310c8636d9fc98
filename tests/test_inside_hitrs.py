"Inside Hi-TRS: hidden joints come back where the network says, and attention is that of the layer, head and token that were asked for."
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from hclab.core.skeleton import skeleton
from hclab.data.grammar import generate
from hclab.lab import annotate as A
from hclab.lab import inside_hitrs as I
from hclab.lab.predict import PredictError
from hclab.methods.hitrs import HiTRSConfig, Pretext, PretextConfig, shown
from hclab.tasks.action import Recogniser
from hclab.tasks.frame_labels import FrameRecogniser, clips_about
from hclab.train.loop import seeded

SMALL = HiTRSConfig(layout="H36M16", width=8, heads=2, head=4, layers=2, dropout=0.5)
J = len(skeleton("H36M16"))


@pytest.fixture(scope="module")
def clip(): return generate("throw", 3, 2.0, fps=30, layout="FIGURE")


def pretext(**changes):
    with seeded(0): return Pretext(PretextConfig(model=replace(SMALL, **changes)))


def persons(figure):
    "The corners of all lines of a player's first frame, as a set of places rounded to the millimetre."
    return {(round(x, 3), round(y, 3), round(z, 3)) for t in figure.data if t.type == "scatter3d" and t.x is not None for x, y, z in zip(t.x, t.y, t.z, strict=True) if None not in (x, y, z) and not any(map(math.isnan, (x, y, z)))}


# ------------------------------------------------------------------------------------------------ put back
def test_hidden_joints_come_back_where_the_network_says(clip):
    "A network that always answers with one place; and one whose answers are asked for frame by frame."
    model = pretext()
    nn.init.zeros_(model.where.weight); model.where.bias.data = torch.tensor([.3, -.2, .1])
    done = I.fill(model, clip, hide=("left_wrist", "right_knee"))
    names = done.clip.skeleton.names
    hidden = [names.index(n) for n in ("left_wrist", "right_knee")]
    rest = [j for j in range(J) if j not in hidden]
    assert done.clip.fps == 15 and done.said.shape == (30, J, 3) and (done.shown[:, hidden] == 1).all() and done.asked.nonzero()[:, 1].unique().tolist() == sorted(hidden)
    assert torch.allclose(done.said[:, hidden], torch.tensor([.3, -.2, .1]).expand(30, 2, 3)) and torch.equal(done.said[:, rest], done.clip.joints[:, rest])
    far = [math.dist(done.clip.joints[t, j].tolist(), (.3, -.2, .1))*1000 for t in range(30) for j in hidden]
    assert done.error == pytest.approx(sum(far)/len(far), rel=1e-4)
    other = pretext().train()
    drawn = I.fill(other, clip, share=.3, seed=2)
    assert other.training and other.eval() and abs(float(drawn.asked.float().mean()) - .3) < .08
    for t in range(30): assert torch.allclose(drawn.said[t, drawn.asked[t]], other.where(other.encoder.frame(drawn.shown[t][None]))[0, drawn.asked[t]], atol=1e-5)


def test_the_player_shows_who_he_was_what_is_left_and_what_was_put_back(clip):
    model = pretext()
    nn.init.zeros_(model.where.weight); model.where.bias.data = torch.tensor([.3, -.2, .1])
    figure = I.filled_in(model, clip, hide=("left_wrist",), apart=2.0, title="throw")
    done = I.fill(model, clip, hide=("left_wrist",))
    wrist, places = skeleton("H36M16").index("left_wrist"), persons(figure)
    hips = done.clip.joints[0, skeleton("H36M16").index("left_hip")] - done.clip.joints[0, skeleton("H36M16").index("right_hip")]
    step = 2*torch.tensor([hips[0], hips[1], 0])/hips[:2].norm()      # to his left
    at = lambda joint, k: any(math.dist(p, (joint + k*step).tolist()) < .02 for p in places)
    true, back = done.clip.joints[0], torch.tensor([.3, -.2, .1])
    assert [at(true[wrist], k) for k in range(3)] == [True, False, False] and at(back, 2) and not at(back, 0) and not at(back, 1)
    for j in range(J):
        if j != wrist: assert all(at(true[j], k) for k in range(3)), f"{j} was not hidden"
    assert len(figure.frames) > 5 and figure.layout.title.text.startswith("throw")


def test_what_cannot_be_put_back_is_refused(clip):
    bones = Pretext(PretextConfig(model=SMALL, stream="bone"))
    clips = Pretext(PretextConfig(model=SMALL, levels=("clip",)))
    for ask, words in ((lambda: I.fill(pretext().encoder, clip), "give a Pretext"), (lambda: I.fill(bones, clip), "taught on bones"), (lambda: I.fill(clips, clip), "the question 'frame'"),
                       (lambda: I.fill(pretext(), clip, hide=("left_wrst",)), "did you mean 'left_wrist'"), (lambda: I.fill(pretext(), clip, share=0), "larger share"), (lambda: I.network_of(nn.Linear(2, 2)), "holds no HiTRS")):
        with pytest.raises(I.LookError, match=words): ask()
    with pytest.raises(PredictError, match="5 frames a second"): I.fill(pretext(), clip.resample(5))


# ------------------------------------------------------------------------------------------------ attention
def by_hand(layer, x, allowed):
    "Weights (heads,K,K) of one layer, loop by loop."
    y, (H, D), K = layer.before_looking(x), (layer.look.heads, layer.look.head), len(x)
    asked, known = ((y @ layer.look.ask.weight[n*H*D:(n + 1)*H*D].T).view(K, H, D) for n in range(2))
    out = torch.zeros(H, K, K)
    for h in range(H):
        for q in range(K):
            may = [k for k in range(K) if allowed is None or allowed[q, k]]
            score = [float(asked[q, h] @ known[k, h])/math.sqrt(D) for k in may]
            top = max(score)
            mass = [math.exp(s - top) for s in score]
            for k, m in zip(may, mass, strict=True): out[h, q, k] = m/sum(mass)
    return out


@pytest.mark.parametrize("level", ["frame", "clip", "video"])
@torch.no_grad()
def test_attention_by_hand(clip, level):
    "Each layer's own weights of what the layers before made of the sequence, counted out; `share` picks its row."
    model = pretext(width=4, heads=2, head=3).eval()
    for p in model.parameters(): p.mul_(3)                # far from alike
    net, said = model.encoder, I.attention(model, clip, level, frame=10)
    joints = said.clip.joints
    x = {"frame": lambda: net.frame.into(joints[10][None]) + net.frame.place, "clip": lambda: net.clip.tokens(net.frame(joints[4:17:2])[None]), "video": lambda: I.video_tokens(net, "joint", joints)[0]}[level]()
    hands, allowed, wrist = [], net.clip.allowed if level == "clip" else None, skeleton("H36M16").index("left_wrist")
    for layer in getattr(net, level).mix.layers:
        hands.append(by_hand(layer, x[0], allowed))
        x = layer(x, allowed)
    assert torch.allclose(said.weights, torch.stack(hands), atol=1e-4)
    hand0 = hands[0]
    if level == "frame":
        assert said.frames.tolist() == [10] and torch.allclose(said.share(0, 1, "left_wrist")[0], hand0[1, wrist], atol=1e-4) and torch.allclose(said.share(0)[0], hand0.mean((0, 1)), atol=1e-4)
    if level == "clip":
        assert said.frames.tolist() == [4, 6, 8, 10, 12, 14, 16] and torch.allclose(said.share(0, 1).flatten(), hand0[1, -1, :-1], atol=1e-4)
        assert torch.allclose(said.share(0, 0, "left_wrist").flatten(), hand0[0, 3*J + wrist, :-1], atol=1e-4) and said.share(0, 0, "left_wrist")[3].count_nonzero() == 1
    if level == "video":
        assert said.frames.tolist() == [0, 7, 14, 21, 28] and torch.allclose(said.share(0).flatten(), hand0.mean(0)[-1, :-1], atol=1e-4)
        assert torch.allclose(x[0, -1], net(joints[None], torch.ones(1, len(joints), dtype=torch.bool))[0], atol=1e-4), "the last layer says what the network says"


def test_who_has_no_opinion_looks_at_all_alike(clip):
    "Queries and keys of zeros: 1 of J joints, of F*J joints and the token, of (F - 1)*J others, oneself and the token, of N clips and the token."
    model = pretext()
    for m in model.modules():
        if hasattr(m, "ask"): nn.init.zeros_(m.ask.weight)
    video = I.attention(model, clip, "video")
    for level, joint, alike in (("frame", None, 1/J), ("frame", "head", 1/J), ("clip", None, 1/(7*J + 1)), ("video", None, 1/(len(video.frames) + 1))):
        said = I.attention(model, clip, level)
        for head in (None, 0, 1): assert torch.allclose(said.share(-1, head, joint), torch.tensor(alike)), level
        assert f"{100*alike:.2g} % each" in I.headline(said, joint=joint)
    own = I.attention(model, clip, "clip").share(joint="head")
    assert torch.allclose(own[own > 0], torch.tensor(1/(6*J + 2))) and int((own > 0).sum()) == 6*J + 1
    beginning = I.attention(model, clip, "clip", frame=2)
    assert beginning.frames.tolist() == [-1, -1, 0, 2, 4, 6, 8] and model.training


def test_a_detector_is_shown_what_it_is_shown(clip):
    "The clip about a frame with that frame's root at the origin, its ends held, in its stream; and its video level was never taught."
    for kind in ("joint", "bone", "motion"):
        with seeded(0): net = FrameRecogniser(shown(pretext().encoder, kind, 2), 3)
        ready, seen, read = I.sequence_for(clip, net), [], []
        hook = I.network_of(net)[0].frame.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        net(clips_about(ready.joints, [1], 2, "H36M16"))
        I.attention(net, clip, "clip", frame=1)
        hook.remove()
        assert torch.allclose(seen[0], seen[1]) and I.network_of(net)[1] == kind, kind
        assert I.attention(net, clip, "clip", frame=1).frames.tolist() == [0, 0, 0, 1, 3, 5, 7]
        with pytest.raises(I.LookError, match="never taught"): I.attention(net, clip, "video")
    with seeded(0): asked = Recogniser(shown(pretext().encoder, "bone"), 3)
    hook = I.network_of(asked)[0].frame.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    with torch.no_grad(): I.attention(asked, clip, "video"); asked(ready.joints[None, None], torch.ones(1, 1, len(ready), dtype=torch.bool))
    hook.remove()
    assert torch.equal(*read)


def test_the_picture_is_of_what_was_asked(clip):
    plt = pytest.importorskip("matplotlib.pyplot")
    model = pretext()
    for ask in (dict(level="clip", layer=0, head=1, joint="left_wrist", frame=8), dict(level="clip", frame=8), dict(level="frame", frame=8, joint="head"), dict(level="video")):
        fig = I.attention_figure(model, clip, **ask)
        said = I.attention(model, clip, ask["level"], ask.get("frame"))
        share = 100*said.share(ask.get("layer", -1), ask.get("head"), ask.get("joint"))
        people = [ax for ax in fig.axes if ax.get_title()]
        dots = [[c for c in ax.collections if len(c.get_offsets()) == J and c.get_array() is not None][-1].get_array() for ax in people]
        rings = [k for k, ax in enumerate(people) if any(len(c.get_offsets()) == 1 and c.get_sizes()[0] > 150 for c in ax.collections)]
        assert [ax.get_title() for ax in people] == [f"{t/15:.2f} s" for t in said.frames.tolist()]
        for k, values in enumerate(dots): assert torch.allclose(torch.as_tensor(values).float(), (share[k] if share.ndim == 2 else share[k].expand(J)).float(), atol=1e-4)
        assert rings == ([len(people)//2] if ask.get("joint") else [])
        plt.close(fig)
    for ask, words in ((dict(level="clips"), "did you mean 'clip'"), (dict(layer=2), "layer=2; there are 2"), (dict(head=-3), "head=-3; there are 2"), (dict(frame=30), "has 30"), (dict(joint="nose"), "nose"), (dict(level="video", joint="head"), "made of clips")):
        with pytest.raises(I.LookError, match=words): I.attention_figure(model, clip, **ask)


def test_the_app_follows_the_hand(clip):
    pytest.importorskip("ipywidgets")
    app = I.inside_hitrs(pretext(), {"a": clip, "b": generate("squat", 4, 2.0, fps=15, layout="H36M16"), "slow": clip.resample(5)}).app
    c, seen = app.c, []
    assert c["frame"].value == I.busiest(I.sequence_for(clip, app.model).joints) and c["layer"].max == 2 and len(c["head"].options) == 3
    for name, value in (("head", 1), ("layer", 1), ("joint", "head"), ("frame", 3), ("recording", "b"), ("level", "video")):
        c[name].value = value
        seen.append(c["picture"].value)
    assert len(set(seen)) == len(seen) and c["frame"].disabled and not c["says"].value
    c["recording"].value = "slow"
    assert 'role="alert"' in c["says"].value and "5 frames a second" in c["says"].value
    detector = A.build_detector(A.detector_config())
    assert I.inside_hitrs(detector, {"a": clip}).app.c["level"].options == ("frame", "clip")
    with pytest.raises(I.LookError, match="no recordings"): I.inside_hitrs(detector, {})
