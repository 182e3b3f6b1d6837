"""What people hand to the pure functions: pictures without channels, missing values, environments of their own."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import dream, evolution, rollout
from dreamjax.dreamerv3 import codec, heads, loop, model, rssm
from dreamjax.dreamerv3.config import debug
from dreamjax.dreamerv3.loop import LoopConfig
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.envs import check_environment, probes
from dreamjax.evolution import EvolutionConfig
from dreamjax.types import Action, AgentParams, Array, Environment, EnvSpec, Key, Space, State, Step
from dreamjax.worldmodels import search

CFG = replace(debug(), compute_dtype="float32")
ACTION = Space((), np.int32, 0, 2)
QUICK = {"xla_backend_optimization_level": 0}  # compiled in half the time, and run once

# Grey pictures without a channel axis, and other arrays of bytes

GREY = EnvSpec({"grey": Space((48, 64), np.uint8, 0, 256), "rgb": Space((48, 64, 3), np.uint8, 0, 256)}, ACTION, 9)


def parameters(observation: Any) -> Any:
    dreamer = Dreamer.of(CFG, EnvSpec(observation, ACTION, 9))
    return jax.eval_shape(partial(model.init, dreamer), jax.random.key(0))


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_a_grey_picture_without_channels_is_the_picture_of_one_channel() -> None:
    flat, deep = (parameters(Space((64, 64, *channel), np.uint8, 0, 256)) for channel in ((), (1,)))
    assert jax.tree.map(lambda leaf: leaf.shape, flat) == jax.tree.map(lambda leaf: leaf.shape, deep)


def test_a_grey_picture_is_encoded_decoded_and_compared_in_its_own_shape() -> None:
    dreamer = Dreamer.of(CFG, GREY)
    noise = jax.random.bits(jax.random.key(1), (2, 48, 64, 4), np.uint8)
    seen = {"grey": noise[..., 0], "rgb": noise[..., 1:]}

    def run(key: jax.Array, seen: Any) -> Any:
        params = model.init(dreamer, key).model
        tokens = [heads.apply(dreamer.encoder, params.enc, x) for x in (seen, seen | {"grey": seen["grey"] // 2})]
        states = rssm.start(CFG.rssm, (2,), "float32")
        painted = heads.apply(dreamer.decoder, params.dec, *states)
        losses = codec.reconstruction_losses(CFG.codec, dreamer.observation, painted, seen)
        return tokens, painted.images, losses, model.agent(dreamer).model.decode(params, states)

    tokens, painted, losses, decoded = jax.jit(run, compiler_options=QUICK)(jax.random.key(0), seen)
    assert (tokens[0] != tokens[1]).any(-1).all(), "the grey picture is not read"
    for name, picture in painted.items():
        error = (np.asarray(picture) - np.asarray(seen[name], np.float32) / 255) ** 2
        np.testing.assert_allclose(losses[name], error.reshape(2, -1).sum(1), rtol=1e-5)
    described = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert described(decoded) == described(seen)


@pytest.mark.parametrize(
    ("space", "features"),
    [
        (Space((128,), np.uint8, 0, 256), 128 * 256),  # the memory of an Atari
        (Space((7, 7, 3), np.uint8, 0, 256), 7 * 7 * 3 * 256),  # MiniGrid
        (Space((21, 79), np.uint8, 0, 128), 21 * 79 * 128),  # the characters of NetHack
        (Space((64, 64), np.uint8, 0, 4), 64 * 64 * 4),  # a map of four kinds of ground
    ],
)
def test_other_bytes_are_levels(space: Space, features: int) -> None:
    assert not codec.is_image(space)
    assert codec.flat_size(space) == features
    assert parameters(space).model.enc["mlp0"]["kernel"].shape[0] == features


@pytest.mark.parametrize(
    ("space", "wrong"),
    [
        (Space((84, 84), np.uint8, 0, 256), r"sides of 'observation' must be multiples of 16 from 48 to 256.* resize"),
        (Space((3, 64, 64), np.uint8, 0, 256), r"3,145,728 one-hot features.* \[H, W, C\]"),
        (Space((40, 40), np.uint8, 0, 256), r"409,600 one-hot features, 256 classes for each of 1,600 entries"),
        (Space((21, 79), np.int32, 0, 5976), r"9,914,184 one-hot features.* declare it as floats"),
        (Space((27,), np.int32, -(2**31), 2**31 - 1), "declare it as floats"),
    ],
)
def test_absurd_numbers_of_classes_are_refused(space: Space, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        parameters(space)
    if len(space.shape) == 1:
        with pytest.raises(ValueError, match=r"discrete action 'action' .* declare it as floats"):
            Dreamer.of(CFG, EnvSpec(Space((2,)), space, 9))


# Missing values

SENSORS = EnvSpec({"body": Space((3,)), "key": Space((2,), np.int32, 0, 4), "depth": Space(())}, ACTION, 9)
WHOLE = {"body": jnp.array([[1.0, -2.0, 3.0]] * 2), "key": jnp.array([[1, 3]] * 2), "depth": jnp.array([0.5, 0.5])}
MISSING = {  # in the first of two
    "body": WHOLE["body"].at[0, 1].set(-jnp.inf),
    "key": WHOLE["key"].at[0, 1].set(-1),
    "depth": WHOLE["depth"].at[0].set(-jnp.inf),
}


@pytest.mark.parametrize("name", SENSORS.observation)
def test_what_is_missing_is_read_as_zeros_and_is_no_target(name: str) -> None:
    space, seen = SENSORS.observation[name], MISSING[name]
    features = codec.flatten(space, seen, True)
    np.testing.assert_array_equal(features[0], 0)
    np.testing.assert_array_equal(features[1], codec.flatten(space, WHOLE[name], True)[1])

    def loss(predicted: jax.Array, seen: jax.Array) -> jax.Array:
        kind = "logits" if space.is_discrete else "vectors"
        reconstruction = codec.Reconstruction({}, {}, {})._replace(**{kind: {name: predicted}})
        return codec.reconstruction_losses(CFG.codec, ((name, space),), reconstruction, {name: seen})[name]

    predicted = jnp.ones((2, *space.shape, *(4,) * space.is_discrete)).at[..., :1].set(0.25)
    got, gradient = loss(predicted, seen), jax.grad(lambda x: loss(x, seen).sum())(predicted)
    assert float(got[0]) == 0 and float(got[1]) == float(loss(predicted, WHOLE[name])[1]) > 0
    np.testing.assert_array_equal(gradient[0], 0)
    assert np.isfinite(gradient).all() and np.asarray(gradient[1] != 0).any()


def test_the_gradients_of_encoder_and_decoder_are_finite_with_missing_values() -> None:
    dreamer = Dreamer.of(CFG, SENSORS)

    def loss(params: Any) -> jax.Array:
        tokens = heads.apply(dreamer.encoder, params.enc, MISSING)
        deter, stoch = rssm.start(CFG.rssm, (2,), "float32")
        painted = heads.apply(dreamer.decoder, params.dec, deter + tokens[:, : CFG.rssm.deter], stoch)
        losses = codec.reconstruction_losses(CFG.codec, dreamer.observation, painted, MISSING)
        return sum(x.sum() for x in losses.values())

    both = jax.jit(lambda key: jax.value_and_grad(loss)(model.init(dreamer, key).model), compiler_options=QUICK)
    total, gradient = both(jax.random.key(0))
    assert np.isfinite(total) and total > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert all(np.asarray(leaf != 0).any() for leaf in jax.tree.leaves(gradient.enc))


# Environments of one's own


def walk(arrive: Callable[[Step, Array], Step] = lambda step, time: step, **changed: Any) -> Environment:
    """Walk left or right on a line of seven places; `arrive` may spoil the step at a time of the episode."""

    def observe(place: Array, time: Array) -> Step:
        over = (place == 0) | (place == 6)
        seen = {"place": place, "height": place / 6}
        reward = jnp.where(time > 0, place == 6, False).astype(jnp.float32)
        return arrive(Step(seen, reward, time == 0, over | (time >= 9), over), time)

    def reset(key: Key) -> tuple[State, Step]:
        state = jax.random.randint(key, (), 2, 5), jnp.int32(0)
        return state, observe(*state)

    def step(key: Key, state: State, action: Action) -> tuple[State, Step]:
        state = jnp.clip(state[0] + 2 * action - 1, 0, 6), state[1] + 1
        return state, observe(*state)

    observation = {"place": Space((), np.int32, 0, 7), "height": Space((), np.float32, 0.0, 1.0)}
    return Environment(reset, step, EnvSpec(observation, Space((), np.int32, 0, 2), 9))._replace(**changed)


def spoil(late: bool = True, **changed: Callable[[Step], Any]) -> Environment:
    """Change fields of each step, from the fifth of an episode on if `late`."""

    def arrive(step: Step, time: Array) -> Step:
        new = step._replace(**{name: change(step) for name, change in changed.items()})
        return jax.tree.map(lambda a, b: jnp.where((time >= 5) | (not late), a, b), new, step)

    return walk(arrive)


def check(environment: Environment) -> None:
    with jax.debug_key_reuse(False):  # a mapped `cond` runs both branches, each with its own key
        check_environment(environment, steps=60)


NUMBERS = iter(range(1000))
BROKEN = {
    "in the middle": (
        spoil(
            observation=lambda step: {"place": step.observation["place"] + 7, "height": jnp.float32(jnp.inf)},
            is_first=lambda step: ~step.is_first,
            is_terminal=lambda step: ~step.is_last,
            is_last=lambda step: step.is_last & False,
            reward=lambda step: step.reward + jnp.nan,
        ),
        (
            r"step: the observation\['place'\] is outside of Space\(.*high=7\) at step 5, from \d+, to \d+",
            r"step: the observation\['height'\] is not finite at step 5",
            r"step: the observation\['height'\] is outside of .* at step 5, from inf, to inf",
            r"step: is_first is set at step 5",
            r"step: is_terminal without is_last at step 5",
            r"step: the reward is not finite at step 5, but nan",
            r"step: is_last is not set at the limit of 9 steps at step 9",
        ),
    ),
    "at the beginning": (
        spoil(False, is_first=lambda step: step.is_last & False, reward=lambda step: step.reward + 1),
        (r"reset: is_first is not set at step 0", r"reset: the first reward is not 0 at step 0, but 1"),
    ),
    "at the end": (
        spoil(is_last=lambda step: step.is_terminal),
        (r"step: is_last is not set at the limit of 9 steps at step 9",),
    ),
    "hidden state": (
        spoil(reward=lambda step: step.reward + next(NUMBERS)),
        (r"step: what it returns depends on more than its arguments.* at step 5",),
    ),
}


def test_a_sound_environment_passes() -> None:
    check(walk())


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_environment_is_refused_with_function_field_and_step(name: str) -> None:
    environment, messages = BROKEN[name]
    with pytest.raises(ValueError, match="breaks its contract") as error:
        check(environment)
    found = str(error.value).splitlines()[1:]
    assert len(found) == len(messages)
    for message in messages:
        assert any(re.search(rf"^  Environment\.{message}", line) for line in found), (message, found)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"spec": EnvSpec(7, Space(()), 9)}, "spec.observation must be a Space or a tree of them, got 7"),
        ({"spec": walk().spec._replace(max_steps=None)}, "spec.max_steps must be a number of steps"),
        ({"step": lambda state, key, action: walk().step(key, state, action)}, r"step\(key, state, action\) cannot be"),
        ({"reset": lambda key: walk().reset(key)[1]}, r"Environment.reset must return \(state, Step\), got Step"),
        ({"reset": lambda key: walk().reset(key)[::-1]}, r"must return \(state, Step\), got \(Step, tuple\)"),
    ],
)
def test_what_cannot_be_played_is_refused_before_it_is(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(walk(**changed))
    with pytest.raises(
        TypeError, match=r"environment of envs.contract.check_environment\(.*\) must be of kind Environ"
    ):
        check_environment(walk().spec)


# Arguments that are swapped, and shapes that do not fit

GAME = probes.counter(size=4)
DREAMER = Dreamer.of(CFG, GAME.spec)
AGENT, KEY = model.make(CFG, GAME.spec), jax.random.key(0)
PARAMS = AgentParams((), (), jnp.zeros((3, CFG.codec.units)))
SEARCH = EvolutionConfig(8)
SWAPPED = {
    "agent of rollout.act(agent, params, key, state, step) must be of kind Agent, got AgentParams": lambda: rollout.act(
        PARAMS, AGENT, KEY, (), ()
    ),
    "agent of rollout.unroll(.*) must be of kind StepPolicy, got Agent; step_policy": lambda: rollout.unroll(
        GAME, AGENT, PARAMS, KEY, 3
    ),
    "keys of rollout.episodes(.*) must be typed keys [E], as jax.random.split makes, got key": lambda: rollout.episodes(
        GAME, rollout.reactive(AGENT.policy), (), KEY
    ),
    "key of dream.imagine(.*) must be a typed key [], as jax.random.key makes, got int": lambda: dream.imagine(
        AGENT, PARAMS, 0, (), 3
    ),
    "params of dream.imagine(.*) must be of kind AgentParams, got tuple": lambda: dream.imagine(AGENT, (), KEY, (), 3),
    "model of dream.environment(.*) must be of kind LatentModel, got Agent": lambda: dream.environment(AGENT, (), ()),
    "agent of dream.returns(.*) must be of kind Agent, got LatentModel": lambda: dream.returns(
        AGENT.model, PARAMS, KEY[None]
    ),
    "policy of rollout.reactive(policy) must be of kind Policy or RecurrentPolicy, got Agent": lambda: rollout.reactive(
        AGENT
    ),
    "state of evolution.ask(.*) must be of kind EvolutionState, got dict": lambda: evolution.ask(SEARCH, KEY, {}),
    "agent of worldmodels.search.generation(.*) must be of kind Agent, got AgentParams": lambda: search.generation(
        SEARCH, PARAMS, AGENT, KEY, (), 3
    ),
    "environment of dreamerv3.loop.init(.*) must be of kind Environment, got LoopConfig": lambda: loop.init(
        DREAMER, LoopConfig(), GAME, KEY
    ),
}


@pytest.mark.parametrize("message", SWAPPED)
def test_swapped_arguments_are_named(message: str) -> None:
    pattern = message.replace("(", r"\(").replace(")", r"\)").replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(TypeError, match=pattern):
        SWAPPED[message]()


def test_a_shape_that_does_not_fit_the_agent_is_named() -> None:
    params = jax.eval_shape(lambda key: model.agent_params(model.init(DREAMER, key)), KEY)
    wrong = probes.counter(size=6)

    def act(params: AgentParams, key: Key) -> Any:
        step = wrong.reset(key)[1]
        return rollout.act(AGENT, params, key, rollout.start(AGENT, params), step)[1]

    with pytest.raises(ValueError, match=r"what an agent acts on must be the observation .*float32 \[4\], got .*\[6\]"):
        jax.eval_shape(act, params, KEY)
    with pytest.raises(ValueError, match=r"another environment: observation is .*\(6,\).*, and .*\(4,\).*"):
        jax.eval_shape(partial(loop.init, DREAMER, wrong, LoopConfig()), KEY)
    with pytest.raises(
        ValueError, match=r"`state` of dream.imagine must be a latent state, as LatentModel.start returns"
    ):
        jax.eval_shape(lambda params: dream.imagine(AGENT, params, KEY, dream.DreamState((), 0), 3), params)
    narrow = GAME._replace(reset=lambda key: (lambda state, step: (state, step._replace(reward=0)))(*GAME.reset(key)))
    with pytest.raises(ValueError, match=r"the reward of Environment.reset must be float32 \[\]"):
        jax.eval_shape(partial(loop.init, DREAMER, narrow, LoopConfig(2, 2, 4, 4.0, 100)), KEY)
