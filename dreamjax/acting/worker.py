"""The worker process of `run.pool`: steps the games it was given. Needs no JAX, and imports none of its own accord."""

import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np

Order = int | np.ndarray | None  # begin the episode of a seed, take an action, or nothing


def serve(
    connection: Connection, make_env: Callable[[], gymnasium.Env], buffers: list[Any], shape: tuple[int, ...], kind: str
) -> None:
    """Obeys until the other side closes the connection or is gone.

    It is sent (bank, an order per game), writes what the games show into the memory of that bank, and answers with
    (bank, rewards, terminated, truncated). Whatever else goes wrong ends the process, which the other side sees.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt from the keyboard means
    banks = [np.frombuffer(buffer, kind).reshape(shape) for buffer in buffers]
    lanes = shape[0]
    envs = [[make_env() for _ in range(lanes)] for _ in banks]
    try:
        while True:
            number, orders = connection.recv()
            rewards = np.zeros(lanes)
            over = np.zeros((2, lanes), bool)
            for lane, (env, order) in enumerate(zip(envs[number], orders, strict=True)):
                if isinstance(order, int):
                    banks[number][lane], _ = env.reset(seed=order)
                elif order is not None:
                    banks[number][lane], rewards[lane], *over[:, lane], _ = env.step(order)
            connection.send((number, rewards, *over))
    except (EOFError, ConnectionError):
        return
    finally:
        for bank in envs:
            for env in bank:
                env.close()
