"""Converts a torch checkpoint, a file or a folder, into a folder that jaxmlip.load reads.

python -m weights_convert SOURCE OUT
python -m weights_convert SOURCE OUT --verify    # and compares with the original, if installed
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jaxmlip.potential import Potential, architecture_of
from jaxmlip.system.console import say
from jaxmlip.system.files import check_folder
from weights_convert import convert_file, golden
from weights_convert.torch_zip import CheckpointError

TOLERANCE = 1e-6
UNITS = {"energy": "eV/atom", "forces": "eV/Å", "stress": "eV/Å³", "magmoms": "μB"}


def verify(source: Path, potential: Potential) -> bool:
    """Prints the largest differences in float64 from the original; True where all are within TOLERANCE."""
    original, *_ = golden.PACKAGES[potential.manifest["architecture"]]
    head = {"head": potential.manifest["head"]} if "head" in potential.manifest else {}
    crystals = golden.structures_of(potential.elements)
    ours = dict(zip(crystals, potential.predict(list(crystals.values())), strict=True))
    worst = original.compare(source, crystals, ours, **head)
    for quantity, difference in worst.items():
        print(f"{quantity:8} differs by at most {difference:.1e} {UNITS[quantity]}")
    return max(worst.values()) <= TOLERANCE


def _cannot_verify(architecture: str) -> str:
    """Why the original cannot be run here; empty where it can."""
    if architecture not in golden.PACKAGES:
        return (
            f"--verify runs the original of {', '.join(golden.PACKAGES)}, and found {architecture}, whose "
            "package numbers the bonds of its three-body terms differently. Convert without --verify."
        )
    original, _, requirement = golden.PACKAGES[architecture]
    absent = original.missing()
    if not absent:
        return ""
    return (
        f"--verify found no {' and no '.join(absent)} in this environment, needed both beside jaxmlip: "
        f"pip install {requirement}. Without --verify the conversion needs neither."
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m weights_convert", description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="checkpoint written by the model's own trainer")
    parser.add_argument("out", type=Path, help="folder for model.safetensors and manifest.json")
    parser.add_argument(
        "--verify",
        action="store_true",
        help=f"compare with the original in float64 on small crystals; exit status 1 above {TOLERANCE:g}",
    )
    parser.add_argument("--head", help="the head to take of a model with several")
    arguments = parser.parse_args()
    try:
        check_folder(arguments.out)
        potential = convert_file(arguments.source, head=arguments.head)
    except (CheckpointError, OSError) as error:
        say(str(error), stderr=True)
        return 1
    if arguments.verify and (complaint := _cannot_verify(architecture_of(potential.model))):
        say(complaint, stderr=True)
        return 1
    potential.save(arguments.out)
    say(f"{arguments.out}: {potential.name}, {len(potential.elements)} elements")
    saved = Potential.from_folder(arguments.out, dtype="float64")
    if arguments.verify and not verify(arguments.source, saved):
        say(f"the converted model is not the original: needed differences up to {TOLERANCE:g}", stderr=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
