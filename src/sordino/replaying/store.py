"""Prompts and answers, in a DuckDB file that can be queried."""

import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sordino.errors import UserError
from sordino.evaluation.scorer import TOXIC_SCORE
from sordino.evaluation.statistics import Floats
from sordino.extras import require
from sordino.files import private_files, publish, staging_path
from sordino.progress import note
from sordino.replaying.log import Prompt

if TYPE_CHECKING:
    import duckdb

ARMS = ("A", "B")
"""The original server and the dampened one."""

_FORMAT = "sordino-replay-1"
_TABLES = """
CREATE TABLE about (key VARCHAR PRIMARY KEY, value VARCHAR NOT NULL);
CREATE TABLE prompt (
    number BIGINT PRIMARY KEY, log VARCHAR NOT NULL, line BIGINT NOT NULL, moment TIMESTAMP,
    asked VARCHAR
);
CREATE TABLE answer (
    number BIGINT, arm VARCHAR, text VARCHAR, score DOUBLE, missing VARCHAR,
    PRIMARY KEY (number, arm)
);
CREATE VIEW pair AS
SELECT number, log, line, moment, asked, a.text AS text_a, b.text AS text_b,
    a.score AS score_a, b.score AS score_b, a.score > 0.5 AS toxic_a, b.score > 0.5 AS toxic_b
FROM prompt
JOIN answer a USING (number) JOIN answer b USING (number)
WHERE a.arm = 'A' AND b.arm = 'B' AND a.missing IS NULL AND b.missing IS NULL;
"""


@dataclass(frozen=True)
class Answer:
    """A server's answer.

    Args:
        text: The answer; None if there is none.
        score: Its score, from 0 to 1; None if there is none.
        missing: Why there is no answer or no score, in a word or two, then in the server's own
            words; None if there are both.
    """

    text: str | None
    score: float | None = None
    missing: str | None = None


@dataclass(frozen=True)
class Pairs:
    """All prompts that both servers answered, in the order of the log.

    Args:
        at: The time of each request, datetime64[us] [pairs], NaT if the log has none.
        scores: float64 [pairs, 2], the original's first.
    """

    at: NDArray[np.datetime64]
    scores: Floats

    @property
    def toxic(self) -> NDArray[np.bool_]:
        """Whether each answer is toxic, bool [pairs, 2]."""
        return np.asarray(self.scores > TOXIC_SCORE)


class Store:
    """The file of a replay, created if it does not exist.

    A batch is stored as a whole or not at all, even if the process is killed. Only the owner can
    read the file, since it holds people's prompts; an existing file is made private as well.

    Args:
        path: The file.
        about: The identity of this replay, as text by name. A file of another one is refused.
        redact: Keep no text, and remove for good any that an earlier replay kept.

    Raises:
        UserError: DuckDB is not installed, or the file is not a replay's, is damaged or in use.
    """

    @private_files()
    def __init__(self, path: Path, about: Mapping[str, str], *, redact: bool) -> None:
        self._path = path
        self._connection = _enter(path, about, redact=redact)
        found = _about(self._connection)
        self.redacted = bool(found["redacted"])
        self.passed = int(found.get("passed", 0))
        self.digest = found.get("digest", "")

    @private_files()
    def add(
        self,
        asked: Mapping[int, Prompt],
        answers: Sequence[Sequence[Answer]],
        passed: int,
        digest: str,
    ) -> None:
        """Store a batch.

        Args:
            asked: The prompts by their number in the log.
            answers: For each prompt, one of each arm.
            passed: How many prompts of the log are done.
            digest: Of all of those.

        Raises:
            UserError: They cannot be written; nothing has changed.
        """
        kept = not self.redacted
        prompts = [
            (number, one.log, one.line, one.at, one.text if kept else None)
            for number, one in asked.items()
        ]
        rows = [
            (
                number,
                arm,
                answer.text if kept else None,
                answer.score,
                # A server's words for a refusal can quote the prompt.
                answer.missing if kept else (answer.missing or "").split(":")[0] or None,
            )
            for number, pair in zip(asked, answers, strict=True)
            for arm, answer in zip(ARMS, pair, strict=True)
        ]
        with _writing(self._path):
            self._connection.begin()
            if prompts:
                self._connection.executemany("INSERT INTO prompt VALUES (?, ?, ?, ?, ?)", prompts)
                self._connection.executemany("INSERT INTO answer VALUES (?, ?, ?, ?, ?)", rows)
            for key, value in {"passed": str(passed), "digest": digest}.items():
                self._connection.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", [key, value])
            self._connection.commit()
        self.passed, self.digest = passed, digest

    def pairs(self) -> Pairs:
        """Everything that both servers answered."""
        rows = self._connection.execute(
            "SELECT moment, score_a, score_b FROM pair ORDER BY number"
        ).fetchall()
        scores = np.array([row[1:] for row in rows], dtype=np.float64).reshape(-1, 2)
        return Pairs(np.array([row[0] for row in rows], dtype="datetime64[us]"), scores)

    def prompts(self) -> int:
        """The number of prompts that were sent."""
        row = self._connection.execute("SELECT count(*) FROM prompt").fetchone()
        return int(row[0]) if row else 0

    def missing(self) -> dict[str, dict[str, int]]:
        """The number of missing answers, by arm and reason."""
        rows = self._connection.execute(
            "SELECT arm, split_part(missing, ':', 1) AS reason, count(*) FROM answer "
            "WHERE missing IS NOT NULL GROUP BY arm, reason ORDER BY arm, reason"
        ).fetchall()
        counts: dict[str, dict[str, int]] = {arm: {} for arm in ARMS}
        for arm, reason, count in rows:
            counts[arm][reason] = count
        return counts

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def was_redacted(path: Path) -> bool:
    """Whether the file exists and was made to keep no text."""
    if not path.exists():
        return False
    connection = _connect(path)
    found = _about(connection)
    connection.close()
    return bool(found.get("redacted"))


