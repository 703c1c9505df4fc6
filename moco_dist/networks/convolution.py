"""Convolve, and save the work on pixels that are not there."""

import torch.nn.functional as F
from torch import Tensor, nn


class Convolution(nn.Conv2d):
    """This convolution of an odd kernel is a matrix product where its output is a single pixel.

    Such a map, as the last stage has for images of 32 pixels, lies within one window of the kernel. The other taps meet
    padding alone: a convolution would lay them out in memory, multiply them by zeros and write down their gradients,
    which are zero. On the CPU that takes most of the time of such a layer.
    """

    def __init__(self, channels: int, planes: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels, planes, kernel, stride=stride, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, planes, H / stride, W / stride]."""
        height, width = x.shape[2:]
        first = self.kernel_size[0] // 2  # the tap that meets the first pixel
        if first == 0 or max(height, width) > self.stride[0]:
            return super().forward(x)
        taps = self.weight.permute(0, 2, 3, 1)[:, first : first + height, first : first + width]
        return F.linear(x.permute(0, 2, 3, 1).flatten(1), taps.flatten(1))[:, :, None, None]
