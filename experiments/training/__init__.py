"""Training of networks: from scratch, on Hessian columns, and as other experiments need it."""
