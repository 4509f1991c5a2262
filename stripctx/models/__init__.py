"""Complete networks, created by name (`create`) or by their own functions."""

from stripctx.models.backbones import create_backbone
from stripctx.models.deeplab_hanet import deeplabv3plus_hanet
from stripctx.models.deepten import deepten
from stripctx.models.encnet import encnet
from stripctx.models.fcn import fcn
from stripctx.models.network import Backbone, SegmentationNetwork
from stripctx.models.pspnet import pspnet
from stripctx.models.registry import available, create, register
from stripctx.models.spnet import spnet
from stripctx.models.upernet import upernet

__all__ = [
    "Backbone",
    "SegmentationNetwork",
    "available",
    "create",
    "create_backbone",
    "deeplabv3plus_hanet",
    "deepten",
    "encnet",
    "fcn",
    "pspnet",
    "register",
    "spnet",
    "upernet",
]
