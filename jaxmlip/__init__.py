"""The curvature of universal interatomic potentials: energies, forces, Hessians and phonons in JAX.

import jaxmlip
from ase.build import bulk

potential = jaxmlip.load("chgnet-0.3.0", dtype="float64")
H = jaxmlip.hessian(potential, bulk("NaCl", "rocksalt", a=5.64))  # (6, 6), eV/Å²
"""

import typing

from jaxmlip.system import doors

if typing.TYPE_CHECKING:
    from jaxmlip import crystals as crystals
    from jaxmlip import data as data
    from jaxmlip import derivatives as derivatives
    from jaxmlip import mechanics as mechanics
    from jaxmlip import models as models
    from jaxmlip import phonons as phonons
    from jaxmlip import potential as potential
    from jaxmlip import studies as studies
    from jaxmlip import training as training
    from jaxmlip import units as units
    from jaxmlip import zoo as zoo
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
__getattr__, __dir__ = doors.door(
    __name__,
    {
        "jaxmlip.crystals.graph": "CrystalGraph from_atoms",
        "jaxmlip.derivatives.gradients": "energy_forces_stress hvp",
        "jaxmlip.derivatives.hessian": "hessian hessian_columns plan_hessian",
        "jaxmlip.derivatives.sparse": "plan_sparse_hessian sparse_hessian",
        "jaxmlip.derivatives.streaming": "stream_hessian stream_sparse_hessian",
        "jaxmlip.mechanics.calculator": "Calculator",
        "jaxmlip.mechanics.elasticity": "elastic_tensor",
        "jaxmlip.mechanics.relaxation": "relax relax_many",
        "jaxmlip.mechanics.saddle": "saddle",
        "jaxmlip.mechanics.vibrations": "vibrations",
        "jaxmlip.potential": "Potential",
        "jaxmlip.zoo.load": "load",
    },
    rooms="crystals data derivatives mechanics models phonons potential studies training units zoo",
)
