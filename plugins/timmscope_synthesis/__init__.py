"""First-party synthesis techniques of timmscope."""
