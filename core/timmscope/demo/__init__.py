"""Runs the demo, which ``timmscope demo`` and ``make demo`` start."""

from timmscope.demo.run import run_demo

__all__ = ["run_demo"]
