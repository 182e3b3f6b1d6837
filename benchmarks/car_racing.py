"""How fast CarRacing is: Gymnasium's own game on one core, and the same game with our drawing.

    python benchmarks/car_racing.py            about a minute
    python benchmarks/car_racing.py --smoke    seconds, to see that it runs; writes nothing

Whole episodes, with the making of their tracks: the same tracks and the same actions, of the paper's random collection,
in turn in one process. Gymnasium makes pictures of 96x96; ours makes the same, and of them the 64x64 that models see.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.envs.box2d import car_racing

from dreamjax.envs.car_racing import MAX_STEPS, CarRacing
from dreamjax.run.collect import random_network_actions
from dreamjax.run.folder import result_row, write_result
from dreamjax.run.timing import measure

RESULTS = Path(__file__).parent / "results" / "car_racing.json"


def driving(env: gymnasium.Env, steps: int) -> Callable[[], None]:
    """Return a function that drives an episode on the next track."""
    tracks = iter(range(1_000_000))

    def drive() -> None:
        env.reset(seed=next(tracks))
        for action in random_network_actions(np.random.default_rng(0), steps):
            env.step(action)

    return drive


def main(smoke: bool) -> None:
    """Measure and write."""
    begun = time.monotonic()
    steps, repeats = (10, 1) if smoke else (MAX_STEPS, 6)
    games = {"ours": CarRacing(full_length=True), "gymnasium": car_racing.CarRacing()}
    timings = measure({name: driving(env, steps) for name, env in games.items()}, repeats)
    rate = {name: timing.rate(steps) for name, timing in timings.items()}
    rows = [result_row(name, values, "steps/s") for name, values in rate.items()]
    rows.append(result_row("ours / gymnasium", rate["ours"] / rate["gymnasium"], "x"))
    print("\n".join(f"{row['name']:18} {row['mean']:8.2f} ± {row['std']:.2f} {row['unit']}" for row in rows))
    if not smoke:
        write_result(
            RESULTS, "car_racing", "full", "python benchmarks/car_racing.py", [0], time.monotonic() - begun, rows
        )


if __name__ == "__main__":
    main("--smoke" in sys.argv[1:])
