"""Distances between images, layers and data sets."""
