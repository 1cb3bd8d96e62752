"""How Sphinx-Gallery runs a tutorial: its page shows results, and no progress."""

from contextlib import ExitStack

from jaxmlip.system.console import Telling, telling

kept = ExitStack()


def quiet(gallery_conf, script) -> None:
    """Is called before each script, in the process that runs it."""
    kept.close()
    kept.enter_context(telling(Telling.QUIET))
