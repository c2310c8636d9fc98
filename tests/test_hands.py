"Apps whose widgets are answered by two threads, as JupyterLab's subshells do it: one thing after another, in the thread of the app, and the last wish wins."
import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import ipywidgets as w
import numpy as np
import pytest
import torch

from hclab.lab.body_camera import BodyCamera, shot_of
from hclab.lab.drag_joint import DragJoint
from hclab.lab.hands import SETTLES, Hands
from hclab.lab.motion_mixer import MotionMixer
from hclab.lab.your_photo import YourPhoto
from hclab.tasks.pose2d import PoseConfig, build_network


def apart(f):
    "The result of `f` in a thread of its own: a browser test before this one may have left a loop in ours."
    with ThreadPoolExecutor(1) as pool: return pool.submit(f).result()


def live(script):
    "Run an async function as a kernel does, with `elsewhere(f)` for what a second thread does."
    async def run():
        with ThreadPoolExecutor(1) as subshell:
            await script(lambda f: asyncio.get_running_loop().run_in_executor(subshell, f))
            await asyncio.sleep(5*SETTLES)
    apart(lambda: asyncio.run(run()))


def watched(app, *names):
    "Let an app note who does what; two at a time are an error."
    notes, inside = [], []
    def note(name, act):
        def noted(*args, **kwargs):
            inside.append(name)
            assert len(inside) == 1, f"two at a time: {inside}"
            try: return act(*args, **kwargs)
            finally:
                notes.append((name, threading.get_ident()))
                inside.clear()
        return noted
    for name in names: setattr(app, name, note(name, getattr(app, name)))
    return notes


def test_two_threads_take_turns_in_the_thread_of_the_app():
    async def script(elsewhere):
        home, done = threading.get_ident(), []
        hands = Hands(w.HTML())
        def act(n): time.sleep(.01); done.append((n, threading.get_ident()))
        asked = [elsewhere(lambda n=n: hands(lambda: act(n))) for n in range(5)]
        for n in range(5, 10): hands(lambda n=n: act(n))
        await asyncio.gather(*asked)
        await asyncio.sleep(.3)
        assert sorted(n for n, _ in done) == list(range(10)) and {thread for _, thread in done} == {home}
        assert [n for n, _ in done if n < 5] == list(range(5)), "each thread's wishes in their order"
    live(script)


def test_a_text_that_waits_comes_before_the_click_of_another_thread():
    async def script(elsewhere):
        text, saved = w.Text("before"), []
        hands, loop = Hands(w.HTML()), asyncio.get_running_loop()
        click = elsewhere(lambda: hands(lambda: saved.append(text.value)))
        time.sleep(.05)                                             # the app's thread draws; the click is here already
        def message(hops): loop.call_soon(message, hops - 1) if hops else setattr(text, "value", "after")
        message(10)                                                 # the text waited for that thread; a message takes some turns of the loop
        await click
        await asyncio.sleep(5*SETTLES)
        assert saved == ["after"]
    live(script)


def test_a_wish_of_another_thread_is_not_lost_while_the_app_moves_its_controls():
    async def script(elsewhere):
        done, hands = [], Hands(w.HTML())
        with hands.away():
            hands(lambda: done.append("its own"))
            await elsewhere(lambda: hands(lambda: done.append("somebody's")))
        await asyncio.sleep(5*SETTLES)
        assert done == ["somebody's"]
    live(script)


@pytest.mark.parametrize("error, said", [(ValueError("a < b"), "a &lt; b"), (OSError("disk full"), "disk full")])
def test_what_went_wrong_is_said_also_for_another_thread(error, said):
    def fails(): raise error
    async def script(elsewhere):
        says, beside = w.HTML(), w.HTML()
        hands = Hands(says)
        await elsewhere(lambda: hands(fails, says=beside))
        await asyncio.sleep(5*SETTLES)
        assert said in beside.value and 'role="alert"' in beside.value and not says.value
    live(script)


def test_many_wishes_that_ask_the_same_are_one():
    async def script(elsewhere):
        state, done = [0], []
        hands = Hands(w.HTML())
        def act(): time.sleep(.01); done.append(state[0])
        def wish(n): state[0] = n; hands(act, key="slider")
        await elsewhere(lambda: [wish(n) for n in range(60)])
        await elsewhere(lambda: [hands(lambda: done.append("click")) for _ in range(3)])
        await asyncio.sleep(.2)
        assert done.count("click") == 3 and [d for d in done if d != "click"] == [59]
        await elsewhere(lambda: wish(60))
        await asyncio.sleep(.2)
        assert done[-1] == 60
    live(script)


