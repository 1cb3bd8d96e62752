"""Studies of potentials against DFT."""
