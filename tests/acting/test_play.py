"""The real game, played by a small untrained agent: side by side, after crashes, and noted as it goes."""

import json
import os
import select
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest
from dreamjax.acting.play import Played, play, play_actions, returns

from dreamjax import rollout
from dreamjax.envs.gymnasium import host_reset, host_step
from dreamjax.envs.vizdoom import GameCrashed, TakeCover
from dreamjax.types import Agent, Params
from dreamjax.worldmodels import controller, model
from dreamjax.worldmodels.controller import ControllerConfig
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.model import WorldModelConfig
from dreamjax.worldmodels.vision import VisionConfig

MAX_STEPS = 25
SEEDS = [3, 11, 4, 7, 5]
MAKE_ENV = partial(TakeCover, max_steps=MAX_STEPS)
WORLD = WorldModelConfig(VisionConfig(4), MemoryConfig(latent_size=4, hidden_size=8, mixtures=2))
MODEL = model.make(WORLD)
POLICY = controller.make(ControllerConfig(features=model.feature_size(WORLD)))
KEY = jax.random.key(6)


@pytest.fixture(scope="module")
def params() -> tuple[Params, Params]:
    """Weights that make an agent restless: what it sees and draws moves it to all sides."""
    key_model, key_policy = jax.random.split(jax.random.key(0))
    return jax.jit(MODEL.init)(key_model), {"kernel": jax.random.normal(key_policy, (model.feature_size(WORLD),))}


