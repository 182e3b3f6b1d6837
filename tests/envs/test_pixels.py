import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dreamjax.envs import pixels


def random_image(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillow_resize(image: np.ndarray) -> np.ndarray:
    """Two calls fix the order of the passes, which newer versions of Pillow choose by the shape of the image."""
    wide = Image.fromarray(image).resize((64, image.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(wide.resize((64, 64), Image.Resampling.BILINEAR))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 300))
def test_resize_returns_the_bytes_of_pillow(seed: int, height: int, width: int) -> None:
    image = random_image(seed, height, width)
    np.testing.assert_array_equal(pixels.resize(image), pillow_resize(image))


@pytest.mark.parametrize("shape", [(120, 160), (480, 640), (96, 96)])
def test_clean_is_crop_and_resize(shape: tuple[int, int]) -> None:
    image = random_image(1, *shape)
    rows = shape[0] * 5 // 6
    below = image.copy()
    below[rows:] = 0
    result = pixels.clean(image, rows)
    assert result.shape == (64, 64, 3) and result.dtype == np.uint8
    np.testing.assert_array_equal(result, pillow_resize(image[:rows]))
    np.testing.assert_array_equal(result, pixels.clean(below, rows))  # what lies below leaves no trace


def naive_published(image: np.ndarray, rows: int) -> np.ndarray:
    """The released code step by step: fractions, stretch to bytes as the old SciPy did, resize, invert, round, wrap."""
    fractions = image[:rows].astype(np.float64) / 255.0
    span = fractions.max() - fractions.min()
    stretched = (fractions - fractions.min()) * (255.0 / (span if span else 1.0))
    resized = pillow_resize((stretched.clip(0, 255) + 0.5).astype(np.uint8))
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
