"""Third-order constants of a model against DFT's: slopes of a known scale, and runs of phono3py."""

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from springs import springs

from jaxmlip.derivatives.slopes import third_order_slope
from jaxmlip.phonons.anharmonicity import KINDS, anharmonicity, triples
from jaxmlip.phonons.phono3py_files import read_phono3py
from jaxmlip.phonons.third import ThirdOrder

SILICON = bulk("Si")


@pytest.fixture(scope="module")
def silicon() -> ThirdOrder:
    return springs(SILICON, (3, 3, 3), reach=1.7)[0]


def test_constants_of_a_known_scale_give_every_slope(silicon):
    found = anharmonicity(replace(silicon, fc3=0.8 * silicon.fc3), silicon)
    assert set(found.kinds) == set(KINDS)
    for slope in (found.all, found.without_self, *found.kinds.values()):
        assert slope.slope == pytest.approx(0.8, rel=1e-12)
        assert slope.r_squared == pytest.approx(1, rel=1e-12)
        assert slope.relative_error == pytest.approx(0.2, rel=1e-6)
        assert slope.shrinkage_share == pytest.approx(0, abs=1e-9)
    assert [line.split()[-5] for line in str(found).splitlines()[1:]] == 5 * ["0.800"]


def test_a_conditional_mean_is_told_from_softening(silicon):
    """DFT is the model, and what it cannot resolve: the slope is low, and all of it can be shrinkage."""
    rng = np.random.default_rng(0)
    mean = replace(silicon, fc3=rng.normal(size=silicon.fc3.shape))
    found = anharmonicity(mean, replace(silicon, fc3=mean.fc3 + rng.normal(size=silicon.fc3.shape))).all
    assert found.slope == pytest.approx(0.5, rel=0.02)
    assert found.shrinkage_share == pytest.approx(1, rel=0.03)
    assert found.inverse == pytest.approx(1, rel=0.02)


def test_each_three_atoms_are_of_one_kind(silicon):
    found = triples(silicon.cells)
    assert (sum(found.values()) == 1).all()
    # Of each of two atoms and each of its four neighbours: (i, i, j), (i, j, i) and (i, j, j).
    assert [found[kind].sum() for kind in KINDS[:2]] == [2, 2 * 4 * 3]
    some = found["neighbours"]
    np.testing.assert_array_equal(some, some.swapaxes(1, 2))


def test_other_atoms_are_refused_with_both_named(silicon):
    with pytest.raises(ValueError, match=r"Si2 in Si54.*Si2 in Si16"):
        anharmonicity(silicon, springs(SILICON, (2, 2, 2))[0])
    off = replace(silicon.cells, supercell=silicon.cells.supercell.copy())
    off.supercell.positions[3] += 0.5
    with pytest.raises(ValueError, match=r"up to 0\.866 Å"):
        anharmonicity(replace(silicon, cells=off), silicon)
    with pytest.raises(ValueError, match=r"\(2, 54, 54, 3, 3, 3\).*\(2, 53, 54, 3, 3, 3\)"):
        third_order_slope(silicon.fc3, silicon.fc3[:, 1:])
    with pytest.raises(ValueError, match=r"triples of shape \(2, 54\)"):
        third_order_slope(silicon.fc3, silicon.fc3, np.ones((2, 54), bool))


def forces_of(third, second, moved: np.ndarray) -> np.ndarray:
    """F = -Φ2 u - Φ3 u u / 2 of displacements (k, N, 3) of a supercell."""
    cells = third.cells
    atom, _ = cells.places
    to = cells.shifts[cells.home]  # (N, N), the place of each atom when the first is in the primitive cell
    found = np.empty_like(moved)
    for i, (own, its) in enumerate(zip(atom, to, strict=True)):
        phi2, phi3 = second.fc2[own, its], third.fc3[own][its][:, its]
        found[:, i] = -np.einsum("jab,sjb->sa", phi2, moved)
        found[:, i] -= np.einsum("jkabc,sjb,skc->sa", phi3, moved, moved, optimize=True) / 2
    return found


@pytest.fixture(scope="module", params=["pairs", "all at once"])
def run(request, tmp_path_factory):
    """A run of phono3py whose DFT are springs, and these."""
    pytest.importorskip("phono3py")
    from phono3py.file_IO import write_FORCES_FC3

    third, second = springs(SILICON, (2, 2, 2))
    folder = tmp_path_factory.mktemp("run [of springs]")
    ph3 = third.cells.to_phono3py()
    if request.param == "pairs":
        ph3.generate_displacements(distance=0.03)
        ph3.save(folder / "phono3py_disp.yaml")
        moved = [s.positions - ph3.supercell.positions for s in ph3.supercells_with_displacements]
        write_FORCES_FC3(
            ph3.dataset, forces_of(third, second, np.array(moved)), filename=folder / "FORCES_FC3"
        )
    else:
        moved = 0.03 * np.random.default_rng(0).normal(size=(30, 16, 3))
        ph3.dataset = {"displacements": moved, "forces": forces_of(third, second, moved)}
        ph3.save(folder / "phono3py_params.yaml")
    return folder, third, second


def test_a_run_of_phono3py_gives_the_constants_that_its_forces_come_from(run):
    folder, third, second = run
    found = read_phono3py(folder)
    np.testing.assert_array_equal(found.cells.p2s, third.cells.p2s)
    np.testing.assert_allclose(found.third.fc3, third.fc3, rtol=0, atol=2e-3 * third.checks.largest)
    np.testing.assert_allclose(found.second.fc2, second.fc2, rtol=0, atol=1e-3 * np.abs(second.fc2).max())
    assert str(folder) in found.third.method
    moved = np.array([atoms.positions for atoms in found.displaced]) - found.cells.supercell.positions
    np.testing.assert_allclose(found.forces, forces_of(third, second, moved), rtol=0, atol=1e-6)
    soft = found.with_forces(0.8 * found.forces, "forces of another")
    assert anharmonicity(soft.third, found.third).all.slope == pytest.approx(0.8, rel=1e-6)
    assert soft.third.method == "forces of another"
    with pytest.raises(ValueError, match=rf"1 supercells, needed those of {len(moved)}"):
        found.with_forces(found.forces[:1], "too few")


@pytest.mark.parametrize("run", ["pairs"], indirect=True)
def test_what_is_missing_or_does_not_belong_together_is_named(run, tmp_path):
    folder = run[0]
    with pytest.raises(FileNotFoundError, match=r"nowhere has none of phono3py_params\.yaml"):
        read_phono3py(tmp_path / "nowhere")
    (tmp_path / "phono3py_disp.yaml").write_text((folder / "phono3py_disp.yaml").read_text())
    with pytest.raises(FileNotFoundError, match=r"no FORCES_FC3 beside"):
        read_phono3py(tmp_path)
    rows = (folder / "FORCES_FC3").read_text().splitlines(keepends=True)
    (tmp_path / "FORCES_FC3").write_text("".join(rows[: len(rows) // 2]))
    with pytest.raises(ValueError, match=r"FORCES_FC3 cannot be used: .*needed"):
        read_phono3py(tmp_path / "phono3py_disp.yaml")
    (tmp_path / "phono3py_disp.yaml").write_text("phono3py: [")
    with pytest.raises(ValueError, match=r"phono3py_disp\.yaml cannot be used"):
        read_phono3py(tmp_path)
