"""Seeds of host environments, from four disjoint ranges: for collecting, training, validation and test.

Nothing else in the library or the experiments draws one, so that an episode is never reset with a seed of another
purpose: "not seen in training" means that. It does not mean that no two seeds can lead an engine to the same episode;
where a game hashes its seed to 31 bits, as Take Cover does, two of them meet by chance once in 2^31 pairs.
"""

import numpy as np

COLLECT = range(0, 2**28)  # episodes that V, M or a recording are made of
TRAIN = range(2**28, 2**29)  # episodes in which a policy learns or is selected, generation by generation
VALIDATION = range(2**29, 2**30)  # episodes that compare policies while they are trained; always the same
TEST = range(2**30, 2**31)  # episodes that are scored and filmed, and nothing else


def collecting(*entropy: int) -> int:
    """Draw the seed of an episode to be recorded, such as attempt number i of a collection with a seed."""
    return _draw(COLLECT, entropy)


def training(*entropy: int) -> int:
    """Draw the seed of an episode to be trained in."""
    return _draw(TRAIN, entropy)


def generation(entropy: tuple[int, ...], size: int, episodes: int, groups: int) -> np.ndarray:
    """Draw the training episodes of a generation: seeds int64 [size, episodes].

    The individuals of a group share their episodes: with 1 group the whole population does. In the published runs of
    Ha & Schmidhuber 2018 individuals i and i + size / 2 did.

    Raises: ValueError if the groups are not of equal size.
    """
    if size % groups:
        raise ValueError(f"{size} individuals cannot be in {groups} groups of equal size")
    drawn = np.random.default_rng(entropy).integers(TRAIN.start, TRAIN.stop, size=(groups, episodes))
    return np.tile(drawn, (size // groups, 1))


def validation(count: int) -> list[int]:
    """Return the first `count` validation seeds. Raises ValueError for more than there are."""
    return _first(VALIDATION, count)


def test(count: int, first: int = 0) -> list[int]:
    """Return `count` test seeds from number `first` on. Raises ValueError for more than there are."""
    return _first(TEST[first:], count)


def _draw(among: range, entropy: tuple[int, ...]) -> int:
    return int(np.random.default_rng(entropy).integers(among.start, among.stop))


def _first(among: range, count: int) -> list[int]:
    if not 0 <= count <= len(among):
        raise ValueError(f"there are {len(among)} such seeds, got a count of {count}")
    return list(among[:count])
