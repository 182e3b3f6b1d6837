"""Agents that travel: what acts, as one program for several platforms, and a runner on JAX and flatbuffers alone."""

from typing import TYPE_CHECKING

from dreamjax._exports import exports

if TYPE_CHECKING:
    from dreamjax.export import artefact as artefact, runner as runner
    from dreamjax.export.artefact import export_agent as export_agent
    from dreamjax.export.runner import Exported as Exported

__getattr__, __dir__, __all__ = exports(__name__, __file__)
