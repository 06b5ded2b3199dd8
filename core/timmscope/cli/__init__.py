"""The command line, which imports torch only when a command needs a model."""

from timmscope.cli.main import main

__all__ = ["main"]
