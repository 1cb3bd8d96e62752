"""Crystals with the labels of potentials, which stand in for those of a functional."""
