"""A registry of things by name, from Sordino itself and from other packages."""

import difflib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from threading import RLock
from typing import TypeVar

from sordino.errors import UserError
from sordino.files import printable

T = TypeVar("T")


class Registry(MutableMapping[str, T]):
    """Things of one kind by name, sorted by name.

    Each thing is registered by the module that defines it. Sordino's own modules are those of the
    home, imported at the first use. Another package adds a thing by an entry point of the group
    "sordino.GROUP": the entry point's name is the thing's, and its value names the module, which is
    imported when that thing is first used.

    Args:
        kind: The word for one of them in a message, such as "measure".
        group: The plural, such as "measures".
        home: The package with Sordino's own modules; "" for none.
        also: What is accepted instead of a name, for the message.

    Example:
        >>> fruits: Registry[int] = Registry("fruit", "fruits")
        >>> fruits["apple"] = 1
        >>> fruits.named("aple")
        Traceback (most recent call last):
        ...
        sordino.errors.UserError: There is no fruit 'aple': did you mean apple? There are apple.
    """

    def __init__(self, kind: str, group: str, home: str = "", also: str = "") -> None:
        self._kind, self._group, self._home, self._also = kind, f"sordino.{group}", home, also
        self._things: dict[str, T] = {}
        self._lock = RLock()

    def named(self, name: str) -> T:
        """The thing of that name.

        Raises:
            UserError: There is none, or the package that provides it cannot be used.
        """
        if name in self:
            return self[name]
        known = ", ".join([*self, *filter(None, [self._also])])
        hint = did_you_mean(name, self)
        raise UserError(f"There is no {self._kind} '{printable(name)}': {hint}There are {known}.")

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers a thing under this name."""

        def put(thing: T) -> T:
            self[name] = thing
            return thing

        return put

    @cached_property
    def others(self) -> dict[str, EntryPoint]:
        """The entry points of other packages by name; their modules are not imported.

        Raises:
            UserError: Two packages use the same name.
        """
        found: dict[str, EntryPoint] = {}
        for entry in entry_points(group=self._group):
            if entry.name in found:
                raise self._collision(entry.name, found[entry.name], entry)
            found[entry.name] = entry
        return dict(sorted(found.items()))

    def __getitem__(self, name: str) -> T:
        """The thing of that name; a KeyError if there is none."""
        with self._lock:
            self._import_home()
            if name in self.others:
                self._import(name, self.others[name])
            return self._things[name]

    def __setitem__(self, name: str, thing: T) -> None:
        """Register a thing; a ValueError if its name is taken."""
        if name in self._things:
            raise ValueError(f"two {self._kind}s are called {name}")
        self._things[name] = thing

    def __delitem__(self, name: str) -> None:
        """Forget a thing."""
        del self._things[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is a thing of that name; no other package's module is imported."""
        return name in set(self)

    def __iter__(self) -> Iterator[str]:
        """All names, sorted; no other package's module is imported."""
        with self._lock:
            self._import_home()
            return iter(sorted({*self._things, *self.others}))

    def __len__(self) -> int:
        """The number of entries."""
        return len(set(self))

    def _import_home(self) -> None:
        home, self._home = self._home, ""
        if home:
            for module in pkgutil.iter_modules(import_module(home).__path__):
                import_module(f"{home}.{module.name}")

    def _import(self, name: str, entry: EntryPoint) -> None:
        if name in self._things and entry.module not in sys.modules:
            raise self._collision(name, None, entry)
        try:
            import_module(entry.module)
        except ImportError as error:
            raise UserError(
                f"The {self._kind} '{name}' of the package {_package(entry)} cannot be imported: "
                f"{printable(str(error))}."
            ) from error
        if name not in self._things:
            raise UserError(
                f"The package {_package(entry)} announces a {self._kind} '{name}', but its module "
                f"{entry.module} does not register it."
            )

    def _collision(self, name: str, first: EntryPoint | None, second: EntryPoint) -> UserError:
        packages = f"{_package(first) if first else 'Sordino'} and {_package(second)}"
        return UserError(
            f"Two {self._kind}s are called '{name}', of {packages}: uninstall one of the packages."
        )


def brought(group: str) -> tuple[str, ...]:
    """The names of other packages' things, without loading the registry of their kind.

    Args:
        group: The plural, such as "measures".
    """
    return tuple(sorted({entry.name for entry in entry_points(group=f"sordino.{group}")}))


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """The beginning of a hint, such as "did you mean apple? ", or "" if no name is close.

    Args:
        name: What was asked for.
        known: The names that there are.
        most: How many of them are named.
    """
    close = difflib.get_close_matches(name, list(known), n=most)
    return f"did you mean {' or '.join(close)}? " if close else ""


def _package(entry: EntryPoint) -> str:
    return printable(entry.dist.name) if entry.dist else entry.module
