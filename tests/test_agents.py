"""Agents: translators, the scorer, the loop, resuming, undoing, the record, wrong input."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from families import tiny_model, tiny_tokenizer

import errata
from errata import LM, EditModel, FolioConfig, MethodConfig, get_edit_model
from errata.agents import (
    GAMES,
    ActionScorer,
    Agent,
    AgentRecord,
    Game,
    LoopSizes,
    Speaker,
    bootstrapped,
    game_named,
    improve,
    play_episodes,
    rules_said,
    scripted_rules,
)
from errata.agents import improvement as loop
from errata.agents.experience import Experience
from errata.agents.planning import plan
from errata.agents.policies import Exploring, RandomPolicy, Rules, ScriptedPolicy
from errata.agents.prompts import Demonstrated, Instructed, among
from errata.agents.video import MOST_BYTES, film
from errata.errors import ArtifactError, UnknownNameError, UsageError

pytest.importorskip("gymnasium")

FEW = LoopSizes(explore=60, rehearse=12, accept=12)


class KilledError(Exception):
    """A process that ends where it is."""


def small(config: MethodConfig | None = None, tokenizer: Any = None) -> EditModel:
    torch.set_num_threads(1)
    return get_edit_model(
        tiny_model("llama"), config or FolioConfig(background=8), tokenizer or tiny_tokenizer()
    )


class Walk:
    """Seven squares in a row; the right end earns 10, each step costs 1.

    Behind `turned` seeds it is the left end that earns.
    """

    def __init__(self, turned: range) -> None:
        self.turned = turned

    def reset(self, seed: int) -> tuple[int, dict[str, Any]]:
        self.goal = 0 if seed in self.turned else 6
        self.at = random.Random(seed).randint(2, 4)
        return self.at, {}

    def step(self, move: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.at = min(6, max(0, self.at + move))
        over = self.at in (0, 6)
        return self.at, 9.0 if over and self.at == self.goal else -1.0, over, False, {}

    def close(self) -> None: ...


class WalkGame(Game):
    """The walk in words."""

    name, title, actions, moves, most_steps = "Walk", "Walk", ("left", "right"), (-1, 1), 12
    questions = ("From square {state}, where next?", "Where does one go from square {state}?")
    goal = "Walk to the right."
    turned: ClassVar[range] = range(0)

    def make(self, drawn: bool = False) -> Any:
        return Walk(self.turned)

    def cell(self, observation: int) -> tuple[int, ...]:
        return (observation,)

    def cells(self) -> list[tuple[int, ...]]:
        return [(at,) for at in range(7)]

    def state(self, cell: tuple[int, ...]) -> str:
        return f"W{cell[0]}"

    def other_words(self, cell: tuple[int, ...]) -> str:
        return "the " + "first second third fourth fifth sixth last".split()[cell[0]]

    def scripted(self, observation: int) -> int:
        return 1


class Turned(WalkGame):
    """What earns on the seeds to learn from loses on the seeds to judge by."""

    turned = range(loop.ACCEPT_FROM, loop.ACCEPT_FROM + 100)


def test_no_sentence_is_said_in_two_games() -> None:
    """Else the rules of the one would answer in the other."""
    said_in: dict[str, str] = {}
    for game in map(game_named, GAMES):
        for cell in game.cells():
            asked = {game.prompt(cell, at) for at in range(len(game.questions))}
            for sentence in {*asked, game.reworded(cell), game.state(cell), game.other_words(cell)}:
                assert said_in.setdefault(sentence, game.name) == game.name


@pytest.mark.parametrize("name", GAMES)
def test_a_translator_covers_the_states_of_its_game(name: str) -> None:
    """Each state lies in a cell; each cell has sentences of its own; actions are the game's."""
    game = game_named(name)
    cells = game.cells()
    for write in (
        game.state, game.other_words, game.reworded, *(
            lambda cell, at=at: game.prompt(cell, at) for at in range(len(game.questions))
        ),
    ):  # fmt: skip
        assert len({write(cell) for cell in cells}) == len(cells)
    for cell in cells[:: max(1, len(cells) // 10)]:
        asked = {game.prompt(cell, at) for at in range(len(game.questions))}
        assert len({*asked, game.reworded(cell)}) == len(game.questions) + 1
        assert game.edit(cell, 0, "test").target == game.actions[0]  # its subject is in its prompt
    try:
        environment = game.make()
    except UsageError as missing:
        pytest.skip(str(missing))
    assert {*game.moves} <= {*range(int(environment.action_space.n))}
    assert len(game.moves) == len({*game.actions}) == len(game.actions)
    environment.close()
    policy = Exploring(ScriptedPolicy(game), game, 0.5, 0)
    played = play_episodes(game, policy, [0], most_steps=40)
    assert {*played.visited} <= {*cells}
    assert {*played.episodes[0].actions} <= {*range(len(game.moves))}


def test_the_planned_policy_is_the_best_and_the_rules_say_it() -> None:
    """Value iteration on a chain by hand; on the lake and for the taxi, the least steps."""
    chain = {
        0: {0: [(1.0, 0, 0.0, False)], 1: [(0.9, 1, 0.0, False), (0.1, 0, 0.0, False)]},
        1: {0: [(1.0, 0, 0.0, False)], 1: [(1.0, 1, 1.0, True)]},
    }
    assert plan(chain) == {0: 1, 1: 1}
    for name, best in (("FrozenLake-v1", 1.0), ("CliffWalking-v1", -13.0)):
        game = game_named(name)
        rules = scripted_rules(game)
        assert {*rules} <= {*game.cells(), *map(game.cell, game.states())}
        assert play_episodes(game, Rules(rules, RandomPolicy(game, 0)), [0]).mean == best


@pytest.mark.parametrize("actions", [("left", "right"), ("1", "2", "3")])
def test_scores_are_the_models_log_probabilities(actions: tuple[str, ...]) -> None:
    """Summed over an action's tokens, by one forward pass for each by hand; and asked once."""
    base, tokenizer = errata.load_base("atlas", "float32")
    lm = LM(base, tokenizer)
    scorer = ActionScorer(lm, actions)
    prompts = ["From square A1, which way is the next step?", "With tilt T2,"]
    found = scorer.scores([*prompts, prompts[0]])
    for prompt, scores in zip(prompts, found, strict=False):
        for action, score in zip(actions, scores, strict=True):
            row = lm.encode(prompt, action)
            with torch.no_grad():
                logits = base(torch.tensor([row.ids])).logits[0].log_softmax(-1)
            wanted = sum(
                logits[at - 1, row.ids[at]].item() for at in range(row.prompt_length, len(row.ids))
            )
            assert score == pytest.approx(wanted, abs=1e-4)
    assert scorer.asked == 2 and found[0] == found[2]


def test_an_agent_learns_a_game_is_saved_resumed_and_undone(tmp_path: Path) -> None:
    """FrozenLake by folio; an edit taken back is as if never written; the folder is of edits."""
    model, game = small(), game_named("FrozenLake-v1")
    alone = ActionScorer(model, game.actions).scores([game.prompt((0, 0))])
    agent = Agent(game, AgentRecord(game.name, "folio", teacher="script"), model, tmp_path)
    agent.learn()
    played = agent.play(range(3))
    assert (played.mean, played.low, played.edits) == (1.0, 1.0, 16)
    rules = scripted_rules(game)
    scorer = ActionScorer(model, game.actions)
    assert rules_said(game, scorer, rules) == 1.0

    opened = EditModel.from_pretrained(tiny_model("llama"), tmp_path, tiny_tokenizer())
    again = Agent(game, AgentRecord.load(tmp_path), opened, tmp_path)
    again.learn()
    assert again.play(range(3)).mean == 1.0 and len(opened.edits) == 16
    assert [each["mean"] for each in AgentRecord.load(tmp_path).played] == [1.0, 1.0]
    opened.undo(game.edit((0, 0), rules[0, 0], "script").id)
    assert ActionScorer(opened, game.actions).scores([game.prompt((0, 0))]) == alone


def test_the_loop_finds_rules_and_keeps_none_that_lower_the_return() -> None:
    """From a policy that walks left; and where the seeds to judge by disagree, nothing stays."""
    kept, left = small(), small()
    for model, game in ((kept, WalkGame()), (left, Turned())):
        speaker = Speaker(game, ActionScorer(model, game.actions))
        model.edit([game.edit(cell, 0, "test") for cell in game.cells()], check=False)
        before = [edit.id for edit in model.edits]
        judges = range(loop.ACCEPT_FROM, loop.ACCEPT_FROM + FEW.accept)
        mean = play_episodes(game, speaker, judges).mean
        record = AgentRecord("Walk", "folio")
        improve(model, game, record, 3, FEW)
        after = play_episodes(game, speaker, judges).mean
        assert record.trials and all(
            each["kept"] == (each["mean"] > each["best"]) for each in record.trials
        )
        if game.turned:
            assert after == mean and [edit.id for edit in model.edits] == before
        else:
            assert after > mean == record.trials[0]["best"] and after >= 6.0


def test_a_loop_that_was_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """Killed after the first round's save, and gone on with from the folder."""
    game, ended = WalkGame(), []
    for kill in (False, True):
        model, folder = small(), tmp_path / str(kill)
        model.edit([game.edit(cell, 0, "test") for cell in game.cells()], check=False)
        agent = Agent(game, AgentRecord("Walk", "folio", teacher="none"), model, folder)
        if kill:
            saved = agent.save

            def die() -> None:
                saved()  # noqa: B023
                raise KilledError

            agent.save = die  # type: ignore[method-assign]
            with pytest.raises(KilledError):
                agent.learn(2, sizes=FEW)
            model = EditModel.from_pretrained(tiny_model("llama"), folder, tiny_tokenizer())
            agent = Agent(game, AgentRecord.load(folder), model, folder)
            assert agent.record.rounds == 1
        agent.learn(2, sizes=FEW)
        ended.append(([edit.id for edit in model.edits], agent.record.trials))
    assert ended[0] == ended[1]


def test_reward_weighted_regression_and_reflection_learn_from_episodes() -> None:
    """Both walk right after a few rounds of their own episodes."""
    game, model = WalkGame(), small()
    model.edit([game.edit(cell, 0, "test") for cell in game.cells()], check=False)
    agent = Agent(game, AgentRecord("Walk", "folio", teacher="none"), model)
    before = agent.play(range(5)).mean
    agent.learn(4, "reward", FEW)
    assert agent.play(range(5)).mean > before
    experience = Experience()
    episodes = play_episodes(
        game, Exploring(ScriptedPolicy(game), game, 0.5, 0), range(40)
    ).episodes
    experience.add(episodes)
    assert {experience.best[at,] for at in (3, 4, 5)} == {1}
    assert (
        Experience.from_list(json.loads(json.dumps(experience.to_list()))).best == experience.best
    )
    with pytest.raises(ArtifactError, match="experience is damaged"):
        Experience.from_list([[[0], [[0, 0.5, 3]]]])
    shown = Demonstrated(game, experience.best, count=2)
    assert shown.nearest((5,)) == [(4,), (5,)] and "W5. Action: right" in shown((5,))
    assert Instructed(game)((3,)).startswith(game.goal)


def test_experience_knows_the_way_where_episodes_that_stand_still_earn_most() -> None:
    """By the means of what followed, a policy that pushes against the border goes on doing so."""
    game = game_named("FrozenLake-v1")
    against = Rules(dict.fromkeys(game.cells(), game.actions.index("left")), RandomPolicy(game, 0))
    experience = Experience()
    for chance, hold in (*loop.NEAR, *loop.FAR):
        exploring = Exploring(against, game, chance, 0, hold)
        experience.add(play_episodes(game, exploring, range(200)).episodes)
    ways = Rules(experience.best, RandomPolicy(game, 0))
    assert play_episodes(game, ways, range(5)).mean == 1.0


def test_what_most_prompts_show_does_not_pass_for_what_the_model_likes() -> None:
    """Six prompts show one action, one the other: each is followed, the weakly told one, too."""
    game = WalkGame()
    asks = Demonstrated(game, {(at,): int(at < 6) for at in range(7)})

    class Liking:
        """Likes to go left, and a little more where that is shown."""

        def scores(self, prompts: list[str]) -> list[tuple[float, float]]:
            return [
                (-1.0, -4.0) if "Action: left" in each
                else (-1.3, -3.6) if "W3. Action: right" in each
                else (-1.5, -3.5)
                for each in prompts
            ]  # fmt: skip

    groups = among(game, asks)
    assert sorted(map(len, groups)) == [1, 6]
    speaker = Speaker(game, Liking(), asks, groups)  # type: ignore[arg-type]
    assert speaker.act(game.cells(), range(7)) == [1, 1, 1, 1, 1, 1, 0]
    flat = Speaker(game, Liking(), asks, [[each for group in groups for each in group]])  # type: ignore[arg-type]
    assert flat.act([(3,)], [3]) == [0]  # as it was


def test_a_film_is_small(tmp_path: Path) -> None:
    game = game_named("FrozenLake-v1")
    mean, frames = film(game, ScriptedPolicy(game), 0, tmp_path / "lake.gif")
    content = (tmp_path / "lake.gif").read_bytes()
    assert mean == 1.0 and frames == 7
    assert content[:6] == b"GIF89a" and 1000 < len(content) < MOST_BYTES


def test_an_interval_holds_the_mean() -> None:
    mean, low, high = bootstrapped([1.0, 2.0, 3.0, 10.0])
    assert low < mean == 4.0 < high and bootstrapped([5.0] * 3) == (5.0, 5.0, 5.0)


def test_wrong_input_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    with pytest.raises(UnknownNameError, match=r"no translator .*'Cartpole'.*CartPole-v1"):
        game_named("Cartpole")
    with pytest.raises(UsageError, match="cannot tell the actions 'left' and 'left'"):
        ActionScorer(model, ("left", "left"))
    with pytest.raises(UsageError, match="does not learn from episodes"):
        Agent(WalkGame(), AgentRecord("Walk", "random")).learn(3)
    with pytest.raises(UsageError, match="needs a language model"):
        Agent(WalkGame(), AgentRecord("Walk", "folio")).policy()
    (tmp_path / "agent.json").write_text('{"game": 1}')
    with pytest.raises(ArtifactError, match=r"agent\.json: is no agent's record"):
        AgentRecord.load(tmp_path)
    (tmp_path / "agent.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"agent\.json: cannot be read"):
        AgentRecord.load(tmp_path)
    with pytest.raises(UsageError, match="was begun with game 'Walk', not 'CartPole-v1'"):
        AgentRecord("Walk", "folio").check(tmp_path, game="CartPole-v1")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gymnasium", None)
        with pytest.raises(UsageError, match=r"pip install 'errata\[agents\]'"):
            game_named("CartPole-v1").make()
    with monkeypatch.context() as patch:
        patch.setattr(type(game_named("CartPole-v1")), "name", "NoPole-v1")
        with pytest.raises(UsageError, match="NoPole-v1 cannot be played here"):
            GAMES["CartPole-v1"]().make()
