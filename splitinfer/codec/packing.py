"""Codes of 4, 5, 6 or 8 bits, one a byte <-> packed bytes; pure functions on flat uint8 tensors; both sides.

The parts of a byte come from far apart (halves, quarters, eighths of the codes), so that whole vectors are shifted:

    4 bits: halves a, b            byte i = a[i] | b[i] << 4
    5 bits: the lower four as above, then the upper one of eighths a, ..., h
            a >> 4 | b >> 4 << 1 | ... | h >> 4 << 7
    6 bits: quarters a, b, c, d    first, second and third third of the bytes:
            a | (d & 3) << 6,  b | (d >> 2 & 3) << 6,  c | (d >> 4) << 6
"""

from __future__ import annotations

import torch

__all__ = ["BITS", "code_count", "pack", "packed_bytes", "unpack"]

BITS = (4, 5, 6, 8)
_CODES_IN_A_UNIT = {4: 2, 5: 8, 6: 4, 8: 1}


def code_count(elements: int, bits: int) -> int:
    """Return how many codes are packed for so many elements: the last unit is filled with zero codes."""
    unit = _CODES_IN_A_UNIT[bits]
    return -(-elements // unit) * unit


def packed_bytes(elements: int, bits: int) -> int:
    """Return the bytes of so many packed elements."""
    return code_count(elements, bits) * bits // 8


def pack(codes: torch.Tensor, packed: torch.Tensor, *, bits: int) -> None:
    """Pack codes [code_count] below 2^bits into `packed` [packed_bytes]."""
    if bits == 8:
        packed.copy_(codes)
    elif bits == 4:
        low, high = codes.chunk(2)
        torch.mul(high, 16, out=packed)
        packed.bitwise_or_(low)
    elif bits == 5 and codes.numel():
        lower, upper = packed.tensor_split([codes.numel() // 2])
        pack(codes.bitwise_and(15), lower, bits=4)
        upper.zero_()
        for shift, eighth in enumerate(codes.chunk(8)):
            upper.bitwise_or_(eighth.bitwise_right_shift(4).mul_(1 << shift))
    elif codes.numel():
        *quarters, last = codes.chunk(4)
        for shift, (third, quarter) in enumerate(zip(packed.chunk(3), quarters, strict=True)):
            # A product of bytes keeps its low 8 bits, here the two bits that are meant.
            torch.bitwise_right_shift(last, 2 * shift, out=third)
            third.mul_(64).bitwise_or_(quarter)


def unpack(packed: torch.Tensor, codes: torch.Tensor, *, bits: int) -> None:
    """Undo `pack`; any bytes are valid."""
    if bits == 8:
        codes.copy_(packed)
    elif bits == 4:
        low, high = codes.chunk(2)
        torch.bitwise_and(packed, 15, out=low)
        torch.bitwise_right_shift(packed, 4, out=high)
    elif bits == 5 and codes.numel():
        lower, upper = packed.tensor_split([codes.numel() // 2])
        unpack(lower, codes, bits=4)
        for shift, eighth in enumerate(codes.chunk(8)):
            eighth.bitwise_or_(upper.bitwise_right_shift(shift).bitwise_and_(1).mul_(16))
    elif codes.numel():
        *quarters, last = codes.chunk(4)
        last.zero_()
        for shift, (third, quarter) in enumerate(zip(packed.chunk(3), quarters, strict=True)):
            torch.bitwise_right_shift(third, 6, out=quarter)
            last.bitwise_or_(quarter.mul_(1 << (2 * shift)))
            torch.bitwise_and(third, 63, out=quarter)
