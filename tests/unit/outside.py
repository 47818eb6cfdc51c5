"""Run in the environment without NEXUS: read lines of Python from stdin, run each as it stands, print the vectors.

stdin: {"texts": [...], "lines": {name: {library: lines}}}; stdout, last line: {name: {library: [[...], ...]}}.
"""

import json
import sys
import time
from typing import Any


def main() -> None:
    """Run all."""
    job = json.load(sys.stdin)
    found: dict[str, dict[str, Any]] = {}
    for name, libraries in job["lines"].items():
        for library, lines in libraries.items():
            began = time.monotonic()
            space: dict[str, Any] = {}
            exec(lines.replace('["chest pain"]', repr(job["texts"])), space)  # noqa: S102  these lines are what is tested
            rows = [[float(value) for value in row] for row in space["vectors"]]
            found.setdefault(name, {})[library] = rows
            sys.stderr.write(f"{name} {library} {time.monotonic() - began:.1f} s\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
