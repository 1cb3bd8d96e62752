"""The page of `jaxmlip phonons --html`: what it holds, what its script does with that, what is only text."""

import base64
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pairs
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from commands import complaint, here

from jaxmlip.phonons.bloch import dynamical_matrix
from jaxmlip.phonons.density import density_of_states
from jaxmlip.phonons.lattice import Lattice
from jaxmlip.phonons.modes import Bands, Modes, Segment, animation
from jaxmlip.phonons.page import AMPLITUDE, ATOMS, CELLS, as_record, in_script, page, plotly_script, repeats
from jaxmlip.units import EV_PER_THZ, PER_CM_PER_THZ, THZ_PER_ROOT_EV_PER_A2_U

pytestmark = pytest.mark.filterwarnings("ignore::jaxmlip.mechanics.elasticity.NotAtRestWarning")
needs_node = pytest.mark.skipif(
    shutil.which("node") is None, reason="node is not installed, which runs the script of the page"
)
# What a browser has and the script of the page uses, and what plotly does with data.
BROWSER = """
const made = {}, listeners = {};
const element = (id) => made[id] ??= {
  id, textContent: "", value: "", handlers: {}, children: [],
  on(name, f) { this.handlers[name] = f; },
  addEventListener(name, f) { this.handlers[name] = f; },
  replaceChildren(...its) { this.children = its; },
};
let frame, time = 1000;
globalThis.requestAnimationFrame = (f) => { frame = f; };
globalThis.document = {
  getElementById: element, createElement: () => ({}), addEventListener(name, f) { listeners[name] = f; },
};
globalThis.window = { addEventListener() {} };
globalThis.matchMedia = () => ({ matches: false });
const draw = async (gd, data, layout) => { Object.assign(gd, { data, layout }); };
globalThis.Plotly = { newPlot: draw, react: draw, async restyle(gd, update, which) {
  which.forEach((k, n) => { for (const x in update) gd.data[k][x] = update[x][n]; });
} };
const settled = () => new Promise(setImmediate);
const pass = async (ms) => { frame(time += ms); await settled(); };
const press = (key) => listeners.keydown({ key, target: {}, preventDefault() {} });
const click = (q, branch) =>
  element("bands").handlers.plotly_click({ points: [{ curveNumber: branch, customdata: q }] });
const places = () => element("scene").data.filter((its) => its.mode === "markers")
  .map((its) => its.x.map((x, k) => [x, its.y[k], its.z[k]]));
const caption = () => element("caption").children.map((its) => its.textContent);
"""


@pytest.fixture(scope="module")
def lattice() -> Lattice:
    """Four atoms without inversion, with imaginary modes."""
    return Lattice(pairs.potential(1.1, alike=1.2), bulk("ZnO", "wurtzite", a=3.2, c=5.2, u=0.38))


@pytest.fixture(scope="module")
def bands(lattice) -> Bands:
    return lattice.bands("GMK,GA", 17)


@pytest.fixture
def light(monkeypatch):
    """Pages without the 5 MB of plotly, and whether it is installed or not."""
    monkeypatch.setattr("jaxmlip.phonons.page.plotly_script", lambda: "/* plotly */")