def test_where_no_loop_runs_everything_is_done_at_once():
    def script():
        done, hands = [], Hands(w.HTML())
        hands(lambda: done.append(1))
        hands.at_rest(lambda: done.append(2), 10)
        assert done == [1, 2]
    apart(script)


def test_body_and_camera(tmp_path):
    async def script(elsewhere):
        app = BodyCamera(shot_of(3, place="field"), tmp_path)
        notes, home = watched(app, "_draw"), threading.get_ident()
        asked = [elsewhere(lambda v=v: setattr(app.c["azimuth"], "value", v)) for v in (40, 50, 60)]
        app.c["height"].value = 1.0
        await asyncio.gather(*asked)
        await asyncio.sleep(10*SETTLES)
        assert (app.shot.azimuth, app.shot.height) == (60, 1.0) and {thread for _, thread in notes} == {home}
        app.name.value = "../mine.npz"
        app.buttons["save"].click()
        assert "without folders" in app.saved.value
        app.name.value = "mine.npz"
        await elsewhere(app.buttons["save"].click)
        await asyncio.sleep(2)
        with np.load(tmp_path/"mine.npz") as kept: assert kept["image"].ndim == 3
        assert "saved: mine.npz" in app.saved.value
    live(script)


def test_the_mixer():
    async def script(elsewhere):
        app = MotionMixer()
        notes, home = watched(app, "_new_clip"), threading.get_ident()
        asked = [elsewhere(lambda v=v: setattr(app.c["performer"], "value", v)) for v in (5, 6, 7)]
        app.c["action"].value = "wave"
        await asyncio.gather(*asked)
        await asyncio.sleep(10*SETTLES)
        assert (app.desk.take.performer, app.desk.take.action) == (7, "wave") and {thread for _, thread in notes} == {home}
        assert app.desk.clip.performer == 7
    live(script)


def test_another_person_does_not_take_back_what_the_hand_does_meanwhile(tmp_path):
    async def script(elsewhere):
        app = BodyCamera(shot_of(3, place="field"), tmp_path)
        app.desk.sample = lambda s, quick=False, draw=app.desk.sample: (time.sleep(.1), draw(s, quick))[1]
        moved = elsewhere(lambda: (time.sleep(.05), setattr(app.c["azimuth"], "value", 90)))
        app.buttons["another person"].click()
        await moved
        await asyncio.sleep(2)
        assert app.shot.person == 4 and app.shot.azimuth == app.c["azimuth"].value == 90
    live(script)


def test_your_photo_keeps_each_picture_s_box():
    torch.manual_seed(0)
    async def script(elsewhere):
        app = YourPhoto(build_network(PoseConfig.for_profile("smoke")), {n: torch.rand(3, 400, 400) for n in "ab"}, {"a": (10, 70, 200, 400), "b": (60, 0, 400, 400)})
        def hand(): app.c["across"].value = (20, 200); app.c["picture"].value = "b"
        await elsewhere(hand)
        await asyncio.sleep(10*SETTLES)
        assert app.boxes["b"] == (60, 0, 400, 400) == (app.c["across"].value[0], app.c["down"].value[0], app.c["across"].value[1], app.c["down"].value[1])
    live(script)


def test_drag_a_joint():
    async def script(elsewhere):
        app = DragJoint({"flat": lambda joints: joints.new_zeros(*joints.shape[:-1], 3) + .1})
        notes, home = watched(app, "show"), threading.get_ident()
        asked = [elsewhere(lambda x=x: setattr(app.pad, "pulled", dict(joint=3, x=float(x), y=500.0))) for x in (400, 450, 500)]
        await asyncio.gather(*asked)
        await asyncio.sleep(10*SETTLES)
        assert app.desk.joints2d[3].tolist() == [500, 500] and {thread for _, thread in notes} == {home} and len(notes) < 3
        def hand(): app.pad.pulled = dict(joint=12, x=600.0, y=600.0); app.pad.pulled = dict(joint=6, x=500.0, y=550.0)
        await elsewhere(hand)
        await asyncio.sleep(10*SETTLES)
        assert app.desk.joints2d[12].tolist() == [600, 600] and app.desk.joints2d[6].tolist() == [500, 550], "a pull is no state: none is lost"
    live(script)
