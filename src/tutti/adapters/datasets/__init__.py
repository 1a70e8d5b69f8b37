"""Data sources: bundled sets, files, and a Python entry point."""

import inspect

from tutti.adapters.datasets._common import SCHEMAS, BadData, Carving, Rows, Source, carve_all, source
from tutti.core.registry import Choice
from tutti.domain.spec import DataSchema
from tutti.ports.training import datasets


def known_schema(choice: Choice) -> DataSchema | None:
    """The schema of a set that is the same everywhere, without reading it; None for the data of a node's own."""
    if choice.name not in datasets or choice.name not in SCHEMAS:
        return None
    options = datasets.options(choice)
    schema = SCHEMAS[choice.name]
    return schema(**{name: options[name] for name in inspect.signature(schema).parameters})


__all__ = ["BadData", "Carving", "Rows", "Source", "carve_all", "known_schema", "source"]
