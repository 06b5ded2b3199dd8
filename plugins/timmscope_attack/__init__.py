"""First-party attack techniques of timmscope."""
