"""Uses of forces and stresses: calculator, relaxation, bands, elasticity."""
