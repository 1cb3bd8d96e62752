"""Converts a torch checkpoint, a file or a folder, into a folder that jaxmlip.load reads.

python -m weights_convert SOURCE OUT
python -m weights_convert SOURCE OUT --verify    # and compares a CHGNet with the torch original
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jaxmlip.potential import architecture_of
from weights_convert import convert_file, golden, original_chgnet
from weights_convert.torch_zip import CheckpointError

TOLERANCE = 1e-6
UNITS = {"energy": "eV/atom", "forces": "eV/Å", "stress": "eV/Å³", "magmoms": "μB"}


def verify(source: Path, converted: Path) -> bool:
    """Prints the largest differences in float64 from the original; True where all are within TOLERANCE."""
    import jaxmlip

    crystals = golden.structures()
    potential = jaxmlip.Potential.from_folder(converted, dtype="float64")
    ours = dict(zip(crystals, potential.predict(list(crystals.values())), strict=True))
    worst = original_chgnet.compare(source, crystals, ours)
    for quantity, difference in worst.items():
        print(f"{quantity:8} differs by at most {difference:.1e} {UNITS[quantity]}")
    return max(worst.values()) <= TOLERANCE


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m weights_convert", description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="checkpoint written by the model's own trainer")
    parser.add_argument("out", type=Path, help="folder for model.safetensors and manifest.json")
    parser.add_argument(
        "--verify",
        action="store_true",
        help=f"compare with the original in float64 on small crystals; exit status 1 above {TOLERANCE:g}",
    )
    arguments = parser.parse_args()
    absent = original_chgnet.missing() if arguments.verify else []
    if absent:
        print(
            f"--verify found no {' and no '.join(absent)} in this environment, needed both beside jaxmlip: "
            "pip install chgnet==0.4.2. Without --verify the conversion needs neither.",
            file=sys.stderr,
        )
        return 1
    try:
        potential = convert_file(arguments.source)
    except (CheckpointError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    architecture = architecture_of(potential.model)
    if arguments.verify and architecture != "chgnet":
        print(f"--verify found an architecture {architecture}, needed chgnet.", file=sys.stderr)
        return 1
    potential.save(arguments.out)
    print(f"{arguments.out}: {potential.name}, {len(potential.elements)} elements")
    if arguments.verify and not verify(arguments.source, arguments.out):
        print(
            f"the converted model is not the original: needed differences up to {TOLERANCE:g}",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
