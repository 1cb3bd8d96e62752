"""Derivatives of any energy function: forces, stress, Hessians."""
