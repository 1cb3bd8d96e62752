"""Imports run down through the floors and in no circle, private names stay, functions fit on a screen.

Imports inside functions and for type checkers count as well: they are arrows of the same map.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = ("jaxmlip", "weights_convert", "experiments", "benchmarks")
# From the bottom to the top. Rooms of one floor do not import one another; a room is a folder of jaxmlip, one
# of its files, or another package.
FLOORS = (
    "units system",
    "crystals",
    "models",
    "derivatives",
    "potential",
    "weights_convert",
    "zoo",
    "mechanics",
    "phonons",
    "data",
    "training",
    "studies",
    "cli",
    "__main__",
    "experiments",
    "benchmarks",
)
FLOOR = {room: k for k, rooms in enumerate(FLOORS) for room in rooms.split()}
LONGEST = 80  # lines of a function
TOP = 14  # entries of jaxmlip/


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def modules() -> dict[str, Path]:
    """The files by the names of their modules; packages by their own."""
    found = {}
    for top in OURS:
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str) -> str:
    top, *rest = module.split(".")
    return rest[0] if top == "jaxmlip" and rest else top


@cache
def imports() -> tuple[tuple[str, str, str], ...]:
    """Which module takes which name from which other; an empty name for a module as a whole."""
    return tuple(arrow for here, path in modules().items() for arrow in arrows(here, tree_of(path)))


def arrows(here: str, tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{here} has a relative import, needed the name of the module"
            for name in (a.name for a in node.names):
                whole = f"{node.module}.{name}"
                if whole in modules():
                    yield here, whole, ""
                elif node.module in modules():
                    yield here, node.module, name
        elif isinstance(node, ast.Import):
            yield from ((here, a.name, "") for a in node.names if a.name in modules())


def test_imports_run_down():
    up = {
        f"{here} -> {other}"
        for here, other, _ in imports()
        # The front door of jaxmlip opens on all rooms.
        if here != "jaxmlip" and room(here) != room(other) and FLOOR[room(here)] <= floor_of(other)
    }
    assert not up, "\n".join(sorted(up))


def floor_of(module: str) -> int:
    """The front door is as high as what it shows: programs alone go through it."""
    return FLOOR["studies"] if module == "jaxmlip" else FLOOR[room(module)]


def test_imports_lead_to_modules_that_exist():
    """Those inside functions too, which no other import proves."""
    lost = [
        f"{here} -> {node.module}"
        for here, path in modules().items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom)
        and node.module.split(".")[0] in OURS
        and node.module not in modules()
    ]
    assert not lost, "\n".join(lost)


def test_no_circle_of_modules():
    # Each module imports the packages that it lies in, which is no circle of theirs.
    arrows = {(here, other) for here, other, _ in imports() if not here.startswith(f"{other}.")}
    below = {here: {other for start, other in arrows if start == here} for here in modules()}

    def reached(module: str) -> set[str]:
        found, new = set(), {module}
        while new := set().union(*(below[each] for each in new)) - found:
            found |= new
        return found

    back = {module: reached(module) for module in modules()}
    tied = {f"{here} -> {other}" for here, other in arrows if here in back[other]}
    assert not tied, "\n".join(sorted(tied))


def test_any_module_may_be_the_first_to_be_imported():
    """Whichever module of jaxmlip is asked for, its front door opens first: what that takes from
    another package may not ask for jaxmlip."""
    tops = {here: set(at_import(here)) for here in modules()}
    behind, new = set(), {"jaxmlip"}
    while new:
        behind |= new
        new = set().union(*(tops[each] for each in new)) - behind
    inside = {each for each in modules() if each.split(".")[0] == "jaxmlip"}
    asking = sorted(each for each in behind - inside if tops[each] & inside)
    assert not asking, ", ".join(asking)


def at_import(here: str) -> Iterator[str]:
    """The modules that this one imports when it is imported itself."""
    kinds = (ast.Import, ast.ImportFrom)
    tree = ast.Module([node for node in tree_of(modules()[here]).body if isinstance(node, kinds)], [])
    return (other for _, other, _ in arrows(here, tree))


def test_no_private_name_leaves_its_file():
    taken = {f"{here} takes {name} from {other}" for here, other, name in imports() if private(name)}
    taken |= {
        f"{here} takes {node.attr} from {other}"
        for here, path in modules().items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and private(node.attr)
        for other in [named(here).get(node.value.id)]
        if other
    }
    assert not taken, "\n".join(sorted(taken))


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@cache
def named(here: str) -> dict[str, str]:
    """The modules of ours that this one imports as a whole, by the name that it calls them."""
    found = {}
    for node in ast.walk(tree_of(modules()[here])):
        if isinstance(node, ast.ImportFrom):
            each = {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            found |= {name: whole for name, whole in each.items() if whole in modules()}
    return found


def test_every_function_fits_on_a_screen():
    long = [
        f"{here}.{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for here, path in modules().items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= LONGEST
    ]
    assert not long, "\n".join(long)


def test_the_top_of_the_package_is_a_short_list():
    others = ("__pycache__", "__main__.py", "py.typed")  # which Python and type checkers look for there
    here = sorted(p.name for p in (ROOT / "jaxmlip").iterdir() if p.name not in others)
    assert len(here) <= TOP, f"found {len(here)} entries, needed {TOP} at most: {', '.join(here)}"
