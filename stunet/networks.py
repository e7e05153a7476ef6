"""The networks: STU-Net, a residual U-Net that scales in depth and width, in 3D and 2D; the same with several encoders.

Architecture and parameter names are those of the published STU-Net (Huang et al. 2023, arXiv:2304.06716), so released
weights load. Three things are computed differently with equal results: a nearest-neighbour upsampling and a 1x1x1
convolution commute, so we convolve first, at the low resolution, for an eighth of the work and memory; heads that are
not requested are not computed; and on the CPU, 1x1x1 convolutions are matrix products and instance norms are group
norms. benchmarks/network.md has the resulting gains.

    Stem and encoder   conv_blocks_context.{0..n-1}       stage k: stride strides[k], depth residual blocks
    Upsampling         upsample_layers.{0..n-2}           0 = from the bottleneck
    Decoder            conv_blocks_localization.{0..n-2}  after concatenation (upsampled, skip)
    Heads              seg_outputs.{0..n-2}               0 = lowest resolution, last = full resolution

With several encoders, there are in place of the first line, as encoders.{e} has the stages of conv_blocks_context:

    Stems and encoders encoders.{0..e-1}.{0..n-1}         all take the image
    Fusion             fusion_layers.{0..n-1}             0 = of the bottlenecks, last = of the stems

Shape legend: B batch, C channels, D H W depth, height and width (2D: no D), K classes.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stunet.errors import DataError
from stunet.sizes import SIZES, Size

LEAKY_SLOPE = 0.01


class ShapeError(DataError, ValueError):
    """An input that the network cannot take: wrong number of axes or channels, or a shape not divisible by strides."""


class _UNet(nn.Module):
    """What the networks have in common: all but the encoder, which subclasses add before the decoder."""

    def __init__(
        self, input_channels: int, size: str | Size, strides: Sequence[Sequence[int]], checkpointing: bool
    ) -> None:
        super().__init__()
        if isinstance(size, str):
            if size not in SIZES:
                raise ValueError(f"unknown size {size!r}; known: {', '.join(SIZES)}")
            size = SIZES[size]
        self.size = size
        self.strides = tuple(tuple(int(s) for s in stride) for stride in strides)
        _check_strides(self.strides)
        self.divisor = tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))
        self.input_channels = input_channels
        self.checkpointing = checkpointing
        self.ndim = len(self.strides[0])
        self.widths = [size.channels(stage) for stage in range(len(self.strides))]

    def encode(self, x_BCDHW: Tensor) -> list[Tensor]:
        """Return what the decoder takes: the features of all stages, finest first, (B, C', D / s, H / s, W / s)."""
        raise NotImplementedError

    def forward(self, x_BCDHW: Tensor) -> Tensor | list[Tensor]:
        """Return logits at full resolution or, with deep supervision, the list of all heads, finest first.

        Raises:
            ShapeError: The input has other axes or channels than the network, its shape is not a multiple of the
                product of the strides, or it is so small that the bottleneck has a single voxel, which cannot be
                normalised.
        """
        self._check_shape(x_BCDHW)
        *skips, x = self.encode(x_BCDHW)
        outputs = []
        levels = zip(self.upsample_layers, self.conv_blocks_localization, self.seg_outputs, strict=True)
        for upsample, stage, head in levels:
            # The level as a whole: with checkpointing, not even its concatenation is kept.
            x = self._run(_decode, upsample, stage, x, skips.pop())
            if self.decoder.deep_supervision:
                outputs.append(head(x))
        return outputs[::-1] if self.decoder.deep_supervision else self.seg_outputs[-1](x)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Apply He initialisation (slope 0.01) and zero biases, as the published training did; for `network.apply`."""
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # all our convolutions have a bias
        elif isinstance(module, Fusion):
            module.average()  # `apply` has already been to its convolution

    def _new_encoder(self) -> nn.ModuleList:
        inputs = [self.input_channels, *self.widths[:-1]]
        return nn.ModuleList(
            _stage(self.ndim, c_in, c_out, stride, self.size.depth)
            for c_in, c_out, stride in zip(inputs, self.widths, self.strides, strict=True)
        )

    def _add_decoder(self, num_classes: int, deep_supervision: bool) -> None:
        ndim, widths = self.ndim, self.widths
        upwards = [(widths[stage], widths[stage - 1], self.strides[stage]) for stage in range(len(widths) - 1, 0, -1)]
        self.upsample_layers = nn.ModuleList(Upsample(ndim, low, high, stride) for low, high, stride in upwards)
        self.conv_blocks_localization = nn.ModuleList(
            _stage(ndim, 2 * high, high, (1,) * ndim, self.size.depth) for _, high, _ in upwards
        )
        self.seg_outputs = nn.ModuleList(_conv(ndim, high, num_classes, 1) for _, high, _ in upwards)
        self.decoder = Decoder(deep_supervision)

    def _run(self, function: Callable[..., Tensor], *inputs: nn.Module | Tensor) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)  # no dropout
        return function(*inputs)

    def _check_shape(self, x: Tensor) -> None:
        ndim = len(self.divisor)
        if x.ndim != ndim + 2 or x.shape[1] != self.input_channels:
            raise ShapeError(
                f"input of shape {tuple(x.shape)}: expected {ndim + 2} axes, which are batch, "
                f"{self.input_channels} channel(s) and {ndim} of space",
                "check the channels in dataset.json, and that the plan is 3D for volumes and 2D for slices",
            )
        space = x.shape[2:]
        if any(n % d for n, d in zip(space, self.divisor, strict=True)) or tuple(space) == self.divisor:
            raise ShapeError(
                f"input of shape {tuple(x.shape)}: the last {ndim} axes must be multiples of {self.divisor}, "
                "the product of the strides, and at least one of them a larger one",
                "pad the input, or change patch_size in the plan",
            )


class STUNet(_UNet):
    """Maps images (B, C, D, H, W) to logits (B, K, D, H, W).

    With deep supervision the result is a list of logits, finest first, one per decoder stage; the flag can be switched
    at any time through `network.decoder.deep_supervision`, where nnU-Net looks for it.

    Args:
        input_channels: C.
        num_classes: K, including background.
        size: Key of stunet.sizes.SIZES, or a Size.
        strides: One entry per stage with one factor per axis; the first entry is all ones (nnU-Net's plans format).
        deep_supervision: Return all heads instead of the finest only.
        checkpointing: Recompute each stage in the backward pass instead of keeping its activations.

    Raises:
        ValueError: Unknown size, or strides that are not as described.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        size: str | Size,
        strides: Sequence[Sequence[int]],
        deep_supervision: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(input_channels, size, strides, checkpointing)
        self.conv_blocks_context = self._new_encoder()
        self._add_decoder(num_classes, deep_supervision)

    def encode(self, x_BCDHW: Tensor) -> list[Tensor]:
        """Return the outputs of all encoder stages, finest first, (B, C', D / s, H / s, W / s)."""
        outputs, x = [], x_BCDHW
        for stage in self.conv_blocks_context:
            x = self._run(stage, x)
            outputs.append(x)
        return outputs


class MultiEncoderSTUNet(_UNet):
    """An STU-Net with several encoders, which may have been pre-trained in different ways.

    All of them take the image. At every stage their features are concatenated and brought to the width of one by a
    1x1x1 convolution, which initialize() makes their mean; decoder and heads are those of an STU-Net.

    Args:
        encoders: Their number, 2 or more. The other arguments and errors are those of STUNet.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        size: str | Size,
        strides: Sequence[Sequence[int]],
        encoders: int,
        deep_supervision: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(input_channels, size, strides, checkpointing)
        if encoders < 2:
            raise ValueError(f"encoders {encoders} must be 2 or more")
        self.encoders = nn.ModuleList(self._new_encoder() for _ in range(encoders))
        self.fusion_layers = nn.ModuleList(Fusion(self.ndim, width, encoders) for width in reversed(self.widths))
        self._add_decoder(num_classes, deep_supervision)

    def encode(self, x_BCDHW: Tensor) -> list[Tensor]:
        """Return the fused features of all stages, finest first, (B, C', D / s, H / s, W / s)."""
        outputs, each = [], [x_BCDHW] * len(self.encoders)
        # Stage by stage: the features of a stage are released once the next one has them.
        for *stages, fusion in zip(*self.encoders, list(self.fusion_layers)[::-1], strict=True):
            each = [self._run(stage, x) for stage, x in zip(stages, each, strict=True)]
            outputs.append(self._run(fusion, *each))
        return outputs

    def with_one_encoder(self, index: int) -> STUNet:
        """Return an STU-Net with one of the encoders, which both then share; its decoder is on the meta device."""
        with torch.device("meta"):
            network = STUNet(self.input_channels, self.seg_outputs[0].out_channels, self.size, self.strides)  # type: ignore[arg-type]
        network.conv_blocks_context = self.encoders[index]  # type: ignore[assignment]
        return network


class Decoder(nn.Module):
    """Holds the flag with which nnU-Net switches deep supervision; no parameters, as in the published network."""

    def __init__(self, deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with instance norm and a shortcut: (B, C, D, H, W) -> (B, C', D/s, H/s, W/s).

    The first block of a stage (`project`) has a 1x1x1 convolution in its shortcut, the others the identity.
    """

    def __init__(self, ndim: int, c_in: int, c_out: int, stride: Sequence[int], project: bool) -> None:
        super().__init__()
        self.conv1 = _conv(ndim, c_in, c_out, 3, stride)
        self.norm1 = InstanceNorm(c_out)
        self.conv2 = _conv(ndim, c_out, c_out, 3)
        self.norm2 = InstanceNorm(c_out)
        self.conv3 = _conv(ndim, c_in, c_out, 1, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        # In place: the backward pass of a norm needs its input, not its output.
        y = F.leaky_relu(self.norm1(self.conv1(x)), LEAKY_SLOPE, inplace=True)
        y = self.norm2(self.conv2(y))
        y += x if self.conv3 is None else self.conv3(x)
        return F.leaky_relu(y, LEAKY_SLOPE, inplace=True)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by `stride` with a 1x1x1 convolution, computed at the low resolution."""

    def __init__(self, ndim: int, c_in: int, c_out: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.conv = _conv(ndim, c_in, c_out, 1)
        self.scale = tuple(float(s) for s in stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), scale_factor=self.scale, mode="nearest")


class Fusion(nn.Module):
    """Concatenates features of several encoders, each (B, C, D, H, W), and brings them to C channels again.

    The 1x1x1 convolution makes no difference between them at first: average() lets it return their mean, so that the
    decoder begins with features of the size that one encoder gives, and learns which to take from which.
    """

    def __init__(self, ndim: int, width: int, encoders: int) -> None:
        super().__init__()
        self.conv = _conv(ndim, encoders * width, width, 1)

    def forward(self, *features: Tensor) -> Tensor:
        return self.conv(torch.cat(features, 1))

    @torch.no_grad()
    def average(self) -> None:
        """Set the convolution to the mean over the encoders, channel by channel."""
        weight = self.conv.weight
        encoders = weight.shape[1] // len(weight)
        mean = torch.eye(len(weight)).repeat(1, encoders) / encoders
        weight.copy_(mean.view_as(weight))
        self.conv.bias.zero_()  # type: ignore[union-attr]


class InstanceNorm(nn.GroupNorm):
    """Instance norm, on the CPU as the group norm with one channel per group, which is four times as fast there."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cpu:
            return super().forward(x)
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


class Pointwise3d(nn.Conv3d):
    """A 1x1x1 convolution of stride 1, (B, C, D, H, W) -> (B, C', D, H, W), on the CPU as a matrix product.

    oneDNN's convolution first converts to its own layout, which doubles the time for a head with 105 classes.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cpu:
            return super().forward(x)
        bias, weight = self.bias[:, None], self.weight.flatten(1).expand(len(x), -1, -1)  # type: ignore[index]
        return torch.baddbmm(bias, weight, x.flatten(2)).unflatten(2, x.shape[2:])


def with_layers_of_torch(network: _UNet) -> nn.Module:
    """Return the network, modified, with torch's own norms and convolutions in place of those made fast for the CPU."""
    for module in list(network.modules()):  # a list, because the loop replaces modules
        for name, child in module.named_children():
            if isinstance(child, InstanceNorm):
                norm = nn.InstanceNorm3d if network.ndim == 3 else nn.InstanceNorm2d
                layer: nn.Module = norm(child.num_channels, eps=child.eps, affine=True)
            elif isinstance(child, Pointwise3d):
                layer = nn.Conv3d(child.in_channels, child.out_channels, 1)
            else:
                continue
            layer.load_state_dict(child.state_dict())
            setattr(module, name, layer)
    return network


def build(
    size: str | Size, strides: Sequence[Sequence[int]], input_channels: int = 1, num_classes: int = 105
) -> STUNet:
    """Build an initialised network that returns full-resolution logits (deep supervision off)."""
    network = STUNet(input_channels, num_classes, size, strides, deep_supervision=False)
    network.apply(network.initialize)
    return network


def _decode(upsample: nn.Module, stage: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
    return stage(torch.cat((upsample(x), skip), 1))


def _stage(ndim: int, c_in: int, c_out: int, stride: Sequence[int], depth: int) -> nn.Sequential:
    blocks = [ResidualBlock(ndim, c_in, c_out, stride, project=True)]
    blocks += [ResidualBlock(ndim, c_out, c_out, (1,) * ndim, project=False) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def _conv(ndim: int, c_in: int, c_out: int, kernel: int, stride: Sequence[int] = ()) -> nn.Conv2d | nn.Conv3d:
    if ndim == 3 and kernel == 1 and set(stride) <= {1}:
        return Pointwise3d(c_in, c_out, 1)
    conv: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv3d if ndim == 3 else nn.Conv2d
    return conv(c_in, c_out, kernel, tuple(stride) or 1, padding=kernel // 2)  # type: ignore[arg-type]


def _check_strides(strides: tuple[tuple[int, ...], ...]) -> None:
    ndims = {len(stride) for stride in strides}
    if len(strides) < 2 or ndims not in ({2}, {3}) or any(s < 1 for stride in strides for s in stride):
        raise ValueError(f"strides {strides!r} must be two or more entries of 2 or 3 positive factors")
    if set(strides[0]) != {1}:
        raise ValueError(f"strides {strides!r} must begin with ones: the first stage works at full resolution")
