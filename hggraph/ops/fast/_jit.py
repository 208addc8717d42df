"""Compilation by Numba, with a cache that always finds a place, and what its wheels lack: bits, powers, roots."""

from __future__ import annotations

import getpass
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

__all__ = ["Array", "as_float", "as_int", "cube_root", "exponential", "jit", "linear_rgb"]

Array = Any  # a numpy array inside compiled code, where types are inferred

# Sums may be reordered and multiply-adds fused, so that loops vectorise; NaN and infinity keep their meaning.
_LOOSE = {"reassoc", "contract", "arcp", "nsz"}


def jit(*, exact: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator: compiled at the first call, without the interpreter's lock, kept in Numba's cache.

    Args:
        exact: Keep IEEE arithmetic as written, for results that another program gives too.

    Note:
        Where neither the source folder nor the home can be written, the cache lies in the temporary folder.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": False if exact else _LOOSE}

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no place for the cache
            with tempfile.TemporaryDirectory() as probe:
                folder = Path(probe).parent / f"hggraph-numba-{_user()}"
            settings: Any = numba.config
            before = settings.CACHE_DIR
            settings.CACHE_DIR = str(folder)  # read while a function is decorated
            try:
                return numba.njit(cache=True, **options)(function)
            finally:
                settings.CACHE_DIR = before

    return decorate


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "user"


def _as_float(typing: Any, value: Any) -> Any:
    """Return the float32 that has the bits of an int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


def _as_int(typing: Any, value: Any) -> Any:
    """Return the int32 that has the bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.int32))

    return types.int32(types.float32), generate


as_float: Any = intrinsic(_as_float)
as_int: Any = intrinsic(_as_int)

f = np.float32


@jit()
def exponential(x: Any) -> Any:
    """Return ``exp(x)`` of a float32 in [-87, 88] to 4e-6 of it; of less, about 1e-38.

    ``2^y`` with the whole part of y as exponent and a polynomial (least largest relative error) for the rest.
    """
    y = max(x, f(-87.0)) * f(12102203.161561485) + f(1065353216.0)  # 2^23 (x / ln 2 + 127)
    bits = np.int32(y)
    m = as_float((bits & np.int32(0x007FFFFF)) | np.int32(0x3F800000))  # in [1, 2)
    p = f(0.1666133552789688) + m * (f(-0.00212520151399076) + m * f(0.013534166850149632))
    p = f(0.5099642276763916) + m * (f(0.3120160698890686) + m * p)
    return as_float(bits & np.int32(0x7F800000)) * p


@jit()
def linear_rgb(x: Any) -> Any:
    """Return linear light of an sRGB value in [0, 1] to 2e-6 of it: ``x^2.4 = x^2 (x^(1/4))^1.6`` above the line."""
    u = max((x + f(0.055)) * f(1 / 1.055), f(0.0904))
    v = np.sqrt(np.sqrt(u))
    p = f(0.9099183082580566) + v * (f(-0.23252569139003754) + v * f(0.04497774317860603))
    p = f(-0.020348327234387398) + v * (f(0.2979796528816223) + v * p)
    return u * u * p if x > f(0.04045) else x * f(1 / 12.92)


@jit()
def cube_root(t: Any) -> Any:
    """Return CIELAB's f: ``t^(1/3) = u u^(1/3)`` with ``u = t^(1/4)`` above 0.008856, a line below."""
    u = np.sqrt(np.sqrt(max(t, f(0.008856))))
    p = f(-3.1426281929016113) + u * f(0.5996642708778381)
    p = f(-9.205202102661133) + u * (f(7.129233360290527) + u * p)
    p = f(-4.187828540802002) + u * (f(7.522965908050537) + u * p)
    p = f(0.31068480014801025) + u * (f(1.9731122255325317) + u * p)
    return u * p if t > f(0.008856) else f(7.787) * t + f(16 / 116)
