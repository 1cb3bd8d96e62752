"""The machine: terminal, files, memory."""
