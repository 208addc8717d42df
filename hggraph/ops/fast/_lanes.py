"""Eight float32 as one number of compiled code: what the vectoriser leaves undone where many buffers may overlap.

LLVM splits the eight lanes on machines with narrower vectors. All functions are for compiled code.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

__all__ = [
    "LANES",
    "all_equal",
    "exp_lanes",
    "least_of",
    "load",
    "lower",
    "some",
    "splat",
    "store",
    "sum_of",
    "up_to",
    "upper",
]

LANES = 8
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_WHOLE = ir.VectorType(ir.IntType(32), LANES)
_FUSE = ("contract", "nsz")  # a product and a sum may become one instruction


class Lanes(types.Type):
    """The type of eight float32."""

    def __init__(self) -> None:
        super().__init__(name="float32x8")


lanes = Lanes()


@register_model(Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


def _place(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _FLOATS.as_pointer())


def _load(typing: Any, array: Any, index: Any) -> Any:
    """Return eight numbers of a contiguous array from a place on; nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out = builder.load(_place(context, builder, signature.args[0], *arguments))
        out.align = 4
        return out

    return lanes(array, types.intp), generate


def _store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write eight numbers to a contiguous array from a place on; nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out = builder.store(arguments[2], _place(context, builder, signature.args[0], *arguments[:2]))
        out.align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), generate


def _splatted(builder: Any, value: Any, kind: Any = _FLOATS) -> Any:
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, ir.Constant(_WHOLE, [0] * LANES))


def _splat(typing: Any, value: Any) -> Any:
    """Return eight times one float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splatted(builder, arguments[0])

    return lanes(types.float32), generate


def _lower(typing: Any, a: Any, b: Any) -> Any:
    """Return the smaller of each two numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *arguments), *arguments)

    return lanes(lanes, lanes), generate


def _upper(typing: Any, a: Any, b: Any) -> Any:
    """Return the larger of each two numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return lanes(lanes, lanes), generate


def _up_to(typing: Any, a: Any, b: Any, value: Any) -> Any:
    """Return `value` where a is at most b, 0 elsewhere."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(_FLOATS, [0.0] * LANES)
        return builder.select(builder.fcmp_ordered("<=", *arguments[:2]), arguments[2], zero)

    return lanes(lanes, lanes, lanes), generate


def _fold(combine: Any) -> Any:
    """Return a function that combines halves, quarters and eighths of the lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = arguments[0]
        for half in (4, 2, 1):
            order = [(i + half) % LANES for i in range(LANES)]
            value = combine(builder, value, builder.shuffle_vector(value, value, ir.Constant(_WHOLE, order)))
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return generate


def _sum_of(typing: Any, value: Any) -> Any:
    """Return the sum of the eight."""
    return types.float32(lanes), _fold(lambda builder, a, b: builder.fadd(a, b))


def _least_of(typing: Any, value: Any) -> Any:
    """Return the least of the eight."""
    return types.float32(lanes), _fold(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b))


def _any_of(builder: Any, condition: Any) -> Any:
    bits = builder.bitcast(condition, ir.IntType(LANES))
    return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(LANES), 0))


def _some(typing: Any, value: Any) -> Any:
    """Say whether one of the eight is above 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _any_of(builder, builder.fcmp_ordered(">", arguments[0], ir.Constant(_FLOATS, [0.0] * LANES)))

    return types.boolean(lanes), generate


def _all_equal(typing: Any, array: Any, index: Any) -> Any:
    """Say whether eight int32 of a contiguous array from a place on are all equal to its first; nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.bitcast(_place(context, builder, signature.args[0], *arguments), _WHOLE.as_pointer())
        values = builder.load(place)
        values.align = 4
        first = builder.shuffle_vector(values, values, ir.Constant(_WHOLE, [0] * LANES))
        return builder.not_(_any_of(builder, builder.icmp_signed("!=", values, first)))

    return types.boolean(array, types.intp), generate


# as in `hggraph.ops.fast._jit.exponential`
_POWER = (0.5099642276763916, 0.3120160698890686, 0.1666133552789688, -0.00212520151399076, 0.013534166850149632)


def _exp_lanes(typing: Any, value: Any) -> Any:
    """Return ``exp`` of eight numbers up to 0, to 4e-6 of it; under -87 about 1e-38."""

    def constant(number: float) -> Any:
        return ir.Constant(_FLOATS, [number] * LANES)

    def whole(number: int) -> Any:
        return ir.Constant(_WHOLE, [number] * LANES)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, least = arguments[0], constant(-87.0)
        x = builder.select(builder.fcmp_ordered(">", x, least), x, least)  # also for NaN
        y = builder.fadd(builder.fmul(x, constant(12102203.0), flags=_FUSE), constant(1065353216.0), flags=_FUSE)
        bits = builder.fptosi(y, _WHOLE)
        m = builder.or_(builder.and_(bits, whole(0x007FFFFF)), whole(0x3F800000))
        m = builder.bitcast(m, _FLOATS)
        p = constant(_POWER[4])
        for factor in _POWER[3::-1]:
            p = builder.fadd(builder.fmul(p, m, flags=_FUSE), constant(factor), flags=_FUSE)
        return builder.fmul(builder.bitcast(builder.and_(bits, whole(0x7F800000)), _FLOATS), p)

    return lanes(lanes), generate


load: Any = intrinsic(_load)
store: Any = intrinsic(_store)
splat: Any = intrinsic(_splat)
lower: Any = intrinsic(_lower)
upper: Any = intrinsic(_upper)
up_to: Any = intrinsic(_up_to)
some: Any = intrinsic(_some)
all_equal: Any = intrinsic(_all_equal)
sum_of: Any = intrinsic(_sum_of)
least_of: Any = intrinsic(_least_of)
exp_lanes: Any = intrinsic(_exp_lanes)


def _arithmetic(name: str, function: Any) -> None:
    """Let an operator work on lanes, and on lanes and a float32."""

    def both(typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            values = [
                value if kind == lanes else _splatted(builder, value)
                for kind, value in zip(signature.args, arguments, strict=True)
            ]
            return getattr(builder, name)(*values, flags=_FUSE)

        return lanes(a, b), generate

    compiled: Any = intrinsic(both)

    def typed(a: Any, b: Any) -> Any:
        if lanes in (a, b) and {a, b} <= {lanes, types.float32}:
            return lambda a, b: compiled(a, b)
        return None

    overload(function, strict=False)(typed)


for _name, _function in (
    ("fadd", operator.add),
    ("fsub", operator.sub),
    ("fmul", operator.mul),
    ("fdiv", operator.truediv),
):
    _arithmetic(_name, _function)
