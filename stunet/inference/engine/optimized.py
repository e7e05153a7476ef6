"""Put a network into the form and precision that run fastest on the device.

On the CPU: channels last, instance norms as group norms with one channel per group, and bfloat16 if the processor
supports it natively. On a GPU none of these: cuDNN's instance norm loses more in channels last than its convolutions
gain, and group norm runs in float32 under autocast (reference figures in benchmarks/network.md); there it is autocast,
as in nnU-Net.
"""

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stunet import architectures
from stunet.architectures.base import Architecture
from stunet.errors import UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PLANES = 8  # of logits that are flipped at a time
Weights = Mapping[str, Tensor]


class ReadyNetwork:
    """An ensemble of networks of one architecture that maps windows to logits.

    Not thread-safe: the members take turns in one network.

    Args:
        network: The architecture, with deep supervision off. It is modified: use this object, not the network.
        weights: A state dict per member; empty: the network as it is.
        device: Where to compute.
        precision: One of PRECISIONS, or "auto".
        mirror_axes: Spatial axes, 0 being the first, along which windows are also mirrored; logits are averaged.

    Raises:
        UsageError: The device does not support this precision.
    """

    def __init__(
        self,
        network: nn.Module,
        weights: Sequence[Weights],
        device: torch.device,
        precision: str = "auto",
        mirror_axes: Sequence[int] = (),
    ) -> None:
        self.device = device
        self.precision = resolve_precision(precision, device)
        self.members = max(1, len(weights))
        self._weights = weights
        self._loaded: int | None = None if weights else 0  # the member whose weights are in the network
        self._mirrored = [axes for n in range(len(mirror_axes)) for axes in itertools.combinations(mirror_axes, n + 1)]
        self._network = prepare(network, device, self.precision)

    @property
    def is_mirrored(self) -> bool:
        """Whether logits are averages over mirrored windows."""
        return bool(self._mirrored)

    def use(self, member: int) -> None:
        """Select the member to compute with from now on."""
        if member != self._loaded:
            self._plain.load_state_dict(self._weights[member])
            self._loaded = member

    def __call__(self, windows_BCDHW: Tensor) -> Tensor:
        """Return logits (B, K, D, H, W), averaged over the mirrored windows; in float32 if there are any."""
        logits = self._forward(windows_BCDHW)
        if not self._mirrored:
            return logits
        logits = logits.float()
        for axes in self._mirrored:
            dims = [2 + axis for axis in axes]
            _add_mirrored(logits, self._forward(windows_BCDHW.flip(dims)), dims)
        return logits.div_(1 + len(self._mirrored))

    def features(self, windows_BCDHW: Tensor) -> list[Tensor]:
        """Return the outputs of all encoder stages, finest first, each (B, C', D / s, H / s, W / s)."""
        return self._forward(windows_BCDHW, partial(self._architecture.features, self._plain))

    def blocks(self) -> list[tuple[int, ...]]:
        """Return how many voxels of a window a value of each encoder stage stands for, per axis."""
        strides = self._architecture.strides(self._plain)
        return [tuple(math.prod(axis) for axis in zip(*strides[: n + 1], strict=True)) for n in range(len(strides))]

    @property
    def _plain(self) -> nn.Module:
        """The network without torch.compile, which holds it, with its own names, in _orig_mod."""
        return getattr(self._network, "_orig_mod", self._network)

    @property
    def _architecture(self) -> Architecture:
        return architectures.of_network(self._plain)

    def _forward(self, windows: Tensor, function: Callable[[Tensor], Any] | None = None) -> Any:
        function = function or self._network
        if self.device.type == "cpu":
            layout = torch.channels_last_3d if windows.ndim == 5 else torch.channels_last
            return function(windows.to(PRECISIONS[self.precision], memory_format=layout))
        with ExitStack() as stack:
            if self.precision != "fp32":
                stack.enter_context(torch.autocast(self.device.type, PRECISIONS[self.precision]))
            if self.device.type == "cuda":  # windows have one shape, so benchmarking algorithms pays off
                stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=True))
            return function(windows.contiguous())


