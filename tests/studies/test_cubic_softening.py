"""The experiment on third order, where DFT is the potential itself with forces of a known scale."""

import pytest

pytest.importorskip("phono3py", reason="phono3py, the extra of that name, is not installed")

from small_studies.softening import CURVATURE

from experiments.softening.anharmonicity import findings, functional_table
from jaxmlip.phonons.phono3py_files import read_phono3py


def test_forces_of_a_known_scale_give_every_slope_of_both_orders(ran):
    (row,) = ran("softening.anharmonicity").rows.values()
    found = row["displaced"]
    assert row["supercells"] > 10
    assert row["short"] > 0
    assert row["forces"]["slope"] == pytest.approx(CURVATURE, rel=1e-6)
    for part in (found["all"], found["without_self"], *found["kinds"].values(), row["second"]):
        assert part["slope"] == pytest.approx(CURVATURE, rel=1e-5)
        assert part["r2"] == pytest.approx(1, abs=1e-8)
    # Both orders are scaled alike, so what they say of strained frequencies is the same.
    assert found["grueneisen"] == pytest.approx(row["dft"]["grueneisen"], rel=1e-5)
    # Third derivatives are those of displacements of 0.03 Å, up to what is of higher order.
    assert row["exact"]["all"]["slope"] == pytest.approx(CURVATURE, rel=0.05)
    assert 0 < row["step"]["error"] < 0.1
    assert row["exact"]["grueneisen"] == pytest.approx(row["dft"]["grueneisen"], rel=0.05)


def test_what_two_functionals_differ_by_stands_beside_it(ran):
    run = read_phono3py(ran("softening.anharmonicity").settings.data / "phono3py_examples/Si-PBE")
    (line,) = functional_table({"one": run, "other": run.with_forces(0.9 * run.forces, "another")}).rows
    assert line == ["other", "one", *map(pytest.approx, (0.9, 1, 0.1, 0.9, 1))]


def test_slopes_that_shrinkage_cannot_explain_are_counted():
    def row(slope: float, inverse: float, second: float) -> dict:
        third = {"all": {"slope": slope, "inverse": inverse}}
        return {"exact": third, "displaced": third, "second": {"slope": second}}

    (line,) = findings({"m": [row(0.8, 0.9, 0.9), row(0.9, 1.1, 0.8), row(1.2, 1.3, 1.2)], "none": []})
    assert "slopes of the third order below 1: 2, of which 1 if" in line
    assert "differ by 0.067 on average; the third order has the lower one in 1." in line
