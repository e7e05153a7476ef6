"""Make 3D kernels out of 2D ones, so that a 3D network starts from the weights of a 2D one.

A 2D network segments slices along the first axis of space, so a kernel (C', C, h, w) gets a depth: (C', C, d, h, w)
with d = w. On a volume that is constant along that axis, every slice of which is the 2D network's image:

    centre    The kernel stands in the middle slice, with zeros around it. The 3D network computes for every slice what
              the 2D network computes for the image, at the border as well, for any strides along the depth: what is
              padded meets zeros. Neighbouring slices play no part until training has changed that.
    average   Each of the d slices is the kernel divided by d. A convolution's output is that of the 2D one wherever no
              padding is involved: everywhere but in the first and last slice of each level, where one of three parts is
              missing. From there the instance norms, whose mean and deviation are those of all slices, change the other
              slices a little as well. With the border repeated instead of zeros, the function is preserved everywhere.

The rule is that of inflated networks (Carreira and Zisserman 2017, arXiv:1705.07750; `centre` as in TransSeg, Zhang et
al. 2022). transfer.py applies it tensor by tensor.
"""

from collections.abc import Sequence

from torch import Tensor

from stunet.plans.plan import CENTRE

KERNEL = 4  # axes of a 2D convolution's weight; biases and norms have one, and stay as they are


def inflated_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a tensor of a 2D network after inflation."""
    return (*shape[:2], shape[-1], *shape[2:]) if len(shape) == KERNEL else tuple(shape)


def inflate_depth(value: Tensor, way: str) -> Tensor:
    """Return a tensor of a 2D network as one of the 3D network.

    Args:
        value: A kernel (C', C, h, w), which becomes (C', C, w, h, w); others are returned unchanged.
        way: One of INFLATIONS.
    """
    if value.ndim != KERNEL:
        return value
    depth = value.shape[-1]
    if way == CENTRE:
        result = value.new_zeros(inflated_shape(value.shape))
        result[:, :, depth // 2] = value
        return result
    return (value / depth).unsqueeze(2).repeat(1, 1, depth, 1, 1)


def of_slice(strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the strides of a 3D network within a slice, which are all that 2D weights have learned."""
    return [list(stride[1:]) for stride in strides]
