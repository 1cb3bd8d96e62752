"""Lattice vibrations: force constants of a potential, and the frequencies that follow from them."""
