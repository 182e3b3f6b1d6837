"""The probes do what their docstrings say, by hand-computed episodes and by policies whose order is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.envs import probes
from dreamjax.envs.probes import (
    ABSENT,
    FRAME,
    PLAYER,
    PLAYER_SPEED,
    PLAYER_TOP,
    PROJECTILE,
    CatchState,
    DodgeState,
    RememberState,
    catch,
    counter,
    dodge,
    draw_catch,
    draw_dodge,
    hits,
    remember,
)

PROBES = {"counter": counter(), "remember": remember(), "catch": catch(), "dodge": dodge()}
PROBES["dodge-state"] = dodge(observation="state")
STAY, LEFT, RIGHT = jnp.float32(0), jnp.float32(-1), jnp.float32(1)


def flags(step):
    return bool(step.is_first), bool(step.is_last), bool(step.is_terminal)


def test_counter_counts():
    environment = counter(size=3, max_steps=5)
    state, step = environment.reset(jax.random.key(0))
    np.testing.assert_array_equal(step.observation, [1, 0, 0])
    assert step.reward == 0 and flags(step) == (True, False, False)
    seen = []
    for index, action in enumerate([0, 1, 0, 1]):
        state, step = environment.step(jax.random.key(index), state, jnp.int32(action))
        seen.append((int(step.observation.argmax()), float(step.reward), flags(step)))
    going, top = (False, False, False), (False, True, True)
    assert seen == [(0, 0, going), (1, 0, going), (1, 0, going), (2, 1, top)]


@pytest.mark.parametrize("deadline", [False, True])
def test_counter_time_limit_is_terminal_if_it_is_a_deadline_and_arriving_at_it_always_is(deadline: bool):
    environment = counter(size=3, max_steps=2, deadline=deadline)
    for actions, expected in [([0, 0], (False, True, deadline)), ([1, 1], (False, True, True))]:
        state, _ = environment.reset(jax.random.key(0))
        for action in actions:
            state, step = environment.step(jax.random.key(1), state, jnp.int32(action))
        assert flags(step) == expected


def opened_with(environment, **wanted):
    """A first state and step with these values in the state."""
    opened = (environment.reset(jax.random.key(seed)) for seed in range(200))
    return next(pair for pair in opened if all(getattr(pair[0], name) == wanted[name] for name in wanted))


def play(environment, start, actions):
    """All steps of an episode that is played to its end by these actions."""
    state, step = start
    steps = [step]
    for action in actions:
        assert not step.is_last
        state, step = environment.step(jax.random.key(0), state, jnp.int32(action))
        steps.append(step)
    assert step.is_last and len(steps) <= 1 + environment.spec.max_steps
    return steps


def test_remember_shows_the_cue_asks_for_it_and_shows_it_again():
    environment = remember(cues=3, delay=2)
    steps = play(environment, opened_with(environment, cue=1), [0, 0, 1])
    np.testing.assert_array_equal([s.observation.argmax() for s in steps], [1, 0, 3, 1])
    np.testing.assert_array_equal([s.observation.sum() for s in steps], [1, 0, 1, 1])
    assert [float(s.reward) for s in steps] == [0, 0, 0, 1]
    going = (False, False, False)
    assert [flags(s) for s in steps] == [(True, False, False), going, going, (False, True, True)]


def test_remember_rewards_the_cue_named_at_the_end_and_nothing_else():
    environment = remember(cues=3, delay=2)
    start = opened_with(environment, cue=1)
    for actions in itertools.product(range(3), repeat=3):
        assert [step.reward for step in play(environment, start, actions)] == [0, 0, 0, actions[-1] == 1]


def test_remember_without_memory_is_chance():
    environment = remember(cues=3, delay=2)
    # Every policy that maps what it sees now (a cue, the question, nothing) to an action, on every cue.
    policies = jnp.array(list(itertools.product(range(3), repeat=5)))

    def total(policy, cue):
        def act(carry, _):
            state, seen = carry
            what = jnp.where(seen.any(), seen.argmax(), 4)
            state, step = environment.step(jax.random.key(0), state, policy[what])
            return (state, step.observation), step.reward

        start = RememberState(cue, jnp.int32(0)), jnp.eye(4)[cue]
        return jax.lax.scan(act, start, length=3)[1].sum()

    totals = jax.jit(jax.vmap(jax.vmap(total, (None, 0)), (0, None)))(policies, jnp.arange(3))
    np.testing.assert_array_equal(totals.sum(1), np.ones(3**5))


def test_catch_moves_falls_and_ends():
    environment = catch(columns=4)
    for actions, column, reward in [([2, 1, 2], 2, 1), ([2, 2, 2], 3, 0), ([0, 0, 0], 0, 0), ([0, 2, 2], 2, 1)]:
        steps = play(environment, opened_with(environment, player=0, ball=2), actions)
        assert [float(s.reward) for s in steps] == [0, 0, 0, reward]
        assert flags(steps[0]) == (True, False, False) and flags(steps[-1]) == (False, True, True)
        for row in range(3):
            assert (steps[row].observation[16 * row, 32] == jnp.array(probes.BALL_COLOUR)).all()
        bottom = steps[-1].observation[63, 16 * column]
        assert (bottom == jnp.array(probes.BALL_COLOUR if reward else probes.PLAYER_COLOUR)).all()


def test_catch_draws_what_the_state_says():
    expected = np.full((FRAME, FRAME, 3), probes.WALL_COLOUR, np.uint8)
    expected[56:64, 8:16] = probes.PLAYER_COLOUR
    expected[16:24, 56:64] = probes.BALL_COLOUR
    frame = draw_catch(CatchState(jnp.int32(1), jnp.int32(7), jnp.int32(2)), 8)
    assert frame.dtype == jnp.uint8
    np.testing.assert_array_equal(frame, expected)


@pytest.mark.parametrize("columns", [2, 4, 8])
def test_catch_is_always_won_by_who_looks(columns):
    towards = survival(catch(columns), lambda key, state: 1 + jnp.sign(state.ball - state.player), 100)
    assert (towards == 1).all()


def test_catch_blind_is_chance():
    # Every sequence of actions, from every column, under every ball: whatever is done, one ball in four is caught.
    environment = catch(4)

    def final(player, ball, actions):
        state = CatchState(player, ball, jnp.int32(0))
        _, steps = jax.lax.scan(lambda s, a: environment.step(jax.random.key(0), s, a), state, actions)
        return steps.reward.sum()

    actions, places = jnp.array(list(itertools.product(range(3), repeat=3))), jnp.arange(4)
    over_players = jax.vmap(jax.vmap(final, (None, 0, None)), (0, None, None))
    totals = jax.jit(jax.vmap(over_players, (None, None, 0)))(places, places, actions)
    np.testing.assert_array_equal(totals.sum(-1), np.ones((27, 4)))


def test_remember_and_catch_open_anywhere():
    keys = jax.random.split(jax.random.key(0), 800)
    opened = jax.vmap(catch(4).reset)(jax.random.clone(keys))[0]
    for drawn in (4 * opened.player + opened.ball, jax.vmap(remember(16).reset)(keys)[0].cue):
        counts = np.bincount(drawn, minlength=16)
        assert len(counts) == 16 and np.all(np.abs(counts - 50) < 4 * np.sqrt(50))


def fall(environment, state, action, steps):
    """Repeat one action under nothing thrown anew (rate 0): all steps, stacked over time."""
    return jax.lax.scan(lambda s, k: environment.step(k, s, action), state, jax.random.split(jax.random.key(9), steps))


def lane(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def scene(player, column, speed=2):
    """The player at `player` and one projectile, thrown this step at `column`."""
    rows = np.arange(0, 57, speed, dtype=np.int32)
    columns = np.where(rows == 0, column, ABSENT).astype(np.int32)
    return DodgeState(jnp.int32(player), jnp.asarray(rows), jnp.asarray(columns), jnp.int32(0))


def test_dodge_a_throw_at_a_still_player_kills_on_contact():
    environment = dodge(rate=0.0, speed=2)
    # Contact when the lower edge 2t + 3 first passes row 54: t = 26.
    _, steps = fall(environment, scene(player=20, column=21), STAY, 26)
    np.testing.assert_array_equal(steps.is_terminal, [False] * 25 + [True])
    np.testing.assert_array_equal(steps.is_last, steps.is_terminal)
    np.testing.assert_array_equal(steps.reward, np.ones(26))
    assert not steps.is_first.any()


@pytest.mark.parametrize(("column", "dead"), [(17, False), (18, True), (24, True), (25, False)])
def test_dodge_contact_needs_overlapping_columns(column, dead):
    environment = dodge(rate=0.0, speed=3)
    state, steps = fall(environment, scene(player=20, column=column, speed=3), STAY, 25)
    assert bool(steps.is_terminal.any()) == dead
    assert (state.columns == ABSENT).all(), "what has fallen is gone"


@pytest.mark.parametrize("speed", range(1, 6))
def test_dodge_no_speed_passes_through_the_player(speed):
    environment = dodge(rate=0.0, speed=speed)
    _, steps = fall(environment, scene(player=20, column=20, speed=speed), STAY, 60)
    assert steps.is_terminal.any()


def test_dodge_moves_by_thirds_and_stops_at_the_walls():
    environment = dodge(rate=0.0)
    third = np.float32(1 / 3)
    for action, moved in [(-1.0, -2), (-0.34, -2), (-third, 0), (0.0, 0), (third, 0), (0.34, 2), (1.0, 2)]:
        state, _ = environment.step(jax.random.key(0), scene(20, ABSENT), jnp.float32(action))
        assert int(state.player) == 20 + moved, action
    for player, action, wall in [(1, LEFT, 0), (58, RIGHT, FRAME - PLAYER)]:
        state, _ = environment.step(jax.random.key(0), scene(player, ABSENT), action)
        assert int(state.player) == wall


def test_dodge_time_limit():
    environment = dodge(rate=0.0, max_steps=3)
    _, steps = fall(environment, scene(20, ABSENT), STAY, 3)
    np.testing.assert_array_equal(steps.is_last, [False, False, True])
    assert not steps.is_terminal.any()


def test_dodge_throws_at_the_player_or_anywhere():
    def thrown(**settings):
        environment = dodge(**settings)
        state = scene(20, ABSENT)
        keys = jax.random.split(jax.random.key(4), 500)
        return np.asarray(jax.vmap(lambda k: environment.step(k, state, RIGHT)[0].columns[0])(keys))

    assert (thrown(rate=1.0, aim=1.0) == 20 + (PLAYER - PROJECTILE) // 2).all()
    anywhere = thrown(rate=1.0, aim=0.0)
    assert (anywhere.min(), anywhere.max()) == (0, FRAME - PROJECTILE)
    assert abs(np.mean(thrown(rate=0.25) != ABSENT) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 500)


def test_dodge_opens_under_something_in_the_upper_half():
    environment = dodge(rate=0.1)
    states, steps = jax.vmap(environment.reset)(jax.random.split(jax.random.key(2), 200))
    falling = np.asarray(states.columns) != ABSENT
    assert falling[:, np.asarray(states.rows[0]) < FRAME // 2].mean() > 0.05
    assert not falling[:, np.asarray(states.rows[0]) >= FRAME // 2].any()
    assert len(np.unique(states.player)) > 40
    assert (steps.reward == 0).all() and steps.is_first.all() and not steps.is_last.any()


def test_dodge_draws_what_the_state_says():
    state = DodgeState(jnp.int32(30), jnp.array([0, 10, 20]), jnp.array([5, ABSENT, 60]), jnp.int32(0))
    expected = np.empty((FRAME, FRAME, 3), np.uint8)
    expected[:59], expected[59:] = probes.WALL_COLOUR, probes.FLOOR_COLOUR
    expected[54:59, 30:35] = probes.PLAYER_COLOUR
    expected[0:3, 5:8] = probes.PROJECTILE_COLOUR
    expected[20:23, 60:63] = probes.PROJECTILE_COLOUR
    frame = draw_dodge(state)
    assert frame.dtype == jnp.uint8
    np.testing.assert_array_equal(frame, expected)


def test_dodge_both_observations_show_the_same_game():
    pixels, vector = dodge(), dodge(observation="state")

    def play(environment):
        def step(state, key):
            return environment.step(key, state, RIGHT)

        start, _ = environment.reset(jax.random.key(5))
        return jax.lax.scan(step, start, jax.random.split(jax.random.key(6), 30))

    first, second = play(pixels), play(vector)
    jax.tree.map(np.testing.assert_array_equal, first[0], second[0])
    np.testing.assert_array_equal(first[1].observation[-1], draw_dodge(second[0]))
    state, slots = second[0], len(second[0].rows)
    observation = np.asarray(second[1].observation[-1])
    assert observation.shape == vector.spec.observation.shape == (1 + 2 * slots,)
    assert observation[0] == (state.player - 29) / 32
    thrown = np.asarray(state.columns) != ABSENT
    assert thrown.any()
    np.testing.assert_array_equal(observation[1 + slots :], thrown)
    expected = np.where(thrown, (np.asarray(state.columns) - 30) / 32, 0)
    np.testing.assert_array_equal(observation[1 : 1 + slots], expected)


def look_ahead(key, state):
    """Of the moves that live longest against everything in the air, the one nearest to the middle."""
    places = jnp.arange(FRAME - PLAYER + 1)
    speed = state.rows[1] - state.rows[0]

    def backwards(lives, ahead):  # lives[p]: steps survived, from `ahead` steps from now on, by someone at place p
        touched = jax.vmap(lambda place: hits(state.rows + ahead * speed, state.columns, place).any())(places)
        lives = jnp.where(touched, 0, 1 + lives)
        return jnp.stack([lives[jnp.clip(places + move, 0, places[-1])] for move in moves]).max(0), lives

    moves = PLAYER_SPEED * jnp.arange(-1, 2)
    _, lives = jax.lax.scan(backwards, jnp.zeros_like(places), jnp.arange(len(state.rows), 0, -1))
    options = jnp.clip(state.player + moves, 0, places[-1])
    score = lives[-1][options] - jnp.abs(options - places[-1] // 2) / FRAME
    return jnp.argmax(score).astype(jnp.float32) - 1


def survival(environment, policy, episodes):
    """Return of each episode, cut at its first is_last."""

    def episode(key):
        key_reset, key_steps = jax.random.split(key)

        def step(carry, time):
            state, alive = carry
            key_act, key_env = jax.random.split(jax.random.fold_in(key_steps, time))
            state, step = environment.step(key_env, state, policy(key_act, state))
            return (state, alive & ~step.is_last), alive * step.reward

        start = environment.reset(key_reset)[0], jnp.bool_(True)
        return jax.lax.scan(step, start, jnp.arange(environment.spec.max_steps))[1].sum()

    return np.asarray(jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), episodes)))


def test_dodge_seeing_beats_luck_and_luck_beats_standing_still():
    environment = dodge(observation="state")
    seeing = survival(environment, look_ahead, 100)
    luck = survival(environment, lambda key, state: jax.random.uniform(key, (), minval=-1.0, maxval=1.0), 100)
    still = survival(environment, lambda key, state: STAY, 100)
    assert seeing.mean() > 190 and seeing.mean() > 3 * luck.mean()
    assert luck.mean() > 1.3 * still.mean()
    assert 20 < still.mean() < 40


def test_dodge_standing_still_dies_at_the_first_aimed_throw():
    # Thrown in step 1 at row 0, it touches 26 steps later; what was in the air at the start may come sooner.
    lengths = survival(dodge(rate=1.0, aim=1.0, observation="state"), lambda key, state: STAY, 50)
    assert lengths.max() <= 27


@pytest.mark.parametrize("environment", PROBES.values(), ids=PROBES)
def test_eager_jit_and_vmap_agree(environment):
    def keys():
        return jax.random.split(jax.random.key(1), (3, 2))

    def play(keys, action):
        state, first = environment.reset(keys[0])
        return first, environment.step(keys[1], state, action)

    actions = jnp.ones(3, environment.spec.action.dtype)
    batch = jax.jit(jax.vmap(play))(keys(), actions)
    for index in range(2):
        alone, compiled = play(keys()[index], actions[0]), jax.jit(play)(keys()[index], actions[0])
        jax.tree.map(np.testing.assert_array_equal, compiled, lane(batch, index))
        jax.tree.map(np.testing.assert_array_equal, alone, lane(batch, index))


@pytest.mark.parametrize("environment", PROBES.values(), ids=PROBES)
def test_steps_fit_the_spec_and_reset_matches_step(environment):
    spec = environment.spec
    key = jax.random.key(3)
    opened = jax.eval_shape(environment.reset, key)
    moved = jax.eval_shape(environment.step, key, opened[0], jax.ShapeDtypeStruct(spec.action.shape, spec.action.dtype))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), opened) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), moved
    )
    step = opened[1]
    assert (step.observation.shape, step.observation.dtype) == (spec.observation.shape, spec.observation.dtype)
    assert [leaf.dtype for leaf in step[1:]] == [jnp.float32, bool, bool, bool]
    assert all(leaf.shape == () for leaf in step[1:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 1.5}, "probabilities"),
        ({"aim": -0.1}, "probabilities"),
        ({"speed": 6}, "speed"),
        ({"speed": 0}, "speed"),
        ({"max_steps": 0}, "max_steps"),
        ({"observation": "sound"}, "observation"),
    ],
)
def test_dodge_refuses_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        dodge(**settings)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (counter, {"size": 1}, "size"),
        (counter, {"max_steps": 0}, "max_steps"),
        (remember, {"cues": 1}, "cues >= 2"),
        (remember, {"delay": 0}, "delay >= 1"),
        (catch, {"columns": 1}, "at least 2"),
        (catch, {"columns": 5}, "divide 64"),
    ],
)
def test_other_probes_refuse_bad_settings(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_geometry_fits_the_frame():
    assert 0 < PLAYER_TOP < probes.FLOOR_TOP < FRAME
