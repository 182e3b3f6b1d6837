"""A package, so that processes started by tests find it before the `tests` that some installed packages bring along."""
