"""Property tests have no time limit an example: what runs beside them on this machine is not theirs to know."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
