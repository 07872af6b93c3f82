"""How the outputs of a slim model differ from those of the dense one, in words."""

import torch
from torch import Size, Tensor

__all__ = ["NOTHING", "OTHER_SHAPES", "difference_of", "shapes_of", "wide"]

NOTHING = "gives no finite number, so that nothing can be compared"
OTHER_SHAPES = "gives outputs of other shapes"


def shapes_of(tensors: list[Tensor]) -> list[Size]:
    """Return the shape of each."""
    return [tensor.shape for tensor in tensors]


def difference_of(expected: list[Tensor], actual: list[Tensor], is_exact: bool = False) -> str | None:
    """Return how outputs differ in their finite numbers, or None if they do not; `NOTHING` where that shows nothing.

    What is no floating number, or the same everywhere, must be equal, but shows nothing by that.

    Args:
        expected: Of the dense model.
        actual: Of the slim one.
        is_exact: Accept only what float64 need not decide.
    """
    if shapes_of(expected) != shapes_of(actual):
        return OTHER_SHAPES
    is_compared = False
    for one, other in zip(expected, actual, strict=True):
        tolerance = _tolerance(one.dtype, is_exact)
        dense, slim = wide(one), wide(other)
        if not (finite := dense.isfinite()).any():
            continue
        dense, slim = dense[finite], slim[finite]
        is_compared |= (one.is_floating_point() or one.is_complex()) and bool((dense != dense[0]).any())
        differences, scales = (dense - slim).abs(), _scales(dense.abs())
        worst = (differences - tolerance * scales).argmax()
        if not differences[worst] <= tolerance * scales[worst]:
            difference, scale = differences[worst].item(), scales[worst].item()
            return f"computes something else, its outputs differ by {difference:.2g} where the largest is {scale:.2g}"
    return None if is_compared else NOTHING


def _scales(sizes: Tensor) -> Tensor:
    """Return what each difference is relative to: the largest number, or the number itself where it is far larger.

    A mask's -1e9 hides nothing among the others then.
    """
    if not (sizes > 0).any():
        return torch.full_like(sizes, 1e-30)
    above = sizes[sizes > 0]
    most = _FAR * above.kthvalue(1 + len(above) // 10).values
    return torch.where(sizes > most, sizes, sizes[sizes <= most].max())


_FAR = 1e4
"""Numbers that are so many times larger than the small ones of a tensor (larger than a tenth of all) are far."""


def wide(tensor: Tensor) -> Tensor:
    """Return the numbers in double precision, whatever holds them."""
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return dense.to(torch.complex128 if dense.is_complex() else torch.float64)


def _tolerance(dtype: torch.dtype, is_exact: bool) -> float:
    """Return the largest difference of equal outputs, relative to the largest number.

    Args:
        dtype: Of the outputs.
        is_exact: What float64 need not decide.
    """
    if dtype == torch.float64:
        return 1e-6  # some numbers may have been rounded to float32 on the way
    if dtype == torch.float32 and is_exact:
        return 1e-5
    is_rounded = (dtype.is_floating_point or dtype.is_complex) and not is_exact
    return torch.finfo(dtype).eps ** 0.5 if is_rounded else 0.0
