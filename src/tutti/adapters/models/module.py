"""Any torch module that is installed where the job runs, by its entry point."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_type_hints

from tutti.adapters._imports import BadEntry, extra, load_listed_entry
from tutti.adapters.models._build import torch_trainer
from tutti.domain.modules import BY_ENTRY
from tutti.domain.spec import DataSchema
from tutti.ports.training import Trainer, models

if TYPE_CHECKING:
    from torch import nn


@models.register(BY_ENTRY)
def module(entry: str, *, data: DataSchema) -> Trainer:
    """A torch module by entry=package.module:factory, installed and listed on every node and the coordinator."""
    with extra("torch", "model 'module'"):
        factory = _module_factory(entry)
    takes_data = "data" in inspect.signature(factory).parameters

    def build() -> "nn.Module":
        return factory(data=data) if takes_data else factory()

    return torch_trainer(build, data)


def _module_factory(entry: str) -> "Callable[..., nn.Module]":
    """An nn.Module class, or a function annotated to return one; raises BadEntry.

    A job names the entry, so nothing else may be called: not every installed function is harmless.
    """
    from torch import nn

    factory = load_listed_entry(entry)
    returned: Any = factory if inspect.isclass(factory) else get_type_hints(factory).get("return")
    if not (inspect.isclass(returned) and issubclass(returned, nn.Module)):
        raise BadEntry(
            f"entry {entry!r}: expected an nn.Module class, or a function annotated '-> nn.Module' "
            f"with at most one parameter, `data`; came {factory!r}"
        )
    return factory
