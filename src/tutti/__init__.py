"""Train one model together, with nobody's data leaving home."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutti.apps.client import Client

    __version__: str

__all__ = ["Client", "__version__"]


def __getattr__(name: str) -> Any:
    """Import what is heavy only when it is asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("tutti")
    if name == "Client":
        from tutti.apps.client import Client

        return Client
    raise AttributeError(f"module 'tutti' has no attribute {name!r}")
