"""`timmscope plugins new` writes the package of a new plugin from templates."""

from timmscope.scaffold.kinds import KINDS
from timmscope.scaffold.new import new_plugin

__all__ = ["KINDS", "new_plugin"]
