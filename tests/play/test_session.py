"""A game tick by tick: what is real, what is dreamed, and who acts, with the committed agents."""

import json
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import worldmodels
from dreamjax.envs import jitted
from dreamjax.envs.probes import PLAYER_COLOUR
from dreamjax.play import environments, programs
from dreamjax.play.controls import Controls
from dreamjax.play.session import Session
from dreamjax.play.settings import Settings
from dreamjax.storage.agents import Stored
from dreamjax.types import AgentParams, Step
from dreamjax.worldmodels import ControllerConfig, WorldModelConfig
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.vision import VisionConfig
from tests.play.sessions import opened, ready, stored, until, untrained

DOOM = "doom_take_cover"


def column(picture: np.ndarray, colour: tuple[int, int, int] = PLAYER_COLOUR) -> int:
    """Find the column of a player or ball in a picture of catch, whose grid is 4 x 4."""
    return int(np.argwhere((picture == np.array(colour)).all(-1))[:, 1].min()) // 16


def person(session: Session, *held: str) -> None:
    """Let a person act, and hold keys."""
    session.hear({"set": {"actor": "person", "held": list(held)}, "at": 1.0})


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def test_a_game_begins_with_both_worlds_and_says_all_of_them() -> None:
    frame = opened().tick()
    assert {name: (one.shape, one.dtype) for name, one in frame.pictures.items()} == {
        name: ((64, 64, 3), np.uint8) for name in ("real", "seen", "dream")
    }
    told = json.loads(json.dumps(frame.told, allow_nan=False))
    assert told["view"] == "both" and told["actor"] == "agent" and told["number"] == 0 and told["frame"] == 1
    assert told["real"]["steps"] == told["dream"]["steps"] == 0 and told["real"]["action"] == []
    assert told["real"]["surprise"] is None and told["real"]["value"] is None
    assert 0 < told["real"]["continues"] <= 1
    assert (frame.pictures["dream"] == frame.pictures["seen"]).all()  # it is entered from there
    assert column(frame.pictures["seen"].round(-2), (100, 200, 100)) >= 0  # V's picture of the player


def test_keys_move_the_player_in_both_worlds() -> None:
    session = opened()
    person(session, "ArrowLeft")
    start = column(session.tick().pictures["real"])
    frame = session.tick()
    assert column(frame.pictures["real"]) == max(0, start - 1)
    assert frame.told["real"]["action"] == frame.told["dream"]["action"] == [0.0]
    assert frame.told["at"] == 1.0
    person(session)
    assert session.tick().told["real"]["action"] == [1.0]  # it stays


def test_the_agent_catches_and_episodes_follow_each_other() -> None:
    session, caught = opened(), []
    for number in range(20):
        told = until(session, lambda told: bool(told["real"]["over"]))
        assert told["number"] == number and told["real"]["steps"] == 3
        assert told["real"]["over"] == "the episode is over"
        caught.append(told["real"]["total"])
        until(session, lambda told: told["real"]["over"] is None)
    assert sum(caught) >= 17  # 97 of 100 in its results


def test_a_person_takes_over_and_gives_back() -> None:
    session = opened()
    session.tick()
    person(session, "ArrowRight")
    assert session.tick().told["actor"] == "person"
    session.hear({"set": {"actor": "agent"}})
    told = session.tick().told
    assert told["actor"] == "agent" and told["real"]["steps"] == 2


def test_the_dream_goes_on_from_the_real_frame_and_follows_the_model() -> None:
    session = opened(DOOM, "tests.acting.environments:Ragged")
    person(session, "ArrowRight")
    for _ in range(3):
        session.tick()
    session.hear({"do": "enter"})
    entered = session.tick(steps=False)
    assert (entered.pictures["dream"] == entered.pictures["seen"]).all() and entered.told["dream"]["steps"] == 0
    state, number, key = session._dream.state, session._draws + 1, jax.random.key(0)  # type: ignore[union-attr]
    frame = session.tick()
    key_imagine, _ = jax.random.split(jax.random.fold_in(key, number))
    model, params = stored(DOOM).agent.model, stored(DOOM).params.model
    latent = model.imagine(params, key_imagine, state.latent, jnp.float32(1.0), 1.0)
    expected = np.asarray(model.decode(params, latent)).astype(int)
    assert np.abs(frame.pictures["dream"] - expected).max() <= 1  # rounded where it is compiled
    assert frame.told["dream"]["steps"] == 1 and frame.told["dream"]["reward"] == 1.0
    session.close()


