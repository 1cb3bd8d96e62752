"""How Sphinx makes a site of docs/: `make -C docs`."""

import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import jaxmlip
from jaxmlip.training.config import descriptions

sys.path.insert(0, str(Path(__file__).parent))  # for tutorial_runs.py
project, author, release = "jaxmlip", "the jaxmlip developers", jaxmlip.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx_gallery.gen_gallery"]
exclude_patterns = ["_build", "tutorials"]
# Every name of ours that is linked has to be there. Left alone are words between backticks in docstrings,
# what others define, and types that only the inside of the library uses.
INSIDE = (
    "crystals.graph.BondEnds crystals.graph.Pairs crystals.structures.free_coordinates "
    "crystals.symmetry.Mesh "
    "crystals.symmetry.SpaceGroup data.batch.Example data.batch.PerLabel data.batch.Spectra "
    "data.inspection.Outlier derivatives.response.Differentiable phonons.cells.Images potential.Energy "
    "training.loop.Compiled "
    "potential.Model training.functionals.join training.loop.Resumed training.loop.Saved "
    "training.loop.NotSaved training.loop.Stopped training.loop.Trained training.loop.Validated "
    "zoo.dispersion.with_dispersion"
)
nitpick_ignore_regex = [
    ("py:.*", r"(?s)(?!jaxmlip\.).*"),
    ("py:.*", "jaxmlip.(" + "|".join(map(re.escape, INSIDE.split())) + ")"),
]

myst_enable_extensions = ["colon_fence", "dollarmath"]  # as code hosts read mathematics
myst_heading_anchors = 3
myst_url_schemes = ["http", "https"]

html_theme = "furo"
html_title = "jaxmlip"
html_math_renderer = "mathml"  # which browsers draw without a network
html_copy_source = html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
default_role = "py:obj"  # docstrings have names between single backticks
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

sphinx_gallery_conf = {
    "examples_dirs": ["tutorials"],
    "gallery_dirs": ["tutorials_run"],
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "reset_modules": ("matplotlib", "tutorial_runs.quiet"),
    "parallel": True,  # as -j of Sphinx says
    "capture_repr": (),  # what is printed, not what an expression is
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "remove_config_comments": True,
}


def in_rst(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText: outside backticks signs mean themselves, what is indented is code."""
    found, inside = [], False
    for line in lines:
        if line.startswith("    ") and not inside and not (found and found[-1]):
            found += ["::", ""]
            inside = True
        elif line and not line.startswith(" "):
            inside = False
        found.append(line if inside else escaped(line))
    return found


def escaped(line: str) -> str:
    """Without signs that reStructuredText would take for marks, but for backticks and what they hold."""
    parts = line.split("`")
    parts[::2] = [re.sub(r"[*|\\]|_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    return "`".join(parts)


def told(app, what, name, its, options, lines: list[str]) -> None:
    """Docstrings as they are meant, and fields with the comments that stand beside them."""
    lines[:] = in_rst(lines)
    if what == "class" and "__annotations__" in vars(its):
        for field, comment in descriptions(its).items():
            if comment and not field.startswith("_"):  # types are in the signature
                lines += ["", f"``{field}``", f"    {escaped(comment)}"]


def skipped(app, what, name, its, skip, options) -> bool | None:
    """Fields stand in the docstring of their class, and nothing here is inherited from elsewhere."""
    return True if (getattr(its, "__doc__", None) or "").startswith("Alias for field number") else None


def inline(writer, node) -> None:
    mathematics(writer, node, as_block=False)


def block(writer, node) -> None:
    mathematics(writer, node, as_block=True)


def mathematics(writer, node, as_block: bool) -> None:
    """Formulas as MathML, which needs neither a script nor a network."""
    drawn = tex2mathml(node.astext(), as_block=as_block)
    writer.body.append(f'<div class="formula">{drawn}</div>' if as_block else drawn)
    raise nodes.SkipNode


def in_site(app, path, parent, text: list[str]) -> None:
    """Links of the experiments' README, which on the site lies elsewhere."""
    text[0] = text[0].replace("](../docs/", "](../")


def to_site(app, page, text: list[str]) -> None:
    """Links to what lies elsewhere on the site: the experiments' README, and tutorials that were run."""
    text[0] = text[0].replace("](../experiments/README.md)", "](reference/experiments.md)")
    text[0] = text[0].replace("](tutorials/)", "](tutorials_run/index.rst)")


def setup(app) -> None:
    app.connect("source-read", to_site)
    app.connect("include-read", in_site)
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.connect("autodoc-process-docstring", told)
    app.connect("autodoc-skip-member", skipped)
