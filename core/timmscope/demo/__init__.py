"""The demo: ``timmscope demo`` and ``make demo``."""

from timmscope.demo.run import run_demo

__all__ = ["run_demo"]
