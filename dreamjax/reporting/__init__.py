"""What a person looks at: results, curves, films, pages, tables."""

from typing import TYPE_CHECKING

from dreamjax._exports import exports

if TYPE_CHECKING:
    from dreamjax.reporting import (
        aggregate as aggregate,
        curves as curves,
        evaluation as evaluation,
        figures as figures,
        films as films,
        intervals as intervals,
        labels as labels,
        pages as pages,
        programs as programs,
        results as results,
        sweeps as sweeps,
        tables as tables,
        timing as timing,
        videos as videos,
    )
    from dreamjax.reporting.evaluation import evaluate_and_film as evaluate_and_film
    from dreamjax.reporting.films import (
        film as film,
        film_dream as film_dream,
        film_dream_and_real as film_dream_and_real,
        film_episode as film_episode,
    )
    from dreamjax.reporting.pages import Section as Section, write_summary as write_summary
    from dreamjax.reporting.results import (
        published_at as published_at,
        read_result as read_result,
        result_row as result_row,
        show_rows as show_rows,
        write_result as write_result,
    )
    from dreamjax.reporting.videos import write_video as write_video

__getattr__, __dir__, __all__ = exports(__name__, __file__)
