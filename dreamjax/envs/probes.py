"""Small pure environments with known answers, to test learners and dreams.

`counter` can be modelled without error and its optimal value is a power of the discount. `remember` rewards only who
keeps in mind what was shown at the beginning. `catch` is the least that pixels can ask: look where the ball falls.
`dodge` has the shape of Doom Take Cover in 64x64 pixels: step aside from what is thrown at you, and live.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.types import Array, Environment, EnvSpec, Key, Space, Step

FRAME = 64  # height and width of a frame, pixels
PLAYER, PROJECTILE = 5, 3  # edge of the square player and of a square projectile, pixels
PLAYER_TOP = 54  # row of the player's upper edge
FLOOR_TOP = PLAYER_TOP + PLAYER  # row where the floor begins, on which projectiles vanish
PLAYER_SPEED = 2  # columns per step
ABSENT = -1  # column of a projectile that was never thrown

PLAYER_COLOUR = (90, 220, 90)
PROJECTILE_COLOUR = (250, 120, 30)
WALL_COLOUR = (50, 45, 70)
FLOOR_COLOUR = (110, 85, 60)
BALL_COLOUR = (250, 230, 90)


class CounterState(NamedTuple):
    """What `counter` carries."""

    value: Array  # [] int32, in [0, size)
    time: Array  # [] int32, steps since reset


class RememberState(NamedTuple):
    """What `remember` carries."""

    cue: Array  # [] int32, in [0, cues)
    time: Array  # [] int32, steps since reset


class CatchState(NamedTuple):
    """What `catch` carries, in cells of the grid."""

    player: Array  # [] int32, column, in the bottom row
    ball: Array  # [] int32, column
    time: Array  # [] int32, steps since reset, which is the row of the ball


class DodgeState(NamedTuple):
    """What `dodge` carries: all that a policy needs to see what is coming. K is the number of rows a fall visits."""

    player: Array  # [] int32, column of the player's left edge
    rows: Array  # [K] int32, row of the upper edge of what was thrown 0, 1, ... K-1 steps ago; constant
    columns: Array  # [K] int32, column of its left edge, ABSENT where nothing was thrown
    time: Array  # [] int32, steps since reset


def counter(size: int = 5, max_steps: int = 20, deadline: bool = False) -> Environment:
    """Count from 0 to size - 1: action 1 adds one, action 0 stays; reward 1 and a terminal end on arriving at the top.

    The observation is the count, one-hot: [size] float32. Nothing is random, so a model can be exactly right, and with
    discount g and no time limit in sight the optimal value of count c is g ** (size - 2 - c). After `max_steps` an
    episode is cut, which an agent that looks past it need not mind; with `deadline` it ends there for good.

    Raises: ValueError for size < 2 or max_steps < 1.
    """
    if size < 2 or max_steps < 1:
        raise ValueError(f"counter needs size >= 2 and max_steps >= 1, got size={size}, max_steps={max_steps}")

    def arrive(state: CounterState) -> tuple[CounterState, Step]:
        is_top, is_late = state.value == size - 1, state.time >= max_steps
        return state, Step(
            observation=jax.nn.one_hot(state.value, size),
            reward=is_top.astype(jnp.float32),
            is_first=state.time == 0,
            is_last=is_top | is_late,
            is_terminal=is_top | is_late if deadline else is_top,
        )

    def reset(key: Key) -> tuple[CounterState, Step]:
        return arrive(CounterState(value=jnp.int32(0), time=jnp.int32(0)))

    def step(key: Key, state: CounterState, action: Array) -> tuple[CounterState, Step]:
        return arrive(CounterState(jnp.minimum(state.value + action, size - 1), state.time + 1))

    spec = EnvSpec(Space((size,), np.float32, 0.0, 1.0), Space((), np.int32, 0, 2), max_steps)
    return Environment(reset, step, spec)


def remember(cues: int = 4, delay: int = 3) -> Environment:
    """Be shown one of `cues` cues, uniformly drawn, and name it `delay` steps later: reward 1 if right, terminal.

    The observation is [cues + 1] float32: the cue, one-hot, at the first step; zeros in between; the last entry is 1
    when the cue is asked for. The action, one of the cues, counts at that step and does nothing before it, so that an
    episode has delay + 1 actions. When all is over the cue is shown again, so that a model that predicts what it will
    see learns to remember, whatever the policy does.

    The best return is 1. Without memory it is 1 / cues, whatever the policy: what is seen when the cue is asked for
    is always the same, so the answer cannot depend on the cue.

    Raises: ValueError for cues < 2 or delay < 1.
    """
    if cues < 2 or delay < 1:
        raise ValueError(f"remember needs cues >= 2 and delay >= 1, got cues={cues}, delay={delay}")

    def arrive(state: RememberState, reward: Array) -> tuple[RememberState, Step]:
        is_over = state.time > delay
        shown = jax.nn.one_hot(state.cue, cues) * ((state.time == 0) | is_over)
        asked = (state.time == delay).astype(jnp.float32)
        observation = jnp.concatenate([shown, asked[None]])
        return state, Step(observation, reward, is_first=state.time == 0, is_last=is_over, is_terminal=is_over)

    def reset(key: Key) -> tuple[RememberState, Step]:
        return arrive(RememberState(jax.random.randint(key, (), 0, cues), jnp.int32(0)), jnp.float32(0))

    def step(key: Key, state: RememberState, action: Array) -> tuple[RememberState, Step]:
        is_right = (state.time == delay) & (action == state.cue)
        return arrive(state._replace(time=state.time + 1), is_right.astype(jnp.float32))

    spec = EnvSpec(Space((cues + 1,), np.float32, 0.0, 1.0), Space((), np.int32, 0, cues), delay + 1)
    return Environment(reset, step, spec)


def catch(columns: int = 4) -> Environment:
    """Stand under a falling ball: on a grid of columns x columns cells, the ball falls one row a step.

    Player (bottom row) and ball (top row) begin in columns drawn uniformly, each for itself. Action 0 goes left, 1
    stays, 2 goes right, up to the walls. After columns - 1 steps the ball is in the bottom row: reward 1 if the player
    stands there, and a terminal end. The observation is a [64, 64, 3] uint8 frame, see `draw_catch`.

    The best return is 1, as no column is further away than the ball is high. Who does not look at the ball gets
    1 / columns on average, whatever the policy, as the column of the ball depends on nothing else.

    Raises: ValueError if columns < 2, or does not divide 64.
    """
    if columns < 2 or FRAME % columns:
        raise ValueError(f"columns must be at least 2 and divide {FRAME}, got {columns}")

    def arrive(state: CatchState) -> tuple[CatchState, Step]:
        is_over = state.time == columns - 1
        return state, Step(
            observation=draw_catch(state, columns),
            reward=(is_over & (state.player == state.ball)).astype(jnp.float32),
            is_first=state.time == 0,
            is_last=is_over,
            is_terminal=is_over,
        )

    def reset(key: Key) -> tuple[CatchState, Step]:
        player, ball = jax.random.randint(key, (2,), 0, columns)
        return arrive(CatchState(player, ball, jnp.int32(0)))

    def step(key: Key, state: CatchState, action: Array) -> tuple[CatchState, Step]:
        player = jnp.clip(state.player + action - 1, 0, columns - 1)
        return arrive(CatchState(player, state.ball, state.time + 1))

    spec = EnvSpec(Space((FRAME, FRAME, 3), np.uint8, 0, 256), Space((), np.int32, 0, 3), columns - 1)
    return Environment(reset, step, spec)


def draw_catch(state: CatchState, columns: int) -> Array:
    """Draw a state of `catch`: -> [64, 64, 3] uint8. A cell is a square of one colour; the ball covers the player."""
    cell = jnp.arange(FRAME) // (FRAME // columns)  # of each row and column of pixels
    ball = (cell == state.time)[:, None] & (cell == state.ball)[None, :]
    player = (cell == columns - 1)[:, None] & (cell == state.player)[None, :]
    frame = jnp.broadcast_to(jnp.array(WALL_COLOUR, jnp.uint8), (FRAME, FRAME, 3))
    return _paint(_paint(frame, player, PLAYER_COLOUR), ball, BALL_COLOUR)


def dodge(
    rate: float = 0.1,
    speed: int = 2,
    aim: float = 0.8,
    max_steps: int = 200,
    observation: Literal["pixels", "state"] = "pixels",
) -> Environment:
    """Live under falling projectiles: reward 1 for every step, a terminal end on contact, a time limit otherwise.

    The action is [] float32 in [-1, 1]: below -1/3 the player goes left, above 1/3 right, else it stays, as in the
    Take Cover of Ha & Schmidhuber 2018. Each step, with probability `rate`, something is thrown from the top row: with
    probability `aim` at where the player is now, else at a uniform column. It falls `speed` rows a step. An episode
    opens at a uniform column under projectiles already in the upper half. The return is the number of steps survived,
    the fatal one included. Standing still is fatal at the first aimed throw.

    "pixels" are [64, 64, 3] uint8 frames, as `draw_dodge` makes them; "state" is [1 + 2K] float32 in (-1, 1]: the
    player's column, K columns (from the middle, in half frames; 0 where nothing was thrown) and K flags of whether
    something was, by time since thrown.

    Raises: ValueError for rate or aim outside [0, 1], speed outside [1, 5] (a faster one could pass through the
    player), max_steps < 1 or an unknown kind of observation.
    """
    if not (0 <= rate <= 1 and 0 <= aim <= 1):
        raise ValueError(f"rate and aim are probabilities, got rate={rate}, aim={aim}")
    if not 1 <= speed <= PLAYER:
        raise ValueError(f"speed must lie in [1, {PLAYER}] rows a step, got {speed}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    if observation not in ("pixels", "state"):
        raise ValueError(f'observation must be "pixels" or "state", got {observation!r}')
    rows = np.arange(0, FLOOR_TOP - PROJECTILE + 1, speed, dtype=np.int32)  # [K]
    observe = draw_dodge if observation == "pixels" else _observe_dodge

    def reset(key: Key) -> tuple[DodgeState, Step]:
        key_player, key_thrown, key_columns = jax.random.split(key, 3)
        player = jax.random.randint(key_player, (), 0, FRAME - PLAYER + 1)
        thrown = jax.random.bernoulli(key_thrown, rate, rows.shape) & (rows < FRAME // 2)
        columns = jax.random.randint(key_columns, rows.shape, 0, FRAME - PROJECTILE + 1)
        state = DodgeState(player, jnp.asarray(rows), jnp.where(thrown, columns, ABSENT), jnp.int32(0))
        no = jnp.bool_(False)
        return state, Step(observe(state), jnp.float32(0), is_first=jnp.bool_(True), is_last=no, is_terminal=no)

    def step(key: Key, state: DodgeState, action: Array) -> tuple[DodgeState, Step]:
        thrown = _throw(key, state.player, rate, aim)
        state = DodgeState(
            player=move_player(state.player, action),
            rows=state.rows,
            columns=jnp.concatenate([thrown[None], state.columns[:-1]]),
            time=state.time + 1,
        )
        dead = jnp.any(hits(state.rows, state.columns, state.player))
        is_last = dead | (state.time >= max_steps)
        return state, Step(observe(state), jnp.float32(1), jnp.bool_(False), is_last, is_terminal=dead)

    space = Space((FRAME, FRAME, 3), np.uint8, 0, 256)
    if observation == "state":
        space = Space((1 + 2 * len(rows),), np.float32, -1.0, 1.0)
    return Environment(reset, step, EnvSpec(space, Space((), np.float32, -1.0, 1.0), max_steps))


def _throw(key: Key, player: Array, rate: float, aim: float) -> Array:
    key_thrown, key_aim, key_column = jax.random.split(key, 3)
    aimed = player + (PLAYER - PROJECTILE) // 2
    uniform = jax.random.randint(key_column, (), 0, FRAME - PROJECTILE + 1)
    column = jnp.where(jax.random.bernoulli(key_aim, aim), aimed, uniform)
    return jnp.where(jax.random.bernoulli(key_thrown, rate), column, ABSENT)


def move_player(player: Array, action: Array) -> Array:
    """Where the player's left edge goes: player [] int32, action [] float32 -> [] int32, kept inside the frame."""
    direction = (action > 1 / 3).astype(jnp.int32) - (action < -1 / 3).astype(jnp.int32)
    return jnp.clip(player + PLAYER_SPEED * direction, 0, FRAME - PLAYER)


