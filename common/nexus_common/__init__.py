"""What both sides must agree on: messages, layouts, certificates, settings.  Imports neither side."""

__version__ = "0.1.0"
