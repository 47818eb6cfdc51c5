"""A site's models as search and serve hold them."""

from nexus_common.errors import NexusError

from nexus_client.light_adapter import LightAdapter
from nexus_client.shelf import Shelf


def light_model(shelf: Shelf, name: str, base: str) -> LightAdapter | None:
    """A held model over the base model of this hash; None for the base model itself.

    NexusError where it is not held, or was made for another base model.
    """
    stored = shelf.load(name)
    if stored is None:
        return None
    if stored.recipe.base_model != base:
        raise NexusError(
            f"model {name!r} belongs to base model {stored.recipe.base_model[:12]}…, this site has {base[:12]}…; "
            "`nexus-client use` another, or correct base_model in site.toml"
        )
    return LightAdapter(stored.layout, stored.vector)
