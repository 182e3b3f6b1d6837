"""World Models iteratively: act, learn the world from what was seen, dream, act better. A swing-up from pixels.

Paper: Ha & Schmidhuber 2018, section 5 (iterative training procedure), whose videos show the dream after iterations 1
and 20; it gives no numbers and no code. An agent that acts at random never sees the pole stand, so that it cannot learn
what happens there: it has to go there, look, and learn again. Each iteration:

    collect   episodes of the real game, with the current C and noise; at random in the first
    learn     V from the frames and M from the latents of all episodes so far, M with reward, end and action
    evolve    C by CMA-ES in the dream of V and M
    evaluate  C in fresh episodes of the real game, M on episodes that begin upright and that no training saw

    python experiments/swingup_iterative.py --folder runs/swingup
    python experiments/swingup_iterative.py --folder runs/swingup-once --no-iterate      # acts at random throughout
    python experiments/swingup_iterative.py --folder runs/swingup-curious --curiosity 1  # what surprises M is a reward
    python experiments/swingup_iterative.py --folder runs/swingup-rnn --units 8          # C is a recurrent network
    python experiments/swingup_iterative.py --preset smoke --folder runs/smoke           # minutes, to see that it runs
    python experiments/swingup_iterative.py --aggregate runs/seed-0 runs/seed-1          # one result of several runs

The game is written in JAX and so is all else: the whole experiment runs on one device. The command started again goes
on where it stopped. Every field of `Config` can be set. What the committed runs measured: results/swingup_iterative.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import dream, evolution, rollout
from dreamjax.envs.swingup import swingup
from dreamjax.evolution import EvolutionConfig, EvolutionState
from dreamjax.optim import AdamConfig
from dreamjax.replay import latents
from dreamjax.replay.latents import Latents, Recorded
from dreamjax.reporting import curves, pages
from dreamjax.reporting.aggregate import aggregate_repeats
from dreamjax.reporting.films import film_dream, write_films
from dreamjax.reporting.pages import Section
from dreamjax.reporting.results import result_row, shown_measurement
from dreamjax.rollout import Transition
from dreamjax.storage.agents import save_agent
from dreamjax.storage.atomic import replacing
from dreamjax.storage.checkpoints import newest
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog, read_metrics
from dreamjax.training.encode import in_batches
from dreamjax.training.experiment import command, read_command_line, run_folder
from dreamjax.training.loop import generations, train, updates
from dreamjax.types import Agent, AgentParams, Array, Key, Metrics, Params
from dreamjax.worldmodels import curiosity, learner, model, search, vision
from dreamjax.worldmodels.controller import ControllerConfig
from dreamjax.worldmodels.learner import MemoryLearner, TrainState, VisionLearner
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.model import WorldModelConfig, WorldModelParams
from dreamjax.worldmodels.vision import VisionConfig

NAME = "swingup_iterative"
GAME = swingup(observation="both")  # the agent sees the picture; the state is for us to look at
UPRIGHT = swingup(observation="both", upright=True)
STEPS, FPS = GAME.spec.max_steps, 20
UPRIGHT_STEPS, UPRIGHT_COS = 32, 0.9  # of an episode that begins upright; within 26 degrees
HELD_STEPS, HELD_REWARD = 50, 0.95  # at the end of an episode, and at least: within 26 degrees of upright
WORLD = WorldModelConfig(
    vision=VisionConfig(latent_size=16),
    memory=MemoryConfig(latent_size=16, action_size=1, hidden_size=256, predict_reward=True, predict_action=True),
    controller=ControllerConfig(bias=False),
    features="zh",  # c is many times larger than z and h, and drowns them in a search that begins with equal steps
)


@dataclass(frozen=True)
class Config:
    """Settings for two cores, the authors' own are not known."""

    preset: str = "cpu"
    seed: int = 0
    iterations: int = 20
    iterate: bool = True  # otherwise all episodes are random play, and everything else is the same
    episodes: int = 32  # collected per iteration
    noise: float = 0.3  # standard deviation of what is added to the actions of C
    first_vision_updates: int = 1500  # in the first; V finds the pole after some 700
    vision_updates: int = 300  # per iteration
    vision_batch: int = 32
    vision_optimizer: AdamConfig = AdamConfig(1e-3, 2e-4, 0.999)
    memory_updates: int = 1000  # per iteration
    streams: int = 32
    length: int = 50  # inputs per chunk
    memory_optimizer: AdamConfig = AdamConfig(1e-3, 2e-4, 0.9997, clip=1.0)
    curiosity: float = 0.0  # reward, in the dream, for each nat per latent that M did not expect
    units: int = 0  # of C, which is then recurrent; linear without
    evolution: EvolutionConfig = EvolutionConfig(population_size=64, sigma=0.1)
    generations: int = 30  # per iteration, from the C of the one before
    dream_episodes: int = 8  # per individual
    temperature: float = 1.0
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
PRESETS = {config.preset: config for config in (CPU, SMOKE)}


