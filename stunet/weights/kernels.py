"""Bring kernels to the lengths that they have in another network: along thin axes, for other strides, from 2D to 3D.

nnU-Net plans kernels of 1 along axes where voxels are much longer than along the others, and of 3 everywhere else.

    3 to 1   The sum along the axis: the same response to what is constant along it, whatever follows. nnU-Net's reader
             takes the mean, a third of that, which only an instance norm behind it makes the same.
    1 to 3   In the middle, with zeros around it: the same function.

The kernel of a transposed convolution is its stride, a weight for each of the voxels that one becomes: longer ones
repeat it, shorter ones take means. inflation.py adds the depth that kernels in 2D lack.
"""

from collections.abc import Sequence

from torch import Tensor

from stunet.weights.inflation import inflate_depth


def can_fit(given: Sequence[int], wanted: Sequence[int], lifts: bool, inflate: str | None = None) -> bool:
    """Return whether fit() can make a kernel of these lengths per axis one of those.

    Args:
        given: Without its first two axes, of channels; empty for biases and norms.
        wanted: The same in the network.
        lifts: It is that of a transposed convolution.
        inflate: How 2D kernels become 3D ones, one of INFLATIONS; None: they do not.
    """
    if inflate and len(given) == len(wanted) - 1:
        wanted = wanted[1:]
    return len(given) == len(wanted) and all(
        _fits(here, there, lifts) for here, there in zip(given, wanted, strict=True)
    )


def fit(kernel: Tensor, wanted: Sequence[int], lifts: bool, inflate: str | None = None) -> Tensor:
    """Return a kernel (C', C, k...) with these lengths per axis; arguments as for can_fit()."""
    if inflate and kernel.ndim == len(wanted) + 1:
        kernel = inflate_depth(kernel, inflate, wanted[0], lifts)
    for axis, length in enumerate(wanted, 2):
        if kernel.shape[axis] != length:
            kernel = _lift(kernel, axis, length) if lifts else _convolve(kernel, axis, length)
    return kernel


def change(given: Sequence[int], wanted: Sequence[int]) -> str:
    """Return in words how kernels change, such as "3x3x3 -> 1x3x3"."""
    return " -> ".join("x".join(map(str, lengths)) for lengths in (given, wanted))


def _fits(given: int, wanted: int, lifts: bool) -> bool:
    if lifts:
        return given % wanted == 0 or wanted % given == 0
    return given == wanted or wanted == 1 or (wanted > given and (wanted - given) % 2 == 0)


def _lift(kernel: Tensor, axis: int, length: int) -> Tensor:
    given = kernel.shape[axis]
    if length > given:
        return kernel.repeat_interleave(length // given, axis)
    return kernel.unflatten(axis, (length, given // length)).mean(axis + 1)


def _convolve(kernel: Tensor, axis: int, length: int) -> Tensor:
    if length == 1:
        return kernel.sum(axis, keepdim=True)
    given = kernel.shape[axis]
    result = kernel.new_zeros([length if n == axis else size for n, size in enumerate(kernel.shape)])
    result.narrow(axis, (length - given) // 2, given).copy_(kernel)
    return result
