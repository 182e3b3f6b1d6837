"""Descriptions of spaces that survive JSON."""

import json

import numpy as np
import pytest

from dreamjax.storage.specs import spec_from_json, spec_to_json
from dreamjax.types import EnvSpec, Space

IMAGE = Space((64, 64, 3), np.uint8, 0, 256)


@pytest.mark.parametrize(
    "spec",
    [
        EnvSpec(IMAGE, Space((3,), np.float32, (-1, 0, 0), 1.0), 1000),
        EnvSpec({"shape": IMAGE, "dtype": Space((5,))}, Space((), np.int32, 0, 4), 7),
        EnvSpec(Space((2,), np.float32, (-np.inf, 0.0)), (Space(()), {"fire": Space((2,), bool, 0, 2)}), 1),
    ],
)
def test_a_spec_comes_back(spec: EnvSpec) -> None:
    text = json.dumps(spec_to_json(spec), allow_nan=False)
    assert spec_from_json(json.loads(text)) == spec


def test_trees_that_json_cannot_name_are_refused() -> None:
    with pytest.raises(ValueError, match="dicts, tuples and Space, got list"):
        spec_to_json(EnvSpec([IMAGE], IMAGE, 3))


@pytest.mark.parametrize("written", [{}, {"observation": {}, "action": {}, "max_steps": 3}, {"observation": 3}])
def test_other_content_is_refused(written: dict) -> None:
    with pytest.raises(ValueError, match="not a description of spaces"):
        spec_from_json(written)
