"""Pyramid pooling as layers: PSPNet's pyramid pooling module (Zhao et al., CVPR 2017, section 3.2),
alone and with the convolution that follows it. SPNet's mixed pooling is in stripctx.layers.strip.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import torch
from torch import Tensor, nn

from stripctx import functional, tracing, upstream
from stripctx.ops import checks

NormLayer = Callable[[int], nn.Module]
Bins = Sequence[int | tuple[int, int]]

# The names of these layouts for `branches.i.0` (convolution) and `branches.i.1` (norm).
_LAYOUTS = (
    upstream.Layout(
        "semseg's PPM, alone and in PSPNet",
        r"(ppm\.)?features\.",
        (
            (r"(?:ppm\.)?features\.(\d+)\.1\.", r"branches.\1.0."),
            (r"(?:ppm\.)?features\.(\d+)\.2\.", r"branches.\1.1."),
            (r"cls\.0\.", "conv."),
        ),
    ),
    upstream.Layout(
        "PyTorch-Encoding's and SPNet's PyramidPooling",
        r"conv\d\.",
        tuple((rf"conv{i + 1}\.", f"branches.{i}.") for i in range(8)),
    ),
    upstream.Layout(
        "PyTorch-Encoding's PSPHead, relative to conv5",
        r"0\.conv\d\.",
        (
            *((rf"0\.conv{i + 1}\.", f"branches.{i}.") for i in range(8)),
            (r"1\.", "conv."),
        ),
    ),
    upstream.Layout(
        "mmseg's PPM, alone and in PSPHead",
        r"(psp_modules\.)?\d+\.1\.(conv|bn)\.",
        (
            (r"(?:psp_modules\.)?(\d+)\.1\.conv\.", r"branches.\1.0."),
            (r"(?:psp_modules\.)?(\d+)\.1\.bn\.", r"branches.\1.1."),
            (r"bottleneck\.conv\.", "conv."),
        ),
    ),
    upstream.Layout(
        "smp's PSPModule, alone and in PSPDecoder",
        r"(psp\.)?blocks\.\d+\.pool\.",
        (
            (r"(?:psp\.)?blocks\.(\d+)\.pool\.1\.", r"branches.\1."),
            (r"conv\.0\.", "conv."),
        ),
    ),
    upstream.Layout(
        "smp's PSPModule in UPerNet",
        r"blocks\.\d+\.1\.",
        (
            (r"blocks\.(\d+)\.1\.", r"branches.\1."),
            (r"out_conv\.0\.", "conv."),
        ),
    ),
)


class _Pyramid(nn.Module):
    """The branches of a pyramid: pooling, 1x1 convolution, normalisation, ReLU."""

    def __init__(
        self,
        in_channels: int,
        bins: Bins = (1, 2, 3, 6),
        *,
        branch_channels: int | None = None,
        mode: str = "mean",
        align_corners: bool = True,
        x_first: bool = True,
        global_norm: bool = True,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if in_channels < 1:
            raise ValueError(f"{name}: in_channels must be positive, got {in_channels}")
        self.bins = size_pairs(name, "bins", bins, range(1, 9), "one to eight")
        width = in_channels // len(self.bins) if branch_channels is None else branch_channels
        if width < 1:
            raise ValueError(
                f"{name}: branch_channels must be positive, got {width}"
                + (f" from in_channels {in_channels}" if branch_channels is None else "")
            )
        if mode not in ("mean", "max"):
            raise ValueError(f'{name}: mode must be "mean" or "max", got {mode!r}')
        self.in_channels = in_channels
        self.branch_channels = width
        self.mode = mode
        self.align_corners = align_corners
        self.x_first = x_first
        self.x_index = 0 if x_first else -1
        self.branches = nn.ModuleList()
        for pair in self.bins:
            normed = norm_layer is not None and (global_norm or pair != (1, 1))
            layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 1, bias=not normed)]
            if norm_layer is not None and normed:
                layers.append(norm_layer(width))
            self.branches.append(nn.Sequential(*layers, nn.ReLU(inplace=True)))
        upstream.accept(self, *_LAYOUTS)

    def levels(self, x: Tensor) -> list[Tensor]:
        """The pooled and projected maps, one (N, branch_channels, h, w) per bin."""
        name = type(self).__name__
        checks.feature_map(name, "x", x, self.in_channels)
        if self.training and x.shape[0] == 1:
            for pair, branch in zip(self.bins, self.branches, strict=True):
                if pair == (1, 1):
                    refuse_batch_of_one(name, branch)
        pooled = functional.pyramid_pool(x, self.bins, self.mode)
        return [branch(level) for branch, level in zip(self.branches, pooled, strict=True)]

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, bins={self.bins}, mode={self.mode!r}, "
            f"align_corners={self.align_corners}, x_first={self.x_first}"
        )


def size_pairs(
    name: str, argument: str, sizes: Bins, counts: Container[int], count: str
) -> tuple[tuple[int, int], ...]:
    """Grids as (h, w), from pairs or integers b for (b, b). `counts` are the permitted numbers of
    grids, `count` describes them in the error message."""
    pairs = [(b, b) if isinstance(b, int) else tuple(b) for b in sizes]
    if len(pairs) not in counts or not all(
        len(pair) == 2 and all(isinstance(b, int) and b > 0 for b in pair) for pair in pairs
    ):
        raise ValueError(
            f"{name}: {argument} must be {count} positive integers or pairs of them, got {sizes}"
        )
    return tuple((pair[0], pair[1]) for pair in pairs)


def refuse_batch_of_one(
    name: str,
    branch: nn.Module,
    way_out: str = "global_norm=False that branch has a bias and no norm",
) -> None:
    """Raises for batch norms over one image's 1x1 map, which have a single value per channel.
    PyTorch's own error names neither the layer nor the remedy."""
    for norm in branch.modules():
        alone = isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training
        if isinstance(norm, nn.SyncBatchNorm) and torch.distributed.is_initialized():
            alone = False  # SyncBatchNorm also sees the images of other processes
        if alone:
            raise ValueError(
                f"{name}: batch normalisation of the 1x1 map in training needs a batch of two or "
                f"more, got 1; with {way_out}"
            )