def make_agent(cfg: Config) -> Agent:
    """Build V, M and C, once; programs are compiled for them by identity."""
    hidden = ControllerConfig(hidden=cfg.units, recurrent=True, bias=False)
    return model.make(replace(WORLD, controller=hidden) if cfg.units else WORLD, GAME.spec)


@partial(jax.jit, static_argnames=("agent", "episodes", "steps", "upright"))
def act(
    agent: Agent, params: AgentParams, key: Key, episodes: int, steps: int = STEPS + 1, upright: bool = False
) -> Transition:
    """Play some episodes of the real game at once. Shapes: -> [episodes, steps, ...]."""
    policy, game = rollout.step_policy(agent, params.model), UPRIGHT if upright else GAME
    play = lambda key: rollout.unroll(game, policy, params.policy, key, steps)[1]  # noqa: E731
    return jax.vmap(play)(jax.random.split(key, episodes))


def collect(cfg: Config, path: Path, key: Key, agent: Agent, params: AgentParams, is_random: bool) -> None:
    """Record episodes, if that is not done."""
    if path.exists():
        return
    explorer = agent._replace(policy=rollout.noisy(agent.policy, GAME.spec.action))
    acting = rollout.random_agent(GAME.spec), AgentParams((), ())
    if not is_random:
        acting = explorer, params._replace(policy=(params.policy, cfg.noise))
    recorded = latents.end_to_end(*jax.device_get(act(*acting, key, cfg.episodes)))
    with replacing(path) as temporary:
        np.savez(temporary, allow_pickle=False, **recorded.observation, **recorded._asdict() | {"observation": ()})


def read(path: Path) -> Recorded:
    """Read what `collect` wrote."""
    with np.load(path) as arrays:
        if "is_terminal" not in arrays:
            raise ValueError(f"{path} was recorded by an older version of dreamjax: begin a new folder")
        observation = {"image": arrays["image"], "state": arrays["state"]}
        return Recorded(observation, *(arrays[name] for name in Recorded._fields[1:]))


def frame_batches(recorded: list[Recorded], seed: int, size: int, step: int) -> Iterator[np.ndarray]:
    """Draw frames of all episodes so far, for update `step` and those after it."""
    frames = np.concatenate([part.observation["image"] for part in recorded])
    while True:
        yield frames[np.random.default_rng([seed, step]).integers(len(frames), size=size)]
        step += 1


def encode(params: Params, recorded: list[Recorded]) -> Latents:
    """Let V see every frame."""
    see = partial(jax.jit(vision.encode, static_argnums=0), WORLD.vision, params)
    return latents.concatenate(
        [
            Latents(*in_batches(see, part.observation["image"]), part.action.astype(np.float16), *part[2:])
            for part in recorded
        ]
    )


def visited(recorded: list[Recorded]) -> float:
    """Say which share of the states has been seen: of 8 x 8 x 16 x 16 cells; many of them nobody can reach."""
    position, velocity, cos, sin, spin = np.concatenate([part.observation["state"] for part in recorded]).T
    sides = ((position, 2.4, 8), (velocity, 6, 8), (np.arctan2(sin, cos), np.pi, 16), (spin, 15, 16))
    index = [np.clip((x / limit + 1) / 2 * n, 0, n - 1).astype(int) for x, limit, n in sides]
    counts = tuple(n for _, _, n in sides)
    return len(np.unique(np.ravel_multi_index(index, counts))) / np.prod(counts)


