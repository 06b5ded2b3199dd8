"""Maps of images in two or three dimensions, and nearest neighbours of an image."""
