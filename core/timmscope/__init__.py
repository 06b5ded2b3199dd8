"""A microscope for vision models."""
