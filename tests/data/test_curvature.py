"""Slopes of model against DFT: data whose truth is known, and the command that reads labelled frames."""

import gzip
import json
import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write
from conftest import QUICK, small_potential
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.optimize import curve_fit

from jaxmlip.cli import main
from jaxmlip.derivatives.slopes import (
    force_slope,
    frequency_ratios,
    hessian_slope,
    mode_slope,
)
from jaxmlip.studies.softening_scale import (
    Frame,
    by_material,
    describe,
    draw,
    read_frames,
    record,
    softening_scale,
)


def frames(values: np.ndarray, atoms: int = 10) -> list[np.ndarray]:
    return list(values.reshape(-1, atoms, 3))


def normal(seed: int, size: int = 60_000) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size)


def test_a_model_without_forces_has_the_slope_zero_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = force_slope(frames(np.zeros(600)), frames(normal(0, 600)))
    assert found.slope == 0
    assert found.interval == (0, 0)
    assert np.isnan(found.inverse_interval).all()


def test_the_slope_is_the_fit_of_a_line_through_the_origin_to_all_components():
    rng = np.random.default_rng(0)
    dft = [rng.normal(size=(n, 3)) + 0.2 for n in (2, 5, 3)]
    model = [0.8 * x + 0.1 * rng.normal(size=x.shape) + 0.1 for x in dft]
    found = force_slope(model, dft)
    x, y = (np.concatenate([f.ravel() for f in forces]) for forces in (dft, model))
    ((expected,), _) = curve_fit(lambda x, a: a * x, x, y)
    assert found.slope == pytest.approx(expected, rel=1e-6)
    assert found.mae == pytest.approx(np.abs(y - x).mean())
    assert found.corrected_mae == pytest.approx(np.abs(y / expected - x).mean())
    assert (found.samples, found.values) == (3, 30)


def test_random_errors_of_the_model_leave_the_slope_where_it_is():
    x = normal(0)
    found = force_slope(frames(0.8 * x + 0.5 * normal(1)), frames(x), error_ratio=1e9)
    assert found.slope == pytest.approx(0.8, abs=0.01)
    assert found.deming == pytest.approx(0.8, abs=0.01)  # all error is the model's
    assert found.inverse > 1.1  # and not DFT's
    low, high = found.interval
    assert low < 0.8 < high


def test_a_conditional_mean_shows_its_r_squared_as_slope_and_no_softening_the_other_way():
    seen, unseen = normal(0), 0.6 * normal(1)
    found = force_slope(frames(seen), frames(seen + unseen), error_ratio=0.0)
    assert found.slope == pytest.approx(1 / 1.36, abs=0.01)
    assert found.r_squared == pytest.approx(found.slope, abs=0.01)
    assert found.shrinkage_share == pytest.approx(1, abs=0.03)
    assert found.inverse == found.deming == pytest.approx(1, abs=0.01)


def test_a_conditional_mean_that_is_too_soft_as_well_is_told_apart():
    seen, unseen = normal(0), 0.6 * normal(1)
    found = force_slope(frames(0.8 * seen), frames(seen + unseen))
    assert found.inverse == pytest.approx(0.8, abs=0.01)
    assert found.slope == pytest.approx(0.8 / 1.36, abs=0.01)
    assert 0.5 < found.shrinkage_share < 0.9


def test_errors_in_both_are_undone_by_their_ratio():
    common = normal(0)
    x, y = common + 0.3 * normal(1), 0.7 * common + 0.6 * normal(2)
    assert force_slope(frames(y), frames(x), error_ratio=4.0).deming == pytest.approx(0.7, abs=0.015)
    assert force_slope(frames(y), frames(x)).deming > 0.75


def test_a_model_that_is_dft_times_a_number_has_no_scatter_to_argue_about():
    x = normal(0, 300)
    found = force_slope(frames(0.75 * x), frames(x))
    for name in ("slope", "inverse", "deming", "geometric_mean"):
        assert getattr(found, name) == pytest.approx(0.75)
    assert found.r_squared == pytest.approx(1)
    assert found.shrinkage_share == pytest.approx(0, abs=1e-9)
    assert found.corrected_mae == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(found.interval, 0.75)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 2), st.floats(0.01, 3), st.floats(0.01, 100))
