"""World Models in turns: act, learn the world from what was seen, dream, act better. A swing-up from pixels.

Paper: Ha & Schmidhuber 2018, section 5 (iterative training procedure), whose videos show the dream after iterations 1
and 20; it gives no numbers and no code. An agent that acts at random never sees the pole stand, so that it cannot learn
what happens there: it has to go there, look, and learn again. Each iteration:

    collect   episodes of the real game, with the current C and noise; at random in the first
    learn     V from the frames and M from the latents of all episodes so far, M with reward, end and action
    evolve    C by CMA-ES in the dream of V and M
    evaluate  C in fresh episodes of the real game, M on episodes that begin upright and that no training saw

    python experiments/swingup_iterative.py --folder runs/swingup
    python experiments/swingup_iterative.py --folder runs/swingup-once --no-iterate      # acts at random throughout
    python experiments/swingup_iterative.py --preset smoke --folder runs/smoke           # minutes, to see that it runs

The game is written in JAX and so is all else: the whole experiment runs on one device. The command started again goes
on where it stopped. Every field of `Config` can be set.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from dreamjax import evolution, rollout
from dreamjax.envs.swingup import swingup
from dreamjax.evolution import EvolutionConfig, EvolutionState
from dreamjax.replay import latents
from dreamjax.replay.latents import Chunk, Latents, Recorded
from dreamjax.rollout import Transition
from dreamjax.run import plots
from dreamjax.run.agent import StoredAgent, save_agent
from dreamjax.run.atomic import replacing
from dreamjax.run.checkpoints import Checkpoints
from dreamjax.run.devices import keep_freed_memory
from dreamjax.run.encode import in_batches
from dreamjax.run.films import film_dream, write_films
from dreamjax.run.folder import RunFolder, result_row, shown_measurement, write_result
from dreamjax.run.metrics import MetricsLog, read_metrics
from dreamjax.run.summary import Section, write_summary
from dreamjax.run.train import train
from dreamjax.types import Action, Array, Key, Metrics, Params, Policy
from dreamjax.worldmodels import controller, learner, memory, model, search, vision
from dreamjax.worldmodels.controller import ControllerConfig
from dreamjax.worldmodels.learner import MemoryState, OptimizerConfig, VisionState
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.model import WorldModelConfig, WorldModelParams
from dreamjax.worldmodels.search import Dreaming
from dreamjax.worldmodels.vision import VisionConfig

GAME = swingup(observation="both")  # the agent sees the picture; the state is for us to look at
UPRIGHT = swingup(observation="both", upright=True)
WORLD = WorldModelConfig(
    vision=VisionConfig(latent_size=16),
    memory=MemoryConfig(latent_size=16, action_size=1, hidden_size=256, predict_reward=True, predict_action=True),
    sees="zh",  # c is many times larger than z and h, and drowns them in a search that begins with equal steps
    max_steps=GAME.spec.max_steps,
)
SEEN = model.make(WORLD)
MODEL = SEEN._replace(encode=lambda params, observation: SEEN.encode(params, observation["image"]))
POLICY = controller.make(ControllerConfig(features=model.feature_size(WORLD)))
STEPS = GAME.spec.max_steps
UPRIGHT_STEPS = 32  # of an episode that begins upright; random actions let the pole fall sooner
HELD_STEPS, HELD_REWARD = 50, 0.95  # at the end of an episode, and at least: within 26 degrees of upright
FPS = 20


@dataclass(frozen=True)
class Config:
    """Settings for two cores, the authors' own are not known."""

    preset: str = "cpu"
    seed: int = 0
    iterations: int = 20
    iterate: bool = True  # otherwise all episodes are random play, and everything else is the same
    # collect
    episodes: int = 32  # per iteration
    noise: float = 0.3  # standard deviation of what is added to the actions of C
    # learn, per iteration
    first_vision_updates: int = 1500  # in the first; V finds the pole after some 700
    vision_updates: int = 300
    vision_batch: int = 32
    vision_optimizer: OptimizerConfig = OptimizerConfig(1e-3, 2e-4, 0.999)
    memory_updates: int = 1000
    streams: int = 32
    length: int = 50  # inputs per chunk
    memory_optimizer: OptimizerConfig = OptimizerConfig(1e-3, 2e-4, 0.9997, clip=1.0)
    # evolve
    evolution: EvolutionConfig = EvolutionConfig(population_size=64, sigma=0.1)
    generations: int = 30  # per iteration, from the C of the one before
    dream_episodes: int = 8  # per individual
    temperature: float = 1.0
    # evaluate
    real_episodes: int = 64


