"""What this installation can do, and why not more."""


def info() -> str:
    """A readable summary: version, back ends with reasons, ISA, threads, library versions."""
    return ""
