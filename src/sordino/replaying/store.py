"""What was asked and answered, in a DuckDB file that anyone can query."""

import stat
from collections.abc import Mapping, Sequence
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
    """What a server answered.

    Args:
        text: The answer; None where there is none.
        score: The scorer's, from 0 to 1; None where there is none.
        missing: Why there is no answer or no score, a word or two and then its own words; None
            where there are both.
    """

    text: str | None
    score: float | None = None
    missing: str | None = None


@dataclass(frozen=True)
class Pairs:
    """All prompts that both servers answered, in the order in which they were asked.

    Args:
        at: When each was made, datetime64[us] [pairs], NaT where the log does not say.
        scores: float64 [pairs, 2], the original's first.
    """

    at: NDArray[np.datetime64]
    scores: Floats

    @property
    def toxic(self) -> NDArray[np.bool_]:
        """Whether each answer is toxic, bool [pairs, 2]."""
        return np.asarray(self.scores > TOXIC_SCORE)


class Store:
    """The file of a replay; it is made if it is not there.

    A batch is there as a whole or not at all, whenever the process is killed. The file is its
    owner's only: it holds what people asked. So is one that others could read before.

    Args:
        path: The file.
        about: What identifies this replay: by name, text. A file of another one is refused.
        redact: Keep no text. What an earlier replay kept is taken out, for good.

    Raises:
        UserError: DuckDB is not installed, or the file is of something else, damaged or in use.
    """

    @private_files()
    def __init__(self, path: Path, about: Mapping[str, str], *, redact: bool) -> None:
        self._connection = _opened(path, about, redact=redact)
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
        """Keep a batch.

        Args:
            asked: The prompts by their number in the log.
            answers: Of each prompt, one of each arm.
            passed: How many prompts of the log are done with.
            digest: Of all of those.
        """
        import pyarrow as pa

        kept = not self.redacted
        prompts = [
            {
                "number": number,
                "log": one.log,
                "line": one.line,
                "moment": one.at,
                "asked": one.text if kept else None,
            }
            for number, one in asked.items()
        ]
        rows = [
            {
                "number": number,
                "arm": arm,
                "text": answer.text if kept else None,
                "score": answer.score,
                # What a server says of a refusal can quote what it refused.
                "missing": answer.missing if kept else (answer.missing or "").split(":")[0] or None,
            }
            for number, pair in zip(asked, answers, strict=True)
            for arm, answer in zip(ARMS, pair, strict=True)
        ]
        words, whole, real = pa.string(), pa.int64(), pa.float64()
        kinds: dict[str, dict[str, pa.DataType]] = {
            "prompt": {
                "number": whole,
                "log": words,
                "line": whole,
                "moment": pa.timestamp("us"),
                "asked": words,
            },
            "answer": {"number": whole, "arm": words, "text": words, "score": real}
            | {"missing": words},
        }
        self._connection.begin()
        for table, found in (("prompt", prompts), ("answer", rows)):
            added = pa.Table.from_pylist(found, pa.schema(kinds[table]))
            self._connection.register("added", added)
            self._connection.execute(f"INSERT INTO {table} SELECT * FROM added")  # noqa: S608
            self._connection.unregister("added")
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
        """How many prompts were asked."""
        row = self._connection.execute("SELECT count(*) FROM prompt").fetchone()
        return int(row[0]) if row else 0

    def missing(self) -> dict[str, dict[str, int]]:
        """How often an arm gave no answer, by arm and reason."""
        rows = self._connection.execute(
            "SELECT arm, split_part(missing, ':', 1) AS reason, count(*) FROM answer "
            "WHERE missing IS NOT NULL GROUP BY arm, reason ORDER BY arm, reason"
        ).fetchall()
        counts: dict[str, dict[str, int]] = {arm: {} for arm in ARMS}
        for arm, reason, count in rows:
            counts[arm][reason] = count
        return counts

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


def was_redacted(path: Path) -> bool:
    """Whether a file that is there keeps no text; False where nothing says so."""
    if not path.exists():
        return False
    connection = _connect(path)
    found = _about(connection)
    connection.close()
    return bool(found.get("redacted"))


