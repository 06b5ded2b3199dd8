"""First-party representation techniques of timmscope."""
