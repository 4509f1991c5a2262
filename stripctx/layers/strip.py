"""Strip pooling as a layer: SPNet's strip pooling module (Hou et al., CVPR 2020, fig. 2)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from stripctx import functional


class StripPooling(nn.Module):
    """SPNet's strip pooling module (SPM): gates a map by what its rows and columns hold.

        x * sigmoid(conv3(relu(bn1(conv1(mean over W)) + bn2(conv2(mean over H)))))

    with conv1 a 3x1 and conv2 a 1x3 convolution along the strip, both without bias, and conv3 a 1x1
    convolution with bias (Hou et al., CVPR 2020, eq. 1 to 4).

    Upstream calls this module `SPBlock`, which returns the gate alone and is used as
    `out * gate(out)`; its class named `StripPooling` is the mixed pooling module. An SPBlock's
    state_dict loads as it is: `conv1.weight`, `bn1.*`, `conv2.weight`, `bn2.*`, `conv3.weight`,
    `conv3.bias`.

    Args:
        in_channels: C.
        norm_layer: makes the two normalisations, called with C. Their statistics are over N*H and
            N*W samples only.

    Shape:
        (N, C, H, W) to (N, C, H, W), any floating dtype.

    Example:
        >>> layer = StripPooling(64)
        >>> layer(torch.randn(2, 64, 32, 48)).shape
        torch.Size([2, 64, 32, 48])
    """

    def __init__(
        self, in_channels: int, *, norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"StripPooling: in_channels must be positive, got {in_channels}")
        self.conv1 = nn.Conv2d(in_channels, in_channels, (3, 1), padding=(1, 0), bias=False)
        self.bn1 = norm_layer(in_channels)
        self.conv2 = nn.Conv2d(in_channels, in_channels, (1, 3), padding=(0, 1), bias=False)
        self.bn2 = norm_layer(in_channels)
        self.conv3 = nn.Conv2d(in_channels, in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows, cols = functional.strip_pool(x)
        rows = self.bn1(self.conv1(rows))
        cols = self.bn2(self.conv2(cols))
        return functional.strip_gate(x, rows, cols, self.conv3.weight, self.conv3.bias)