def test_a_view_lets_the_other_world_stand_still() -> None:
    session = opened(DOOM, "tests.acting.environments:Ragged", number=12)  # an episode of 15 steps
    person(session)
    session.tick()
    session.hear({"set": {"view": "real"}})
    frame = session.tick()
    assert set(frame.pictures) == {"real", "seen"} and frame.told["real"]["steps"] == 1
    session.hear({"set": {"view": "dream"}})  # in one message: from the game into the dream of it
    dreamed = session.tick(steps=False)
    assert set(dreamed.pictures) == {"dream"} and (dreamed.pictures["dream"] == frame.pictures["seen"]).all()
    told = [session.tick().told for _ in range(2)][-1]
    assert (told["real"]["steps"], told["dream"]["steps"]) == (1, 2)
    session.hear({"set": {"view": "real"}})
    assert session.tick().told["real"]["steps"] == 2
    session.hear({"set": {"view": "both"}})  # the dream has not gone on, and is entered anew
    assert session.tick(steps=False).told["dream"]["steps"] == 0
    session.close()


def test_after_an_end_the_dream_goes_on_beside_the_game() -> None:
    session = opened()
    told = until(session, lambda told: told["number"] == 1 and told["real"]["steps"] == 2)
    assert told["dream"]["steps"] == 2


def test_nothing_is_compiled_at_play() -> None:
    ready = programs.compiled(programs.make(stored("dreamerv3_jax_catch")))
    session = Session(ready, Controls(ready.spec.action), None, 2.0)
    until(session, lambda told: told["dream"]["steps"] == 2)
    assert [one._cache_size() for one in (ready.begin, ready.imagine)] == [1, 1]  # type: ignore[attr-defined]


def test_temperature_acts_at_once_and_all_else_repeats() -> None:
    def third(temperature: float) -> np.ndarray:
        session = opened(DOOM, None)
        session.tick()
        session.tick()
        session.hear({"set": {"temperature": temperature}})
        return session.tick().pictures["dream"].astype(int)

    assert (third(1.0) == third(1.0)).all()
    assert np.abs(third(1.0) - third(2.5)).mean() > 1


def test_pause_step_and_reset() -> None:
    session = opened()
    person(session)
    first = session.tick()
    session.hear({"set": {"paused": True}})
    assert [session.tick().told["real"]["steps"] for _ in range(3)] == [0, 0, 0]
    session.hear({"do": "step"})
    assert session.has_orders
    assert session.tick(steps=False).told["real"]["steps"] == 1 and not session.has_orders
    session.hear({"do": "reset", "number": 0})
    again = session.tick()
    assert same(first.pictures, again.pictures) and again.told["real"]["steps"] == 0
    session.hear({"do": "reset"})
    assert session.tick().told["number"] == 1
    session.hear({"set": {"speed": 2.0}})
    assert session.seconds == 0.25


def test_a_dream_needs_no_environment_and_begins_again_at_its_end() -> None:
    session = opened(env=None)
    assert session.tick().told["real"] is None and session.settings == Settings("dream")
    ended = until(session, lambda told: bool(told["dream"]["over"]))
    assert ended["dream"]["over"] in ("the model takes it for over", "the time is over")
    assert until(session, lambda told: not told["dream"]["over"])["dream"]["steps"] == 0
    session.hear({"do": "reset", "number": 5})
    assert session.tick().told["number"] == 5
    with pytest.raises(ValueError, match=r"view is one of \('dream',\)"):
        session.hear({"set": {"view": "both"}})


def test_vectors_are_told_as_numbers_and_a_critic_says_their_value() -> None:
    stored_agent = untrained(jitted.make("dodge_state").spec)
    spec, made = stored_agent.agent.model.spec, programs.make(stored_agent)
    playable = environments.find("dodge_state", spec)
    assert playable.rate == 15 and programs.compiled(made) is made
    session = Session(made, Controls(spec.action), playable.open(), playable.rate)
    session.tick()
    frame = session.tick()
    assert frame.pictures == {} and set(frame.told["numbers"]) == {"real", "seen", "dream"}
    assert all(len(numbers) == spec.observation.shape[0] for numbers in frame.told["numbers"].values())
    assert frame.told["real"]["value"] is not None and frame.told["real"]["surprise"] > 0
    session.hear({"do": "record"})
    assert session.tick().told["note"] == "there is no picture to film"


