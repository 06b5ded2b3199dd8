"""One contribution of each kind."""
