"""A site's models as search and serve hold them."""

from nexus_client.light_adapter import LightAdapter
from nexus_client.shelf import Shelf


def light_model(shelf: Shelf, name: str, base: str) -> LightAdapter | None:
    """A held model over the base model of this hash; None for the base model itself.

    NexusError where it is not held, or was made for another base model.
    """
    stored = shelf.usable(name, base)
    return None if stored is None else LightAdapter(stored.layout, stored.vector)