def test_what_a_model_does_not_know_is_missing_where_it_is_decoded() -> None:
    spec = jitted.make("swingup_both").spec  # a picture, which V reads, and numbers, which it does not
    cfg = WorldModelConfig(VisionConfig(4), MemoryConfig(4, 1, hidden_size=3), ControllerConfig(), "zh")
    agent = worldmodels.model.make(cfg, spec)
    params = AgentParams(agent.model.init(jax.random.key(0)), agent.policy.init(jax.random.key(1)))
    made = programs.make(Stored(cfg, agent, params, None, "swingup_both"))
    session = Session(made, Controls(spec.action), environments.find("swingup_both", spec).open(), 20.0)
    frame = session.tick()
    assert set(frame.pictures) == {"real", "seen", "dream"}
    assert frame.told["numbers"]["dream"] == [None] * 5 and None not in frame.told["numbers"]["real"]


def test_nothing_to_dream_of_is_said_at_once() -> None:
    stored_agent = untrained(jitted.make("dodge_state").spec)
    with pytest.raises(ValueError, match="brings no starts for its dreams along"):
        Session(programs.make(stored_agent), Controls(stored_agent.agent.model.spec.action), None, 1.0)


@pytest.mark.parametrize("name", [DOOM, "dreamerv3_jax_catch"])
def test_the_unexpected_surprises_more_than_what_was_predicted(name: str) -> None:
    made, agent = ready(name), stored(name).agent
    session = opened(name, None)
    session.tick()
    world, key = session._dream, jax.random.key(1)
    assert world is not None
    _, likely = made.imagine(made.params, key, 1, world.state, 0.1)
    no = np.False_
    surprises = []
    for observation in (np.asarray(likely.decoded), np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)):
        flags: Any = (np.float32(0), no, no, no)
        _, belief = made.see(made.params, key, 2, world.state, Step(observation, *flags))
        surprises.append(float(belief.surprise))
    assert surprises[0] < surprises[1] and agent.model.spec.observation.shape == (64, 64, 3)


def test_a_film_has_every_step(tmp_path: Path) -> None:
    session = opened(films=tmp_path / "films")
    session.tick()
    session.hear({"do": "record"})
    assert session.tick().told["recording"]
    for _ in range(4):
        session.tick()
    session.hear({"do": "record"})
    told = session.tick().told
    assert told["film"] == "play-001.mp4" and not told["recording"]
    frames = imageio.mimread(tmp_path / "films" / "play-001.mp4", memtest=False)
    assert len(frames) == 6 and frames[0].shape[1] >= 3 * 256
    session.hear({"do": "record"})
    session.tick()
    session.close()  # which ends the film
    assert sorted(path.name for path in (tmp_path / "films").iterdir()) == ["play-001.mp4", "play-002.mp4"]


def test_an_environment_that_fails_can_be_begun_anew(tmp_path: Path) -> None:
    session = opened(DOOM, "tests.acting.environments:Ragged")
    session.tick()
    session._environment._pool._workers[0]._process.kill()  # type: ignore[union-attr]
    told = until(session, lambda told: bool(told["note"]))
    assert "a worker died (killed by signal 9)" in told["note"] and told["note"].endswith("Reset to begin anew.")
    assert told["real"] is None and session.tick().told["note"] == told["note"]
    session.hear({"do": "reset"})
    told = session.tick().told
    assert told["note"] == "" and told["real"]["steps"] == 1
    session.close()


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({}, "expected a dictionary with 'set' or 'do'"),
        ({"do": "fly"}, "expected a dictionary"),
        ({"do": "reset", "number": -1}, "episodes are numbered"),
        ({"do": "reset", "number": True}, "episodes are numbered"),
        ({"set": {"temperature": float("nan")}}, "temperature is a number from 0.05 to 3"),
        ({"set": {"temperature": "1"}}, "temperature is a number"),
        ({"set": {"speed": 0}}, "speed is a number"),
        ({"set": {"view": "all"}}, "view is one of"),
        ({"set": {"view": []}}, "view is one of"),
        ({"set": {"paused": 1}}, "paused is one of"),
        ({"set": {"held": ["KeyQ"]}}, "held is a list of"),
        ({"set": {"held": "ArrowLeft"}}, "held is a list of"),
        ({"set": {"entries": {"0": 3}}}, r"action lies in \[0, 2\]"),
        ({"set": {"entries": {"1": 0}}}, "has 1 entries, got number 1"),
        ({"set": {"entries": {"x": 0}}}, "entries are numbers"),
        ({"set": {"at": 3}}, "there is no setting 'at'"),
        ({"set": {"paused": True}, "at": "now"}, "at is a number"),
        ({"set": {"paused": True, "speed": 99}}, "speed is a number"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(message: dict[str, Any], why: str) -> None:
    session = opened()
    before = session.settings
    with pytest.raises(ValueError, match=why):
        session.hear(message)
    assert session.settings == before and not session.has_orders
