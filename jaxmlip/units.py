"""Conversions between eV, Å, atomic mass units and what people quote, each with its derivation.

Constants: CODATA 2018, exact if the SI of 2019 makes them so.
"""

import math

import numpy as np

ELEMENTARY_CHARGE = 1.602176634e-19  # C, exact; so 1 eV = 1.602176634e-19 J
ATOMIC_MASS = 1.66053906660e-27  # kg

# 1 eV/Å³ = e J / (1e-10 m)³ = e·1e30 Pa = e·1e21 GPa
GPA_PER_EV_PER_A3 = ELEMENTARY_CHARGE * 1e21  # 160.2176634

# 1 eV/Å² = e J / (1e-10 m)², of surface energies
J_PER_M2_PER_EV_PER_A2 = ELEMENTARY_CHARGE * 1e20  # 16.02176634

# ω² [1/s²] = λ [eV/(Å² u)] · (e J / (1e-10 m)²) / (u kg), and a frequency in THz is ω / 2π / 1e12.
THZ_PER_ROOT_EV_PER_A2_U = math.sqrt(ELEMENTARY_CHARGE * 1e20 / ATOMIC_MASS) / (2 * math.pi) / 1e12  # 15.6333

# 1 THz as a wavenumber: 1e12 / (100 c), c = 299792458 m/s
PER_CM_PER_THZ = 1e10 / 299792458  # 33.3564

# h ν in eV for ν in THz: h / e · 1e12
EV_PER_THZ = 6.62607015e-34 / ELEMENTARY_CHARGE * 1e12  # 4.1357e-3
KELVIN_PER_EV = ELEMENTARY_CHARGE / 1.380649e-23  # e / k_B: 11604.5
J_PER_MOL_PER_EV = ELEMENTARY_CHARGE * 6.02214076e23  # e · N_A: 96485.3

# e²/4πε₀ in eV Å: e / (4π · 8.8541878128e-12 F/m) V m, and 1 m = 1e10 Å
COULOMB = ELEMENTARY_CHARGE / (4 * math.pi * 8.8541878128e-12) * 1e10  # 14.3996


def in_thz(squares: np.ndarray) -> np.ndarray:
    """Frequencies (THz) of eigenvalues ω² in eV/(Å² u); imaginary ones are negative."""
    return np.sign(squares) * np.sqrt(np.abs(squares)) * THZ_PER_ROOT_EV_PER_A2_U
