"""The search for C in a dream."""

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import dream, evolution
from dreamjax.envs.vizdoom import take_cover_spec
from dreamjax.evolution import EvolutionConfig
from dreamjax.types import AgentParams
from dreamjax.worldmodels import model, search
from dreamjax.worldmodels.controller import ControllerConfig
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.model import WorldModelConfig
from dreamjax.worldmodels.vision import VisionConfig

MEMORY = MemoryConfig(latent_size=4, hidden_size=8, mixtures=2, predict_done=False, predict_reward=True)
WORLD = WorldModelConfig(VisionConfig(4), MEMORY, ControllerConfig(bias=False))
AGENT = model.make(WORLD, take_cover_spec(max_steps=12))
EVOLUTION = EvolutionConfig(population_size=16, sigma=0.5)
NOTHING = AGENT.policy.init(jax.random.key(0))


STARTS = jnp.zeros((3, 4)), jnp.zeros((3, 4))
PARAMS = AgentParams(AGENT.model.init(jax.random.key(1)), NOTHING, STARTS)


def test_a_generation_tells_each_candidate_the_mean_of_its_dreams() -> None:
    start = evolution.init(EVOLUTION, NOTHING)
    state, metrics = search.generation(EVOLUTION, AGENT, PARAMS, jax.random.key(2), start, 5, temperature=1.3)
    key_ask, key_dream = jax.random.split(jax.random.key(2))
    asked, population = evolution.ask(EVOLUTION, key_ask, evolution.init(EVOLUTION, NOTHING))
    keys = jax.random.split(key_dream, 5)
    total = dream.returns(AGENT, PARAMS._replace(policy=population), keys, 1.3).total
    expected, _ = evolution.tell(EVOLUTION, asked, population, total.mean(1))
    np.testing.assert_allclose(state.mean["kernel"], expected.mean["kernel"], atol=1e-6)
    assert float(metrics["fitness_max"]) == np.asarray(total.mean(1)).max()


def test_a_score_depends_on_the_temperature() -> None:
    scores = [search.score(AGENT, PARAMS, jax.random.key(4), 16, t) for t in (0.1, 1.0, 1.0)]
    assert (scores[0] != scores[1]).any()
    np.testing.assert_array_equal(scores[1], scores[2])
