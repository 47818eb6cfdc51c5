"""Fuzzing of everything that reads a peer's bytes or another party's file: see ``decoders.py`` for the list."""
