"""The whole update against the published implementation: losses, gradients and five updates of one small agent.

Parameters, data and the rules that stand in for sampling are made by formulas, so that nothing needs to be stored.
"""

import math
import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.dreamerv3 import actor_critic, config, interop, learner, model, rssm
from dreamjax.dreamerv3.config import DreamerConfig
from dreamjax.dreamerv3.learner import Batch, TrainState
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.dreamerv3.rssm import RSSMState
from dreamjax.optim import LaPropConfig
from dreamjax.returns import ReturnRange
from dreamjax.types import EnvSpec, Space, Step

OBSERVATION = {
    "image": Space((64, 64, 3), np.uint8, 0, 256),
    "vec": Space((5,)),
    "scal": Space(()),
    "tok": Space((), np.int32, 0, 3),
}
ACTION = {"cont": Space((2,), np.float32, -1.0, 1.0), "disc": Space((), np.int32, 0, 4)}
SMALL = DreamerConfig(
    rssm=config.RSSMConfig(16, 8, 4, 4, 8),
    codec=config.CodecConfig(2, units=8),
    heads=config.HeadsConfig(8),
    behaviour=config.BehaviourConfig(5),
    optimizer=LaPropConfig(1e-3, warmup=0),
    compute_dtype="float32",
)
DREAMER = Dreamer.of(SMALL, EnvSpec(OBSERVATION, ACTION, 1))