CPU = Config()
SMOKE = replace(
    CPU,
    preset="smoke",
    iterations=2,
    episodes=2,
    first_vision_updates=3,
    vision_updates=2,
    vision_batch=4,
    memory_updates=2,
    streams=2,
    length=8,
    evolution=EvolutionConfig(population_size=8, sigma=0.1),
    generations=2,
    dream_episodes=1,
    real_episodes=2,
)
PRESETS = {config.preset: config for config in (SMOKE, CPU)}


def noisy(policy: Policy) -> Policy:
    """Add noise to a policy; its parameters are those of the policy and the deviation of the noise."""

    def act(params: tuple[Params, Array], key: Key, features: Array) -> Action:
        inner, deviation = params
        key_act, key_noise = jax.random.split(key)
        action = policy.act(inner, key_act, features)
        return jnp.clip(action + deviation * jax.random.normal(key_noise, action.shape), -1.0, 1.0)

    return Policy(policy.init, act)


RANDOM = Policy(lambda key: (), lambda params, key, features: jax.random.uniform(key, (), minval=-1.0))
NOISY = noisy(POLICY)


@partial(jax.jit, static_argnames=("upright", "policy", "lanes", "steps"))
def act(
    model_params: Params, policy: Policy, params: Params, key: Key, lanes: int, steps: int, upright: bool = False
) -> Transition:
    """Play on in the real game, some lanes at once. Shapes: -> [lanes, steps, ...]."""
    agent = rollout.agent(MODEL, model_params, policy)
    play = lambda key: rollout.unroll(UPRIGHT if upright else GAME, agent, params, key, steps)[1]  # noqa: E731
    return jax.vmap(play)(jax.random.split(key, lanes))


def collect(cfg: Config, path: Path, key: Key, params: Params, controller_params: Params, is_random: bool) -> None:
    """Record episodes, if that is not done."""
    if path.exists():
        return
    acting: tuple[Policy, Params] = (RANDOM, ()) if is_random else (NOISY, (controller_params, cfg.noise))
    recorded = latents.end_to_end(*jax.device_get(act(params, *acting, key, cfg.episodes, STEPS + 1)))
    with replacing(path) as temporary:
        np.savez(temporary, allow_pickle=False, **recorded.observation, **recorded._asdict() | {"observation": ()})


def read(path: Path) -> Recorded:
    """Read what `collect` wrote."""
    with np.load(path) as arrays:
        observation = {"image": arrays["image"], "state": arrays["state"]}
        return Recorded(observation, *(arrays[name] for name in Recorded._fields[1:]))


def encode(params: Params, recorded: list[Recorded]) -> Latents:
    """Let V see every frame."""
    see = partial(jax.jit(vision.encode, static_argnums=0), WORLD.vision, params)
    parts = [
        Latents(*in_batches(see, part.observation["image"]), part.action.astype(np.float16), *part[2:])
        for part in recorded
    ]
    return latents.concatenate(parts)


def frame_batches(recorded: list[Recorded], seed: int, size: int, step: int) -> Iterator[np.ndarray]:
    """Draw frames of all episodes so far, for update `step` and those after it."""
    frames = np.concatenate([part.observation["image"] for part in recorded])
    while True:
        yield frames[np.random.default_rng([seed, step]).integers(len(frames), size=size)]
        step += 1


def visited(recorded: list[Recorded]) -> float:
    """Say which part of all angles and spins has been seen: of 20 x 20 cells, with spins up to 15."""
    cos, sin, spin = np.concatenate([part.observation["state"] for part in recorded])[:, 2:].T
    cells = np.histogram2d(np.arctan2(sin, cos), spin, bins=20, range=[[-np.pi, np.pi], [-15, 15]])[0]
    return float((cells > 0).mean())


