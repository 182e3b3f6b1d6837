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
    python experiments/swingup_iterative.py --folder runs/swingup-curious --curiosity 1  # what surprises M is a reward
    python experiments/swingup_iterative.py --folder runs/swingup-rnn --units 8          # C is a recurrent network
    python experiments/swingup_iterative.py --preset smoke --folder runs/smoke           # minutes, to see that it runs

    python experiments/swingup_iterative.py --gather runs/seed-0 runs/seed-1             # one result of several runs

The game is written in JAX and so is all else: the whole experiment runs on one device. The command started again goes
on where it stopped. Every field of `Config` can be set. What the committed runs measured: results/swingup_iterative.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from dreamjax import dream, evolution, rollout
from dreamjax.envs.swingup import swingup
from dreamjax.evolution import EvolutionConfig, EvolutionState
from dreamjax.replay import latents
from dreamjax.replay.latents import Latents, Recorded
from dreamjax.reporting import curves, pages
from dreamjax.reporting.aggregate import gather_repeats
from dreamjax.reporting.films import film_dream, write_films
from dreamjax.reporting.pages import Section
from dreamjax.reporting.results import result_row, shown_measurement
from dreamjax.rollout import Transition
from dreamjax.storage.agents import StoredAgent, save_agent
from dreamjax.storage.atomic import replacing
from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog, read_metrics
from dreamjax.training.devices import keep_freed_memory
from dreamjax.training.encode import in_batches
from dreamjax.training.loop import train
from dreamjax.training.stages import search_stage
from dreamjax.types import AnyPolicy, Array, Key, Metrics, Params
from dreamjax.worldmodels import controller, curiosity, learner, model, search, vision
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
MODEL = model.make(WORLD)
SEEING = MODEL._replace(encode=lambda params, observation: MODEL.encode(params, observation["image"]))
STEPS = GAME.spec.max_steps
UPRIGHT_STEPS = 32  # of an episode that begins upright; random actions let the pole fall sooner
UPRIGHT_COS = 0.9  # within 26 degrees
HELD_STEPS, HELD_REWARD = 50, 0.95  # at the end of an episode, and at least: within 26 degrees of upright
FPS = 20
RANDOM = rollout.random_policy(GAME.spec.action)


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
    curiosity: float = 0.0  # reward, in the dream, for each nat per latent that M did not expect
    # evolve
    units: int = 0  # of C, which is then recurrent; linear without
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


@lru_cache  # programs are compiled for a policy by its identity
def policy_of(units: int) -> AnyPolicy:
    """Build C."""
    return controller.make(ControllerConfig("doom", model.feature_size(WORLD), units, recurrent=units > 0))


@lru_cache
def explorer_of(units: int) -> AnyPolicy:
    """Build C with noise."""
    return rollout.noisy(policy_of(units), GAME.spec.action)


@partial(jax.jit, static_argnames=("upright", "policy", "lanes", "steps"))
def act(
    model_params: Params, policy: AnyPolicy, params: Params, key: Key, lanes: int, steps: int, upright: bool = False
) -> Transition:
    """Play on in the real game, some lanes at once. Shapes: -> [lanes, steps, ...]."""
    agent = rollout.agent(SEEING, model_params, policy)
    play = lambda key: rollout.unroll(UPRIGHT if upright else GAME, agent, params, key, steps)[1]  # noqa: E731
    return jax.vmap(play)(jax.random.split(key, lanes))


def collect(cfg: Config, path: Path, key: Key, params: Params, controller_params: Params, is_random: bool) -> None:
    """Record episodes, if that is not done."""
    if path.exists():
        return
    acting = (RANDOM, ()) if is_random else (explorer_of(cfg.units), (controller_params, cfg.noise))
    recorded = latents.end_to_end(*jax.device_get(act(params, *acting, key, cfg.episodes, STEPS + 1)))
    with replacing(path) as temporary:
        np.savez(temporary, allow_pickle=False, **recorded.observation, **recorded._asdict() | {"observation": ()})


def read(path: Path) -> Recorded:
    """Read what `collect` wrote."""
    with np.load(path) as arrays:
        if "is_terminal" not in arrays:
            raise ValueError(f"{path} was recorded by an older version of dreamjax: begin a new folder")
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
    """Say which part of the states has been seen: of 8 x 8 x 16 x 16 cells; many of them nobody can reach."""
    position, velocity, cos, sin, spin = np.concatenate([part.observation["state"] for part in recorded]).T
    sides = ((position, 2.4, 8), (velocity, 6, 8), (np.arctan2(sin, cos), np.pi, 16), (spin, 15, 16))
    index = [np.clip((x / limit + 1) / 2 * n, 0, n - 1).astype(int) for x, limit, n in sides]
    counts = tuple(n for _, _, n in sides)
    return len(np.unique(np.ravel_multi_index(index, counts))) / np.prod(counts)


