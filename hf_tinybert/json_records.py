"""Dataclasses as dictionaries that JSON can hold, and back."""

import reprlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
LONGEST_TEXT = 200  # characters of a value that JSON cannot hold


def to_json(value: Any) -> Any:
    """A value as JSON can hold it, so that saving and loading change it no more.

    Args:
        value: A dataclass, mapping, sequence, set, number, text or None, with any values in them. A function or class
            becomes its qualified name, and another object its `repr`, shortened to 200 characters.

    Returns:
        Dictionaries with keys of text, lists, numbers, texts and None.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((to_json(item) for item in value), key=str)
    text = reprlib.Repr()
    text.maxother = LONGEST_TEXT
    return getattr(value, "__qualname__", None) or " ".join(text.repr(value).split())


def from_json(record_class: type[T], values: Any) -> T:
    """The dataclass that `to_json` made plain.

    Args:
        record_class: A dataclass with fields of dataclasses, lists, mappings, numbers and texts, or one of these or
            None.
        values: What `to_json` returned. A key that is not a field is left out, and a field that is not among the keys
            takes its default.

    Raises:
        TypeError: If a field without default is missing, or if a value does not have the type of its field.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"{record_class.__name__} is of type {type(values).__name__}")
    types = get_type_hints(record_class)
    return record_class(**{name: _value(types[name], values[name]) for name in types if name in values})


def _value(expected: Any, value: Any) -> Any:
    if NoneType in get_args(expected):
        if value is None:
            return None
        expected = get_args(expected)[0]
    if is_dataclass(expected):
        return from_json(expected, value)
    plain_type = get_origin(expected) or expected
    if not isinstance(value, int | float if plain_type is float else plain_type):
        raise TypeError(f"{value!r} is not of type {plain_type.__name__}")
    if plain_type is list:
        return [_value(get_args(expected)[0], item) for item in value]
    return value