def _enter(path: Path, about: Mapping[str, str], *, redact: bool) -> "duckdb.DuckDBPyConnection":
    known = {**about, "redacted": "yes" if redact else ""}
    if not path.exists():
        return _make(path, known)
    connection = _connect(path)
    found = _about(connection)
    begun = "passed" in found  # otherwise the file is empty and is made anew
    try:
        _refuse_other(path, found, about if begun else {})
    except UserError:
        connection.close()
        raise
    if begun and (found["redacted"] or not redact):
        return connection
    connection.close()
    if not begun:
        return _make(path, known)
    _without_texts(path)
    return _connect(path)


def _about(connection: "duckdb.DuckDBPyConnection") -> dict[str, str]:
    return dict(connection.execute("SELECT key, value FROM about").fetchall())


def _connect(path: Path) -> "duckdb.DuckDBPyConnection":
    """Open an existing file, and check that it is a replay's."""
    connection = _open(path)
    import duckdb

    try:
        known = connection.execute(
            "SELECT count(*) FROM information_schema.tables WHERE table_name = 'about'"
        ).fetchone() == (1,)
    except duckdb.Error as error:
        connection.close()
        raise _unreadable(path, error) from None
    if not known:
        connection.close()
        raise UserError(f"{path} is not a replay's database: choose another `output`.")
    _tighten(path)
    return connection


def _tighten(path: Path) -> None:
    """Make a file, and DuckDB's log beside it, private to its owner."""
    for file in filter(Path.exists, (path, _log_of(path))):
        mode = stat.S_IMODE(file.stat().st_mode)
        if not mode & (stat.S_IRWXG | stat.S_IRWXO):
            continue
        try:
            file.chmod(mode & stat.S_IRWXU)
        except PermissionError:
            note(f"{file} belongs to another user, and others can read people's prompts in it.")
        else:
            note(f"{file} could be read by others; it holds people's prompts and is private now.")


def _open(path: Path) -> "duckdb.DuckDBPyConnection":
    require("replay", "A replay")
    import duckdb

    try:
        return duckdb.connect(str(path), config={"autoinstall_known_extensions": "false"})
    except duckdb.Error as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be opened ({_reason(error)}): close the program that has "
        "it open, or choose another `output`."
    )


def _reason(error: Exception) -> str:
    said = " ".join(str(error).split())[:200].rstrip(".")
    return f"{type(error).__name__}: {said}"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise `UserError` where DuckDB cannot write what the block writes."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise UserError(
            f"{path} cannot be written ({_reason(error)}): free space on its disk, or lift the "
            "limit on a file's size (ulimit -a), and run the same command again."
        ) from None


def _make(path: Path, about: Mapping[str, str]) -> "duckdb.DuckDBPyConnection":
    """A new file, published only when it has its tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(_filled(path, {"format": _FORMAT, **about}), path)
    return _connect(path)


def _filled(path: Path, rows: Mapping[str, str]) -> Path:
    """A new file at the staging path, with its tables and what identifies the replay."""
    stage = staging_path(path)
    for leftover in (stage, _log_of(stage)):
        leftover.unlink(missing_ok=True)
    with _writing(path), _open(stage) as connection:
        connection.begin()
        connection.execute(_TABLES)
        connection.executemany("INSERT INTO about VALUES (?, ?)", [[k, v] for k, v in rows.items()])
        connection.commit()
        connection.execute("CHECKPOINT")  # closing does so as well, but tells no failure
    return stage


def _without_texts(path: Path) -> None:
    """Remove all texts from a file by rewriting it, since deleted ones could still be read."""
    stage = _filled(path, {"format": _FORMAT})
    statements = (
        f"ATTACH '{str(stage).replace(chr(39), chr(39) * 2)}' AS clean",
        "DELETE FROM clean.about",
        "INSERT INTO clean.about SELECT key, CASE key WHEN 'redacted' THEN 'yes' ELSE value END "
        "FROM about",
        "INSERT INTO clean.prompt SELECT number, log, line, moment, NULL FROM prompt",
        "INSERT INTO clean.answer SELECT number, arm, NULL, score, split_part(missing, ':', 1) "
        "FROM answer",
        "DETACH clean",
        "CHECKPOINT",  # otherwise the rest of its log would be added to the new file
    )
    with _writing(path), _connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    publish(stage, path)


def _log_of(path: Path) -> Path:
    """DuckDB's write-ahead log beside a file."""
    return path.with_name(f"{path.name}.wal")


def _refuse_other(path: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    if found.get("format") != _FORMAT:
        raise UserError(f"{path} is not a replay of this version: choose another `output`.")
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UserError(
                f"{path} was begun with {key} {found.get(key) or 'none'} and not with "
                f"{value or 'none'}: repeat the command unchanged, or choose another `output`."
            )
