"""World Models iteratively: act, learn the world from what was seen, dream, act better. A swing-up from pixels.

Paper: Ha & Schmidhuber 2018, section 5 (iterative training procedure), whose videos show the dream after iterations 1
and 20; it gives no numbers and no code. An agent that acts at random never sees the pole stand, so it cannot learn
what happens there: it has to go there, look, and learn again. Each iteration:

    collect   episodes of the real environment, with the current C and noise; at random in the first
    learn     V from the frames and M from the latents of all episodes so far, M with reward, end and action
    evolve    C by CMA-ES in the dream of V and M
    evaluate  C in new episodes of the real environment, M on ones that begin upright and that no training saw

    python experiments/swingup_iterative.py --folder runs/swingup
    python experiments/swingup_iterative.py --folder runs/swingup-once --no-iterate      # acts at random throughout
    python experiments/swingup_iterative.py --folder runs/swingup-curious --curiosity 1  # what surprises M is a reward
    python experiments/swingup_iterative.py --folder runs/swingup-rnn --units 8          # C is a recurrent network
    python experiments/swingup_iterative.py --aggregate runs/seed-0 runs/seed-1          # one result of several runs

What learns and dreams runs on all devices. The command started again resumes. Measured: results/swingup_iterative.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import evolution, rollout, worldmodels as wm
from dreamjax.envs import swingup
from dreamjax.evolution import EvolutionConfig
from dreamjax.optim import AdamConfig
from dreamjax.replay import latents
from dreamjax.reporting import Section, aggregate, curves, films, pages, result_row, show_rows
from dreamjax.storage import Change, MetricsLog, RunFolder, load, newest, read_metrics, save_agent
from dreamjax.training import recorded
from dreamjax.training.devices import splitting_mesh
from dreamjax.training.experiment import Aggregating, command, exit_on_bad_input, read_command_line, run_folder
from dreamjax.training.iterative import IterativeConfig, evolve_again, iterations_done
from dreamjax.training.learning import learn_on_devices
from dreamjax.trust import TrustConfig, one_step_error, promise, trust_section
from dreamjax.types import Agent, AgentParams, Key, PyTree
from dreamjax.worldmodels import curiosity, learner, vision

NAME, RESULTS = "swingup_iterative", Path(__file__).parent / "results" / "swingup_iterative"
ENVIRONMENT = swingup.swingup(observation="both")  # the agent sees the picture; the state is for us to measure
STEPS, UPRIGHT_STEPS, STARTS, FPS = ENVIRONMENT.spec.max_steps, 32, 1024, 20
VISION = wm.VisionConfig(latent_size=16)
MEMORY = wm.MemoryConfig(latent_size=16, action_size=1, hidden_size=256, predict_reward=True, predict_action=True)
RANDOM = rollout.random_agent(ENVIRONMENT.spec), AgentParams((), ())


@dataclass(frozen=True)
class Config:
    """Settings for two cores; the authors' own are not known."""

    preset: str = "cpu"
    seed: int = 0
    iterations: int = 20
    iterate: bool = True  # otherwise all episodes are random play, and everything else is the same
    collected: int = 32  # episodes per iteration
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
    episodes: int = 64  # test episodes in which an iteration is scored


_FEW = replace(Config(), preset="smoke", iterations=2, collected=2, generations=2, dream_episodes=1, episodes=2)
_FAST = replace(_FEW, first_vision_updates=3, vision_updates=2, vision_batch=4, memory_updates=2, streams=2, length=8)
PRESETS = {"cpu": Config(), "smoke": replace(_FAST, evolution=EvolutionConfig(population_size=8, sigma=0.1))}
UPRIGHT = swingup.swingup(observation="both", upright=True)
act, act_upright = (jax.jit(partial(recorded.act, one), static_argnums=(0, 3, 4)) for one in (ENVIRONMENT, UPRIGHT))


def world(cfg: Config) -> wm.WorldModelConfig:
    """Describe V, M and C, which reads z and h: c is many times larger, and drowns them in a search of equal steps."""
    controller = wm.ControllerConfig(hidden=cfg.units, recurrent=cfg.units > 0, bias=False)
    return wm.WorldModelConfig(VISION, MEMORY, controller, features="zh")


