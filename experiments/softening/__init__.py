"""Are potentials too soft? Forces, phonons, surfaces, defects, mixing, migration, moduli, and the cure."""
