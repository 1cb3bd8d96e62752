"""A screening with pairs of atoms in place of a network, which are quick to compile.

python killed_screen.py FOLDER [K N]

is a process that carries on the screening in FOLDER, in the place of `jaxmlip.studies.screen.worker`.
"""

import sys
from pathlib import Path

from pairs import potential

from jaxmlip.studies.screen import library, worker
from jaxmlip.studies.screen.folder import ASKED, Screening
from jaxmlip.studies.screen.properties import ScreenOptions
from jaxmlip.system.jobs import end_with_parent
from jaxmlip.zoo import load

PROPERTIES = ("relax", "elastic", "phonons")
WORKER = (sys.executable, str(Path(__file__).absolute()))
library.CHUNK = {"cpu": (20_000, 3)}  # so that a few crystals are several chunks


def screening(folder: Path, properties=PROPERTIES, scale: float = 1.0, **options) -> Screening:
    options = {"mesh": (1, 1, 1), **options}
    return Screening(potential(scale), folder, properties, ScreenOptions(**options))


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0])
    if (folder / ASKED).exists():  # the command began it
        load.load = lambda *_, **__: potential()
        worker.main(arguments)
    else:
        end_with_parent()
        screening(folder).work()


if __name__ == "__main__":
    main(sys.argv[1:])
