"""What forces and stresses do: calculator, relaxation, bands, elasticity."""
