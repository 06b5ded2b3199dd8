"""What single units of a layer respond to: patches, maps, weights and statistics."""
