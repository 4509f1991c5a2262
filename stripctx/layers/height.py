"""Height-driven attention as a layer (Choi, Kim, Choo, Cars Can't Fly up in the Sky, CVPR 2020):
HANet's attention over rows and the positional tables that go with it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stripctx import functional, tracing, upstream
from stripctx.ops import checks

POSITIONS = 128  # values of a position map are 0 to 127; 128 marks padding
ENCODINGS = ("sinusoid", "learned", None)


class RowPositions(nn.Module):
    """Positional encoding: one vector for each band of `pos_rfactor` heights and one for padding.

    The vectors are fixed, `1 + sinusoid` with cycle 10 for more than 50 channels and 100 otherwise,
    or learned from zeros (upstream's `PosEncoding1D` and `PosEmbedding1D`). In training,
    `pos_noise` shifts the band of each row by a rounded normal deviate of at most 16 //
    pos_rfactor. Upstream rounds down, a bias of -1/2 band; symmetric=False reproduces it.
    (Upstream's noise raises an error in training on torch 2.)

    Args:
        channels: the length of a vector.
        pos_rfactor: the number of heights in a band.
        learned: see above.
        pos_noise: the standard deviation, in bands.
        symmetric: see above.

    Shape:
        pos (N, H), or (N, H, W) of which the first column is used, with integers from 0 to 127 and
        128 or more for padding; and the number of rows L; to (N, channels, L).
    """

    def __init__(
        self, channels: int, pos_rfactor: int, learned: bool, pos_noise: float, symmetric: bool
    ) -> None:
        super().__init__()
        self.pos_rfactor = pos_rfactor
        self.pos_noise = pos_noise
        self.symmetric = symmetric
        bands = POSITIONS // pos_rfactor + 1
        self.pos_layer = nn.Embedding(bands, channels)
        with torch.no_grad():
            self.pos_layer.weight.zero_()
            if not learned:
                self.pos_layer.weight.copy_(sinusoid(bands, channels))
        # a parameter in both cases, like upstream's, for equal state_dicts and optimisers
        self.pos_layer.weight.requires_grad_(learned)

    def forward(self, pos: Tensor, rows: int) -> Tensor:
        if pos.dim() not in (2, 3) or pos.is_floating_point() or pos.is_complex():
            raise ValueError(
                "HeightAttention: pos must be an integer tensor (N, H, W) or (N, H), got "
                f"{str(pos.dtype).removeprefix('torch.')} {tuple(pos.shape)}"
            )
        heights = pos[:, :, 0] if pos.dim() == 3 else pos
        # upstream's index arithmetic; float32 represents these integers exactly
        picked = F.interpolate(heights[:, None].float(), rows, mode="nearest")[:, 0]
        bands = torch.div(picked, self.pos_rfactor, rounding_mode="floor")
        if self.training and self.pos_noise > 0:
            noise = torch.randn_like(bands) * self.pos_noise
            limit = 16 // self.pos_rfactor
            bands = bands + (noise.round() if self.symmetric else noise.floor()).clamp(
                -limit, limit
            )
        last = self.pos_layer.num_embeddings - 1
        return self.pos_layer(bands.clamp(0, last).long()).transpose(1, 2)

    def extra_repr(self) -> str:
        return (
            f"pos_rfactor={self.pos_rfactor}, pos_noise={self.pos_noise}, "
            f"symmetric={self.symmetric}"
        )


def sinusoid(bands: int, channels: int) -> Tensor:
    """1 + sin and 1 + cos in alternating channels, (bands, channels), as in HANet."""
    cycle = 10.0 if channels > 50 else 100.0
    index = torch.arange(channels, dtype=torch.float64)
    period = cycle ** (2 * (index // 2) / channels)
    angle = torch.arange(bands, dtype=torch.float64)[:, None] / period
    return (1 + torch.where(index % 2 == 0, angle.sin(), angle.cos())).float()


class HeightAttention(nn.Module):
    """HANet's height-driven attention: gates the rows of a map by row features of another map.

        r   = mean or max over bands of rows of x                          (N, in_channels, L)
        a   = relu(norm(conv1(r)))                                                (N, m1, L)
        a   = relu(norm(conv3(a + position)))                                     (N, 2 m1, L)
        out = out * interpolate(sigmoid(conv(a)), H)                       (N, out_channels, H, W)

    (Choi et al., CVPR 2020, eq. 1 to 4.) L = 128 // pos_rfactor, and m1 = in_channels / reduction,
    rounded up. The sigmoid comes before the interpolation, which is linear with
    align_corners=False.

    Upstream's name is `HANet_Conv(in_channel, out_channel, kernel_size, r_factor, layer,
    pos_injection, is_encoding, pos_rfactor, pooling, dropout_prob, pos_noise)`. Its state_dict
    loads unchanged: `attention_first`, `attention_second`, `attention_third`,
    `pos_emb1d_1st.pos_layer` or `pos_emb1d_2nd.pos_layer`. Differences: the norms are BatchNorm1d
    (upstream's work only after conversion to SyncBatchNorm); noise works in training and is
    symmetric by default; construction needs no GPU; `pos` may be (N, H).

    Args:
        in_channels: of x.
        out_channels: of out.
        kernel_size: of the last convolution, odd.
        reduction: see above. If negative, m1 = in_channels * -reduction.
        layers: 3, or 2 to omit the second convolution and its norm.
        pooling: "mean" or "max".
        pos_rfactor: the number of heights in a band, 1 to 128.
        pos_injection: 1 adds the encoding to r, 2 to the output of the first convolution and ReLU.
        pos_encoding: "sinusoid" (fixed), "learned" (from zeros), or None.
        pos_noise: the standard deviation, in bands, of random shifts of positions in training.
        symmetric_noise: whether noise is rounded to nearest; otherwise down, as upstream.
        dropout: the probability of dropping whole channels of r in training.

    Shape:
        x (N, in_channels, h, w), out (N, out_channels, H, W), of any sizes, and pos to
        (N, out_channels, H, W), and with return_attention the attention (N, out_channels, H).
        pos is (N, P), or (N, P, Q) of which the first column is used, for any P: integers from 0 at
        the top of the image to 127 at the bottom, 128 for padding. Without it no encoding is added.

    Examples:
        >>> layer = HeightAttention(64, 32, reduction=8)
        >>> heights = torch.arange(40).mul(128).div(40, rounding_mode="floor").expand(2, 40)
        >>> layer(torch.randn(2, 64, 10, 12), torch.randn(2, 32, 20, 24), heights).shape
        torch.Size([2, 32, 20, 24])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        reduction: int = 64,
        layers: int = 3,
        pooling: str = "mean",
        pos_rfactor: int = 8,
        pos_injection: int = 2,
        pos_encoding: str | None = "sinusoid",
        pos_noise: float = 0.0,
        symmetric_noise: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for fits, argument, expectation, value in (
            (in_channels > 0, "in_channels", "positive", in_channels),
            (out_channels > 0, "out_channels", "positive", out_channels),
            (kernel_size > 0 and kernel_size % 2 == 1, "kernel_size", "odd", kernel_size),
            (reduction != 0, "reduction", "other than 0", reduction),
            (layers in (2, 3), "layers", "2 or 3", layers),
            (pooling in ("mean", "max"), "pooling", '"mean" or "max"', repr(pooling)),
            (1 <= pos_rfactor <= POSITIONS, "pos_rfactor", "from 1 to 128", pos_rfactor),
            (pos_injection in (1, 2), "pos_injection", "1 or 2", pos_injection),
            (
                pos_encoding in ENCODINGS,
                "pos_encoding",
                '"sinusoid", "learned" or None',
                repr(pos_encoding),
            ),
            (pos_noise >= 0, "pos_noise", "0 or more", pos_noise),
            (0 <= dropout <= 1, "dropout", "from 0 to 1", dropout),
        ):
            if not fits:
                raise ValueError(f"HeightAttention: {argument} must be {expectation}, got {value}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.rows = POSITIONS // pos_rfactor
        self.pooling = pooling
        width = -in_channels * reduction if reduction < 0 else math.ceil(in_channels / reduction)
        self.dropout = nn.Dropout1d(dropout)
        self.attention_first = nn.Sequential(
            nn.Conv1d(in_channels, width, 1, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
        )
        last, padding = (kernel_size, kernel_size // 2)
        self.attention_third: nn.Sequential | None = None
        if layers == 3:
            self.attention_second = nn.Sequential(
                nn.Conv1d(width, 2 * width, 3, padding=1),
                nn.BatchNorm1d(2 * width),
                nn.ReLU(inplace=True),
            )
            self.attention_third = nn.Sequential(
                nn.Conv1d(2 * width, out_channels, last, padding=padding)
            )
        else:
            self.attention_second = nn.Sequential(
                nn.Conv1d(width, out_channels, last, padding=padding)
            )
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.pos_emb1d_1st: RowPositions | None = None
        self.pos_emb1d_2nd: RowPositions | None = None
        if pos_encoding is not None:
            channels = in_channels if pos_injection == 1 else width
            table = RowPositions(
                channels, pos_rfactor, pos_encoding == "learned", pos_noise, symmetric_noise
            )
            if pos_injection == 1:
                self.pos_emb1d_1st = table
            else:
                self.pos_emb1d_2nd = table
        upstream.accept(self)

    @tracing.one_call
    def forward(
        self, x: Tensor, out: Tensor, pos: Tensor | None = None, return_attention: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        checks.feature_map("HeightAttention", "x", x, self.in_channels)
        checks.feature_map("HeightAttention", "out", out, self.out_channels)
        logits = self._logits(x, pos)
        gated = functional.row_gate(out, logits)
        if not return_attention:
            return gated
        attention = F.interpolate(logits.sigmoid(), out.shape[2], mode="linear")
        return gated, attention

    def _logits(self, x: Tensor, pos: Tensor | None) -> Tensor:
        rows = functional.row_pool(x, self.rows, self.pooling)
        if pos is not None and pos.shape[0] != x.shape[0]:
            raise ValueError(
                f"HeightAttention: pos must be of {x.shape[0]} images, as x, got {pos.shape[0]}"
            )
        if pos is not None and self.pos_emb1d_1st is not None:
            rows = rows + self.pos_emb1d_1st(pos, self.rows)
        rows = self.attention_first(self.dropout(rows))
        if pos is not None and self.pos_emb1d_2nd is not None:
            rows = rows + self.pos_emb1d_2nd(pos, self.rows)
        rows = self.attention_second(rows)
        return rows if self.attention_third is None else self.attention_third(rows)

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
            f"rows={self.rows}, pooling={self.pooling!r}"
        )
