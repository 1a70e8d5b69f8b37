"""Train one model together, with nobody's data leaving home."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutti.apps.client import Client
    from tutti.sim import Federation, simulate
    from tutti.version import __version__

__all__ = ["Client", "Federation", "__version__", "simulate"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Import what is heavy only when it is asked for."""
    if name == "__version__":
        from tutti.version import __version__

        return __version__
    if name == "Client":
        from tutti.apps.client import Client

        return Client
    if name in ("Federation", "simulate"):
        from tutti import sim

        return getattr(sim, name)
    raise AttributeError(f"module 'tutti' has no attribute {name!r}")
