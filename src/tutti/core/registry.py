"""Names for pluggable things, found by importing one package.

A factory's typed parameters *are* its configuration: options from a job file, the API or the command line
are converted and checked against its signature, and the same signature yields help texts and JSON schema.
Adding a strategy, model, data set or partitioner is therefore one new file.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeAlias, TypeVar, get_type_hints

import msgspec

from tutti.core.errors import UserError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

Option: TypeAlias = bool | int | float | str | list[int]


class UnknownName(UserError):
    """A job names something that no registry holds."""


class BadOption(UserError):
    """An option is missing, unknown, of the wrong type or out of range."""


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A name from a registry with its options, written `name` or `name:key=value,key=value`."""

    name: str
    options: dict[str, Option] = {}

    @classmethod
    def parse(cls, text: str) -> "Choice":
        """Read the short form. `dirichlet:0.5` gives the factory's first parameter by position ('')."""
        name, _, rest = text.partition(":")
        if not name:
            raise BadOption(f"expected a name such as 'fedavg' or 'fedadam:server_lr=0.1', came {text!r}")
        options: dict[str, Option] = {}
        for part in filter(None, rest.split(",")):
            key, equals, value = part.partition("=")
            options[key.strip() if equals else ""] = _literal(value if equals else key)
        return cls(name.strip(), options)

    def __str__(self) -> str:
        parts = (f"{key}={_text(value)}" if key else _text(value) for key, value in self.options.items())
        return self.name + (":" + ",".join(parts) if self.options else "")


def _literal(text: str) -> Option:
    text = text.strip()
    if "x" in text and all(part.isdigit() for part in text.split("x")):
        return [int(part) for part in text.split("x")]  # layer sizes: hidden=200x200
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _text(value: Option) -> str:
    if isinstance(value, list):
        return "x".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


class Registry(Generic[T]):
    """Maps a name to a factory, for one kind of thing.

    Modules of `package` register themselves when imported, those with a leading underscore aside; other distributions
    join by an entry point in the group of the package's name, such as `tutti.strategies`.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._factories: dict[str, Callable[..., T]] = {}
        self._structs: dict[str, type[msgspec.Struct]] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[F], F]:
        def decorate(factory: F) -> F:
            if name in self._factories:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._factories[name] = factory
            return factory

        return decorate

    def factory(self, name: str) -> Callable[..., T]:
        """The factory of that name; raises UnknownName, listing what there is."""
        self._discover()
        if name not in self._factories:
            raise UnknownName(f"there is no {self.kind} {name!r}; choose from: {', '.join(self)}")
        return self._factories[name]

    def options(self, choice: Choice) -> dict[str, Any]:
        """The choice's options, converted to the factory's types, defaults filled in; raises BadOption."""
        struct = self._struct(choice.name)
        given = dict(choice.options)
        if "" in given:
            if not struct.__struct_fields__:
                raise BadOption(f"{self.kind} {choice.name!r} takes no options, came {given['']!r}")
            given[struct.__struct_fields__[0]] = given.pop("")
        try:
            filled = msgspec.convert(given, struct)
        except msgspec.ValidationError as error:
            allowed = ", ".join(struct.__struct_fields__) or "none"
            raise BadOption(f"{self.kind} {choice.name!r}: {error} (options: {allowed})") from None
        return msgspec.structs.asdict(filled)

    def build(self, choice: Choice, **context: Any) -> T:
        """Call the factory with the choice's options; `context` goes to its keyword-only parameters."""
        return self.factory(choice.name)(**self.options(choice), **context)

    def schema(self, name: str) -> dict[str, Any]:
        """JSON schema of a factory's options, with the first line of its docstring."""
        schema = msgspec.json.schema(self._struct(name))["$defs"][name]
        doc = inspect.getdoc(self.factory(name)) or ""
        return {**schema, "description": doc.partition("\n")[0]}

    def _struct(self, name: str) -> type[msgspec.Struct]:
        """A struct with the factory's positional parameters as fields (keyword-only ones are context)."""
        if name in self._structs:
            return self._structs[name]
        factory = self.factory(name)
        hints = get_type_hints(factory, include_extras=True)
        fields: list[Any] = []
        for parameter in inspect.signature(factory).parameters.values():
            if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
                continue
            field: tuple[Any, ...] = (parameter.name, hints[parameter.name])
            fields.append(field if parameter.default is parameter.empty else (*field, parameter.default))
        self._structs[name] = msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)
        return self._structs[name]

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(sorted(self._factories))

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._factories

    def _discover(self) -> None:
        if self._discovered:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self._package}.{module.name}")
        for point in entry_points(group=f"tutti.{self._package.rpartition('.')[2]}"):
            self._factories.setdefault(point.name, point.load())
        self._discovered = True


def describe(registry: "Registry[Any]") -> Mapping[str, Mapping[str, Any]]:
    """Every name with its options' schema: what help texts, API and forms are made from."""
    return {name: registry.schema(name) for name in registry}
