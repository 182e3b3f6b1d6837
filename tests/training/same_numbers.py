"""What training comes to, on the devices that there are: started in one process or in several, by `test_processes`.

Arguments: a folder, into which the first process writes; how many devices, or "all"; a folder of another run of this,
or "none", whose checkpoints are read as well; and how the state is kept: "whole" or "sharded".
"""

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from dreamjax import planning
from dreamjax.dreamerv3 import experience, learner
from dreamjax.dreamerv3.config import debug
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.evolution import EvolutionConfig, init
from dreamjax.optim import AdamConfig, LaPropConfig
from dreamjax.replay.latents import Chunk
from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.training import processes
from dreamjax.training.devices import device_mesh, from_process_local, gathered, own_part, replicated, sharded, split
from dreamjax.training.learning import learner_over
from dreamjax.training.trainer import learning
from dreamjax.types import Agent, AgentParams, EnvSpec, Space
from dreamjax.worldmodels import controller, learner as worldmodels, memory, model, search
from dreamjax.worldmodels.learner import MemoryLearner, VisionLearner
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.model import WorldModelConfig, WorldModelParams
from dreamjax.worldmodels.vision import VisionConfig

UPDATES, BATCH = 5, 8
SMALL = MemoryConfig(latent_size=4, hidden_size=8, mixtures=2)
SPEC = EnvSpec({"vector": Space((5,)), "token": Space((), np.int32, 0, 3)}, {"press": Space((), np.int32, 0, 4)}, 30)
# A gradient next to nothing, divided by its size, has a sign that the order of sums decides; eps is above that.
CFG = replace(debug(), optimizer=LaPropConfig(eps=1e-2), compute_dtype="float32")
DREAMER = Dreamer.of(CFG, SPEC)


def draw(rng: np.random.Generator, like: jax.ShapeDtypeStruct) -> np.ndarray:
    shape = (UPDATES, BATCH, 6, *like.shape)
    if like.dtype == bool:
        return rng.random(shape) < 0.1
    if np.issubdtype(like.dtype, np.integer):
        return rng.integers(0, 3, shape).astype(like.dtype)
    return rng.normal(size=shape).astype(like.dtype)


def named(name: str, tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {f"{name}{jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in leaves}


def whole(mesh, tree):
    """Gather what is split, by all processes together."""
    return jax.device_get(jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree))


def check_places(tree, places) -> None:
    for leaf, place in zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim), (leaf.sharding, place)


def updated(mesh, places, state) -> tuple:
    """Do an update, then all five in one call, which the second of these is the first of."""
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(partial(draw, rng), experience.example(DREAMER))
    rows = BATCH // jax.process_count()
    own = jax.tree.map(lambda x: x[:, jax.process_index() * rows :][:, :rows], drawn)
    batches = from_process_local(own, split(mesh, 1))
    assert jax.tree.leaves(batches)[0].shape[1] == BATCH
    jax.tree.map(np.testing.assert_array_equal, own_part(batches), own)
    learn = learning(mesh, places)
    one, learned = learn(DREAMER, jax.random.key(1), state, batches, np.int32(1))
    seen = own_part(learned)
    assert seen.latent.deter.shape[:2] == (UPDATES, rows)
    first = whole(mesh, (one, learned))
    five, learned = learn(DREAMER, jax.random.key(1), one, batches, np.int32(UPDATES))
    check_places(five, places)
    return five, {**named("one", first), **named("five", whole(mesh, (five, learned)))}


