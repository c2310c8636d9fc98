"*Play the puzzle*: the desk, the app without a browser, and networks that answer otherwise than the default one."
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch

from hclab.core.config import ConfigError
from hclab.lab import play_puzzle as game
from hclab.lab.play_puzzle import Answer, PlayPuzzle, PuzzleDesk, belief_sheet, field_name, tiles_of
from hclab.methods.jigsaw import JigsawConfig, Solver
from hclab.tasks.puzzle import PuzzleError

CONFIG = JigsawConfig.for_profile("smoke")
PICTURE = torch.rand(3, 80, 70, generator=torch.Generator().manual_seed(0))


def solver(**changes):
    torch.manual_seed(0)
    return Solver(replace(CONFIG, **changes)).eval()


@pytest.fixture(scope="module")
def net(): return solver()


@pytest.fixture
def teach(monkeypatch):
    "Let the network know everything about a desk: it recognises the patch at each place by its pixels."
    def teach(desk):
        def solve(model, puzzles, one_to_one=True, stage=-1):
            laid = torch.stack([puzzles[0, :, y:y + desk.puzzle.patch, x:x + desk.puzzle.patch] for y in desk.puzzle.steps for x in desk.puzzle.steps])
            return torch.cdist(laid.flatten(1), desk.patches[0].flatten(1)).argmin(1)[None]
        monkeypatch.setattr(game, "solve", solve)
    return teach


def test_exchanges_and_shuffles(net):
    desk = PuzzleDesk(net, PICTURE, seed=5)
    first = desk.perms.tolist()
    assert sorted(first) == list(range(9)) and not desk.right.any(), "no patch stays where it was"
    desk.exchange(2, 7)
    assert desk.perms.tolist() == [*first[:2], first[7], *first[3:7], first[2], first[8]] and desk.moves == 1
    desk.exchange(2, 2)
    assert desk.moves == 1
    for a, b in ((0, 9), (-1, 0)):
        with pytest.raises(PuzzleError, match="there are 9"): desk.exchange(a, b)
    desk.shuffle()
    assert desk.moves == 0 and desk.perms.tolist() != first
    desk.shuffle(6)
    assert desk.perms.tolist() == PuzzleDesk(net, PICTURE, seed=5).perms.tolist(), "a seed is an order"


def test_a_network_that_knows_solves_it(net, teach):
    desk = PuzzleDesk(net, PICTURE)
    teach(desk)
    for _ in range(3):
        desk.follow(desk.ask())
        assert desk.right.all() and desk.moves == 1
        desk.shuffle()


def test_what_is_no_answer_is_not_followed(net):
    desk = PuzzleDesk(net, PICTURE)
    before = desk.perms.clone()
    for wrong in ([0]*9, [-1, *range(1, 9)]):
        with pytest.raises(PuzzleError, match="not every field once"): desk.follow(Answer(torch.tensor(wrong), None))
    assert torch.equal(desk.perms, before)


@pytest.mark.parametrize("changes, stages", [({}, 2), (dict(puzzle=replace(CONFIG.puzzle, encoding="origin")), 2), (dict(answer="patches"), 0), (dict(answer="pooled"), 0), (dict(puzzle=replace(CONFIG.puzzle, crop=.75, grey=.5, shift=2)), 2)])
def test_beliefs_of_every_kind_of_network(changes, stages):
    desk = PuzzleDesk(solver(**changes), PICTURE)
    answer = desk.ask()
    assert sorted(answer.fields.tolist()) == list(range(9)) and (answer.maps is None) == (stages == 0)
    figure = belief_sheet(desk, answer, 3)
    assert len(figure.axes) == 1 + stages
    if stages: assert torch.equal(torch.as_tensor(figure.axes[1].images[1].get_array().data), answer.maps[0, int(desk.perms[3]) if desk.puzzle.encoding == "place" else 3])
    plt.close(figure)
    assert len(tiles_of(desk)) == 9


def test_fields_in_words(): assert [field_name(k, 3) for k in (0, 4, 8)] == ["top left", "middle centre", "bottom right"] and field_name(5, 4) == "row 2 column 2"


def test_no_pictures():
    with pytest.raises(ConfigError, match="no pictures"): PlayPuzzle(None, {})


def test_the_hand(net, teach):
    app = PlayPuzzle(net, {"one": PICTURE, "two": PICTURE.flip(2)})
    teach(app.desk)
    before = app.desk.perms.tolist()
    def hand(*pairs): app.board.exchanges = [*app.board.exchanges, *([app.board.board, a, b] for a, b in pairs)]
    hand((0, 1))
    hand((0, 1), (0, 2))
    assert app.desk.moves == 3 and app.desk.perms.tolist() == [before[2], before[1], before[0], *before[3:]], "what was done is not done again"
    app.c["ask it"].click()
    assert "The network knows 9 of 9" in app.c["says"].value
    app.c["marked"].value = True
    assert "knows 9 of 9" in app.c["says"].value, "marks change nothing that lies there"
    app.c["marked"].value = False
    hand((3, 4))
    assert "knows" not in app.c["says"].value, "an answer is about what lay there"
    app.c["marked"].value = True
    app.c["let it solve"].click()
    assert "Solved after 5 moves!" in app.c["says"].value and app.board.marks == ["home"]*9
    tiles = list(app.board.tiles)
    app.c["shuffle"].click()
    assert app.board.tiles != tiles and app.board.exchanges == [] and app.board.marks.count("home") == 0
    hand((7, 8))
    assert app.desk.moves == 1
    app.c["picture"].value = "two"
    assert app.desk.moves == 0 and torch.equal(app.desk.picture, PICTURE.flip(2))
    seen = app.c["beliefs"].value
    app.board.chosen = 6
    assert app.c["beliefs"].value != seen
    hand((0, 12))
    assert "there are 9" in app.c["says"].value


def test_exchanges_of_a_board_before_are_not_done_on_this_one(net):
    app = PlayPuzzle(net, {"one": PICTURE})
    old = [[app.board.board, 0, 1], [app.board.board, 1, 2], [app.board.board, 2, 3]]
    app.board.exchanges = old
    app.c["shuffle"].click()
    fresh = app.desk.perms.tolist()
    app.board.exchanges = [*old, [app.board.board - 1, 4, 5]]      # the browser has not heard of the shuffle
    assert app.desk.perms.tolist() == fresh and app.desk.moves == 0
    app.board.exchanges = [*old, [app.board.board - 1, 4, 5], [app.board.board, 7, 8]]
    assert app.desk.perms.tolist() == [*fresh[:7], fresh[8], fresh[7]] and app.desk.moves == 1
