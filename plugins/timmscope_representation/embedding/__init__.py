"""Maps of images in two or three dimensions, and the nearest neighbours of an image."""