def seen_and_remembered(mesh) -> dict[str, np.ndarray]:
    """Do two updates of a small V, and two of a small M, whose second goes on where the streams were."""
    rng, found = np.random.default_rng(1), {}
    flag = lambda: rng.random((5, BATCH)) < 0.2  # noqa: E731
    half = lambda *shape: rng.normal(size=(5, BATCH, *shape)).astype(np.float16)  # noqa: E731
    chunk = lambda: (half(4), half(4), half(), half().astype(np.float32), flag(), flag(), flag())  # noqa: E731
    frames = [rng.integers(0, 256, (BATCH, 64, 64, 3), np.uint8) for _ in range(2)]
    chunks = [Chunk(*chunk(), np.array(number == 0)) for number in range(2)]
    optimizer = AdamConfig(1e-3, clip=1.0)
    vision, remembering = VisionLearner(VisionConfig(4), optimizer), MemoryLearner(SMALL, optimizer, BATCH)
    for learns, batches in ((vision, frames), (remembering, chunks)):
        begin, step = learner_over(mesh, learns)
        state = begin(worldmodels.init(learns, jax.random.key(4)))
        for batch in batches:
            state, metrics = step(jax.random.key(5), state, batch)
        if mesh.size > 1:
            assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))
            assert all(leaf.sharding.spec == split(mesh).spec for leaf in jax.tree.leaves(state.carry))
        found |= named(type(learns).__name__, gathered(mesh, (state, metrics)))
    return found


def dreaming() -> tuple[Agent, AgentParams]:
    """Make an agent that dreams in a small memory; without parameters of its policy."""
    observation, action = Space((64, 64, 3), np.uint8, 0, 256), Space((1,), np.float32, -1, 1)
    world = WorldModelConfig(
        VisionConfig(4),
        SMALL,
        controller.ControllerConfig(bias=False),
        step_reward=1.0,
    )
    agent = model.make(world, EnvSpec(observation, action, 20))
    key_memory, key_starts = jax.random.split(jax.random.key(0))
    dreamed = memory.init(world.memory, key_memory)
    starts = tuple(jax.random.normal(key_starts, (2, 5, 4)))
    return agent, AgentParams(WorldModelParams({}, dreamed), (), starts)


def evolved(mesh) -> dict[str, np.ndarray]:
    """Do two generations in dreams."""
    (agent, params), key = dreaming(), jax.random.key(6)
    cfg = EvolutionConfig(16, 0.5)
    state = init(cfg, agent.policy.init(jax.random.key(3)))
    found = {}
    for number in range(2):
        key, key_generation = jax.random.split(key)
        state, metrics = search.generation(cfg, agent, params, key_generation, state, 3, 1.2, mesh)
        found |= named(f"generation {number} ", (state.mean, state.sigma, state.covariance, metrics))
    return found


def planned(mesh) -> dict[str, np.ndarray]:
    """Plan at two steps."""
    agent, params = dreaming()
    planner = planning.Planner(agent.model, planning.icem(4, 16, 2, 4, dreams=2), mesh=mesh)
    plan, state, found = planning.start(planner), agent.model.start(params.model), {}
    for number in range(2):
        key = jax.random.key(number)
        plan, action = planning.search(planner, planning.PlannerParams(params.model), key, state, plan)
        found |= named(f"plan {number} ", (plan, action))
        plan = planning.advance(planner, plan)
    assert planning.search.__wrapped__._cache_size() == 1  # where the first leaves the plan, the second takes it
    return found


def main() -> None:
    folder, count, other, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
    if processes.COUNT in os.environ:
        processes.join()
    mesh = device_mesh("batch", None if count == "all" else int(count))
    begin = partial(jax.jit, learner.init, static_argnums=0)
    like = jax.eval_shape(partial(learner.init, DREAMER), jax.random.key(0))
    places = jax.tree.map(lambda _: replicated(mesh), like)
    if kind == "sharded":
        places = sharded(mesh, like, smallest=64)
    five, found = updated(mesh, places, begin(out_shardings=places)(DREAMER, jax.random.key(0)))
    Checkpoints(folder / "checkpoints").save(UPDATES, five)
    processes.meet("what is written")
    parts = [leaf.size // leaf.addressable_data(0).size for leaf in jax.tree.leaves(five)]
    assert set(parts) == ({1, mesh.size} if kind == "sharded" else {1})
    for written in (folder, Path(other)) if other != "none" else (folder,):
        step, again = Checkpoints(written / "checkpoints").restore(five)
        assert step == UPDATES
        check_places(again, places)
        for x, y in zip(jax.tree.leaves(whole(mesh, again)), jax.tree.leaves(whole(mesh, five)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    found |= seen_and_remembered(mesh) | evolved(mesh) | planned(mesh)
    if processes.leave():
        np.savez(folder / "numbers.npz", **found)


if __name__ == "__main__":
    main()
