"""Planning in any `LatentModel`: random shooting, CEM, iCEM and MPPI, as policies that nobody has to train."""

from typing import TYPE_CHECKING

from dreamjax._exports import exports

if TYPE_CHECKING:
    from dreamjax.planning import beliefs as beliefs, methods as methods, planner as planner
    from dreamjax.planning.methods import (
        PlanConfig as PlanConfig,
        cem as cem,
        icem as icem,
        mppi as mppi,
        random_shooting as random_shooting,
    )
    from dreamjax.planning.planner import (
        Plan as Plan,
        Planner as Planner,
        PlannerParams as PlannerParams,
        advance as advance,
        agent as agent,
        agent_params as agent_params,
        plan_return as plan_return,
        search as search,
        start as start,
    )

__getattr__, __dir__, __all__ = exports(__name__, __file__)
