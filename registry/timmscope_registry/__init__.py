"""The two registries of timmscope: plugins and model hooks."""
