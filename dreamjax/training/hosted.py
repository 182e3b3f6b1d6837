"""Several agents that learn at once, by `vmap`, while each acts in environments of the host.

A small agent does not fill an accelerator: an update of several takes little longer than that of one. What acts,
remembers and learns is compiled, and the replay stays on the device, beside the agents.

Source: Hafner et al. 2023.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from dreamjax import checks
from dreamjax.acting.vector import VectorEnvironment
from dreamjax.dreamerv3 import loop
from dreamjax.dreamerv3.learner import Hyper
from dreamjax.dreamerv3.loop import LoopConfig, LoopState, Progress
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.training.devices import device_mesh, gathered, shard, split
from dreamjax.types import Key, PyTree, Step


def apart(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """Let every device of a mesh work on its own part of the leading axis of all arguments and results."""
    each = PartitionSpec(*mesh.axis_names)
    # What is learned has no axis of devices inside, which the check of varying axes would ask for.
    return jax.shard_map(function, mesh=mesh, in_specs=each, out_specs=each, check_vma=False)


class HostedLoop:
    """The loop of A agents with E environments each: those of the first agent, then those of the second, and so on.

    It does what `jitted.JittedLoop` does, with the same keys. The seeds of episodes are drawn from `entropy`: all
    environments are reset when training begins, and when it goes on from a file. The environments step while the device
    learns, for one step of an iteration.
    """

    def __init__(
        self,
        dreamer: Dreamer,
        environments: VectorEnvironment,
        cfg: LoopConfig,
        agents: int,
        entropy: tuple[int, ...],
    ) -> None:
        """Use as many devices as divide the agents.

        Raises: ValueError if there are several processes, if the environments are not E of each agent, or if the replay
            is too small for a batch.
        """
        if jax.process_count() > 1:
            raise ValueError("agents learn together in one process: start it without the others")
        if len(environments) != agents * cfg.envs:
            raise ValueError(f"{agents} agents need {agents * cfg.envs} environments, got {len(environments)}")
        checks.same_spaces(dreamer.spec, environments.spec)
        self.environments, self._shape, self._entropy = environments, (agents, cfg.envs), entropy
        self._fill, self._steps = loop.prefill(dreamer, cfg), cfg.rhythm[1]
        self._mesh = device_mesh("devices", max(n for n in range(1, jax.device_count() + 1) if agents % n == 0))
        self._places: Any = split(self._mesh)
        own: Any = partial(apart, self._mesh) if self._mesh.size > 1 else lambda function: function
        self._start = jax.jit(own(jax.vmap(partial(loop.start, dreamer, cfg))))
        self._act = jax.jit(own(jax.vmap(partial(loop.act, dreamer))), donate_argnums=1)
        self._learn = jax.jit(own(jax.vmap(partial(loop.learn, dreamer, cfg))), donate_argnums=(1, 2))
        self.info: list[tuple[int, dict[str, float]]] = []  # agent, and what came with the end of an episode
        self._keys: Any = None  # [A], of new agents

    def begin(self, keys: Key, hyper: Hyper) -> LoopState:
        """Start new agents, which have not met their environments: see `place`. Shapes: keys [A] and settings [A]."""
        self._keys = keys
        key_start, _, _ = _split(keys, 3)
        spec, count = self.environments.spec, len(self.environments)
        observation = jax.tree.map(lambda space: np.zeros((count, *space.shape), space.dtype), spec.observation)
        reward: Any = np.zeros(count, np.float32)
        return self._start(key_start, self._arrived(Step(observation, reward, *[reward > 0] * 3)), hyper)

    def shapes(self, keys: Key, hyper: Hyper) -> LoopState:
        """Describe what `begin` returns, and where it is, without making it."""
        state = jax.eval_shape(self.begin, keys, hyper)
        return jax.tree.map(lambda leaf: leaf.update(sharding=self._places), state) if self._mesh.size > 1 else state

    def place(self, state: LoopState) -> LoopState:
        """Put a state that `begin` made, or that was read from a file, where `advance` wants it, in new episodes.

        New agents collect enough steps for the first batch.
        """
        written = int(np.asarray(state.replay.written)[0])
        if self._mesh.size > 1:
            state = shard(state, self._places)
        state = state._replace(step=self._arrived(self.environments.reset((*self._entropy, written))))
        if not written:
            _, _, key_fill = _split(self._keys, 3)
            for key in _split(key_fill, self._fill):
                state, _ = self._remember(key, state)
                state = self._step(state)
        return state

    def advance(self, state: LoopState, keys: Key) -> tuple[LoopState, Progress]:
        """Make n iterations; the state is given up. Shapes: keys [A, n] -> [A, ...] and progress [A, n].

        `info` then holds the finite numbers that environments told at the ends of episodes, such as other scores.
        """
        told, self.info = [], []
        for number in range(keys.shape[1]):
            key_collect, key_learn = _split(keys[:, number], 2)
            ended = []
            for i, key in enumerate(_split(key_collect, self._steps)):
                state, one = self._remember(key, state)
                ended.append(one)
                if i + 1 == self._steps:
                    trained, replay, metrics = self._learn(key_learn, state.learner, state.replay)
                    state = state._replace(learner=trained, replay=replay)
                state = self._step(state)
            finished, returns = (sum(each[1:], each[0]) for each in zip(*ended, strict=True))
            told.append(Progress(finished, returns, metrics))
        return state, jax.tree.map(lambda *each: jnp.stack(each, 1), *told)

    def gather(self, tree: PyTree) -> PyTree:
        """Make a part of a state whole, and free to be used on any device."""
        return gathered(self._mesh, tree)

    def _remember(self, key: Key, state: LoopState) -> tuple[LoopState, loop.Ended]:
        self.info += [(i // self._shape[1], told) for i, told in self.environments.info.items()]
        return self._act(_split(key, 2)[0], state)

    def _step(self, state: LoopState) -> LoopState:
        """Step the environments, which waits for what the agents do, but not for what they learn."""
        action = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), state.agent.action)
        return state._replace(step=self._arrived(self.environments.step(action)))

    def _arrived(self, step: Step) -> Step:
        shaped = jax.tree.map(lambda leaf: leaf.reshape(*self._shape, *leaf.shape[1:]), step)
        return jax.device_put(shaped, self._places if self._mesh.size > 1 else None)


@partial(jax.jit, static_argnums=1)
def _split(keys: Key, number: int) -> Key:
    """Split the key of each agent. Shapes: [A] -> [number, A]."""
    return jax.vmap(partial(jax.random.split, num=number), out_axes=1)(keys)
