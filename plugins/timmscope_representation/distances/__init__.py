"""How far apart images, layers and data sets are."""
