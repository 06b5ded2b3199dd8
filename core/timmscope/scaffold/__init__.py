"""`timmscope plugins new`: a package to begin with."""

from timmscope.scaffold.kinds import KINDS
from timmscope.scaffold.new import new_plugin

__all__ = ["KINDS", "new_plugin"]
