"""Functions that return what they should not are named, with what is wrong, when a program is traced."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import dream, rollout
from dreamjax.types import (
    Action,
    Environment,
    EnvSpec,
    Key,
    LatentModel,
    Outcome,
    Params,
    Space,
    State,
    Step,
    StepPolicy,
)

SPEC = EnvSpec({"seen": Space((2,))}, Space((), np.float32, -1.0, 1.0), 3)
AGENT = StepPolicy(lambda params: (), lambda params, key, state, step: (state, jnp.float32(0)))


def step(**changed: Any) -> Step:
    no = jnp.array(False)
    return Step({"seen": jnp.zeros(2)}, jnp.float32(0), ~no, ~no, no)._replace(**changed)


def environment(reset: Step | None = None, arrive: Step | None = None, state: State = 0) -> Environment:
    first, then = reset or step(), arrive or step()
    return Environment(
        lambda key: (jnp.int32(0), first), lambda key, before, action: (jnp.int32(0) + state, then), SPEC
    )


def unroll(env: Environment, agent: StepPolicy = AGENT) -> Any:
    return jax.eval_shape(lambda key: rollout.unroll(env, agent, (), key, 4)[1], jax.random.key(0))


def episodes(env: Environment, agent: StepPolicy = AGENT) -> Any:
    return jax.eval_shape(partial(rollout.episodes, env, agent), jnp.zeros(3), jax.random.split(jax.random.key(0), 3))


@pytest.mark.parametrize("loop", [unroll, episodes])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"reward": jnp.int32(0)}, r"the reward of Environment.{6} must be float32 \[\], got int32"),
        ({"reward": jnp.zeros(1)}, r"the reward of Environment.{6} must be float32 \[\], got float32 \[1\]"),
        ({"is_last": jnp.float32(0)}, r"is_last of Environment.{6} must be bool \[\], got float32"),
        (
            {"observation": {"seen": jnp.zeros(3)}},
            r"the observation of .*, \['seen'\], must be float32 \[2\], got .* \[3\]",
        ),
        ({"observation": {"seen": jnp.zeros(2, jnp.uint8)}}, r"must be float32 \[2\], got uint8 \[2\]"),
        ({"observation": jnp.zeros(2)}, "must have the structure of spec.observation"),
    ],
)
def test_a_wrong_step_is_named(loop: Callable, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".{6}", r"\.reset")):
        loop(environment(reset=step(**wrong)))
    with pytest.raises(ValueError, match=message.replace(".{6}", r"\.step")):
        loop(environment(arrive=step(**wrong)))
    loop(environment())


@pytest.mark.parametrize("loop", [unroll, episodes])
def test_a_state_that_changes_its_shape_or_dtype_is_named(loop: Callable) -> None:
    with pytest.raises(ValueError, match=r"Environment\.step must return a state with the structure"):
        loop(environment(state=jnp.zeros(2)))
    forgets = StepPolicy(lambda params: jnp.zeros(2), lambda params, key, state, step: (state[0], jnp.float32(0)))
    with pytest.raises(ValueError, match=r"StepPolicy\.act must return a state with the structure"):
        loop(environment(), forgets)


@pytest.mark.parametrize("loop", [unroll, episodes])
@pytest.mark.parametrize("action", [jnp.int32(0), jnp.zeros(1), {"go": jnp.float32(0)}])
def test_a_wrong_action_is_named(loop: Callable, action: Action) -> None:
    agent = StepPolicy(lambda params: (), lambda params, key, state, step: (state, action))
    with pytest.raises(ValueError, match=r"the action of StepPolicy\.act must"):
        loop(environment(), agent)


def model(**changed: Any) -> LatentModel:
    def imagine(params: Params, key: Key, state: State, action: Action, temperature: Any) -> State:
        return state

    whole = LatentModel(
        init=lambda key: (),
        start=lambda params: jnp.zeros(2),
        encode=lambda params, observation: observation["seen"],
        observe=lambda params, key, state, action, embedding, is_first: embedding,
        imagine=imagine,
        features=lambda state: state,
        outcome=lambda params, state: Outcome(state[0], state[1]),
        decode=lambda params, state: {"seen": state},
        spec=SPEC,
    )
    return whole._replace(**changed)


def dreamt(model: LatentModel, starts: Any) -> Any:
    agent = rollout.reactive(rollout.random_policy(SPEC.action))
    return jax.eval_shape(
        lambda key: rollout.unroll(dream.environment(model, (), starts), agent, (), key, 3), jax.random.key(0)
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"features": lambda state: state[None]}, r"LatentModel\.features must be a float vector"),
        ({"features": lambda state: state > 0}, r"LatentModel\.features must be a float vector \[F\], got bool"),
        ({"observe": lambda *arguments: jnp.zeros(3)}, r"LatentModel\.observe must return a state"),
        ({"imagine": lambda *arguments: jnp.zeros(2, jnp.int32)}, r"LatentModel\.imagine must return a state"),
        (
            {"outcome": lambda params, state: Outcome(state, state[0])},
            r"reward of LatentModel\.outcome must be one number",
        ),
        (
            {"outcome": lambda params, state: Outcome(state[0], state[0] > 0)},
            r"continues of LatentModel\.outcome must be",
        ),
    ],
)
def test_a_wrong_function_of_a_model_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dreamt(model(**wrong), jnp.zeros((3, 2)))
    dreamt(model(), jnp.zeros((3, 2)))


@pytest.mark.parametrize("starts", [(), jnp.zeros((0, 2)), jnp.float32(0), (jnp.zeros((3, 2)), jnp.zeros((2, 2)))])
def test_starts_that_are_not_stacked_are_refused(starts: Any) -> None:
    with pytest.raises(ValueError, match="`starts` must be embeddings of S >= 1 first observations"):
        dream.environment(model(), (), starts)


def test_a_step_must_be_a_step() -> None:
    broken = environment()._replace(reset=lambda key: (jnp.int32(0), {"seen": jnp.zeros(2)}))
    with pytest.raises(ValueError, match=r"Environment\.reset must return \(state, Step\), got \(.*, dict\)"):
        unroll(broken)