def _opened(path: Path, about: Mapping[str, str], *, redact: bool) -> "duckdb.DuckDBPyConnection":
    known = {**about, "redacted": "yes" if redact else ""}
    if not path.exists():
        return _made(path, known)
    connection = _connect(path)
    found = _about(connection)
    begun = "passed" in found  # else nothing is lost: an empty one is made anew
    try:
        _refuse_other(path, found, about if begun else {})
    except UserError:
        connection.close()
        raise
    if begun and (found["redacted"] or not redact):
        return connection
    connection.close()
    if not begun:
        return _made(path, known)
    _without_texts(path)
    return _connect(path)


def _about(connection: "duckdb.DuckDBPyConnection") -> dict[str, str]:
    return dict(connection.execute("SELECT key, value FROM about").fetchall())


def _connect(path: Path) -> "duckdb.DuckDBPyConnection":
    """Open a file that is there, and see that it is a replay's."""
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
        raise UserError(f"{path} is no replay's database: choose another -o.")
    _tighten(path)
    return connection


def _tighten(path: Path) -> None:
    """Leave a file, and DuckDB's log beside it, to its owner."""
    for file in filter(Path.exists, (path, _log_of(path))):
        mode = stat.S_IMODE(file.stat().st_mode)
        if not mode & (stat.S_IRWXG | stat.S_IRWXO):
            continue
        try:
            file.chmod(mode & stat.S_IRWXU)
        except PermissionError:
            note(f"{file} is another user's, and others can read what people asked.")
        else:
            note(f"{file} could be read by others; it holds what people asked, and is yours now.")


def _open(path: Path) -> "duckdb.DuckDBPyConnection":
    require("replay", "A replay")
    import duckdb

    try:
        return duckdb.connect(str(path), config={"autoinstall_known_extensions": "false"})
    except duckdb.Error as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200].rstrip(".")
    return UserError(
        f"{path} cannot be opened ({type(error).__name__}: {reason}): close what else has it open, "
        "or choose another -o."
    )


def _made(path: Path, about: Mapping[str, str]) -> "duckdb.DuckDBPyConnection":
    """A new file with its tables, under its name only when it has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stage = staging_path(path)
    for leftover in (stage, _log_of(stage)):
        leftover.unlink(missing_ok=True)
    _fill(stage, about)
    publish(stage, path)
    return _connect(path)


def _fill(stage: Path, about: Mapping[str, str]) -> None:
    connection = _open(stage)
    connection.begin()
    connection.execute(_TABLES)
    rows = {"format": _FORMAT, **about}
    connection.executemany("INSERT INTO about VALUES (?, ?)", [[k, v] for k, v in rows.items()])
    connection.commit()
    connection.close()


def _without_texts(path: Path) -> None:
    """Take all texts out of a file, by writing it anew: what is only deleted can still be read."""
    stage = staging_path(path)
    for leftover in (stage, _log_of(stage)):
        leftover.unlink(missing_ok=True)
    _fill(stage, {})
    connection = _connect(path)
    connection.execute(f"ATTACH '{str(stage).replace(chr(39), chr(39) * 2)}' AS clean")
    for statement in (
        "DELETE FROM clean.about",
        "INSERT INTO clean.about SELECT key, CASE key WHEN 'redacted' THEN 'yes' ELSE value END "
        "FROM about",
        "INSERT INTO clean.prompt SELECT number, log, line, moment, NULL FROM prompt",
        "INSERT INTO clean.answer SELECT number, arm, NULL, score, split_part(missing, ':', 1) "
        "FROM answer",
        "DETACH clean",
        "CHECKPOINT",  # or what is still in its log would be added to the new file
    ):
        connection.execute(statement)
    connection.close()
    publish(stage, path)


def _log_of(path: Path) -> Path:
    """The file in which DuckDB keeps what it has not written into the database yet."""
    return path.with_name(f"{path.name}.wal")


def _refuse_other(path: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    if found.get("format") != _FORMAT:
        raise UserError(f"{path} is no replay of this version: choose another -o.")
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UserError(
                f"{path} was begun with {key} {found.get(key) or 'none'} and not with "
                f"{value or 'none'}: give the command as it was, or choose another -o."
            )
