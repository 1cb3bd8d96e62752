"""What figures share: a legend names each thing once, and what is outside is marked and not lost."""

import numpy as np

from jaxmlip.system.plots import (
    COLOURS,
    diagonal,
    grid,
    legend,
    panels,
    parity,
    strip,
    styles,
    with_intervals,
)


def test_a_grid_has_as_many_panels_as_are_asked_for_and_leaves_the_others_empty():
    figure, axes = grid(4, across=3)
    assert len(axes) == 4
    assert [ax.axison for ax in figure.axes] == [True] * 4 + [False] * 2


def test_styles_tell_names_apart_and_go_round_when_there_are_many():
    found = styles(["a", "b", "a", *map(str, range(20))])
    assert list(found)[:3] == ["a", "b", "0"]
    assert len({tuple(style.values()) for style in list(found.values())[:18]}) == 18
    assert found["a"] == {"color": COLOURS[0], "marker": "o"}


def test_the_legend_of_all_panels_names_each_thing_once_in_the_order_of_the_panels():
    figure, (axes,) = panels(1, 2)
    for ax, names in zip(axes, (("DFT", "one"), ("DFT", "two")), strict=True):
        for name in names:
            ax.plot([0, 1], label=name)
    legend(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["DFT", "one", "two"]


def test_the_line_of_equality_leaves_the_axes_at_the_data():
    _, ((ax,),) = panels()
    ax.plot([-8, -7], [-8, -7])
    diagonal(ax)
    assert ax.get_xlim()[1] < -6.9


def test_intervals_that_do_not_exist_leave_the_point():
    _, ((ax,),) = panels()
    with_intervals(ax, [0, 1], [(1, 0.5, 2), (3, np.nan, np.nan)])
    (segments,) = ax.collections[-1].get_segments()[:1]
    np.testing.assert_allclose(segments[:, 1], [0.5, 2])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [1, 3])


def test_values_outside_the_view_are_marked_at_its_border():
    _, ((ax,),) = panels()
    strip(ax, 0.0, 0.8, [0.5, 0.7, 3.0], (0.0, 1.6), **styles(["m"])["m"])
    drawn = np.concatenate([line.get_ydata() for line in ax.lines])
    assert set(drawn) == {0.5, 0.7, 1.6 - 0.04}


def test_parity_of_what_has_a_zero_starts_there_with_equal_sides():
    _, ((ax,),) = panels()
    ax.plot([7, 8], [5, 6])
    parity(ax, "energy", "eV", top=8)
    assert ax.get_xlim() == ax.get_ylim() == (0, 1.06 * 8)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("energy, DFT (eV)", "energy, model (eV)")
