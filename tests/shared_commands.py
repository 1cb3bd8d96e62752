"""Commands one after the other, as one process of several that run them together with pairs of atoms.

python shared_commands.py COMMANDS COORDINATOR PROCESSES PROCESS

COMMANDS is a JSON file with the words of each. A line of END follows what each says.
"""

import json
import sys
from pathlib import Path

import pairs

from jaxmlip.cli import main as jaxmlip
from jaxmlip.system import parallel
from jaxmlip.zoo import load

END = "-- end of a command --"


def main(commands: str, coordinator: str, processes: str, process: str) -> None:
    joined, connect = [], parallel.connect

    def once(*address) -> None:
        """Each command joins the other processes, which a process does once."""
        if not joined:
            connect(*address)
        joined.append(address)

    load.load = lambda *_, **__: pairs.potential()
    parallel.connect = once
    each = json.loads(Path(commands).read_text())
    for words in each:
        jaxmlip([*words, "--coordinator", coordinator, "--processes", processes, "--process", process])
        print(END, flush=True)
    assert joined == [(coordinator, int(processes), int(process))] * len(each)


if __name__ == "__main__":
    main(*sys.argv[1:])
