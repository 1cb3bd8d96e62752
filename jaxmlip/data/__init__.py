"""Labelled crystals: read from the files of others, stored as graphs, served in batches of one shape."""
