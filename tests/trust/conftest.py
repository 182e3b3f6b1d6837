"""Dreams and episodes are scanned under vmap."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def keys_under_vmap(strict_jax: None) -> Iterator[None]:
    """The check takes keys that are scanned, or meet a `cond`, under vmap for used ones."""
    with jax.debug_key_reuse(False):
        yield