def test_slopes_are_ordered_and_change_places_with_model_and_dft(seed, factor, noise, ratio):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4, 6, 3))
    y = factor * (x + noise * rng.normal(size=x.shape))
    if (x * y).sum() <= 0:
        return
    a, b = force_slope(y, x, ratio, 10), force_slope(x, y, 1 / ratio, 10)
    slack = 1 + 1e-9
    assert a.slope <= a.geometric_mean * slack <= a.inverse * slack**2
    assert a.slope <= a.deming * slack <= a.inverse * slack**2
    assert a.slope * b.inverse == pytest.approx(1)
    assert a.geometric_mean * b.geometric_mean == pytest.approx(1)
    assert a.deming * b.deming == pytest.approx(1, rel=1e-6)


def test_the_interval_is_that_of_frames_and_not_of_their_components():
    """Each frame has a slope of its own, so more atoms in a frame bring no more certainty."""
    rng = np.random.default_rng(0)
    own = 0.8 + 0.1 * rng.normal(size=25)

    def width(atoms: int) -> float:
        x = rng.normal(size=(25, atoms, 3))
        low, high = force_slope(own[:, None, None] * x, x).interval
        return high - low

    for found in (width(30), width(300)):
        assert found == pytest.approx(2 * 1.96 * 0.1 / 5, rel=0.35)
    x = rng.normal(size=(1, 30, 3))
    assert np.isnan(force_slope(0.8 * x, x).interval).all()


@pytest.mark.parametrize(
    ("model", "dft", "words"),
    [
        ([np.ones((2, 3))], [], "1 frames from the model and of 0 from DFT"),
        ([np.ones((2, 3)), np.ones((2, 3))], [np.ones((2, 3)), np.ones((4, 3))], r"frame 1 has .* \(4, 3\)"),
        ([np.full((2, 3), np.nan)], [np.ones((2, 3))], "frame 0 holds values that are not finite"),
        ([np.ones((2, 3))], [np.zeros((2, 3))], "all DFT values of 1 frames are zero"),
    ],
)
def test_forces_that_cannot_be_compared_are_named(model, dft, words):
    with pytest.raises(ValueError, match=words):
        force_slope(model, dft)


def springs(seed: int, atoms: int = 4) -> np.ndarray:
    """Force constants (N, N, 3, 3) that are symmetric and obey the acoustic sum rule."""
    half = np.random.default_rng(seed).normal(size=(atoms, atoms, 3, 3))
    phi = half + half.transpose(1, 0, 3, 2)
    phi[range(atoms), range(atoms)] = 0
    phi[range(atoms), range(atoms)] = -phi.sum(axis=1)
    return phi


def test_force_constants_are_compared_element_by_element_in_either_shape():
    dft = springs(0)
    found = hessian_slope(0.9 * dft, dft)
    assert found.slope == pytest.approx(0.9)
    assert (found.samples, found.values) == (4, 144)
    flat = dft.swapaxes(1, 2).reshape(12, 12)
    noisy = dft + 0.3 * springs(1)
    as_matrix = hessian_slope(noisy.swapaxes(1, 2).reshape(12, 12), flat)
    assert as_matrix == hessian_slope(noisy, dft)


def test_self_terms_can_be_left_out_or_made_from_the_others():
    dft, model = springs(0), 0.9 * springs(0)
    own = range(4)
    broken = model.copy()
    broken[own, own] += 5 * np.eye(3)
    assert hessian_slope(broken, dft).slope != pytest.approx(0.9)
    assert hessian_slope(broken, dft, self_terms=False).slope == pytest.approx(0.9)
    assert hessian_slope(broken, dft, self_terms=False).values == 4 * 3 * 9
    assert hessian_slope(broken, dft, sum_rule=True).slope == pytest.approx(0.9)
    rows = [2, 0]  # as phonopy's compact force constants of two atoms, not in order
    assert hessian_slope(broken[rows], dft[rows], rows, sum_rule=True).slope == pytest.approx(0.9)


