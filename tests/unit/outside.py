"""Run in the environment without NEXUS: lines of Python as they stand, and a script, in one process (imports are slow).

stdin: {"texts": [...], "lines": {name: {library: lines}}, "script": [path, argument, ...]};
stdout, last line: {"vectors": {name: {library: [[...], ...]}}, "printed": what the script printed}.
"""

import contextlib
import io
import json
import runpy
import sys
from typing import Any

import torch

torch.set_num_threads(1)  # the tests share this machine's processors


def main() -> None:
    """Run all."""
    job = json.load(sys.stdin)
    found: dict[str, dict[str, Any]] = {}
    for name, libraries in job["lines"].items():
        for library, lines in libraries.items():
            space: dict[str, Any] = {}
            exec(lines.replace('["chest pain"]', repr(job["texts"])), space)  # noqa: S102  these lines are what is tested
            found.setdefault(name, {})[library] = [[float(value) for value in row] for row in space["vectors"]]
    sys.argv, printed = job["script"], io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(sys.argv[0], run_name="__main__")
    print(json.dumps({"vectors": found, "printed": printed.getvalue()}))


if __name__ == "__main__":
    main()
