"""Which code computes dendrites at a site: ours, or Perforated AI's own package."""

from nexus_common.adapter import DendriticLayer, LayerMaker

from nexus_client.site import Engine


def layer_of(engine: Engine) -> LayerMaker:
    """The layers of an engine; NexusError where its package is not installed.

    The same vector gives the same embeddings, gradients and updates under both, to the last bit: one federation may mix
    them, and nobody but the site has to know.
    """
    if engine == "native":
        return DendriticLayer
    from nexus_client.perforated import PerforatedLayer, library  # noqa: PLC0415  half a second and a package

    library()
    return PerforatedLayer