def filled(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter by its name: a hash of every index."""
    i = np.arange(1, math.prod(shape) + 1, dtype=np.uint64)
    mask = np.uint64(0xFFFFFFFF)
    x = (i * np.uint64(2654435761) + np.uint64(zlib.crc32(path.encode()) * 40503)) & mask
    x ^= x >> np.uint64(16)
    x = (x * np.uint64(2246822519)) & mask
    x ^= x >> np.uint64(13)
    q = x / 2.0**32 - 0.5
    match path.rsplit("/", 1)[1]:
        case "kernel":
            logit = path in ("dyn/obslogit/kernel", "dyn/priorlogit/kernel")
            q = q * math.sqrt(12 / math.prod(shape[:-1])) * (3 if logit else 1)
        case "bias":
            q = 0.2 * q - (0.01 * (np.arange(len(q)) - 127.0) ** 2 if len(q) == 255 else 0)
        case "scale":
            q = 1 + 0.4 * q
    return q.reshape(shape).astype(np.float32)


def state() -> TrainState:
    """The agent before its first update."""
    fresh = jax.eval_shape(partial(learner.init, DREAMER), jax.random.key(0))
    names = interop.flatten(jax.tree.map(lambda s: np.zeros(s.shape), fresh.params))
    arrays = {name: filled(name, x.shape) for name, x in names.items()}
    arrays |= {f"slow{name}": filled(f"slow{name}", x.shape) for name, x in names.items() if name.startswith("val/")}
    params, slow = interop.import_published(DREAMER, arrays)
    begun = learner.init(DREAMER, jax.random.key(0))
    return begun._replace(params=params, slow=slow, range=ReturnRange(jnp.float32(-2), jnp.float32(3)))


def batch() -> Batch:
    """Two sequences of one context step and six trained ones; an episode ends inside the first."""
    b, t = np.mgrid[:2, :7]
    i, j, c, k = np.arange(64)[:, None, None], np.arange(64)[:, None], np.arange(3), np.arange(5)
    wide = lambda x, axes: x.reshape(*x.shape, *[1] * axes)  # noqa: E731
    observation = {
        "image": ((wide(31 * b + 47 * t, 3) + 5 * i + 9 * j + 83 * c + i * j) % 256).astype(np.uint8),
        "vec": 3 * np.sin(1 + wide(b + 0.7 * t, 1) + 0.9 * k),
        "scal": 10 * np.cos(0.5 * b + 0.3 * t),
        "tok": ((b + 2 * t) % 3).astype(np.int32),
    }
    first = (t == 0) | ((b == 0) & (t == 4))
    terminal = (b == 0) & (t == 3)
    last = terminal | ((b == 1) & (t == 6))
    actions = {
        "disc": ((3 * b + t) % 4).astype(np.int32),
        "cont": 1.5 * np.sin(0.2 + wide(b + 1.1 * t, 1) + 2 * np.arange(2)),
    }
    deter = 0.9 * np.sin(0.3 * np.arange(16) + wide(b - 0.2 * t, 1))
    stoch = np.eye(4)[(np.arange(4) + wide(b + t, 1)) % 4]
    sums = {name: x.sum(dtype=np.float64) for name, x in (observation | actions).items()}
    wanted = {"image": 21906944, "vec": -13.537789, "scal": 45.947601, "tok": 13, "disc": 19, "cont": 3.395857}
    assert sums == pytest.approx(wanted, abs=1e-5)
    narrow = lambda x: jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else None)  # noqa: E731
    steps = Step(observation, 2 * np.sin(0.4 + 1.3 * t + b), first, last, terminal)
    start = RSSMState(deter[:, 0], stoch[:, 0])
    return jax.tree.map(narrow, Batch(steps, actions, start))


@pytest.fixture
def _no_luck(monkeypatch):
    """Draw what is most likely; continuous actions a third of a deviation above the mean."""

    def onehot(uniform, probs):
        del uniform
        best = jax.nn.one_hot(probs.argmax(-1), probs.shape[-1])
        return best + (probs - jax.lax.stop_gradient(probs))

    def actions(key, found, spaces):
        del key, spaces
        rule = lambda d: d.mean + 0.3 * d.std if isinstance(d, actor_critic.Normal) else d.log_probs.argmax(-1)  # noqa: E731
        return {name: rule(one) for name, one in found.items()}

    monkeypatch.setattr(rssm, "onehot_sample", onehot)
    monkeypatch.setattr(rssm, "noise", lambda cfg, key, shape: jnp.zeros((*shape, cfg.stoch, cfg.classes)))
    monkeypatch.setattr(actor_critic, "sample_actions", actions)


LOSSES = {
    "reconstruction/image": 1255.4384,
    "reconstruction/vec": 7.1990175,
    "reconstruction/scal": 2.9190168,
    "reconstruction/tok": 1.2683575,
    "reward": 3.2278249,
    "continues": 0.65541935,
    "dynamics": 5.8022132,
    "representation": 5.8022132,
    "policy": 0.038922783,
    "value": 1.4643297,
    "replay_value": 5.8432765,
}
METRICS = {
    "posterior_entropy": 3.8512192,
    "entropy/cont": 2.5519040,
    "entropy/disc": 1.3321828,
    "advantage": 0.055529390,
    "advantage_std": 0.027993260,
    "advantage_magnitude": 0.056483060,
    "imagined_reward": 0.17103429,
    "imagined_continue": 0.56744701,
    "value": -0.0012263270,
    "slow_value": -0.18346366,
    "imagined_return": 0.27460754,
}
GRADIENTS = {
    "enc": 207.647,
    "dyn": 153.4162,
    "dec": 2317.526,
    "rew": 1.234209,
    "con": 0.6916313,
    "pol": 0.02627409,
    "val": 1.252686,
}


@pytest.mark.usefixtures("_no_luck")
def test_losses_and_gradients_equal_the_published_ones():
    begun = state()
    gradient = jax.jit(jax.value_and_grad(partial(learner.loss, DREAMER), has_aux=True))
    (total, (range_, trained)), grads = gradient(begun.params, jax.random.key(0), begun, batch())
    assert float(total) == pytest.approx(1280.3466, rel=1e-6)
    found = {name: float(trained.metrics[f"loss/{name}"]) for name in LOSSES}
    assert found == pytest.approx(LOSSES, rel=1e-5)
    assert {name: float(trained.metrics[name]) for name in METRICS} == pytest.approx(METRICS, rel=1e-4, abs=1e-6)
    assert (float(range_.low), float(range_.high)) == pytest.approx((-1.9789671, 2.9749419), rel=1e-6)
    norm = lambda tree: math.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(tree)))  # noqa: E731
    assert {name: norm(x) for name, x in interop.modules(grads).items()} == pytest.approx(GRADIENTS, rel=1e-4)
    some = {
        "dyn/dynhid0/kernel": (19.3727, 34.7412),
        "dyn/dyngru/kernel": (6.28341, 12.0961),
        "enc/cnn0/kernel": (73.4222, 22.082),
        "dec/conv2/kernel": (475.639, 5975.08),
        "dec/sp0/kernel": (22.8716, -97.0394),
        "val/mlp/linear0/kernel": (0.640437, 0.860496),
        "pol/head/cont/stddev/kernel": (0.00288978, 0.00748943),
    }
    named = interop.flatten(grads)
    for name, wanted in some.items():
        assert (np.linalg.norm(named[name]), named[name].sum()) == pytest.approx(wanted, rel=2e-4), name


@pytest.mark.usefixtures("_no_luck")
def test_five_updates_equal_the_published_ones():
    update = jax.jit(partial(learner.train_step.__wrapped__, DREAMER))
    now, data = state(), batch()
    wanted = [
        (1280.343, 2331.86, -1.978967, 2.974942, 1160.929),
        (1222.665, 1789.82, -1.958092, 2.950054, 1160.928),
        (1170.651, 1315.01, -1.937475, 2.925877, 1160.927),
        (1145.657, 1073.44, -1.916978, 2.902147, 1160.926),
        (1115.270, 758.277, -1.896653, 2.878877, 1160.925),
    ]
    for numbers in wanted:
        now, trained = update(jax.random.key(0), now, data)
        slow = math.sqrt(sum(float((x.astype(jnp.float64) ** 2).sum()) for x in jax.tree.leaves(now.slow)))
        found = (trained.metrics["loss"], trained.metrics["gradient_norm"], *now.range, slow)
        assert tuple(map(float, found)) == pytest.approx(numbers, rel=1e-4)


COUNTS = {
    "crafter": (
        ({"image": Space((64, 64, 3), np.uint8, 0, 256)}, {"action": Space((), np.int32, 0, 17)}),
        (687875, 10498259, 23495475, 41658259, 93480531, 165965075, 372920979),
    ),
    "atari": (
        ({"image": Space((96, 96, 1), np.uint8, 0, 256)}, {"action": Space((), np.int32, 0, 18)}),
        (769762, 11808850, 26444402, 46900882, 105276626, 186936082, 420106130),
    ),
    "dmc_vision": (
        ({"image": Space((64, 64, 3), np.uint8, 0, 256)}, {"action": Space((6,), np.float32, -1.0, 1.0)}),
        (686846, 10494158, 23489326, 41650062, 93468238, 165948686, 372896398),
    ),
    "dmc_proprio": (
        (
            {"orientations": Space((14,)), "height": Space(()), "velocity": Space((9,))},
            {"action": Space((6,), np.float32, -1.0, 1.0)},
        ),
        (640867, 9738019, 21782947, 38612003, 86622499, 153769507, 345473059),
    ),
}


@pytest.mark.parametrize("task", COUNTS)
def test_parameter_counts(task: str):
    spaces, wanted = COUNTS[task]
    found = []
    for cfg in config.SIZES.values():
        shapes = jax.eval_shape(partial(model.init, Dreamer.of(cfg, EnvSpec(*spaces, 1))), jax.random.key(0))
        found.append(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)))
    assert tuple(found) == wanted