class Parts(HTMLParser):
    """The elements of a page with their attributes, and the text of each kind."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.inside = False
        self.texts: dict[str, list[str]] = {}
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.texts.setdefault(tag, []).append("")
        self.inside = True

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.texts[self.elements[-1][0]][-1] += data


def read(html: str) -> dict:
    """The data of a page."""
    return json.loads(Parts(html).texts["script"][0])


def displacements(record: dict, q: int) -> np.ndarray:
    """Of the modes at a wave vector in cell 0, (branches, atoms, 3), the largest of each 1."""
    steps = np.frombuffer(base64.b64decode(record["modes"][q]), np.int8) / 127
    n = len(record["cell"]["positions"])
    return (steps[0::2] + 1j * steps[1::2]).reshape(3 * n, n, 3)


def run(html: str, tmp_path, scenario: str) -> dict:
    """What a scenario gives back after the script of a page has run."""
    data, _, script = Parts(html).texts["script"]
    file = tmp_path / "page.js"
    given = f'element("data").textContent = {json.dumps(data)};'
    ending = f"(async () => {{ await settled(); {scenario} }})().then((x) => console.log(JSON.stringify(x)));"
    file.write_text("\n".join([BROWSER, given, script, ending]))
    done = subprocess.run(["node", file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_page_holds_the_bands_the_density_and_the_cell_as_a_screen_shows_them(lattice, bands, light):
    density = density_of_states(lattice.mesh((3, 3, 2)))
    found = read(page(bands, density, model="pairs"))
    its, modes = found["bands"], bands.modes
    np.testing.assert_allclose(its["frequencies"], modes.frequencies, atol=5.01e-4)
    np.testing.assert_allclose(its["q_points"], modes.q_points, atol=5.01e-7)
    np.testing.assert_allclose(its["distance"], bands.distance, atol=5.01e-5)
    assert its["ticks"][1] == ["Γ", "M", "K|Γ", "A"]
    assert its["segments"] == [
        ["Γ" if s.first == "G" else s.first, s.last, s.rows.start, s.rows.stop] for s in bands.segments
    ]
    symbols = [its["symbol"] for its in found["elements"]]
    assert [symbols[k] for k in found["cell"]["elements"]] == lattice.atoms.get_chemical_symbols()
    np.testing.assert_allclose(found["cell"]["vectors"], lattice.atoms.cell.array, atol=1e-4)
    np.testing.assert_allclose(found["density"]["total"], density.total, atol=5.01e-5)
    shares = np.sum(found["density"]["elements"], axis=0)
    np.testing.assert_allclose(shares, density.total, atol=2e-4)
    assert modes.frequencies.min() < -1
    q, branch = found["first"]
    assert modes.frequencies[q, branch] == modes.frequencies.min()
    assert read(page(bands, mode=(3, 2)))["first"] == [3, 2]


def test_what_moves_are_eigenvectors_of_the_dynamical_matrix(lattice, bands):
    record, modes = as_record(bands), bands.modes
    root = np.sqrt(lattice.atoms.get_masses())[:, None]
    potential = pairs.potential(1.1, alike=1.2)
    rows = [0, 4, 7, 12]
    D = dynamical_matrix(potential, lattice.atoms, modes.q_points[rows], mass_weighted=True)
    assert np.abs(D.imag).max() > 0.1 * np.abs(D).max()
    for q, matrix in zip(rows, D, strict=True):
        u = displacements(record, q)
        np.testing.assert_allclose(np.linalg.norm(u, axis=2).max(axis=1), 1, atol=0.01)
        e = (u * root).reshape(len(u), -1)
        e /= np.linalg.norm(e, axis=1, keepdims=True)
        thz = modes.frequencies[q]
        squares = np.sign(thz) * (thz / THZ_PER_ROOT_EV_PER_A2_U) ** 2
        off = np.linalg.norm(e @ matrix.T - squares[:, None] * e, axis=1)
        assert off.max() < 0.03 * np.abs(squares).max()


@needs_node
def test_a_click_moves_all_cells_with_the_phases_of_the_wave(bands, light, tmp_path):
    html = page(bands)
    q, branch = 5, 7
    step = f"click({q}, {branch}); await settled(); const first = places();"
    quarter = "for (let k = 0; k < 4; k++) await pass(100);"  # of 1600 ms
    found = run(html, tmp_path, f"{step} {quarter} return {{ first, later: places(), caption: caption() }};")
    n = repeats(bands.modes.q_points[q], bands.modes.primitive.pbc, 4)
    assert max(n) > 2
    frames = animation(bands.modes, q, branch, repeats=n, amplitude=AMPLITUDE, frames=4)
    rest = bands.modes.primitive.repeat(n).positions
    numbers = frames[0].numbers
    kinds = list(dict.fromkeys(numbers.tolist()))
    order = np.concatenate([np.flatnonzero(numbers == z) for z in kinds])
    re, im = ((frame.positions - rest)[order].ravel() for frame in frames[:2])
    now = [(np.concatenate(found[when]) - rest[order]).ravel() for when in ("first", "later")]
    # The mode is that of the library up to one phase, a + ib, of all of it.
    terms = np.column_stack([np.concatenate([re, im]), np.concatenate([-im, re])])
    (a, b), *_ = np.linalg.lstsq(terms, np.concatenate(now))
    assert np.hypot(a, b) == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(terms @ [a, b], np.concatenate(now), atol=0.01 * AMPLITUDE)
    assert found["caption"][0] == f"branch {branch}, wave vector {q}"


@needs_node
def test_hovering_tells_branch_wave_vector_and_frequency_in_three_units(bands, light, tmp_path):
    scenario = """
    const bands = element("bands").data;
    return { texts: bands.map((its) => its.text ?? null), rows: bands[0].customdata,
      y: bands.map((its) => its.y), shapes: element("bands").layout.shapes.length,
      axes: Object.keys(element("bands").layout) };"""
    found = run(page(bands), tmp_path, scenario)
    rows, thz = found["rows"], bands.modes.frequencies
    assert [q for q in rows if q is not None] == list(range(len(thz)))
    assert [rows[s.rows.stop + k] for k, s in enumerate(bands.segments)] == [None] * 3
    for branch in (0, 11):
        y = [y for y in found["y"][branch] if y is not None]
        np.testing.assert_allclose(y, thz[:, branch], atol=5.01e-4)
    worst = np.unravel_index(thz.argmin(), thz.shape)
    for q, branch in (worst, (len(thz) - 1, 11)):
        lines = found["texts"][branch][rows.index(q)].split("<br>")
        value = round(thz[q, branch], 3)
        expected = f"{value:.3f} THz, {value * PER_CM_PER_THZ:.1f} cm⁻¹, {1e3 * EV_PER_THZ * value:.2f} meV"
        assert lines[0] == f"branch {branch}, wave vector {q}"
        assert lines[2] == expected.replace("-", "−")
        assert len(lines) - 3 == (value < 0) == ("imaginary" in lines[-1])
    assert "A, q = (0.000 0.000 0.500)" in lines
    assert "Γ–M" in found["texts"][0][1]
    assert found["shapes"] == 1
    assert "xaxis2" not in found["axes"]


@needs_node
def test_space_stops_and_starts_and_arrows_choose_other_modes(bands, light, tmp_path):
    scenario = """
    const same = async () => { const before = JSON.stringify(places()); await pass(100);
      return before === JSON.stringify(places()); };
    const found = [await same()];
    press(" "); found.push(await same(), element("toggle").textContent);
    press(" "); found.push(await same(), element("toggle").textContent);
    press("ArrowRight"); press("ArrowUp"); found.push(caption()[0]);
    for (let k = 0; k < 99; k++) press("ArrowDown");
    found.push(caption()[0]);
    return found;"""
    found = run(page(bands, mode=(2, 5)), tmp_path, scenario)
    assert found[:5] == [False, True, "start (space)", False, "stop (space)"]
    assert found[5:] == ["branch 6, wave vector 3", "branch 0, wave vector 3"]


def test_names_stay_text_whatever_they_are(bands, light):
    name = "a</script><script>alert(1)</script> [b] & 'c' {{data}} \udcff.cif"
    point = "</script x><!--<script <b>&"
    odd = replace(bands, segments=[Segment(point, "<i>", slice(0, len(bands.distance)))])
    html = page(odd, model="<b>m</b>", functional="{{plotly}}", source=name)
    html.encode()
    parts, plain = Parts(html), Parts(page(bands))
    assert [tag for tag, _ in parts.elements] == [tag for tag, _ in plain.elements]
    assert parts.texts["title"] == ["Phonons of Zn2O2, <b>m</b>, {{plotly}}"]
    (subtitle,) = [text for text in parts.texts["p"] if "alert" in text]
    assert subtitle.startswith(name.replace("\udcff", r"\udcff"))
    assert read(html)["bands"]["segments"] == [[point, "<i>", 0, len(bands.distance)]]
    assert not set("<>&") & set(parts.texts["script"][0])  # browsers end a script at more than this parser


@needs_node
def test_names_of_points_are_no_marks_for_plotly(bands, light, tmp_path):
    odd = replace(bands, segments=[Segment("<b>", "&amp;", slice(0, len(bands.distance)))])
    scenario = 'return [element("bands").layout.xaxis.ticktext, element("bands").data[0].text[0]];'
    ticks, text = run(page(odd), tmp_path, scenario)
    assert ticks == ["&lt;b&gt;", "&amp;amp;"]
    assert "&lt;b&gt;, q = " in text


@pytest.mark.parametrize(
    ("q", "pbc", "atoms", "expected"),
    [
        ((0, 0, 0), (1, 1, 1), 2, [2, 2, 2]),
        ((0.5, 0, -1 / 3), (1, 1, 1), 2, [2, 2, 3]),
        ((0.37, 0.63, 1.37), (1, 1, 1), 2, [3, 3, 3]),
        ((0.02, 0, 0.999), (1, 1, 1), 2, [CELLS, 2, CELLS]),
        ((0.25, 0, 0), (1, 1, 0), 2, [4, 2, 1]),
        ((0.5, 0.5, 0.5), (1, 1, 1), 2 * ATOMS, [1, 1, 1]),
    ],
)
def test_as_many_cells_as_show_the_wave(q, pbc, atoms, expected):
    assert repeats(np.array(q, float), np.array(pbc, bool), atoms) == expected


def test_six_atoms_and_two_hundred_wave_vectors_take_less_than_two_megabytes():
    rng = np.random.default_rng(0)
    atoms = Atoms("ZnO" * 3, rng.uniform(0, 5, (6, 3)), cell=[5, 5, 5], pbc=True)
    vectors, _ = np.linalg.qr(rng.normal(size=(200, 18, 18)) + 1j * rng.normal(size=(200, 18, 18)))
    q, f = rng.uniform(size=(200, 3)), 10 * rng.normal(size=(200, 18))
    modes = Modes(atoms, q, np.full(200, 1 / 200), f, vectors, 0.0, 0.0, "")
    record = as_record(Bands(modes, np.linspace(0, 5, 200), [Segment("G", "X", slice(0, 200))]))
    assert len(in_script(record)) < 5e5


def test_a_page_loads_nothing(bands):
    pytest.importorskip("plotly", reason="plotly, which draws pages, is not installed")
    html = page(bands)
    assert plotly_script() in html
    elements = Parts(html).elements
    assert [tag for tag, its in elements if {"src", "href"} & set(its)] == []
    (policy,) = [its["content"] for _, its in elements if its.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert len(html) < 4.8e6 + 2e6


def test_the_command_writes_a_page_into_the_folder_that_it_makes(tmp_path, light, monkeypatch, capsys):
    potential = replace(pairs.potential(1.1, alike=2**0.5), manifest={"functional": "PBE"})
    monkeypatch.setattr("jaxmlip.zoo.load.load", lambda *_, **__: potential)
    write(tmp_path / "a [<b>].vasp", bulk("MgO", "rocksalt", 4.3))
    size = ("--points", "9", "--mesh", "3", "3", "3", "--path", "GX,GL", "--animate", "2", "4")
    command = ("phonons", "a [<b>].vasp", *size, "--out", "new", "--html", "new/page.html")
    done = here(tmp_path, monkeypatch, capsys, *command)
    assert done.returncode == 0, done.stderr
    assert "written to new/page.html" in done.stdout
    html = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert Parts(html).texts["h1"][0].startswith("Phonons of MgO, pairs, PBE")
    assert Parts(html).texts["p"][0].startswith("a [<b>].vasp; ")
    record = json.loads((tmp_path / "new" / "phonons.json").read_text())
    found = read(html)
    assert found["first"] == [2, 4]
    np.testing.assert_allclose(found["bands"]["frequencies"], record["bands"]["frequencies"], atol=5.01e-4)
    expected = record["density_of_states"]["total_per_THz"]
    np.testing.assert_allclose(found["density"]["total"], expected, atol=5.01e-5)


def test_what_stands_against_a_page_is_said_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxmlip.cli.curvature.of_one", lambda *_: pytest.fail("the work began"))
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    for name, said in (
        ("page.html", "pip install 'jaxmlip[html]'"),
        ("phonons.json", "needed a name that ends in .html"),
        ("nowhere/page.html", "the folder of nowhere/page.html does not exist"),
    ):
        assert said in complaint(tmp_path, monkeypatch, capsys, "phonons", "POSCAR", "--html", name)
    assert list(tmp_path.iterdir()) == []
