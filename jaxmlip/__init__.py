"""The curvature of universal interatomic potentials: energies, forces, Hessians and phonons in JAX.

import jaxmlip
from ase.build import bulk

potential = jaxmlip.load("chgnet-0.3.0", dtype="float64")
H = jaxmlip.hessian(potential, bulk("NaCl", "rocksalt", a=5.64))  # (6, 6), eV/Å²
"""

from jaxmlip.calculator import Calculator as Calculator
from jaxmlip.derivatives import energy_forces_stress as energy_forces_stress
from jaxmlip.derivatives import hessian as hessian
from jaxmlip.derivatives import hessian_columns as hessian_columns
from jaxmlip.derivatives import hvp as hvp
from jaxmlip.derivatives import plan_hessian as plan_hessian
from jaxmlip.elasticity import elastic_tensor as elastic_tensor
from jaxmlip.graph import CrystalGraph as CrystalGraph
from jaxmlip.graph import from_atoms as from_atoms
from jaxmlip.potential import Potential as Potential
from jaxmlip.relaxation import relax as relax
from jaxmlip.relaxation import relax_many as relax_many
from jaxmlip.sources import load as load
from jaxmlip.streaming import stream_hessian as stream_hessian

__version__ = "0.1.0"
