"""Complete segmentation networks, made by name or by their own functions."""

from stripctx.models.backbones import create_backbone
from stripctx.models.fcn import fcn
from stripctx.models.network import Backbone, SegmentationNetwork
from stripctx.models.registry import available, create, register

__all__ = [
    "Backbone",
    "SegmentationNetwork",
    "available",
    "create",
    "create_backbone",
    "fcn",
    "register",
]
