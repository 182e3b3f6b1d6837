"""Public names that are imported when they are first used, so that `import dreamjax` starts neither JAX nor a game."""

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def exports(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make `__getattr__`, `__dir__` and `__all__` of a package from the imports under `if TYPE_CHECKING:` in its file.

    Editors and type checkers follow these imports as they stand; nothing is listed twice.
    """
    blocks = [node for node in ast.parse(Path(file).read_text()).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    modules = {alias.name: str(node.module) for node in imports for alias in node.names}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"{package} has no {name!r}; it has {', '.join(sorted(modules))}")
        if modules[name] == package:  # a module of the package itself
            try:
                return import_module(f"{package}.{name}")
            except ModuleNotFoundError as error:  # of an extra; `help` and `hasattr` look at every name
                raise AttributeError(str(error)) from None
        return getattr(import_module(modules[name]), name)

    return get, lambda: sorted([*modules, "__doc__", "__name__", "__file__", "__path__"]), sorted(modules)
