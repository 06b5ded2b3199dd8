"""First-party style techniques of timmscope."""
