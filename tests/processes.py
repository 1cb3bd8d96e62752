"""Processes that share one run: the devices that they simulate, and the addresses at which they meet."""

import os
import socket
import subprocess
import sys

COMMAND = ("-c", "from jaxmlip.cli import main; main()")


def started(devices: int, *script: object) -> subprocess.Popen:
    """A process that runs a script with its arguments, or COMMAND, on so many devices, made of one CPU."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, *map(str, script)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_address() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"