def hits(rows: Array, columns: Array, player: Array) -> Array:
    """Which projectiles touch the player: rows [K], columns [K], player [] (all int32) -> [K] bool."""
    at_height = (rows + PROJECTILE > PLAYER_TOP) & (rows < FLOOR_TOP)
    return (columns != ABSENT) & at_height & (columns < player + PLAYER) & (player < columns + PROJECTILE)


def draw_dodge(state: DodgeState) -> Array:
    """Draw a state of `dodge`: -> [64, 64, 3] uint8. Projectiles cover the player, so that a hit can be seen."""
    line = jnp.arange(FRAME)

    def span(start: Array, length: int) -> Array:  # [] -> [FRAME], true on the pixels of [start, start + length)
        return (line >= start) & (line < start + length)

    player = span(jnp.int32(PLAYER_TOP), PLAYER)[:, None] & span(state.player, PLAYER)[None, :]
    rows = jax.vmap(lambda row: span(row, PROJECTILE))(state.rows)  # [K, FRAME]
    columns = jax.vmap(lambda column: span(column, PROJECTILE) & (column != ABSENT))(state.columns)  # [K, FRAME]
    # How many of K rectangles cover each pixel, as one matrix product: far cheaper than K masks of the whole frame.
    projectiles = rows.astype(jnp.float32).T @ columns.astype(jnp.float32) > 0
    floor = jnp.broadcast_to((line >= FLOOR_TOP)[:, None], (FRAME, FRAME))
    frame = jnp.broadcast_to(jnp.array(WALL_COLOUR, jnp.uint8), (FRAME, FRAME, 3))
    frame = _paint(frame, floor, FLOOR_COLOUR)
    frame = _paint(frame, player, PLAYER_COLOUR)
    return _paint(frame, projectiles, PROJECTILE_COLOUR)


def _paint(frame: Array, mask: Array, colour: tuple[int, int, int]) -> Array:
    return jnp.where(mask[:, :, None], jnp.array(colour, jnp.uint8)[None, None, :], frame)


def _observe_dodge(state: DodgeState) -> Array:
    def centred(column: Array, length: int) -> Array:  # halves of the frame; exact in float32, compiled or not
        return (column - (FRAME - length) // 2).astype(jnp.float32) / (FRAME // 2)

    thrown = state.columns != ABSENT
    columns = jnp.where(thrown, centred(state.columns, PROJECTILE), 0)
    return jnp.concatenate([centred(state.player, PLAYER)[None], columns, thrown.astype(jnp.float32)])
