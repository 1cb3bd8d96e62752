"""Command for the installation: `jaxmlip doctor`."""

from __future__ import annotations

from jaxmlip.system.arguments import AsJson


def doctor(json_: AsJson = False) -> None:
    """Tells what is installed and what is missing, devices, memory and caches.

    Args:
        json_: print everything as JSON instead of tables
    """
    from jaxmlip.system.doctor import main

    main(json_)