def iterate(cfg: Config, run: RunFolder, log: MetricsLog, key: Key, agent: Agent, learned: PyTree, n: int) -> PyTree:
    """Do iteration n, or what is left of it: V and M learn on, CMA-ES begins anew around the last C."""
    key_collect, key_vision, key_memory, key_evolve, key_evaluate, key_film, key_curious = jax.random.split(key, 7)
    before = wm.WorldModelParams(learned["vision"].params, learned["memory"].params)
    with run.stage("collect"):
        paths = [run.path / "episodes" / f"{i:02}.npz" for i in range(n + 1)]
        noisy = Agent(agent.model, rollout.noisy(agent.policy, ENVIRONMENT.spec.action))
        exploring = noisy, AgentParams(before, (learned["search"].mean, cfg.noise))
        acting = exploring if cfg.iterate and n else RANDOM
        if not paths[-1].exists():
            recorded.write(paths[-1], act(*acting, key_collect, cfg.collected, STEPS + 1))
        seen = [recorded.read(path) for path in paths]
    further = partial(learn_on_devices, run, log, is_all=False)
    see, shared = wm.VisionLearner(VISION, cfg.vision_optimizer), (cfg.vision_batch, "vision_batch")
    frames = partial(recorded.batches, recorded.observed(seen, "image"), cfg.seed, cfg.vision_batch)
    end = cfg.first_vision_updates + n * cfg.vision_updates
    vision_state = further("vision", key_vision, see, learned["vision"], frames, end, shared=shared)
    with run.stage("encode"):
        data = recorded.encode(seen, partial(jax.jit(vision.encode, static_argnums=0), VISION, vision_state.params))
        if cfg.curiosity and n:  # of M as it was; one that has learned nothing is surprised by everything
            surprise = partial(curiosity.intrinsic_reward, MEMORY, before.memory, key_curious, data)
            added = cfg.curiosity * recorded.once(run.path / "surprise" / f"{n:02}.npz", surprise)
            data = data._replace(reward=data.reward + added)
    remember, shared = wm.MemoryLearner(MEMORY, cfg.memory_optimizer, cfg.streams), (cfg.streams, "streams")
    first, end = (i * cfg.memory_updates for i in (n, n + 1))
    chunks = lambda step: latents.chunks(data, 1000 * cfg.seed + n, cfg.streams, cfg.length, step - first)  # noqa: E731
    memory_state = further("memory", key_memory, remember, learned["memory"], chunks, end, shared=shared)
    params = AgentParams(wm.WorldModelParams(vision_state.params, memory_state.params), (), data.first_frames(STARTS))
    params = params._replace(policy=learned["search"].mean)
    dreams = IterativeConfig(cfg.iterations, cfg.generations, cfg.dream_episodes, cfg.temperature)
    searching = dreams, cfg.evolution, run, log, key_evolve, agent, params, learned["search"]
    found = evolve_again(*searching, number=n + 1, name="search")
    params = params._replace(policy=found.mean)
    with run.stage("evaluate"):
        if n in (0, cfg.iterations - 1):
            save_agent(run.path / f"agent-{n + 1:02}.npz", world(cfg), agent, params, task="swingup_both")
            key_real, key_dream = jax.random.split(key_film)
            real = np.asarray(act(agent, params, key_real, 1, STEPS + 1).step.observation["image"][0])
            panels = {"its dream": films.film_dream(agent, params, key_dream, STEPS), "the real environment": real}
            films.write_films(run.path / f"iteration-{n + 1:02}", panels, FPS, "dream_and_real")
        scores = evaluate(cfg, key_evaluate, agent, params)
        scores["visited"] = swingup.visited(recorded.observed(seen, "state"))
    log.write("iteration", n + 1, {name: np.mean(score) for name, score in scores.items()})
    run.finish_stage(f"iteration-{n + 1:02}", scores)
    return {"vision": vision_state, "memory": memory_state, "search": found}


