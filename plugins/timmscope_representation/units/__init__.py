"""Responses of single units of a layer: patches, maps, weights and statistics."""
