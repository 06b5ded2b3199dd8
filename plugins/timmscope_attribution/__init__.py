"""First-party attribution techniques of timmscope."""
