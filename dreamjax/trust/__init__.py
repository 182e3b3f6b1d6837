"""How far an agent's dreams can be trusted, as numbers: what they promise, and how long they stay with the game."""

from typing import TYPE_CHECKING

from dreamjax._exports import exports

if TYPE_CHECKING:
    from dreamjax.trust import (
        chart as chart,
        episodes as episodes,
        measurement as measurement,
        one_step as one_step,
        open_loop as open_loop,
        promise as promise,
        section as section,
    )
    from dreamjax.trust.measurement import TrustConfig as TrustConfig, beside as beside, measure as measure
    from dreamjax.trust.one_step import one_step_error as one_step_error
    from dreamjax.trust.section import trust_section as trust_section

__getattr__, __dir__, __all__ = exports(__name__, __file__)
