"""The codec `ftc1`: keys and values of a group of layers as a few numbers a token, at a fixed rate; both sides.

    x      keys without their rotation and values of all layers of a group, [tokens, p]
    z      ((x - mean) / scale) U / deviation        the components of one calibrated basis
    codes  the nearest of 2^b centroids              b by component and level, the same for every text

What a slab's length depends on is the level and the number of rows. Everything calibrated stands in an `Artefact`.
"""

from splitinfer.codec.transform.artefact import Artefact
from splitinfer.codec.transform.levels import LEVELS, codec_name, level_of
from splitinfer.codec.transform.slabs import TransformSlabs

__all__ = ["LEVELS", "Artefact", "TransformSlabs", "codec_name", "level_of"]