@pytest.fixture(scope="module")
def alone(params: tuple[Params, Params]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Frames and actions of every seed's episode, played one after the other in a plain loop."""
    agent = rollout.step_policy(Agent(MODEL, POLICY), params[0])
    act, env, episodes = jax.jit(agent.act), MAKE_ENV(), {}
    for seed in SEEDS:
        memory, step = agent.start(params[1]), host_reset(env, seed)
        frames, actions = [], []
        while not step.is_last:
            key = jax.random.fold_in(jax.random.fold_in(KEY, seed), len(actions))
            memory, action = act(params[1], key, memory, step)
            frames.append(step.observation)
            actions.append(action)
            step = host_step(env, np.asarray(action))
        episodes[seed] = np.stack(frames), np.stack(actions)
    env.close()
    return episodes


def by_seed(played: Iterator[Played]) -> dict[int, Played]:
    episodes = list(played)
    assert len({episode.seed for episode in episodes}) == len(episodes)
    return {episode.seed: episode for episode in episodes}


def test_the_agent_moves_to_all_sides(alone: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
    """Else the tests below would prove little."""
    actions = np.concatenate([actions for _, actions in alone.values()])
    for side in (actions < -1 / 3, np.abs(actions) <= 1 / 3, actions > 1 / 3):
        assert side.mean() > 0.05


@pytest.mark.parametrize("games", [1, 3, 8])
def test_an_episode_does_not_depend_on_those_beside_it(
    games: int, params: tuple[Params, Params], alone: dict[int, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Fewer games than episodes, and more."""
    film = [11, 5]
    played = by_seed(play(MAKE_ENV, MODEL, POLICY, params, KEY, SEEDS, games=games, film=SEEDS))
    assert played.keys() == set(SEEDS)
    for seed, (frames, actions) in alone.items():
        episode = played[seed]
        assert (episode.total, episode.steps, episode.terminated) == (MAX_STEPS, MAX_STEPS, False)
        assert frames.shape == (MAX_STEPS, 64, 64, 3) and episode.recorded.step.observation.dtype == np.uint8
        np.testing.assert_array_equal(episode.recorded.step.observation, frames)
        np.testing.assert_allclose(episode.recorded.action, actions, atol=1e-5)  # but for rounding in a batch
        np.testing.assert_array_equal(episode.recorded.step.is_first, np.arange(MAX_STEPS) == 0)
    if games == 3:
        filmed = by_seed(play(MAKE_ENV, MODEL, POLICY, params, KEY, SEEDS, games=games, film=film))
        assert [seed for seed in SEEDS if filmed[seed].recorded is not None] == film


def engines() -> list[int]:
    """The processes of the games."""
    found = []
    for thread in Path("/proc/self/task").iterdir():
        pids = [int(child) for child in (thread / "children").read_text().split()]
        found += [child for child in pids if Path(f"/proc/{child}/comm").read_text().strip() == "vizdoom"]
    return found


class Fragile(TakeCover):
    """The real game, whose process is killed at the 10th, the 20th, ... step, `crashes` times in all."""

    def __init__(self, crashes: int) -> None:
        super().__init__(max_steps=MAX_STEPS)
        self.crashes, self.steps = crashes, 0

    def step(self, action: np.ndarray) -> tuple:
        self.steps += 1
        if self.steps % 10 == 0 and self.crashes:
            self.crashes -= 1
            [engine] = engines()
            watch = os.pidfd_open(engine)
            os.kill(engine, signal.SIGKILL)
            select.select([watch], [], [])  # until it is gone
            os.close(watch)
        return super().step(action)


def test_an_episode_whose_game_crashed_is_played_again_the_same(
    params: tuple[Params, Params], alone: dict[int, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Twice in the first episode."""
    made = []

    def make_env() -> gymnasium.Env:
        made.append(Fragile(crashes=2))
        return made[-1]

    played = by_seed(play(make_env, MODEL, POLICY, params, KEY, SEEDS[:2], games=1, film=SEEDS))
    assert made[0].crashes == 0 and made[0].steps == 20 + 2 * MAX_STEPS
    for seed in SEEDS[:2]:
        assert (played[seed].total, played[seed].steps) == (MAX_STEPS, MAX_STEPS)
        np.testing.assert_array_equal(played[seed].recorded.step.observation, alone[seed][0])


def test_an_episode_that_always_crashes_is_given_up(params: tuple[Params, Params]) -> None:
    with pytest.raises(GameCrashed):
        next(play(partial(Fragile, 3), MODEL, POLICY, params, KEY, SEEDS, games=1))
    assert not engines()


def test_crashes_of_other_episodes_are_not_held_against_one(params: tuple[Params, Params]) -> None:
    """Two crashes in the first episode, two in the second; three would end it."""

    class Twice(Fragile):
        def reset(self, **arguments: int) -> tuple:
            if self.crashes == 0 and self.steps == 20 + MAX_STEPS:
                self.crashes = 2
            return super().reset(**arguments)

    played = by_seed(play(partial(Twice, 2), MODEL, POLICY, params, KEY, SEEDS[:2], games=1))
    assert [played[seed].steps for seed in SEEDS[:2]] == [MAX_STEPS] * 2


def test_games_end_when_nobody_plays_on(params: tuple[Params, Params]) -> None:
    playing = play(MAKE_ENV, MODEL, POLICY, params, KEY, SEEDS, games=2)
    next(playing)
    assert len(engines()) == 2
    playing.close()
    assert not engines()


def test_fixed_actions_play_the_same_game(alone: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
    """To the limit, to the death, and until the actions run out."""
    frames = []

    class Watched(TakeCover):
        def step(self, action: np.ndarray) -> tuple:
            frames.append(self._observation.copy())
            return super().step(action)

    replayed = list(play_actions(partial(Watched, max_steps=MAX_STEPS), lambda seed: alone[seed][1], SEEDS[:2]))
    assert replayed == [Played(seed, MAX_STEPS, MAX_STEPS, False, None) for seed in SEEDS[:2]]
    np.testing.assert_array_equal(np.stack(frames), np.concatenate([alone[seed][0] for seed in SEEDS[:2]]))

    make_env = partial(TakeCover, skill=5, max_steps=400)
    [dead] = play_actions(make_env, lambda seed: np.zeros(400, np.float32), [1])
    assert dead.terminated and dead.total == dead.steps < 400
    [short] = play_actions(make_env, lambda seed: np.zeros(7, np.float32), [1])
    assert short == Played(1, 7.0, 7, False, None)
    assert not engines()


class Player:
    """Returns ten times the seed for every episode, and notes which it was asked for; ends the process at `dies_at`."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.asked: list[list[int]] = []
        self.dies_at = dies_at

    def __call__(self, seeds: list[int]) -> Iterator[Played]:
        self.asked.append(seeds)
        for seed in reversed(seeds):  # episodes end in any order
            if seed == self.dies_at:
                raise KeyboardInterrupt
            yield Played(seed, 10.0 * seed, seed, seed % 2 == 0, None)


def test_returns_are_noted_one_by_one_and_come_in_the_order_of_the_seeds(tmp_path: Path) -> None:
    path = tmp_path / "new" / "real.jsonl"
    np.testing.assert_array_equal(returns(path, [4, 1, 3], "real", Player()), [40, 10, 30])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[0] == {"seed": 3, "return": 30.0, "steps": 3, "terminal": False}
    assert [(row["seed"], row["terminal"]) for row in rows] == [(3, False), (1, False), (4, True)]


def test_returns_resume_after_a_kill_and_never_play_twice(tmp_path: Path) -> None:
    path = tmp_path / "real.jsonl"
    with pytest.raises(KeyboardInterrupt):
        returns(path, [4, 1, 3, 2], "real", Player(dies_at=1))
    whole = path.read_text()
    assert [json.loads(line)["seed"] for line in whole.splitlines()] == [2, 3]
    path.write_text(whole[:-9])  # the kill came while the last line was written
    player = Player()
    np.testing.assert_array_equal(returns(path, [4, 1, 3, 2], "real", player), [40, 10, 30, 20])
    np.testing.assert_array_equal(returns(path, [3, 4], "real", player), [30, 40])
    np.testing.assert_array_equal(returns(path, [3, 5, 4], "real", player), [30, 50, 40])
    assert player.asked == [[4, 1, 3], [], [5]]
    assert sorted(json.loads(line)["seed"] for line in path.read_text().splitlines()) == [1, 2, 3, 4, 5]


def test_returns_of_the_real_game(params: tuple[Params, Params], tmp_path: Path) -> None:
    player = partial(play, MAKE_ENV, MODEL, POLICY, params, KEY, games=2)
    np.testing.assert_array_equal(returns(tmp_path / "real.jsonl", SEEDS[:3], "real", player), [MAX_STEPS] * 3)
