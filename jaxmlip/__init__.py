"""The curvature of universal interatomic potentials: energies, forces, Hessians and phonons in JAX.

import jaxmlip
from ase.build import bulk

potential = jaxmlip.load("chgnet-0.3.0", dtype="float64")
H = jaxmlip.hessian(potential, bulk("NaCl", "rocksalt", a=5.64))  # (6, 6), eV/Å²
"""

from jaxmlip.crystals.graph import CrystalGraph as CrystalGraph
from jaxmlip.crystals.graph import from_atoms as from_atoms
from jaxmlip.derivatives.gradients import energy_forces_stress as energy_forces_stress
from jaxmlip.derivatives.gradients import hvp as hvp
from jaxmlip.derivatives.hessian import hessian as hessian
from jaxmlip.derivatives.hessian import hessian_columns as hessian_columns
from jaxmlip.derivatives.hessian import plan_hessian as plan_hessian
from jaxmlip.derivatives.sparse import plan_sparse_hessian as plan_sparse_hessian
from jaxmlip.derivatives.sparse import sparse_hessian as sparse_hessian
from jaxmlip.derivatives.streaming import stream_hessian as stream_hessian
from jaxmlip.derivatives.streaming import stream_sparse_hessian as stream_sparse_hessian
from jaxmlip.mechanics.calculator import Calculator as Calculator
from jaxmlip.mechanics.elasticity import elastic_tensor as elastic_tensor
from jaxmlip.mechanics.relaxation import relax as relax
from jaxmlip.mechanics.relaxation import relax_many as relax_many
from jaxmlip.mechanics.saddle import saddle as saddle
from jaxmlip.mechanics.vibrations import vibrations as vibrations
from jaxmlip.potential import Potential as Potential
from jaxmlip.zoo.load import load as load

__version__ = "0.1.0"
