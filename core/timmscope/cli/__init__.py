"""The command line. Nothing here imports torch before a command needs a model."""

from timmscope.cli.main import main

__all__ = ["main"]