@partial(jax.jit, static_argnames=("agent", "episodes"))
def upright_error(agent: Agent, params: AgentParams, key: Key, episodes: int) -> Array:
    """How far the next frame is from what M expects, where the pole stands: squared, summed over the frame.

    Twice the negative log likelihood of a Gaussian of deviation 1 around the expected frame, up to a constant; M's
    own, of latents, means something else after every iteration, because V goes on learning. No training sees these
    episodes, which begin upright and in which the pole then falls: random actions let it fall sooner.
    """
    key_act, key_observe, key_imagine = jax.random.split(key, 3)
    random = AgentParams((), ())
    played = act(rollout.random_agent(GAME.spec), random, key_act, episodes, UPRIGHT_STEPS, upright=True)
    world, seen = agent.model, params.model

    def expect(key_observe: Key, key_imagine: Key, recorded: Transition) -> Array:
        begin = rollout.start(agent, params)
        states = dream.open_loop(world, seen, key_observe, begin, recorded, UPRIGHT_STEPS)
        imagine = partial(world.imagine, seen, temperature=0.01)  # the most likely
        following = jax.vmap(imagine)(jax.random.split(key_imagine, UPRIGHT_STEPS), states, recorded.action)
        return jax.vmap(partial(world.decode, seen))(following)[:-1]

    keys = jax.random.split(key_observe, episodes), jax.random.split(key_imagine, episodes)
    expected = jax.lax.map(lambda data: expect(*data), (*keys, played))
    truth = played.step.observation["image"][:, 1:]
    error = jnp.square((truth.astype(jnp.float32) - expected.astype(jnp.float32)) / 255).sum((2, 3, 4))
    stands = (played.step.observation["state"][:, 1:, 2] > UPRIGHT_COS) & ~played.step.is_first[:, 1:]
    return (error * stands).sum() / stands.sum()


def evaluate(cfg: Config, key: Key, agent: Agent, params: AgentParams) -> dict[str, Any]:
    """Score C in the real game, without noise, and M on what it must know to hold the pole up."""
    key_real, key_upright = jax.random.split(key)
    step = jax.device_get(act(agent, params, key_real, cfg.real_episodes)).step
    is_over = np.cumsum(step.is_last, 1) - step.is_last > 0  # what comes after the first episode does not count
    held = (step.reward[:, -HELD_STEPS:] > HELD_REWARD).all(1) & ~is_over.any(1)
    error = upright_error(agent, params, key_upright, cfg.real_episodes)
    return {"returns": (step.reward * ~is_over).sum(1).tolist(), "held": held.tolist(), "upright_error": float(error)}


class Learned(NamedTuple):
    """What is carried from iteration to iteration, each with checkpoints of its name."""

    vision: TrainState
    memory: TrainState
    search: EvolutionState


def iterate(
    cfg: Config, run: RunFolder, log: MetricsLog, key: Key, agent: Agent, learned: Learned, number: int
) -> Learned:
    """Do iteration `number`, or what is left of it. V and M learn on; CMA-ES begins anew, around the last C."""
    key_collect, key_vision, key_memory, key_evolve, key_evaluate, key_film, key_curious = jax.random.split(key, 7)
    paths = [run.path / "episodes" / f"{i:02}.npz" for i in range(number + 1)]
    before = WorldModelParams(learned.vision.params, learned.memory.params)
    with run.stage("collect"):
        is_random = number == 0 or not cfg.iterate
        collect(cfg, paths[-1], key_collect, agent, AgentParams(before, learned.search.mean), is_random)
        recorded = [read(path) for path in paths]

    see = partial(learner.train_step, VisionLearner(WORLD.vision, cfg.vision_optimizer), key_vision)
    frames = updates(see, partial(frame_batches, recorded, cfg.seed, cfg.vision_batch))
    end = cfg.first_vision_updates + number * cfg.vision_updates
    vision_state = train(run, log, "vision", learned.vision, frames, end)

    with run.stage("encode"):
        data = encode(vision_state.params, recorded)
        if cfg.curiosity and number:  # an M that has learned nothing is surprised by everything
            surprise = run.path / "surprise" / f"{number:02}.npy"
            if not surprise.exists():  # of M as it was before it learned from the newest episodes
                with replacing(surprise) as temporary:
                    np.save(temporary, curiosity.intrinsic_reward(WORLD.memory, before.memory, key_curious, data))
            data = data._replace(reward=data.reward + cfg.curiosity * np.load(surprise))
    remember = partial(learner.train_step, MemoryLearner(WORLD.memory, cfg.memory_optimizer, cfg.streams), key_memory)
    first, end = (i * cfg.memory_updates for i in (number, number + 1))
    chunks = lambda step: latents.chunks(data, 1000 * cfg.seed + number, cfg.streams, cfg.length, step - first)  # noqa: E731
    memory_state = train(run, log, "memory", learned.memory, updates(remember, chunks), end)

    starts = data.first_frames(len(data.length))
    params = AgentParams(WorldModelParams(vision_state.params, memory_state.params), (), starts)

    def generation(state: EvolutionState, count: int) -> tuple[EvolutionState, Metrics]:
        if count % cfg.generations == 0:
            state = evolution.init(cfg.evolution, state.mean)
        key = jax.random.fold_in(key_evolve, count)
        return search.generation(cfg.evolution, agent, params, key, state, cfg.dream_episodes, cfg.temperature)

    end = (number + 1) * cfg.generations
    every = {"checkpoint_every": cfg.generations, "log_every": 1}
    found = train(run, log, "search", learned.search, generations(generation), end, show="fitness_mean", **every)
    params = params._replace(policy=found.mean)
    with run.stage("evaluate"):
        if number in (0, cfg.iterations - 1):
            save_agent(run.path / f"agent-{number + 1:02}.npz", WORLD, agent, params)
            film(run.path / f"iteration-{number + 1:02}", agent, params, key_film)
        score = evaluate(cfg, key_evaluate, agent, params) | {"visited": visited(recorded)}
    shown = {name: np.mean(score[name]) for name in ("returns", "held", "upright_error", "visited")}
    log.write("iteration", number + 1, shown)
    run.finish_stage(f"iteration-{number + 1:02}", score)
    return Learned(vision_state, memory_state, found)