@partial(jax.jit, static_argnames="lanes")
def surprise(params: WorldModelParams, key: Key, lanes: int) -> Array:
    """What M did not expect of poles that fall from upright: nats per latent, above the entropy of V's own noise."""
    key_act, key_loss = jax.random.split(key)
    step, action = jax.tree.map(
        lambda leaf: jnp.swapaxes(leaf, 0, 1), act(params, RANDOM, (), key_act, lanes, UPRIGHT_STEPS, upright=True)
    )
    mean, log_variance = jax.lax.map(partial(vision.encode, WORLD.vision, params.vision), step.observation["image"])
    reward, done = (jnp.roll(leaf, -1, axis=0) for leaf in (step.reward, step.is_terminal))
    chunk = Chunk(mean, log_variance, action, reward, done, step.is_first, jnp.array(True))
    _, (_, metrics) = memory.loss(WORLD.memory, params.memory, key_loss, memory.start(WORLD.memory, (lanes,)), chunk)
    return metrics["nll"] - metrics["nll_floor"]


def evaluate(cfg: Config, key: Key, params: WorldModelParams, controller_params: Params) -> dict[str, Any]:
    """Score C in the real game, without noise, and M on what it must know to hold the pole up."""
    key_real, key_upright = jax.random.split(key)
    step = jax.device_get(act(params, POLICY, controller_params, key_real, cfg.real_episodes, STEPS + 1)).step
    is_over = np.cumsum(step.is_last, 1) - step.is_last > 0  # what a lane does after its first episode does not count
    held = (step.reward[:, -HELD_STEPS:] > HELD_REWARD).all(1) & ~is_over.any(1)
    return {
        "returns": (step.reward * ~is_over).sum(1).tolist(),
        "held": held.tolist(),
        "surprise": float(surprise(params, key_upright, cfg.real_episodes)),
    }


class Learned(NamedTuple):
    """What is carried from iteration to iteration, each with checkpoints of its name."""

    vision: VisionState
    memory: MemoryState
    search: EvolutionState


def begin(cfg: Config, key: Key) -> Learned:
    """Draw V and M; C is zero."""
    key_vision, key_memory, key_policy = jax.random.split(key, 3)
    return Learned(
        learner.vision_init(WORLD.vision, cfg.vision_optimizer, key_vision),
        learner.memory_init(WORLD.memory, cfg.memory_optimizer, key_memory, cfg.streams),
        evolution.init(cfg.evolution, POLICY.init(key_policy)),
    )


def resumed(run: RunFolder, learned: Learned) -> Learned:
    """Take up the newest state of everything."""
    newest = {}
    for name, state in learned._asdict().items():
        found = Checkpoints(run.path / "checkpoints" / name).restore(jax.eval_shape(lambda state=state: state))
        assert found is not None  # an iteration is done
        newest[name] = found[1]
    return Learned(**newest)


def iterate(cfg: Config, run: RunFolder, log: MetricsLog, key: Key, learned: Learned, number: int) -> Learned:
    """Do iteration `number`, or what is left of it. V and M learn on; CMA-ES begins anew, around the last C."""
    key_collect, key_vision, key_memory, key_evolve, key_evaluate, key_film = jax.random.split(key, 6)
    paths = [run.path / "episodes" / f"{i:02}.npz" for i in range(number + 1)]
    params = WorldModelParams(learned.vision.params, learned.memory.params)
    best = evolution.mean(cfg.evolution, learned.search)
    collect(cfg, paths[-1], key_collect, params, best, number == 0 or not cfg.iterate)
    recorded = [read(path) for path in paths]

    vision_step = partial(learner.vision_step, WORLD.vision, cfg.vision_optimizer, key_vision)
    frames = partial(frame_batches, recorded, cfg.seed, cfg.vision_batch)
    end = cfg.first_vision_updates + number * cfg.vision_updates
    vision_state = train(run, log, "vision", learned.vision, vision_step, frames, end)

    data = encode(vision_state.params, recorded)
    memory_step = partial(learner.memory_step, WORLD.memory, cfg.memory_optimizer, key_memory)
    first, end = (i * cfg.memory_updates for i in (number, number + 1))
    chunks = lambda step: latents.chunks(data, 1000 * cfg.seed + number, cfg.streams, cfg.length, step - first)  # noqa: E731
    memory_state = train(run, log, "memory", learned.memory, memory_step, chunks, end)

    params = WorldModelParams(vision_state.params, memory_state.params)
    starts = data.first_frames(len(data.length))

    dreaming = Dreaming(MODEL, POLICY, params, starts, cfg.temperature)

    def generation(state: EvolutionState, count: int) -> tuple[EvolutionState, Metrics]:
        if count % cfg.generations == 0:
            state = evolution.init(cfg.evolution, evolution.mean(cfg.evolution, state))
        return search.generation(
            cfg.evolution, dreaming, jax.random.fold_in(key_evolve, count), state, cfg.dream_episodes
        )

    end = (number + 1) * cfg.generations
    counts = lambda first: iter(range(first, end))  # noqa: E731
    found = train(
        run, log, "search", learned.search, generation, counts, end, checkpoint_every=cfg.generations, log_every=1
    )
    agent = StoredAgent(params, evolution.mean(cfg.evolution, found), starts)
    if number in (0, cfg.iterations - 1):
        save_agent(run.path / f"agent-{number + 1:02}.npz", agent)
        film(run.path, agent, key_film, number + 1)
    score = evaluate(cfg, key_evaluate, params, agent.controller) | {"visited": visited(recorded)}
    shown = {"real": np.mean(score["returns"]), "held": np.mean(score["held"])}
    log.write("iteration", number + 1, {**shown, "surprise": score["surprise"], "visited": score["visited"]})
    run.finish_stage(f"iteration-{number + 1:02}", score)
    return Learned(vision_state, memory_state, found)


