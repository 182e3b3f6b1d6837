"""Layers whose gradients are fast on CPUs too, with the parameter names of the published codes."""

from typing import TYPE_CHECKING

from dreamjax._exports import exports

if TYPE_CHECKING:
    from dreamjax.nets import conv as conv, dense as dense, image as image, lstm as lstm
    from dreamjax.nets.conv import Conv as Conv, ConvTranspose as ConvTranspose
    from dreamjax.nets.dense import MLP as MLP, BlockLinear as BlockLinear, Linear as Linear, RMSNorm as RMSNorm
    from dreamjax.nets.image import DoublingConv as DoublingConv, HalvingConv as HalvingConv
    from dreamjax.nets.lstm import LSTM as LSTM, LSTMState as LSTMState

__getattr__, __dir__, __all__ = exports(__name__, __file__)
