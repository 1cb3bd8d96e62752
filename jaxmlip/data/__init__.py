"""Labelled crystals: read from many formats of files, stored as graphs, served in batches of one shape."""
