import zlib

import numpy as np
import pytest

from dreamjax.envs import pixels


def random_image(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "crc32"),
    [((100, 160), 1151118957), ((400, 640), 649847703), ((300, 40), 1641537049), ((33, 64), 708096163)],
)
def test_resize_returns_the_bytes_that_the_committed_agents_learned_from(shape: tuple[int, int], crc32: int) -> None:
    """They come from fixed-point arithmetic, so that every version of Pillow and every machine returns the same."""
    result = pixels.resize(random_image(0, *shape))
    assert zlib.crc32(result.tobytes()) == crc32 and result.flags.writeable


@pytest.mark.parametrize("shape", [(120, 160), (480, 640), (96, 96)])
def test_clean_is_crop_and_resize(shape: tuple[int, int]) -> None:
    image = random_image(1, *shape)
    rows = shape[0] * 5 // 6
    below = image.copy()
    below[rows:] = 0
    result = pixels.clean(image, rows)
    assert result.shape == (64, 64, 3) and result.dtype == np.uint8
    np.testing.assert_array_equal(result, pixels.resize(image[:rows]))
    np.testing.assert_array_equal(result, pixels.clean(below, rows))  # what lies below leaves no trace


def naive_published(image: np.ndarray, rows: int) -> np.ndarray:
    """The released code step by step: fractions, stretch to bytes as the old SciPy did, resize, invert, round, wrap."""
    fractions = image[:rows].astype(np.float64) / 255.0
    span = fractions.max() - fractions.min()
    stretched = (fractions - fractions.min()) * (255.0 / (span if span else 1.0))
    resized = pixels.resize((stretched.clip(0, 255) + 0.5).astype(np.uint8))
    inverted = ((1.0 - resized) * 255).round()
    return (inverted.astype(np.int64) % 256).astype(np.uint8)


@pytest.mark.parametrize(("low", "high"), [(0, 256), (13, 140), (40, 41), (0, 2), (100, 229), (255, 256)])
def test_published_follows_the_released_code(low: int, high: int) -> None:
    image = np.random.default_rng(2).integers(low, high, (480, 640, 3)).astype(np.uint8)
    np.testing.assert_array_equal(pixels.published(image, 400), naive_published(image, 400))


def test_published_stretches_over_the_crop_and_turns_only_black_to_white() -> None:
    image = np.full((96, 96, 3), 50, np.uint8)
    image[:42, :, 1] = 150
    image[84:] = 255  # below the crop: has no say in the stretch
    result = pixels.published(image, 84)
    assert set(np.unique(result[:30, :, 1])) == {254}
    assert set(np.unique(result[40:])) == {255}
    dark_grass, road = 102, 102  # with a white kerb in view the range is full and every level moves down by one
    image[0, :, :] = 255
    image[1, :, :] = 0
    image[10:] = (road, dark_grass + 102, road)
    assert tuple(pixels.published(image, 84)[40, 32]) == (101, 203, 101)
