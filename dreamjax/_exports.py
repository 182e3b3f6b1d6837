"""Public names that are imported when they are first used, so that `import dreamjax` starts neither JAX nor a game."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def exports(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package, from the module of each public name.

    Modules are named within dreamjax, such as "storage.agents"; a name of a module itself is followed by "". Beside
    the call stand the same imports under `TYPE_CHECKING`, which editors and type checkers follow.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"{package} has no {name!r}; it has {', '.join(sorted(names))}")
        if not names[name]:
            return import_module(f"{package}.{name}")
        return getattr(import_module(f"dreamjax.{names[name]}"), name)

    return get, lambda: sorted([*names, "__doc__", "__name__", "__file__", "__path__"]), sorted(names)
