"""Small networks that read handwritten digits: their source, their images and their trainer."""
