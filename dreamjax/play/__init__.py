"""The page on which a person meets an agent: `python -m dreamjax.play PATH`."""

from typing import TYPE_CHECKING

from dreamjax._exports import exports

if TYPE_CHECKING:
    from dreamjax.play import (
        controls as controls,
        environments as environments,
        programs as programs,
        recording as recording,
        server as server,
        session as session,
        settings as settings,
        shown as shown,
        world as world,
    )
    from dreamjax.play.environments import Playable as Playable, find as find
    from dreamjax.play.session import Session as Session

__getattr__, __dir__, __all__ = exports(__name__, __file__)