def test_a_range_of_force_constants_has_a_slope_of_its_own():
    dft, near = springs(0), np.eye(4)[::-1].astype(bool)
    model = np.where(near[:, :, None, None], 0.7 * dft, 1.1 * dft)
    assert hessian_slope(model, dft, pairs=near).slope == pytest.approx(0.7)
    assert hessian_slope(model, dft, pairs=~near).slope == pytest.approx(1.1)
    others = hessian_slope(model, dft, self_terms=False, pairs=~near)
    assert others.values == 4 * 2 * 9
    with pytest.raises(ValueError, match=r"pairs of shape \(4, 3\), needed \(4, 4\)"):
        hessian_slope(model, dft, pairs=near[:, :3])


def test_force_constants_of_different_supercells_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 3, 3, 3\) from the model and \(4, 4, 3, 3\) from DFT"):
        hessian_slope(springs(0, 3), springs(0, 4))
    with pytest.raises(ValueError, match=r"needed \(3N, 3N\) or \(n, N, 3, 3\)"):
        hessian_slope(np.ones(3), np.ones(3))


def hermitian(seed: int, q: int = 3, size: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(q, size, size)) + 1j * rng.normal(size=(q, size, size))
    return half @ half.conj().mT


def test_modes_are_followed_along_the_eigenvectors_of_dft():
    dft = hermitian(0)
    squares, e = np.linalg.eigh(dft)
    ratios = np.random.default_rng(1).uniform(0.5, 1.2, squares.shape)
    mixing = hermitian(2)
    # What mixes the modes of DFT leaves their own curvature alone.
    mixing = e.conj().mT @ mixing @ e
    mixing[:, range(6), range(6)] = 0
    model = e @ (np.einsum("qm,mn->qmn", ratios * squares, np.eye(6)) + mixing) @ e.conj().mT
    weights = np.array([1, 2, 5])
    found = mode_slope(model, dft, weights)
    np.testing.assert_allclose(found.ratios, ratios, rtol=1e-9)
    assert found.mean == pytest.approx(np.average(ratios.mean(axis=1), weights=weights))
    some = squares > np.median(squares)
    kept = weights[:, None] * some * squares
    assert found.ratio_of(some) == pytest.approx((kept * ratios).sum() / kept.sum())
    expected = (weights @ (ratios * squares**2).sum(1)) / (weights @ (squares**2).sum(1))
    assert found.slope == pytest.approx(expected)


def test_acoustic_modes_at_gamma_have_no_ratio():
    dft = np.diag([0, 0, 1e-12, 1.0, 2.0, 4.0])
    found = mode_slope(0.8 * dft + 1e-9 * np.eye(6), dft)
    np.testing.assert_array_equal(np.isnan(found.ratios[0]), [True] * 3 + [False] * 3)
    assert found.mean == pytest.approx(0.8)


def test_frequency_ratios_weigh_wave_vectors_and_count_imaginary_modes():
    dft = np.array([[1.0, 3.0], [2.0, 4.0]])
    model = np.array([[-1.0, 1.5], [1.0, 2.0]])
    found = frequency_ratios(model, dft, [3, 1])
    assert found.maximum == pytest.approx(0.5)
    assert found.mean == pytest.approx((3 * 1.5 + 3) / (3 * 4 + 6))
    assert found.rms == pytest.approx(((3 * (1.5**2 - 1) + 5) / (3 * 10 + 20)) ** 0.5)
    assert frequency_ratios(-dft, dft) == (0, 0, 0)
    with pytest.raises(ValueError, match="needed a crystal that vibrates"):
        frequency_ratios(dft, -dft)
    with pytest.raises(ValueError, match="needed 2, one for each wave vector"):
        frequency_ratios(model, dft, [1, 2, 3])


