"""Runs a technique over an image set of any size: in chunks, with a journal, resumable."""
