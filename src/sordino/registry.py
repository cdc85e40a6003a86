"""What has a name and can be asked for by it: Sordino's own things and other packages'."""

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
    """Things of one kind by name, in the order of their names.

    Each thing is registered by the module that has it. Sordino's own modules are those of the home,
    imported at the first question. A package adds one by an entry point of the group
    "sordino.GROUP": the entry point's name is the thing's, and its value names the module, which is
    imported when that thing is asked for and not before.

    Args:
        kind: What one of them is called in a message, such as "measure".
        group: The plural, such as "measures".
        home: The package with the modules of Sordino's own; "" for none.
        also: What else is accepted instead of a name, for the message.

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
        """What other packages bring, by name; nothing is imported for this.

        Raises:
            UserError: Two packages bring things of one name.
        """
        found: dict[str, EntryPoint] = {}
        for entry in entry_points(group=self._group):
            if entry.name in found:
                raise self._collision(entry.name, found[entry.name], entry)
            found[entry.name] = entry
        return dict(sorted(found.items()))

    def __getitem__(self, name: str) -> T:
        """The thing of that name; a KeyError where there is none."""
        with self._lock:
            self._import_home()
            if name in self.others:
                self._import(name, self.others[name])
            return self._things[name]

    def __setitem__(self, name: str, thing: T) -> None:
        """Register a thing; a ValueError where its name is taken."""
        if name in self._things:
            raise ValueError(f"two {self._kind}s are called {name}")
        self._things[name] = thing

    def __delitem__(self, name: str) -> None:
        """Forget a thing."""
        del self._things[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is a thing of that name; nothing of another package is imported."""
        return name in set(self)

    def __iter__(self) -> Iterator[str]:
        """All names, in their order; nothing of another package is imported."""
        with self._lock:
            self._import_home()
            return iter(sorted({*self._things, *self.others}))

    def __len__(self) -> int:
        """How many there are."""
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
                f"The package {_package(entry)} names a {self._kind} '{name}', and its module "
                f"{entry.module} registers none of that name."
            )

    def _collision(self, name: str, first: EntryPoint | None, second: EntryPoint) -> UserError:
        packages = f"{_package(first) if first else 'Sordino'} and {_package(second)}"
        return UserError(
            f"Two {self._kind}s are called '{name}', of {packages}: uninstall one of the packages."
        )


def brought(group: str) -> tuple[str, ...]:
    """The names of what other packages bring, without loading the kind's own registry.

    Args:
        group: The plural, such as "measures".
    """
    return tuple(sorted({entry.name for entry in entry_points(group=f"sordino.{group}")}))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The beginning of a hint, "did you mean apple? ", or "" where no name is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}? " if close else ""


def _package(entry: EntryPoint) -> str:
    return printable(entry.dist.name) if entry.dist else entry.module