def labelled(atoms: Atoms, forces: np.ndarray, **info) -> Atoms:
    atoms = atoms.copy()
    atoms.info.update(info)
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=forces)
    return atoms


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and frames whose labels are its own forces, over 0.8 and with an error for NaCl."""
    here = tmp_path_factory.mktemp("frames")
    potential = small_potential(QUICK, "float32")
    potential.save(here / "model")
    rng = np.random.default_rng(0)
    shaken = [bulk("NaCl", "rocksalt", 5.0, cubic=k > 2) for k in range(5)] + [bulk("Si")] * 3
    shaken = [atoms.copy() for atoms in shaken]
    for k, atoms in enumerate(shaken):
        atoms.rattle(0.1, seed=k)
    forces = [p["forces"].astype(float) for p in potential.predict(shaken)]
    salt = [
        labelled(
            atoms,
            (f + 0.02 * np.abs(f).mean() * rng.normal(size=f.shape)) / 0.8,
            kind="hot" if k > 1 else "cold",
        )
        for k, (atoms, f) in enumerate(zip(shaken[:5], forces, strict=False))
    ]
    silicon = [labelled(atoms, f / 1.1) for atoms, f in zip(shaken[5:], forces[5:], strict=True)]
    write(here / "salt.extxyz", salt)
    (here / "salt.extxyz.gz").write_bytes(gzip.compress((here / "salt.extxyz").read_bytes()))
    write(here / "silicon.extxyz", silicon)
    write(here / "bare.extxyz", [silicon[0], shaken[6]])
    other = shaken[5].copy()
    other.arrays["vasp_force"] = forces[5]
    write(here / "other.extxyz", other)
    return here


def run(folder, *arguments: str) -> None:
    model = ["--model", str(folder / "model")]
    main(["softening-scale", *(str(folder / a) if "." in a else a for a in arguments), *model])


def test_the_command_finds_the_slope_of_each_material(folder, capsys):
    run(folder, "salt.extxyz.gz", "silicon.extxyz", "--out", "a.out")
    printed = capsys.readouterr().out
    (rows,) = json.loads((folder / "a.out" / "softening_scale.json").read_text())["models"].values()
    found = {row["material"]: row for row in rows}
    assert found["NaCl"]["slope"] == pytest.approx(0.8, abs=0.02)
    assert found["Si"]["slope"] == pytest.approx(1.1, rel=1e-4)
    assert (found["NaCl"]["samples"], found["Si"]["samples"]) == (5, 3)
    assert found["Si"]["shrinkage_share"] is None
    for row in rows:
        assert f"{row['slope']:.3f}" in printed
    assert "1 of 2 slopes below 1" in printed
    assert Image.open(folder / "a.out" / "softening_scale.png").size[0] > 500


def test_frames_are_told_apart_by_formula_and_by_what_their_info_says(folder):
    salt = read_frames(folder / "salt.extxyz")
    silicon = read_frames(folder / "silicon.extxyz")
    assert {k: len(v) for k, v in by_material([*salt, *silicon]).items()} == {"NaCl": 5, "Si": 3}
    assert {k: len(v) for k, v in by_material(salt, "kind").items()} == {"NaCl cold": 2, "NaCl hot": 3}
    taken = by_material(salt, most=3)["NaCl"]
    assert [frame.where for frame in taken] == [salt[k].where for k in (0, 2, 4)]
    largest = [np.linalg.norm(frame.forces, axis=1).max() for frame in salt]
    limit = sorted(largest)[2]
    assert len(by_material(salt, max_force=limit)["NaCl"]) == 3
    with pytest.raises(ValueError, match="none of 5 frames"):
        by_material(salt, max_force=1e-9)
    with pytest.raises(ValueError, match=r"silicon.extxyz, frame 0 \(Si2\) has no 'kind'"):
        by_material(silicon, "kind")


def test_forces_under_another_name_and_behind_constraints_are_read(folder):
    with pytest.raises(ValueError, match=r"found 'vasp_force'\. Name the array with --forces"):
        read_frames(folder / "other.extxyz")
    (frame,) = read_frames(folder / "other.extxyz", "vasp_force")
    assert np.abs(frame.forces[0]).max() > 0
    held = labelled(bulk("Si"), frame.forces)
    held.set_constraint(FixAtoms([0]))
    write(folder / "held.traj", held)
    (again,) = read_frames(folder / "held.traj")
    np.testing.assert_array_equal(again.forces, frame.forces)


@pytest.mark.filterwarnings("ignore:(?s).*cannot be read beyond its first 3")
def test_frames_without_forces_and_what_is_behind_a_break_are_left_out_on_request(folder):
    good = labelled(bulk("Si"), np.eye(2, 3))
    write(folder / "some.extxyz", [good, bulk("Si"), good, good])
    text = (folder / "some.extxyz").read_text()
    (folder / "some.extxyz").write_text(text[: -len(text) // 12])
    with pytest.raises(ValueError, match="beyond its first 3"):
        read_frames(folder / "some.extxyz")
    with pytest.warns(UserWarning, match=r"frame 1 \(Si2\) has no forces") as said:
        assert len(read_frames(folder / "some.extxyz", skip_bad=True)) == 2
    assert any("first 3 structures" in str(w.message) for w in said)


def test_forces_that_may_be_of_a_calculator_are_read_aloud(folder):
    both = labelled(bulk("Si"), np.zeros((2, 3)))
    both.arrays["REF_forces"] = np.eye(2, 3)
    write(folder / "both.extxyz", [both, both])
    with pytest.warns(
        UserWarning, match=r"2 of 2 frames have REF_forces besides forces.*--forces REF_forces"
    ):
        read_frames(folder / "both.extxyz")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bare.extxyz"], "bare.extxyz, frame 1 (Si2) has no forces"),
        (["missing.extxyz"], "missing.extxyz is not a file"),
        (["salt.extxyz", "--frames", "0"], "found --frames 0, needed a number from 1 on"),
        (["salt.extxyz", "--group-by", "phase"], "frame 0 (ClNa) has no 'phase' in its info line"),
    ],
)
def test_a_mistake_is_answered_in_words(folder, capsys, arguments, words):
    with pytest.raises(SystemExit):
        run(folder, *arguments, "--out", "b.out")
    assert words in capsys.readouterr().err.replace("\n", " ")
    assert not (folder / "b.out").exists()


def test_a_frame_that_the_potential_cannot_take_is_named(any_potential):
    nowhere = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], pbc=True)
    frame = Frame("h.xyz, frame 7 (H2)", nowhere, np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"h.xyz, frame 7 \(H2\): .*pbc="):
        softening_scale(any_potential, {"H": [frame]})


def test_a_slope_that_says_little_is_pointed_out():
    """A model that rests elsewhere than DFT has forces where DFT has none."""
    x, offset = 0.05 * normal(0, 300), normal(1, 300)
    records = [
        {"material": name, **record(force_slope(frames(y), frames(x)))}
        for name, y in (("right", 0.9 * x), ("off", 0.9 * x + offset))
    ]
    first, second = describe(records)
    assert "of 2 slopes below 1" in first
    assert "r² below 0.5: off. " in second
    assert len(describe(records[:1])) == 1


def test_every_model_and_material_is_in_the_figure(folder, tmp_path):
    potential = small_potential(QUICK, "float32")
    rows = softening_scale(potential, by_material(read_frames(folder / "salt.extxyz"), "kind"))

    def colours(rows_by_model) -> set[tuple]:
        draw(rows_by_model).savefig(tmp_path / "figure.png", dpi=150)
        picture = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB"))
        return set(map(tuple, picture.reshape(-1, 3)))

    blue, red = (0, 114, 178), (213, 94, 0)
    one, two = colours({"m": rows[:1]}), colours({"m": rows, "n": rows})
    assert blue in one
    assert red not in one
    assert {blue, red} <= two