@partial(jax.jit, static_argnames="lanes")
def upright_error(params: WorldModelParams, key: Key, lanes: int) -> Array:
    """How far the next frame is from what M expects, where the pole stands: squared, summed over the frame.

    Twice the negative log likelihood of a Gaussian of deviation 1 around the expected frame, up to a constant; M's
    own, of latents, means something else after every iteration, because V goes on learning. No training sees these
    episodes, which begin upright and in which the pole then falls.
    """
    key_act, key_observe, key_imagine = jax.random.split(key, 3)
    played = act(params, RANDOM, (), key_act, lanes, UPRIGHT_STEPS, upright=True)

    def expect(key_observe: Key, key_imagine: Key, recorded: Transition) -> Array:
        begin = rollout.agent(SEEING, params, RANDOM).start(())
        states = dream.open_loop(SEEING, params, key_observe, begin, recorded, UPRIGHT_STEPS)
        imagine = partial(MODEL.imagine, params, temperature=0.01)  # the most likely
        following = jax.vmap(imagine)(jax.random.split(key_imagine, UPRIGHT_STEPS), states, recorded.action)
        return jax.vmap(partial(MODEL.decode, params))(following)[:-1]

    keys = jax.random.split(key_observe, lanes), jax.random.split(key_imagine, lanes)
    expected = jax.lax.map(lambda data: expect(*data), (*keys, played))
    truth = played.step.observation["image"][:, 1:]
    error = jnp.square((truth.astype(jnp.float32) - expected.astype(jnp.float32)) / 255).sum((2, 3, 4))
    stands = (played.step.observation["state"][:, 1:, 2] > UPRIGHT_COS) & ~played.step.is_first[:, 1:]
    return (error * stands).sum() / stands.sum()


def evaluate(cfg: Config, key: Key, params: WorldModelParams, controller_params: Params) -> dict[str, Any]:
    """Score C in the real game, without noise, and M on what it must know to hold the pole up."""
    key_real, key_upright = jax.random.split(key)
    step = jax.device_get(
        act(params, policy_of(cfg.units), controller_params, key_real, cfg.real_episodes, STEPS + 1)
    ).step
    is_over = np.cumsum(step.is_last, 1) - step.is_last > 0  # what a lane does after its first episode does not count
    held = (step.reward[:, -HELD_STEPS:] > HELD_REWARD).all(1) & ~is_over.any(1)
    return {
        "returns": (step.reward * ~is_over).sum(1).tolist(),
        "held": held.tolist(),
        "upright_error": float(upright_error(params, key_upright, cfg.real_episodes)),
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
        evolution.init(cfg.evolution, policy_of(cfg.units).init(key_policy)),
    )


def resumed(run: RunFolder, learned: Learned) -> Learned:
    """Take up the newest state of everything."""
    newest = {}
    for name, state in learned._asdict().items():
        found = Checkpoints(run.path / "checkpoints" / name).restore(jax.eval_shape(lambda state=state: state))
        assert found is not None  # an iteration is done
        newest[name] = found[1]
    return Learned(**newest)


def curious(cfg: Config, path: Path, key: Key, params: Params, data: Latents) -> Latents:
    """Add to the rewards what M, as it was before it learned from the newest episodes, did not expect."""
    if not path.exists():
        with replacing(path) as temporary:
            np.save(temporary, curiosity.intrinsic_reward(WORLD.memory, params, key, data))
    return data._replace(reward=data.reward + cfg.curiosity * np.load(path))


