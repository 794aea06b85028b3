"""What a caller gives to a public function is of its kind: TypeError or ValueError, with the argument's name, before the library
sees it."""
import math
import numbers
import operator
from typing import Any, Optional

import torch

MAX_INT, MAX_INT64 = 2**31 - 1, 2**63 - 1


def _named(value: Any) -> str:
    """ "None", "3", "'a'"; "a list" where printing it would say too much."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value) if len(repr(value)) <= 60 else f"a long {type(value).__name__}"
    kind = type(value)
    kind = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def tensor(name: str, value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is {_named(value)}, must be a torch.Tensor")


def instance(name: str, value: Any, kind: type, what: str) -> None:
    """what: how the message calls the kind, "an expar.ep.Group"."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {_named(value)}, must be {what}")


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {_named(value)}, must be True or False")
    return value


def whole(name: str, value: Any, least: Optional[int] = None, most: int = MAX_INT) -> int:
    """An int from a Python, NumPy or torch integer. Without `least` only what the C type cannot hold is refused here."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is {_named(value)}, must be a whole number") from None
    low = -most - 1 if least is None else least
    if not low <= number <= most:
        limit = f"at least {low}" if number < low else f"at most {most}"
        raise ValueError(f"{name} is {number}, must be {limit}")
    return number


def real(name: str, value: Any, above: Optional[float] = None, least: Optional[float] = None) -> float:
    """A finite float from a Python, NumPy or torch number."""
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, torch.Tensor)) or \
            (isinstance(value, torch.Tensor) and value.dim() != 0):
        raise TypeError(f"{name} is {_named(value)}, must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or (above is not None and number <= above) or (least is not None and number < least):
        wanted = "finite" if above is None and least is None else f"finite and above {above:g}" if above is not None else \
            f"finite and at least {least:g}"
        raise ValueError(f"{name} is {number:g}, must be {wanted}")
    return number


def word(name: str, value: Any, words: Any) -> str:
    """One of some words."""
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"{name} is {value!r}, must be one of {', '.join(words)}")
    return value
