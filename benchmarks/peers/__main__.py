"""Another library's DreamerV3, which makes an update when it is told to: `python -m benchmarks.peers LIBRARY TASK`.

`dreamerv3_update.py` starts this in a Python that has the library, since it needs other packages than dreamjax; nothing
of dreamjax is imported here. TASK is JSON: `size`, a name; `config`, a `DreamerConfig` of that size; `observation`, a
list of shapes; `actions`, how many classes or values an action has, and `discrete`, which of the two; `batch` and
`length`; and `compiled`, whether the library shall compile its update.

The first line that comes back is JSON as well, with the `versions` of the library and of PyTorch and the number of
`parameters`. From then on every line that arrives makes an update, and a number of what it computed comes back.
"""

import importlib
import json
import os
import sys
from importlib.metadata import version

import torch


def main(library: str, task: str) -> None:
    """Build, and update until there are no more lines."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what the library prints is no answer
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    parameters, update = importlib.import_module(f"benchmarks.peers.{library}").build(json.loads(task))
    versions = f"{library} {version(library)}, torch {version('torch')}"
    print(json.dumps({"versions": versions, "parameters": parameters}), file=answers, flush=True)
    for _ in sys.stdin:
        print(update(), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