def film(folder: Path, agent: Agent, params: AgentParams, key: Key) -> None:
    """Film a dream, and beside it the real game."""
    key_dream, key_real = jax.random.split(key)
    real = act(agent, params, key_real, 1).step.observation["image"][0]
    write_films(folder, film_dream(agent, params, key_dream, STEPS, 1.0), np.asarray(real), FPS)


def train_agent(cfg: Config, run: RunFolder) -> None:
    """Do all iterations."""
    key_begin, key_iterations = jax.random.split(jax.random.key(cfg.seed))
    key_vision, key_memory, key_policy = jax.random.split(key_begin, 3)
    agent = make_agent(cfg)
    learned = Learned(
        learner.init(VisionLearner(WORLD.vision, cfg.vision_optimizer), key_vision),
        learner.init(MemoryLearner(WORLD.memory, cfg.memory_optimizer, cfg.streams), key_memory),
        evolution.init(cfg.evolution, agent.policy.init(key_policy)),
    )
    done = sum(run.stage_done(f"iteration-{number + 1:02}") for number in range(cfg.iterations))
    if done:
        folder = run.path / "checkpoints"
        learned = Learned(*(newest(folder / name, state) for name, state in learned._asdict().items()))
    with MetricsLog(run.path) as log:
        for number in range(done, cfg.iterations):
            learned = iterate(cfg, run, log, jax.random.fold_in(key_iterations, number), agent, learned, number)


def report(cfg: Config, run: RunFolder) -> None:
    """Draw and summarise."""
    name = "iterated" if cfg.iterate else "not-iterated"
    name += f", curious {cfg.curiosity:g}" * (cfg.curiosity > 0) + f", {cfg.units} recurrent units" * (cfg.units > 0)
    last = run.stage_record(f"iteration-{cfg.iterations:02}")["summary"]
    rows = [
        result_row(name, np.array(last["returns"]), "return"),
        result_row(f"{name}, held upright at the end", np.array(last["held"], float), "of episodes"),
    ]
    metrics = read_metrics(run.path / "metrics.jsonl")
    curves.learning_curves({"iteration": metrics["iteration"]}, run.path / "iterations.png")
    curves.learning_curves({name: metrics[name] for name in ("vision", "memory", "search")}, run.path / "learning.png")
    films = [f"iteration-{number:02}/dream_and_real.mp4" for number in sorted({1, cfg.iterations})]
    sections = [
        Section("After the first iteration, and after the last", "Left the dream, right the real game.", films),
        Section("By iteration", media=["iterations.png"]),
        Section("Learning", media=["learning.png"]),
    ]
    pages.report(run, NAME, command(NAME, cfg, PRESETS), rows, "World Models iteratively: swing up a pole", sections)


def main() -> None:
    """Train and report, or aggregate runs that are done."""
    cfg, options = read_command_line(NAME, __doc__, PRESETS)
    if options.aggregate:
        into = options.into or Path("experiments/results") / NAME
        for row in aggregate_repeats(into, NAME, "iteration", options.aggregate):
            print(f"{row['name']}: {shown_measurement(row)}, {row['n']} runs")
        return
    run = run_folder(NAME, cfg, options, "" if cfg.iterate else "once")
    train_agent(cfg, run)
    report(cfg, run)


if __name__ == "__main__":
    main()
