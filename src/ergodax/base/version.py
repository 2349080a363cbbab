"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ergodax")
except PackageNotFoundError:  # a source checkout that was never installed
    __version__ = "0+source"
