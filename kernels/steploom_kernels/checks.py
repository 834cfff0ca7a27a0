"""What a launcher asks of its tensors before a kernel reads them: each refusal names the argument."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

INDICES = (torch.int32, torch.int64)
NETWORK_TYPES = (torch.float16, torch.bfloat16, torch.float32)


def require_shape(name: str, tensor: Tensor, *shape: int | None) -> None:
    """Holds the shape against the wanted one; None stands for any size.

    Raises:
        ValueError: it is another.
    """
    fits = tensor.dim() == len(shape) and all(b is None or a == b for a, b in zip(tensor.shape, shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} is {list(tensor.shape)}, must be [{wanted}]")


def require_dtype(name: str, tensor: Tensor, *dtypes: torch.dtype) -> None:
    """Raises ValueError unless the tensor is of one of the types."""
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} is {tensor.dtype}, must be {' or '.join(map(str, dtypes))}")


def require_contiguous(name: str, tensor: Tensor) -> None:
    """Raises ValueError unless the memory is in the order of the axes."""
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, its strides are {tensor.stride()}")


def require_channels_last(name: str, tensor: Tensor) -> None:
    """Raises ValueError unless the memory of [n, c, h, w] is [n, h, w, c]."""
    if tensor.dim() != 4 or not tensor.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"{name} must be channels last, it is {list(tensor.shape)} with strides {tensor.stride()}")


def require_indices(name: str, tensor: Tensor, *shape: int | None) -> None:
    """Raises ValueError unless the tensor is contiguous int32 or int64 of this shape."""
    require_shape(name, tensor, *shape)
    require_dtype(name, tensor, *INDICES)
    require_contiguous(name, tensor)


def require_array(name: str, tensor: Tensor, dtypes: Sequence[torch.dtype], *shape: int | None) -> None:
    """Raises ValueError unless the tensor is contiguous, of one of the types and of this shape."""
    require_shape(name, tensor, *shape)
    require_dtype(name, tensor, *dtypes)
    require_contiguous(name, tensor)
