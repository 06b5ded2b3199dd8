"""Clusters and near-duplicates of images."""
