"""Groups of images: clusters and near-duplicates."""