def _add_mirrored(sums: Tensor, logits: Tensor, dims: list[int]) -> None:
    """Add logits mirrored along `dims`, a few planes at a time: a full copy would be as large as the logits."""
    depth = sums.shape[2]
    for start in range(0, depth, PLANES):
        stop = min(start + PLANES, depth)
        same = slice(depth - stop, depth - start) if 2 in dims else slice(start, stop)
        sums[:, :, start:stop] += logits[:, :, same].flip(dims)


def prepare(network: nn.Module, device: torch.device, precision: str) -> nn.Module:
    """Return the network on its device, in evaluation mode, in the form that is fastest there.

    Args:
        network: Modified in place.
        device: Where it will run.
        precision: One of PRECISIONS: on the CPU the dtype of weights and inputs, elsewhere that of autocast.
    """
    network = network.to(device).eval().requires_grad_(False)
    if (architecture := architectures.find_network(network)) is not None:
        network = architecture.prepare(network, device)
    if device.type == "cpu":
        _replace_instance_norms(network)
        _pool_in_float32(network)
        if torch.backends.mkldnn.is_available() and (precision != "bf16" or _one_dnn_has_bf16()):
            _use_one_dnn(network)
        layout = torch.channels_last_3d if _is_3d(network) else torch.channels_last
        return network.to(PRECISIONS[precision]).to(memory_format=layout)  # type: ignore[call-overload]
    if device.type == "cuda" and os.environ.get("nnUNet_compile", "").lower() in ("true", "1", "t"):  # as in nnU-Net
        return torch.compile(network)  # type: ignore[return-value]
    return network


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return the name in PRECISIONS that `precision` means on this device; "auto": the fastest one it supports.

    Raises:
        UsageError: The device does not support it.
    """
    if precision == "auto":
        if device.type == "cpu":
            return "bf16" if has_bf16() else "fp32"
        return "fp16" if device.type == "cuda" else "fp32"  # as nnU-Net's autocast
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}", f"--precision auto, {', '.join(PRECISIONS)}")
    if device.type != "cuda" and precision == "fp16":
        raise UsageError(f"--precision fp16 is for CUDA, not for {device.type}", "--precision auto")
    if device.type == "mps" and precision != "fp32":
        raise UsageError(f"--precision {precision} is not for mps", "--precision fp32")
    return precision


def has_bf16() -> bool:
    """Return whether this processor multiplies in bfloat16 natively; emulated, it is slower than float32."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))


def _one_dnn_has_bf16() -> bool:
    """Return whether oneDNN convolves in bfloat16 here, natively or not; otherwise torch's own kernels do, slowly."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _use_one_dnn(network: nn.Module) -> None:
    """Run all 3D convolutions in oneDNN; for a single small image, torch uses its own kernel, three times slower."""
    for module in network.modules():
        # mkldnn_convolution() pads with zeros only, by numbers and not by names such as "same".
        if isinstance(module, nn.Conv3d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.forward = partial(_convolve, module)  # type: ignore[method-assign]


def _convolve(module: nn.Conv3d, x: Tensor) -> Tensor:
    padding: Any = module.padding
    geometry = (padding, module.stride, module.dilation, module.groups)
    return torch.mkldnn_convolution(x, module.weight, module.bias, *geometry)


def _pool_in_float32(network: nn.Module) -> None:
    """Pool in float32: torch has no 3D average pooling in bfloat16 on the CPU; nnU-Net's residual encoders need it."""
    for module in network.modules():
        if isinstance(module, nn.AvgPool3d):
            module.forward = partial(_pool, module)  # type: ignore[method-assign]


def _pool(module: nn.AvgPool3d, x: Tensor) -> Tensor:
    return nn.AvgPool3d.forward(module, x.float()).to(x.dtype)


def _is_3d(network: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv3d) for module in network.modules())


def _replace_instance_norms(network: nn.Module) -> None:
    """Replace instance norms, which copy to the default layout and back, by group norms with the same weights."""
    for module in list(network.modules()):  # a list, because the loop replaces modules
        for name, norm in module.named_children():
            # With running statistics, it normalises by those in evaluation mode, which no group norm does.
            if isinstance(norm, nn.InstanceNorm2d | nn.InstanceNorm3d) and not norm.track_running_stats:
                group = nn.GroupNorm(norm.num_features, norm.num_features, norm.eps, norm.affine)
                group.load_state_dict(norm.state_dict())
                setattr(module, name, group.eval().requires_grad_(False))