def evaluate(cfg: Config, key: Key, agent: Agent, params: AgentParams) -> dict[str, PyTree]:
    """Score C in the real environment, without noise, and M on what it must know to hold the pole up."""
    key_real, key_act, *keys = jax.random.split(key, 4)
    returns, held = swingup.score(act(agent, params, key_real, cfg.episodes, STEPS + 1).step)
    fall = act_upright(*RANDOM, key_act, cfg.episodes, UPRIGHT_STEPS)  # random actions let it fall sooner
    stands = swingup.is_upright(fall.step.observation["state"][:, 1:]) & ~fall.step.is_first[:, 1:]
    error = float(one_step_error(agent, params, jnp.stack(keys), fall, "image", stands))
    return {"returns": returns.tolist(), "held": held.tolist(), "upright_error": error}


def train_agent(cfg: Config, run: RunFolder) -> None:
    """Do all iterations that are left."""
    splitting_mesh("population", cfg.evolution.population_size, "evolution.population_size")  # refused at once
    key_begin, key_iterations = jax.random.split(jax.random.key(cfg.seed))
    key_vision, key_memory, key_policy = jax.random.split(key_begin, 3)
    agent = wm.make(world(cfg), ENVIRONMENT.spec)
    learned = {
        "vision": learner.init(wm.VisionLearner(VISION, cfg.vision_optimizer), key_vision),
        "memory": learner.init(wm.MemoryLearner(MEMORY, cfg.memory_optimizer, cfg.streams), key_memory),
        "search": evolution.init(cfg.evolution, agent.policy.init(key_policy)),
    }
    done = iterations_done(run, "iteration", cfg.iterations)
    learned = {name: newest(run.path / "checkpoints" / name, state) for name, state in learned.items()}
    with MetricsLog(run.path) as log:
        for n in range(done, cfg.iterations):
            learned = iterate(cfg, run, log, jax.random.fold_in(key_iterations, n), agent, learned, n)


def report(cfg: Config, run: RunFolder) -> None:
    """Draw and summarise."""
    name = "iterated" if cfg.iterate else "not-iterated"
    name += f", curious {cfg.curiosity:g}" * (cfg.curiosity > 0) + f", {cfg.units} recurrent units" * (cfg.units > 0)
    last = run.stage_record(f"iteration-{cfg.iterations:02}")["summary"]
    held = result_row(f"{name}, held upright at the end", np.array(last["held"], float), "of episodes")
    rows = [result_row(name, np.array(last["returns"]), "return"), held]
    metrics = read_metrics(run.path / "metrics.jsonl")
    learned = promise.along_training(metrics, "search", "iteration")
    looks, who = TrustConfig(max(2, min(cfg.episodes, 32))), load(run.path / f"agent-{cfg.iterations:02}.npz")
    trusted = trust_section(run, *who, ENVIRONMENT, jax.random.key(cfg.seed), looks, learned)
    curves.learning_curves({"iteration": metrics.pop("iteration")}, run.path / "iterations.png")
    curves.learning_curves(metrics, run.path / "learning.png")
    shown = [f"iteration-{n:02}/dream_and_real.mp4" for n in sorted({1, cfg.iterations})]
    filmed = Section("First and last iteration", "Left the dream, right the real environment.", shown)
    drawn = Section("Learning", "By iteration, and by update or generation.", ["iterations.png", "learning.png"])
    pages.report(run, NAME, command(NAME, cfg, PRESETS), rows, "World Models iteratively", [filmed, trusted, drawn])


@exit_on_bad_input()
def main() -> None:
    """Train and report, or aggregate finished runs."""
    cfg, options = read_command_line(NAME, __doc__, PRESETS, Aggregating)
    if options.aggregate:
        show_rows(aggregate.aggregate_repeats(options.into or RESULTS, NAME, "iteration", options.aggregate))
    else:
        run = run_folder(NAME, cfg, options, "" if cfg.iterate else "once", may_change={"iterations": Change()})
        train_agent(cfg, run)
        report(cfg, run)


if __name__ == "__main__":
    main()
