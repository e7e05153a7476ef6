"""Make 3D kernels out of 2D ones, so that a 3D network starts from the weights of a 2D one.

A 2D network segments slices along the first axis of space, so a kernel (C', C, h, w) gets a depth: (C', C, d, h, w)
with the d that the network's kernel has. On a volume that is constant along that axis, every slice of which is the 2D
network's image:

    centre    The kernel stands in the middle slice, with zeros around it. The 3D network computes for every slice what
              the 2D network computes for the image, at the border as well, for any strides along the depth: what is
              padded meets zeros. Neighbouring slices play no part until training has changed that.
    average   Each of the d slices is the kernel divided by d. A convolution's output is that of the 2D one wherever no
              padding is involved: everywhere but in the first and last slice of each level, where one of three parts is
              missing. From there the instance norms, whose mean and deviation are those of all slices, change the other
              slices a little as well. With the border repeated instead of zeros, the function is preserved everywhere.

The rule is that of inflated networks (Carreira and Zisserman 2017, arXiv:1705.07750; `centre` as in TransSeg, Zhang et
al. 2022). kernels.py applies it.
"""

from collections.abc import Sequence

from torch import Tensor

from stunet.plans.plan import CENTRE


def inflate_depth(kernel: Tensor, way: str, depth: int, lifts: bool = False) -> Tensor:
    """Return a kernel (C', C, h, w) of a 2D network as one of the 3D network, (C', C, d, h, w).

    Args:
        kernel: The weight of a convolution.
        way: One of INFLATIONS.
        depth: d; 1 leaves the function alone, whatever the way.
        lifts: It is a transposed convolution, each of whose d slices is what the 2D one gives.
    """
    if lifts:
        return kernel.unsqueeze(2).repeat(1, 1, depth, 1, 1)
    if way == CENTRE:
        result = kernel.new_zeros((*kernel.shape[:2], depth, *kernel.shape[2:]))
        result[:, :, depth // 2] = kernel
        return result
    return (kernel / depth).unsqueeze(2).repeat(1, 1, depth, 1, 1)


def of_slice(strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the strides of a 3D network within a slice, which are all that 2D weights have learned."""
    return [list(stride[1:]) for stride in strides]
