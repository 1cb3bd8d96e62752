"""Lattice vibrations: dynamical matrices, force constants, and quantities derived from them."""

from jaxmlip.crystals.symmetry import primitive_cell as primitive_cell
from jaxmlip.phonons.bloch import dynamical_matrix as dynamical_matrix
from jaxmlip.phonons.cells import Cells as Cells
from jaxmlip.phonons.density import density_of_states as density_of_states
from jaxmlip.phonons.density import thermodynamics as thermodynamics
from jaxmlip.phonons.lattice import Lattice as Lattice
from jaxmlip.phonons.lattice import band_modes as band_modes
from jaxmlip.phonons.lattice import group_velocities as group_velocities
from jaxmlip.phonons.lattice import grueneisen as grueneisen
from jaxmlip.phonons.lattice import mesh_modes as mesh_modes
from jaxmlip.phonons.lattice import phonon_modes as phonon_modes
from jaxmlip.phonons.many import lattices as lattices
from jaxmlip.phonons.modes import animation as animation
from jaxmlip.phonons.nac import NAC as NAC
from jaxmlip.phonons.phono3py_files import read_second_order as read_second_order
from jaxmlip.phonons.phono3py_files import read_third_order as read_third_order
from jaxmlip.phonons.phono3py_files import to_phono3py as to_phono3py
from jaxmlip.phonons.phono3py_files import write_third_order as write_third_order
from jaxmlip.phonons.supercell import force_constants as force_constants
from jaxmlip.phonons.third import SecondOrder as SecondOrder
from jaxmlip.phonons.third import ThirdOrder as ThirdOrder
from jaxmlip.phonons.third import second_order as second_order
from jaxmlip.phonons.third import third_order as third_order
from jaxmlip.phonons.transport import Conductivity as Conductivity
from jaxmlip.phonons.transport import ImaginaryModesError as ImaginaryModesError
from jaxmlip.phonons.transport import conductivity as conductivity
