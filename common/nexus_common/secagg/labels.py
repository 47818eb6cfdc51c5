"""The label that opens every message and hash of nexus-sa/1 (specification, "Conventions").

Each purpose has its own, so no bytes made for one can be read as another.
"""


def label(x: str) -> bytes:
    """``nexus-sa/1 x`` and one newline byte."""
    return f"nexus-sa/1 {x}\n".encode("ascii")


def label_of(data: bytes) -> str:
    """What stands in the label that a message begins with; nothing where it begins with none."""
    start, end = b"nexus-sa/1 ", data.find(b"\n", 0, 40)
    return data[len(start) : end].decode("latin-1") if end >= 0 and data.startswith(start) else ""