def film(folder: Path, agent: StoredAgent, key: Key, number: int) -> None:
    """Film a dream, and beside it the real game, after an iteration."""
    key_dream, key_real = jax.random.split(key)
    dreamed = film_dream(MODEL, POLICY, agent, key_dream, STEPS, 1.0)
    real = act(agent.model, POLICY, agent.controller, key_real, 1, STEPS + 1).step.observation["image"][0]
    write_films(folder / f"iteration-{number:02}", dreamed, np.asarray(real), FPS)


def report(cfg: Config, run: RunFolder, arguments: list[str]) -> None:
    """Draw and summarise."""
    name = "iterated" if cfg.iterate else "not-iterated"
    last = run.stage_record(f"iteration-{cfg.iterations:02}")["summary"]
    rows = [
        result_row(name, np.array(last["returns"]), "return"),
        result_row(f"{name}, held upright at the end", np.array(last["held"], float), "of episodes"),
    ]
    metrics = read_metrics(run.path / "metrics.jsonl")
    plots.learning_curves({"iteration": metrics["iteration"]}, run.path / "iterations.png")
    plots.learning_curves({name: metrics[name] for name in ("vision", "memory", "search")}, run.path / "learning.png")
    command = " ".join(["python experiments/swingup_iterative.py", *arguments])
    wall = sum(record["seconds"] for record in run.stage_records())
    write_result(run.path / "result.json", "swingup_iterative", cfg.preset, command, [cfg.seed], wall, rows)
    films = [f"iteration-{number:02}/dream_and_real.mp4" for number in sorted({1, cfg.iterations})]
    sections = [
        Section("After the first iteration, and after the last", "Left the dream, right the real game.", films),
        Section("By iteration", media=["iterations.png"]),
        Section("Learning", media=["learning.png"]),
    ]
    for row in rows:
        print(f"{row['name']}: {shown_measurement(row)}, {row['n']} episodes")
    print(f"Open {write_summary(run, 'World Models in turns: swing up a pole', rows, sections)}")


def train_agent(cfg: Config, run: RunFolder) -> None:
    """Do all iterations."""
    key_begin, key_iterations = jax.random.split(jax.random.key(cfg.seed))
    learned = begin(cfg, key_begin)
    with MetricsLog(run.path) as log:
        done = [run.stage_done(f"iteration-{number + 1:02}") for number in range(cfg.iterations)]
        if any(done):
            learned = resumed(run, learned)
        for number in range(sum(done), cfg.iterations):
            learned = iterate(cfg, run, log, jax.random.fold_in(key_iterations, number), learned, number)


@dataclass(frozen=True)
class Arguments:
    """What to do."""

    preset: Literal["smoke", "cpu"] = "cpu"
    folder: Path | None = None  # of the run; runs/swingup/<preset>-<seed> if not given


def main(arguments: list[str]) -> None:
    """Read the command line; what is not in `Arguments` belongs to `Config`."""
    keep_freed_memory()
    args, rest = tyro.cli(Arguments, args=arguments, return_unknown_args=True)
    cfg = tyro.cli(Config, args=rest, default=PRESETS[args.preset])
    folder = args.folder or Path("runs") / "swingup" / f"{cfg.preset}-{cfg.seed}{'' if cfg.iterate else '-once'}"
    run = RunFolder(folder, cfg)
    train_agent(cfg, run)
    report(cfg, run, ["--preset", args.preset, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
