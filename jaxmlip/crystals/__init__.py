"""Crystals: their graphs, batches of them, their symmetry."""
