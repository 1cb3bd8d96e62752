"""Transfer from one functional to another: energies, reference energies, fine-tuning, scaling."""
