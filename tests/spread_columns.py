"""Second derivatives of a potential, on one device or spread over all devices of all processes.

python spread_columns.py MODEL FOLDER WHICH [COORDINATOR PROCESSES PROCESS]

MODEL is "pairs" or a folder with a network, WHICH one of KINDS. Process K leaves its arrays in FOLDER/K.npz.
"""

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pairs
import pytest
from ase.build import bulk
from crystals import chain, triclinic

from jaxmlip.crystals import batching
from jaxmlip.derivatives import hessian, linear_map
from jaxmlip.derivatives.response import Response
from jaxmlip.derivatives.sparse import sparse_hessian
from jaxmlip.derivatives.streaming import stream_hessian, stream_sparse_hessian
from jaxmlip.mechanics.elasticity import NotAtRestWarning, elastic_tensor, elastic_tensors
from jaxmlip.phonons import (
    bloch,
    dynamical_matrix,
    force_constants,
    group_velocities,
    grueneisen,
    lattices,
)
from jaxmlip.potential import Potential
from jaxmlip.system import parallel

SEVERAL = batching.BatchShape(14, 32, 96, 320, 14)  # for crystals side by side, of all quantities
Q = np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.21, -0.34, 0.4]])
QUANTITIES = {
    "hessian": lambda potential, atoms, folder: hessian.hessian(potential, atoms),
    "some columns": lambda potential, atoms, folder: hessian.hessian_columns(potential, atoms, [5, 1, 7]),
    "limited": lambda potential, atoms, folder: hessian.hessian(potential, atoms, memory_limit=60e9),
    "streamed": lambda potential, atoms, folder: stream_hessian(potential, atoms, folder / "h.npy"),
    "sparse": lambda potential, atoms, folder: sparse_hessian(potential, chain()).toarray(),
    "streamed sparse": lambda potential, atoms, folder: stream_sparse_hessian(
        potential, chain(), folder / "h.npz"
    ).toarray(),
    "third derivatives": lambda potential, atoms, folder: third_derivatives(potential, atoms),
    "dynamical matrices": lambda potential, atoms, folder: dynamical_matrix(potential, atoms, Q),
    "force constants": lambda potential, atoms, folder: force_constants(potential, atoms, (2, 1, 1)).phi,
    "velocities": lambda potential, atoms, folder: group_velocities(potential, atoms, Q[2:])[1],
    "Grüneisen": lambda potential, atoms, folder: grueneisen(potential, atoms, Q[2:])[1],
    "elastic": lambda potential, atoms, folder: elastic_tensor(potential, atoms).C,
    "dynamical matrices, side by side": lambda potential, atoms, folder: side_by_side(potential, atoms),
    "elastic, side by side": lambda potential, atoms, folder: np.array(
        [found.C for found in elastic_tensors(potential, [atoms, atoms], [SEVERAL])]
    ),
}
FEW = ("hessian", "dynamical matrices")
HELD = 10**8  # bytes that the process is taken to hold
Found = dict[str, np.ndarray | float]


def every_column(response: Response) -> np.ndarray:
    return np.concatenate([rows for _, rows in response.columns(np.arange(3 * response.atoms))])


DIVIDED = {
    "Hessian of divided bonds": every_column,
    "waves of divided bonds": lambda response: bloch.matrices(response, Q),
}


def third_derivatives(potential, atoms) -> np.ndarray:
    """Those along two displacements."""
    response = Response(potential, atoms)
    return np.array(
        [every_column(response.turned(w)) for w in np.random.default_rng(0).normal(size=(2, 3, 3))]
    )


def divided(potential, atoms, folder: Path, along=None) -> Found:
    """What devices find that hold a part of the bonds each, and the bytes that each keeps.

    The memory limit is one that the whole linear map does not meet on any of several devices.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxmlip.derivatives.response.resident", lambda: HELD)
        kept = Response(replace(potential, mesh=None), atoms, shape=batching.exact_shape, along=along).kept
        limit = HELD + 1.5 * kept * len(jax.local_devices())
        response = Response(potential, atoms, memory_limit=limit, along=along)
        assert response.divided == (potential.mesh is not None)
        if along is not None:
            found = {"third derivatives of divided bonds": every_column(response)}
        else:
            found = {name: quantity(response) for name, quantity in DIVIDED.items()}
        return found | {"kept": response.kept}


def divided_third(potential, atoms, folder: Path) -> Found:
    return divided(potential, atoms, folder, np.random.default_rng(0).normal(size=(len(atoms), 3)))


def side_by_side(potential, atoms) -> np.ndarray:
    """D of two crystals, each at its own wave vectors, and of each at a different number of them."""
    crystals = [atoms, bulk("NaCl", "rocksalt", 5.0)]
    work = lattices(
        potential, crystals, lambda k, lattice: lattice.exact(Q[k:] * (1 - 2 * k)), shapes=[SEVERAL]
    )
    found = dict(work)
    return np.concatenate([found[k].ravel() for k in range(len(crystals))])


def operations(response: Response) -> float:
    """Floating-point operations of each device for 8 columns of all, as XLA counts them."""
    with response.potential.precision():
        program = response._lowered(linear_map.columns, response._shapes_of_map(), 8 // response._devices)
        return program.compile().cost_analysis()["flops"]


def some(*names: str):
    """A function that finds these of QUANTITIES."""
    return lambda potential, atoms, folder: {
        name: np.asarray(QUANTITIES[name](potential, atoms, folder)) for name in names
    }


def few(potential, atoms, folder: Path) -> Found:
    """Those of FEW, the work of each device, and how much another crystal of the size compiles on many."""
    found = some(*FEW)(potential, atoms, folder)
    if potential.mesh is not None:
        programs = [linear_map.on_mesh(program, potential.mesh) for program in linear_map.LAYOUTS]
        before = sum(program._cache_size() for program in programs)
        moved = atoms.copy()
        moved.rattle(0.01, seed=1)
        some(*FEW)(potential, moved, folder)
        found["compiled anew"] = sum(program._cache_size() for program in programs) - before
    return found | {"work": operations(Response(potential, atoms))}


KINDS = {
    "hessian": some("hessian"),
    "few": few,
    "others": some(*(name for name in QUANTITIES if name not in FEW)),
    "divided": divided,
    "divided-third": divided_third,
}


def found(potential, which: str, folder: Path) -> Found:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotAtRestWarning)  # the crystal is as it is drawn
        return KINDS[which](potential, triclinic(), folder)


def main(model: str, folder: str, which: str, *address: str) -> None:
    if address:
        parallel.connect(address[0], int(address[1]), int(address[2]))
    alone = pairs.potential() if model == "pairs" else Potential.from_folder(model, "float64")
    spread = alone.on_devices()
    assert spread.mesh.size == len(jax.devices())
    here = Path(folder) / f"{jax.process_index()}"
    here.mkdir()
    np.savez(here.with_suffix(".npz"), devices=spread.mesh.size, **found(spread, which, here))


if __name__ == "__main__":
    main(*sys.argv[1:])
