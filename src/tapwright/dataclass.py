"""Dataclasses that start faster, for those that each start of a sandbox defines: the original
imports `inspect`, and compiles up to six functions for each class.

To a type checker this is `dataclasses`. Its functions (`replace`, `fields`, `asdict`) take these
classes, too; only then is it loaded.
"""

__all__ = ["asdict", "dataclass", "field", "replace"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import asdict, dataclass, field, replace
else:

    class _Made:
        """A default that is made for each instance."""

        def __init__(self, default_factory):
            self.default_factory = default_factory

    def field(*, default_factory):
        return _Made(default_factory)

    def dataclass(cls=None, /, *, frozen=False):
        if cls is None:
            return lambda cls: dataclass(cls, frozen=frozen)
        cls.__match_args__ = tuple(cls.__annotations__)
        cls._defaults = {name: vars(cls)[name] for name in cls.__match_args__ if name in vars(cls)}
        for name, default in cls._defaults.items():
            if isinstance(default, _Made):
                delattr(cls, name)
        cls.__dataclass_fields__ = _Original("__dataclass_fields__")
        cls.__dataclass_params__ = _Original("__dataclass_params__")
        cls.__init__, cls.__repr__, cls.__eq__ = _init, _repr, _eq
        cls.__hash__ = _hash if frozen else None
        if frozen:
            cls.__setattr__ = cls.__delattr__ = _refuse
        return cls

    def asdict(instance, /):
        return {name: _plain(getattr(instance, name)) for name in instance.__match_args__}

    def _plain(value):
        if isinstance(value, list):
            return [_plain(one) for one in value]
        return asdict(value) if type(value).__init__ is _init else value

    def replace(instance, /, **changes):
        names = instance.__match_args__
        return type(instance)(**({name: getattr(instance, name) for name in names} | changes))

    class _Original:
        """An attribute that the original sets, made when its functions, or those that show values,
        ask for it."""

        def __init__(self, name):
            self._name = name

        def __get__(self, instance, owner):
            import dataclasses

            body = {"__annotations__": owner.__annotations__}
            for name, default in owner._defaults.items():
                is_made = isinstance(default, _Made)
                body[name] = dataclasses.field(**vars(default)) if is_made else default
            is_frozen = owner.__setattr__ is _refuse
            twin = dataclasses.dataclass(frozen=is_frozen)(type(owner.__name__, (), body))
            made = getattr(twin, self._name)
            setattr(owner, self._name, made)
            return made

    def _init(self, /, *given, **named):
        names = self.__match_args__
        values = dict(zip(names, given, strict=False))
        if len(given) > len(names) or values.keys() & named.keys() or named.keys() - set(names):
            raise TypeError(f"{type(self).__name__} has the fields {', '.join(names)}")
        values |= named
        for name in names:
            if name not in values:
                if name not in self._defaults:
                    raise TypeError(f"{type(self).__name__} lacks the field {name!r}")
                default = self._defaults[name]
                values[name] = default.default_factory() if isinstance(default, _Made) else default
        # In the order of the fields, whatever the order of the arguments.
        vars(self).update((name, values[name]) for name in names)
        if hasattr(self, "__post_init__"):
            self.__post_init__()

    def _repr(self):
        shown = (f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def _values(instance):
        return tuple(getattr(instance, name) for name in instance.__match_args__)

    def _eq(self, other):
        return _values(self) == _values(other) if type(self) is type(other) else NotImplemented

    def _hash(self):
        return hash(_values(self))

    def _refuse(self, name, value=None):
        import dataclasses

        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
