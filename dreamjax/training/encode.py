"""Turning recorded episodes into latents, once, with a file for every few episodes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dreamjax.replay import latents
from dreamjax.replay.latents import Latents
from dreamjax.storage import episodes
from dreamjax.storage.atomic import read_npz, replacing
from dreamjax.storage.episodes import Episode
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.identity import fingerprint
from dreamjax.storage.progress import progress
from dreamjax.types import PyTree

_BATCH = 256  # frames per call
_GROUP = 50  # episodes per file


def encode(
    run: RunFolder, store: episodes.Store, posterior: Callable[[np.ndarray], tuple[PyTree, PyTree]], of: str
) -> Latents:
    """Encode every frame of a store, but for the episodes that an earlier call has done.

    `posterior` (jitted) takes uint8 frames [256, 64, 64, 3] to mean and log variance, [256, Z] each; `of` is its
    fingerprint. The files go to `latents/` in the run folder, float16. One that was made of other episodes, or by
    another posterior, is made again.

    Raises: EpisodeError for an episode that cannot be read.
    """
    groups = [store.paths[first : first + _GROUP] for first in range(0, len(store), _GROUP)]
    files = [
        (run.path / "latents" / f"{number * _GROUP:06}.npz", fingerprint(of, [*map(episodes.checksums, some)]))
        for number, some in enumerate(groups)
    ]
    missing = [number for number, (path, made_of) in enumerate(files) if _made_of(path) != made_of]
    if missing or not run.stage_done("encode"):  # a kill after the last file leaves it undone
        with run.stage("encode") as stage:
            for number in progress(missing, "encode", initial=len(files) - len(missing), unit="file"):
                path, made_of = files[number]
                write_latents(path, encode_episodes([*map(episodes.read, groups[number])], posterior), made_of)
                stage.tick()
    return latents.concatenate([read_latents(path) for path, _ in files])


def encode_episodes(recorded: Sequence[Episode], posterior: Callable[[np.ndarray], tuple[PyTree, PyTree]]) -> Latents:
    """Encode episodes that are in memory. `posterior` as in `encode`."""
    mean, log_variance = in_batches(posterior, np.concatenate([episode.observation for episode in recorded]))
    length = np.array([len(episode.observation) for episode in recorded])
    is_terminal = np.zeros(length.sum(), bool)
    is_terminal[length.cumsum() - 1] = [episode.terminated for episode in recorded]
    action, reward = (np.concatenate([getattr(one, name) for one in recorded]) for name in ("action", "reward"))
    return Latents(mean, log_variance, action, reward, is_terminal, length)


def write_latents(path: Path, data: Latents, of: str = "") -> None:
    """Write encoded episodes, all or nothing, and the fingerprint of what they were made of."""
    with replacing(path) as temporary:
        np.savez(temporary, allow_pickle=False, of=of, **data._asdict())


def read_latents(path: Path) -> Latents:
    """Read what `write_latents` wrote. Raises ValueError for a file that is damaged, or that an older version wrote."""
    arrays = read_npz(path, *Latents._fields)
    if len(arrays) < len(Latents._fields):
        raise ValueError(
            f"{path} was written by an older version of dreamjax, which paid rewards one step earlier: delete it, "
            "and what it was made from will be collected or encoded again"
        )
    return Latents(**arrays)


def _made_of(path: Path) -> str:
    """Fingerprint of what a file was made of; none if it is not there, or older than fingerprints."""
    return str(read_npz(path, "of").get("of", "")) if path.exists() else ""


def in_batches(
    posterior: Callable[[np.ndarray], tuple[PyTree, PyTree]], frames: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and log variance of any number of frames, 256 at a time. Shapes: [N, 64, 64, 3] -> two of [N, Z] float16."""
    parts = [posterior(_padded(frames[i : i + _BATCH])) for i in range(0, len(frames), _BATCH)]
    mean, log_variance = (np.concatenate(part)[: len(frames)] for part in zip(*parts, strict=True))
    return mean.astype(np.float16), log_variance.astype(np.float16)


def _padded(frames: np.ndarray) -> np.ndarray:
    """Fill the last batch up with zeros; the others are whole, and not copied. Shapes: [n, ...] -> [256, ...]."""
    missing = _BATCH - len(frames)
    return np.concatenate([frames, np.zeros((missing, *frames.shape[1:]), frames.dtype)]) if missing else frames
