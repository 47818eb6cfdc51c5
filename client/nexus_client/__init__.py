"""The site's own machine: the only room that sees text.  Never imports the server."""

import os

# From 1.29 on ONNX Runtime reports to its maker, and gives the machine a name in the home folder, unless it finds this
# when it is loaded.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
