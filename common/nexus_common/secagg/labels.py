"""The label that opens every message and hash of nexus-sa/1 (specification, "Conventions").

Each purpose has its own, so no bytes made for one can be read as another.
"""


def label(x: str) -> bytes:
    """``nexus-sa/1 x`` and one newline byte."""
    return f"nexus-sa/1 {x}\n".encode("ascii")
