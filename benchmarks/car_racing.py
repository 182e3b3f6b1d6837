"""How fast CarRacing is: Gymnasium's own game and ours on one core, and a whole population on all cores.

    python benchmarks/car_racing.py            some four minutes
    python benchmarks/car_racing.py --smoke    seconds, to see that it runs; writes nothing

Whole episodes, with the making of their tracks. First the same tracks and actions, of the paper's random collection, in
turn in one process: Gymnasium makes pictures of 96x96; ours makes the same, and of them the 64x64 that models see. Then
a population of controllers, which all do nothing: as `acting.evaluate_population` plays it, with V and M behind every
step, and the same episodes stepped by as many processes with nobody looking, which is as fast as the game can be.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from dreamjax._extras import extra
from dreamjax.acting import random_play
from dreamjax.acting.playing import evaluate_population
from dreamjax.acting.pool import Pool
from dreamjax.envs.car_racing import MAX_STEPS, CarRacing, car_racing_spec
from dreamjax.reporting.results import result_row, write_result
from dreamjax.reporting.timing import measure
from dreamjax.types import AgentParams
from dreamjax.worldmodels import model

with extra("suites", "the comparison"):
    import Box2D as Box2D  # without it Gymnasium would name an extra of its own
    from gymnasium.envs.box2d import car_racing

RESULTS = Path(__file__).parent / "results" / "car_racing.json"


def random_actions(steps: int) -> np.ndarray:
    """Draw the actions of an episode as the paper's random collection does. Shapes: -> [steps, 3]."""
    policy = random_play.POLICIES["network"]
    act = lambda memory, key: policy.act((), key, memory, jnp.zeros(1))  # noqa: E731
    return np.asarray(jax.lax.scan(act, policy.start(()), jax.random.split(jax.random.key(0), steps))[1])


def driving(env: gymnasium.Env, actions: np.ndarray) -> Callable[[], None]:
    """Return a function that drives an episode on the next track."""
    tracks = iter(range(1_000_000))

    def drive() -> None:
        env.reset(seed=next(tracks))
        for action in actions:
            env.step(action)

    return drive


def drive_unseen(steps: int, seeds: list[int]) -> None:
    """Play episodes with the action of a controller of zeros, in this process."""
    env = CarRacing(full_length=True, max_steps=steps)
    for seed in seeds:
        env.reset(seed=seed)
        while not env.step(np.array([0.0, 0.5, 0.0]))[3]:
            pass


def population(steps: int, individuals: int, envs: int, repeats: int) -> dict[str, np.ndarray]:
    """Steps per second of a population on all cores, played by the pool and by processes that only step."""
    agent = model.make(model.CAR_RACING, car_racing_spec(steps))
    params = AgentParams(agent.model.init(jax.random.key(0)), agent.policy.init(jax.random.key(0)))
    many = jax.tree.map(lambda leaf: jnp.zeros((individuals, *leaf.shape)), params.policy)
    seeds, cores = np.arange(individuals), os.cpu_count() or 1
    make_env = partial(CarRacing, full_length=True, max_steps=steps)
    context = multiprocessing.get_context("forkserver")
    with Pool(make_env, envs, cores) as pool, context.Pool(cores) as processes:
        unseen = partial(drive_unseen, steps)
        contenders = {
            "population": lambda: evaluate_population(
                pool, agent, params._replace(policy=many), jax.random.key(1), seeds[:, None]
            ),
            "environments alone": lambda: processes.map(unseen, [seeds[i::cores].tolist() for i in range(cores)], 1),
        }
        timings = measure(contenders, repeats)
    return {name: timing.rate(individuals * steps) for name, timing in timings.items()}


def main(smoke: bool) -> None:
    """Measure and write."""
    begun = time.monotonic()
    steps, repeats = (10, 1) if smoke else (MAX_STEPS, 6)
    contenders = {"ours": CarRacing(full_length=True), "gymnasium": car_racing.CarRacing()}
    actions = random_actions(steps)
    timings = measure({name: driving(env, actions) for name, env in contenders.items()}, repeats)
    rate = {name: timing.rate(steps) for name, timing in timings.items()}
    rows = [result_row(name, values, "steps/s") for name, values in rate.items()]
    rows.append(result_row("ours / gymnasium", rate["ours"] / rate["gymnasium"], "x"))
    rate = population(10, 4, 4, 1) if smoke else population(MAX_STEPS // 2, 64, 64, 3)
    rows += [result_row(f"{name}, {os.cpu_count()} cores", values, "steps/s") for name, values in rate.items()]
    rows.append(result_row("population / environments alone", rate["population"] / rate["environments alone"], "x"))
    print("\n".join(f"{row['name']:24} {row['mean']:8.2f} ± {row['std']:.2f} {row['unit']}" for row in rows))
    if not smoke:
        write_result(
            RESULTS, "car_racing", "full", "python benchmarks/car_racing.py", [0], time.monotonic() - begun, rows
        )


if __name__ == "__main__":
    main("--smoke" in sys.argv[1:])
