"""What is optional is imported where it is used, inside `extra`, so that there is one message for what is missing."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str, what: str, note: str = "") -> Iterator[None]:
    """Import packages of an extra: `with extra("suites", "Atari"): import ale_py`.

    Raises: ModuleNotFoundError if one of them is not installed, with the command that installs the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = str(error.name).partition(".")[0]
        raise ModuleNotFoundError(without(name, what, module) + note, name=module) from None


@contextmanager
def by_hand(what: str, how: str) -> Iterator[None]:
    """Import packages that no extra can install; `how` is what to do for them.

    Raises: ModuleNotFoundError if one of them is not installed, with what to do.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = str(error.name).partition(".")[0]
        message = f"{what} needs {module}, which is not installed and which no extra can install: {how}"
        raise ModuleNotFoundError(message, name=module) from None


def without(name: str, what: str, module: str) -> str:
    """Say that something needs a module of an extra, and how to install it."""
    return f"{what} needs {module}, which is not installed: in a checkout of dreamjax, run pip install -e '.[{name}]'"
