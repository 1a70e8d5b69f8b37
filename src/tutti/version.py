"""The installed version; a module of its own, so that no layer has to import the package's front door."""

from importlib.metadata import version

__version__ = version("tutti")
