"""The swing-up obeys mechanics, its pictures show its state, and a controller that knows both can hold the pole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.envs.swingup import (
    CART_MASS,
    FORCE,
    FRICTION,
    GRAVITY,
    POLE_LENGTH,
    POLE_MASS,
    TIME_STEP,
    TRACK,
    SwingUpState,
    accelerations,
    draw_swingup,
    is_upright,
    score,
    swingup,
    visited,
)
from dreamjax.types import Step


def state_of(position: float, velocity: float, angle: float, spin: float, time: int = 1) -> SwingUpState:
    return SwingUpState(*(jnp.float32(x) for x in (position, velocity, angle, spin)), jnp.int32(time))


def energy(parts: jax.Array) -> jax.Array:
    """Of a cart with a uniform rod, from textbook mechanics: the rod moves with its middle and turns about it."""
    _, velocity, angle, spin = parts
    middle = jnp.array([velocity - POLE_LENGTH / 2 * jnp.cos(angle) * spin, POLE_LENGTH / 2 * jnp.sin(angle) * spin])
    turning = POLE_MASS * POLE_LENGTH**2 / 12 * spin**2
    height = POLE_LENGTH / 2 * jnp.cos(angle)
    return (CART_MASS * velocity**2 + POLE_MASS * middle @ middle + turning) / 2 + POLE_MASS * GRAVITY * height


@pytest.mark.parametrize("seed", range(5))
def test_energy_changes_by_the_work_of_force_and_friction_alone(seed: int) -> None:
    parts, force = np.split(np.random.default_rng(seed).normal(scale=3, size=5), [4])
    parts, force = jnp.asarray(parts, jnp.float32), jnp.float32(force[0])
    cart, pole = accelerations(SwingUpState(*parts, jnp.int32(0)), force)
    change = jax.grad(energy)(parts) @ jnp.stack([parts[1], cart, parts[3], pole])
    np.testing.assert_allclose(change, (force - FRICTION * parts[1]) * parts[1], rtol=1e-4, atol=1e-4)


def test_the_pole_swings_as_a_free_pendulum_under_a_cart_that_is_held() -> None:
    # A force that holds the cart leaves the pole the frequency of a rod on a nail: 3 g / (2 length).
    state = state_of(0, 0, np.pi + 0.01, 0)
    cart = lambda force: accelerations(state, force)[0]  # noqa: E731
    force = -cart(0.0) / jax.grad(cart)(0.0)
    np.testing.assert_allclose(accelerations(state, force)[1], -1.5 * GRAVITY / POLE_LENGTH * 0.01, rtol=1e-3)


def test_one_step_by_hand() -> None:
    environment = swingup(observation="state")
    state, step = environment.step(jax.random.key(0), state_of(0.5, 1.0, np.pi / 2, 2.0, 7), jnp.float32(0.3))
    force = 0.3 * FORCE - FRICTION  # at a right angle the pole hangs on nothing but its end
    moment = POLE_MASS * POLE_LENGTH
    velocity = 1.0 + TIME_STEP * (-2 * moment * 4 + 4 * force) / 4
    spin = 2.0 + TIME_STEP * 6 * GRAVITY / (4 * POLE_LENGTH)
    position, angle = 0.5 + TIME_STEP * velocity, np.pi / 2 + TIME_STEP * spin
    np.testing.assert_allclose(state[:4], [position, velocity, angle, spin], rtol=1e-5)
    assert state.time == 8
    np.testing.assert_allclose(step.observation, [position, velocity, np.cos(angle), np.sin(angle), spin], rtol=1e-5)
    np.testing.assert_allclose(step.reward, (np.cos(angle) + 1) / 2, rtol=1e-5)
    assert not step.is_last


def test_episodes_begin_hanging_and_end_by_the_clock_or_beyond_the_track() -> None:
    environment = swingup(max_steps=3)
    states, steps = jax.vmap(environment.reset)(jax.random.split(jax.random.key(0), 2000))
    first = np.stack(states[:4])
    np.testing.assert_allclose(first.mean(1), [0, 0, np.pi, 0], atol=0.02)
    np.testing.assert_allclose(first.std(1), 0.2, atol=0.01)
    assert steps.is_first.all() and not steps.is_last.any() and not steps.reward.any()
    for state, flags in [
        (state_of(0, 0, np.pi, 0, 1), (False, False)),
        (state_of(0, 0, np.pi, 0, 2), (True, False)),
        (state_of(TRACK - 0.01, 1, np.pi, 0, 1), (True, True)),
        (state_of(-TRACK + 0.01, -1, np.pi, 0, 2), (True, True)),
    ]:
        _, step = environment.step(jax.random.key(0), state, jnp.float32(0))
        assert (bool(step.is_last), bool(step.is_terminal)) == flags and not step.is_first


def test_all_kinds_of_observations_show_the_same_state() -> None:
    environments = {kind: swingup(observation=kind) for kind in ("pixels", "state", "both")}
    seen = {
        kind: e.step(jax.random.key(0), state_of(0, 1, 2, 3), jnp.float32(1))[1] for kind, e in environments.items()
    }
    np.testing.assert_array_equal(seen["both"].observation["image"], seen["pixels"].observation)
    np.testing.assert_array_equal(seen["both"].observation["state"], seen["state"].observation)
    for kind, environment in environments.items():
        shapes = jax.tree.map(lambda space: space.shape, environment.spec.observation)
        assert jax.tree.map(jnp.shape, seen[kind].observation) == shapes


def test_an_episode_may_begin_upright() -> None:
    environment = swingup(observation="state", upright=True)
    _, steps = jax.vmap(environment.reset)(jax.random.split(jax.random.key(0), 500))
    assert steps.observation[:, 2].mean() > 0.95


def test_actions_are_cut_to_their_bounds() -> None:
    environment, state = swingup(observation="state"), state_of(0, 0, 1, 0)
    for action, cut in [(5.0, 1.0), (-1.5, -1.0)]:
        one, other = (environment.step(jax.random.key(0), state, jnp.float32(a))[0] for a in (action, cut))
        np.testing.assert_array_equal(one[:4], other[:4])


def test_frames_show_cart_and_pole_where_they_are() -> None:
    pixels = lambda x, y: (int(32 - y * 64 / 1.8), int(32 + x * 64 / 5))  # noqa: E731
    for position, angle in [(0.0, 0.0), (1.0, np.pi), (-2.0, 1.0), (0.5, -2.0)]:
        frame = np.asarray(draw_swingup(state_of(position, 0, angle, 0)))
        assert frame.shape == (64, 64, 3) and frame.dtype == np.uint8
        near_tip = pixels(position - 0.5 * np.sin(angle), 0.5 * np.cos(angle))
        opposite = pixels(position + 0.5 * np.sin(angle), -0.5 * np.cos(angle))
        assert frame[near_tip].min() > 240 and frame[opposite].max() == 60
        assert (frame == frame[:, :, :1]).all()


def test_frames_are_mirrored_with_the_state_and_hide_velocities() -> None:
    frame = np.asarray(draw_swingup(state_of(0.7, 0, 0.8, 0)))
    np.testing.assert_array_equal(draw_swingup(state_of(-0.7, 0, -0.8, 0)), frame[:, ::-1])
    np.testing.assert_array_equal(draw_swingup(state_of(0.7, 2, 0.8, -3)), frame)


def regulator() -> np.ndarray:
    """Gains that hold the pole upright: the linear-quadratic regulator of the motion around the top."""

    def motion(parts: jax.Array, action: jax.Array) -> jax.Array:
        state, _ = swingup(observation="state").step(jax.random.key(0), SwingUpState(*parts, jnp.int32(0)), action)
        return jnp.stack(state[:4])

    a, b = (np.asarray(x, float) for x in jax.jacobian(motion, (0, 1))(jnp.zeros(4), jnp.zeros(())))
    b, cost = b[:, None], np.diag([1.0, 0.1, 10.0, 0.1])
    value = cost
    for _ in range(500):
        gains = np.linalg.solve(1 + b.T @ value @ b, b.T @ value @ a)
        value = cost + a.T @ value @ (a - b @ gains)
    return gains[0]


@pytest.fixture(scope="module")
def played() -> dict[str, np.ndarray]:
    """Rewards [64, 200] of three controllers that see the state; zero after an end."""
    environment, gains = swingup(observation="state"), regulator()

    def swing_then_hold(state: SwingUpState, key: jax.Array) -> jax.Array:
        angle = (state.angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
        hold = -gains @ jnp.stack([state.position, state.velocity, angle, state.spin])
        missing = POLE_LENGTH**2 / 6 * state.spin**2 + GRAVITY * POLE_LENGTH / 2 * (jnp.cos(angle) - 1)
        pump = -0.8 * missing * state.spin * jnp.cos(angle) - 0.4 * state.position - 0.2 * state.velocity
        return jnp.where(jnp.abs(angle) < 0.8, hold, pump)

    def play(controller: object, key: jax.Array) -> jax.Array:
        def step(carry: tuple, key: jax.Array) -> tuple:
            state, alive = carry
            state, step = environment.step(key, state, controller(state, key))
            return (state, alive & ~step.is_terminal), alive * step.reward

        key_reset, key_steps = jax.random.split(key)
        begin = environment.reset(key_reset)[0], jnp.bool_(True)
        return jax.lax.scan(step, begin, jax.random.split(key_steps, 200))[1]

    controllers = {
        "swing then hold": swing_then_hold,
        "nothing": lambda state, key: jnp.float32(0),
        "random": lambda state, key: jax.random.uniform(key, minval=-1.0),
    }
    keys = jax.random.split(jax.random.key(0), 64)
    return {name: np.asarray(jax.jit(jax.vmap(lambda key, c=c: play(c, key)))(keys)) for name, c in controllers.items()}


def test_who_knows_the_state_can_swing_up_and_hold(played: dict[str, np.ndarray]) -> None:
    totals = {name: rewards.sum(1).mean() for name, rewards in played.items()}
    assert totals["nothing"] < 5 and totals["random"] < 20 and totals["swing then hold"] > 110
    held = (played["swing then hold"][:, -50:] > 0.95).all(1)
    assert held.mean() > 0.5


@pytest.mark.parametrize("bad", [{"max_steps": 0}, {"observation": "smell"}])
def test_bad_arguments_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        swingup(**bad)


def test_the_first_episode_of_each_row_is_scored() -> None:
    reward = np.full((4, 101), 0.99, np.float32)
    is_last = np.zeros((4, 101), bool)
    is_last[0, 100] = True
    is_last[1, 9] = True  # it left the track; another episode follows, which holds the pole up
    reward[2, 60] = 0.9
    reward[3, :40] = 0  # swung up before the last 50 steps
    no = np.zeros((4, 101), bool)
    returns, held = score(Step((), reward, no, is_last, no))
    np.testing.assert_allclose(returns, [101 * 0.99, 10 * 0.99, 100 * 0.99 + 0.9, 61 * 0.99], rtol=1e-5)
    assert held.tolist() == [True, False, False, True]


def test_visited_states_are_counted_in_cells() -> None:
    hanging, upright = [0, 0, -1, 0, 0], [0, 0, 1, 0, 0]
    far = [99, 99, 1, 0, 99]  # in the last cells
    cells = 8 * 8 * 16 * 16
    assert visited(np.array([hanging, upright, upright, far], np.float32)) == 3 / cells
    tilted = [0, 0, float(np.cos(0.47)), float(np.sin(0.47)), 0]  # 27 degrees
    assert np.asarray(is_upright(jnp.array([hanging, upright, tilted]))).tolist() == [False, True, False]
