"""A backbone by its name. Imports timm for one of timm alone."""

from headstart.backbones import BACKBONES, Backbone, check_name


def find_backbone(name: str) -> Backbone:
    """Raises InputError for an unknown name, and for a model of timm whose head is not one linear layer."""
    check_name(name)
    if name in BACKBONES:
        return BACKBONES[name]
    from headstart.model.timm_network import describe

    return describe(name)
