"""The console script, also as `python -m jaxmlip`: the commands, and what must work where they do not."""

from __future__ import annotations

import sys

from jaxmlip import __version__


def main() -> None:
    """Runs the command that the process was started with."""
    asked = sys.argv[1:]
    if asked == ["--version"]:
        print(f"jaxmlip {__version__}")
        return
    try:
        from jaxmlip.cli import main as run
    except Exception as error:  # a package that commands need is missing or broken
        if asked[:1] != ["doctor"]:
            sys.exit(
                f"error: jaxmlip cannot start: {error!r}. `jaxmlip doctor` tells what is missing or broken."
            )
        from jaxmlip.system import doctor

        doctor.main("--json" in asked)
    else:
        run()


if __name__ == "__main__":
    main()