class PyramidPooling(_Pyramid):
    """PSPNet's pyramid pooling module (PPM): concatenates a map with averages over its regions.

        concat(x, up(relu(norm(conv1x1(pool(x, b))))) for b in bins)

    (Zhao et al., CVPR 2017, section 3.2.) Pooling reads x once for all bins; the concatenation is
    written once.

    Options that correspond to upstream modules, whose state_dicts load unchanged:

    - semseg's `PPM(in_dim, reduction_dim, bins)`: branch_channels=reduction_dim.
    - `PyramidPooling` of PyTorch-Encoding and SPNet: the defaults.
    - mmseg's `PPM`: align_corners=False, branch_channels=channels. It returns the list of
      interpolated maps, which its head concatenates after x.
    - smp's `PSPModule`: x_first=False, global_norm=False; UPerNet's: align_corners=False.

    Args:
        in_channels: C.
        bins: one to eight levels, each h x w bins (h, w), or b for (b, b).
        branch_channels: the width of a branch; in_channels // len(bins) unless given.
        mode: "mean" or "max".
        align_corners: of the bilinear interpolation.
        x_first: whether x comes before the branches or after them.
        global_norm: whether the 1x1 bin has a norm. If so, training with batch size 1 raises
            ValueError, because the batch statistics would have one value per channel. If not, the
            branch has a bias, and batch size 1 works.
        norm_layer: creates the norms, called with branch_channels; None for biases instead.

    Shape:
        (N, C, H, W) to (N, C + len(bins) * branch_channels, H, W), any floating dtype.

    Examples:
        >>> PyramidPooling(64)(torch.randn(2, 64, 30, 40)).shape
        torch.Size([2, 128, 30, 40])
    """

    @property
    def out_channels(self) -> int:
        return self.in_channels + len(self.bins) * self.branch_channels

    @tracing.one_call
    def forward(self, x: Tensor) -> Tensor:
        return functional.pyramid_concat(
            x, self.levels(x), align_corners=self.align_corners, x_index=self.x_index
        )


class PyramidPoolingConv(_Pyramid):
    """Pyramid pooling and the following convolution, without the concatenation between them.

        conv(concat(x, up(relu(norm(conv1x1(pool(x, b))))) for b in bins))

    Interpolation and convolution are linear, so each branch is multiplied by its slice of the
    weight at its own resolution (see `functional.pyramid_conv`). In PSPNet this halves the
    arithmetic of the network's largest convolution, and its 4096-channel input is never allocated.
    Equal to `PyramidPooling` followed by `conv`, up to rounding.

    load_state_dict accepts the layouts of `PyramidPooling`, including the convolution where a
    layout has it: semseg's `ppm` and `cls.0`, PyTorch-Encoding's `0` and `1` of conv5, mmseg's
    `psp_modules` and `bottleneck.conv`, smp's `psp` and `conv.0`, UPerNet's `out_conv.0`. The norm
    that follows the convolution is not included.

    Args:
        in_channels: C.
        out_channels: O.
        bins, branch_channels, mode, align_corners, x_first, global_norm, norm_layer: see
            `PyramidPooling`.
        kernel_size: of the convolution, odd; zero padding keeps the size.
        bias: whether the convolution has one.

    Shape:
        (N, C, H, W) to (N, O, H, W), any floating dtype.

    Examples:
        >>> PyramidPoolingConv(64, 16)(torch.randn(2, 64, 30, 40)).shape
        torch.Size([2, 16, 30, 40])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bins: Bins = (1, 2, 3, 6),
        *,
        kernel_size: int = 3,
        bias: bool = False,
        branch_channels: int | None = None,
        mode: str = "mean",
        align_corners: bool = True,
        x_first: bool = True,
        global_norm: bool = True,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
    ) -> None:
        super().__init__(
            in_channels,
            bins,
            branch_channels=branch_channels,
            mode=mode,
            align_corners=align_corners,
            x_first=x_first,
            global_norm=global_norm,
            norm_layer=norm_layer,
        )
        if out_channels < 1:
            raise ValueError(
                f"PyramidPoolingConv: out_channels must be positive, got {out_channels}"
            )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"PyramidPoolingConv: kernel_size must be odd and positive, got {kernel_size}"
            )
        together = in_channels + len(self.bins) * self.branch_channels
        self.out_channels = out_channels
        self.conv = nn.Conv2d(
            together, out_channels, kernel_size, padding=kernel_size // 2, bias=bias
        )

    @tracing.one_call
    def forward(self, x: Tensor) -> Tensor:
        return functional.pyramid_conv(
            x,
            self.levels(x),
            self.conv.weight,
            self.conv.bias,
            padding=self.conv.kernel_size[0] // 2,
            align_corners=self.align_corners,
            x_index=self.x_index,
        )