def iterate(cfg: Config, run: RunFolder, log: MetricsLog, key: Key, learned: Learned, number: int) -> Learned:
    """Do iteration `number`, or what is left of it. V and M learn on; CMA-ES begins anew, around the last C."""
    key_collect, key_vision, key_memory, key_evolve, key_evaluate, key_film, key_curious = jax.random.split(key, 7)
    paths = [run.path / "episodes" / f"{i:02}.npz" for i in range(number + 1)]
    params = WorldModelParams(learned.vision.params, learned.memory.params)
    best = evolution.mean(cfg.evolution, learned.search)
    with run.stage("collect"):
        collect(cfg, paths[-1], key_collect, params, best, number == 0 or not cfg.iterate)
        recorded = [read(path) for path in paths]

    vision_step = partial(learner.vision_step, WORLD.vision, cfg.vision_optimizer, key_vision)
    frames = partial(frame_batches, recorded, cfg.seed, cfg.vision_batch)
    end = cfg.first_vision_updates + number * cfg.vision_updates
    vision_state = train(run, log, "vision", learned.vision, vision_step, frames, end)

    with run.stage("encode"):
        data = encode(vision_state.params, recorded)
        if cfg.curiosity and number:  # an M that has learned nothing is surprised by everything
            data = curious(cfg, run.path / "surprise" / f"{number:02}.npy", key_curious, params.memory, data)
    memory_step = partial(learner.memory_step, WORLD.memory, cfg.memory_optimizer, key_memory)
    first, end = (i * cfg.memory_updates for i in (number, number + 1))
    chunks = lambda step: latents.chunks(data, 1000 * cfg.seed + number, cfg.streams, cfg.length, step - first)  # noqa: E731
    memory_state = train(run, log, "memory", learned.memory, memory_step, chunks, end)

    params = WorldModelParams(vision_state.params, memory_state.params)
    starts = data.first_frames(len(data.length))

    dreaming = Dreaming(MODEL, policy_of(cfg.units), params, starts, cfg.temperature)

    def generation(state: EvolutionState, count: int) -> tuple[EvolutionState, Metrics]:
        if count % cfg.generations == 0:
            state = evolution.init(cfg.evolution, evolution.mean(cfg.evolution, state))
        return search.generation(
            cfg.evolution, dreaming, jax.random.fold_in(key_evolve, count), state, cfg.dream_episodes
        )

    end = (number + 1) * cfg.generations
    found = search_stage(run, log, "search", learned.search, generation, end, cfg.generations)
    agent = StoredAgent(params, evolution.mean(cfg.evolution, found), starts)
    with run.stage("evaluate"):
        if number in (0, cfg.iterations - 1):
            save_agent(run.path / f"agent-{number + 1:02}.npz", agent)
            film(cfg, run.path, agent, key_film, number + 1)
        score = evaluate(cfg, key_evaluate, params, agent.controller) | {"visited": visited(recorded)}
    shown = {"real": np.mean(score["returns"]), "held": np.mean(score["held"])}
    shown |= {name: score[name] for name in ("upright_error", "visited")}
    log.write("iteration", number + 1, shown)
    run.finish_stage(f"iteration-{number + 1:02}", score)
    return Learned(vision_state, memory_state, found)


def film(cfg: Config, folder: Path, agent: StoredAgent, key: Key, number: int) -> None:
    """Film a dream, and beside it the real game, after an iteration."""
    policy, (key_dream, key_real) = policy_of(cfg.units), jax.random.split(key)
    dreamed = film_dream(MODEL, policy, agent, key_dream, STEPS, 1.0)
    real = act(agent.model, policy, agent.controller, key_real, 1, STEPS + 1).step.observation["image"][0]
    write_films(folder / f"iteration-{number:02}", dreamed, np.asarray(real), FPS)


def report(cfg: Config, run: RunFolder, arguments: list[str]) -> None:
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
    command = " ".join(["python experiments/swingup_iterative.py", *arguments])
    films = [f"iteration-{number:02}/dream_and_real.mp4" for number in sorted({1, cfg.iterations})]
    sections = [
        Section("After the first iteration, and after the last", "Left the dream, right the real game.", films),
        Section("By iteration", media=["iterations.png"]),
        Section("Learning", media=["learning.png"]),
    ]
    pages.report(run, "swingup_iterative", command, rows, "World Models in turns: swing up a pole", sections)


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
    gather: tuple[Path, ...] = ()  # folders of runs that are done, to put together with those in `into`
    into: Path = Path("experiments/results/swingup_iterative")


def main(arguments: list[str]) -> None:
    """Read the command line; what is not in `Arguments` belongs to `Config`."""
    keep_freed_memory()
    args, rest = tyro.cli(Arguments, args=arguments, return_unknown_args=True)
    if args.gather and rest:
        raise SystemExit(f"runs are gathered as they are, {' '.join(rest)} does not fit --gather")
    if args.gather:
        for row in gather_repeats(args.into, "swingup_iterative", "iteration", args.gather):
            print(f"{row['name']}: {shown_measurement(row)}, {row['n']} runs")
        return
    cfg = tyro.cli(Config, args=rest, default=PRESETS[args.preset])
    folder = args.folder or Path("runs") / "swingup" / f"{cfg.preset}-{cfg.seed}{'' if cfg.iterate else '-once'}"
    run = RunFolder(folder, cfg)
    train_agent(cfg, run)
    report(cfg, run, ["--preset", args.preset, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
