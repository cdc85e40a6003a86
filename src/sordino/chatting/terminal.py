"""The chat in a terminal: both answers grow side by side; commands begin with a slash."""

import io
import os
import queue
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sordino.chatting.background import Background, Ended
from sordino.chatting.conversation import SIDES, Answer, Settings, Side, Turn
from sordino.chatting.voices import Answered, Said, Voices
from sordino.errors import UserError
from sordino.evaluation.scorer import TOXIC_SCORE
from sordino.evaluation.writing import PRE_PROMPTS
from sordino.files import has_suffix, new_file, printable, to_json, user_path
from sordino.progress import tame

HELP = """\
/strength 0.5     strength of the edit: 0 the original, 1 as it was made
/seed 7           other random numbers
/pre-prompt WORDS text before the conversation: none, benign, adversarial, helpful, unbound,
                  or your own words
/temperature 0.7  0 takes the likeliest token
/new-tokens 200   the longest answer, in tokens
/again            answer the last prompt again, with the current settings
/clear            start a new conversation
/save FILE        save the conversation: as Markdown (.md), or else as JSON
/quit             or Ctrl-D; Ctrl-C stops an answer"""

_SIDE_BY_SIDE = 80  # narrower consoles show one answer below the other
_LONGEST_LINE = 2**22  # characters

_NUMBERS: Mapping[str, tuple[str, type]] = {
    "/strength": ("strength", float),
    "/seed": ("seed", int),
    "/temperature": ("temperature", float),
    "/new-tokens": ("new_tokens", int),
}


class Session:
    """A conversation in a terminal.

    Args:
        duet: The two sides.
        settings: The initial settings.
        console: The console that shows it.
    """

    def __init__(self, duet: Voices, settings: Settings, console: Console) -> None:
        self._duet, self._settings, self._console = duet, settings, console
        self._turns: list[Turn] = []
        self._background = Background()

    def greet(self) -> None:
        """Print the two sides, and how to get help."""
        for side in SIDES:
            self._say(f"{side}: {self._duet.names[side]}")
        if self._duet.fixed:
            self._say(self._duet.fixed)
        if self._duet.plain:
            self._say("Prompts are continued as they are.")
        if self._duet.scorer is not None:
            self._console.print(Text(self._duet.scorer.limits, style="dim"))
        self._say("/help lists the commands.")

    def take(self, line: str) -> bool:
        """Handle a typed line; whether the conversation continues.

        Raises:
            UserError: The line is refused; nothing has changed.
        """
        if not line.strip():
            return True
        try:
            line.encode()
        except UnicodeEncodeError:
            raise UserError(f"The line '{printable(line, 60)}' is not valid UTF-8.") from None
        if not line.startswith("/"):
            self._ask([*self._turns, Turn(prompt=line)])
            return True
        command, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if command == "/quit":
            return False
        if command in _NUMBERS:
            self._set_number(command, rest)
        elif command == "/pre-prompt":
            self._set_pre_prompt(rest)
        elif command == "/save":
            self._save(rest)
        elif command == "/again":
            if not self._turns:
                raise UserError("There is no prompt yet.")
            self._ask(self._turns)
        elif command == "/clear":
            self._turns = []
        elif command == "/help":
            self._say(HELP)
        else:
            raise UserError(f"There is no command {printable(command, 60)}: /help lists them.")
        return True

    def _ask(self, turns: list[Turn]) -> None:
        """Answer the last turn, and keep it."""
        turn, said = Turn(prompt=turns[-1].prompt), dict.fromkeys(SIDES, "")
        heard = queue.SimpleQueue[Said | Answered | Ended]()
        with self._interruptions() as stopped, self._show_partial() as show:
            self._background.ask(
                lambda: self._duet.answers(turns, self._settings, stopped=stopped), heard.put
            )
            while not isinstance(event := heard.get(), Ended):
                if isinstance(event, Answered):
                    turn = turn.answered(event.side, event.answer)
                    said[event.side] = event.answer.text
                else:
                    said[event.side] = event.text
                show(self._pair(said, turn))
        if event.error is not None:
            raise event.error
        self._turns = [*turns[:-1], turn]
        self._console.print(self._pair(said, turn))

    @contextmanager
    def _show_partial(self) -> Iterator[Callable[[RenderableType], None]]:
        """Show partial answers on a terminal, until they are complete."""
        if not self._console.is_terminal:
            yield lambda _: None
            return
        with Live(console=self._console, transient=True, refresh_per_second=12) as live:
            yield live.update

    def _pair(self, said: Mapping[Side, str], turn: Turn) -> RenderableType:
        heads = [self._head(side, turn.answers.get(side)) for side in SIDES]
        texts = [Text(_printable(said[side].strip("\n"))) for side in SIDES]
        notes = [Text(_remark(turn.answers.get(side)), style="dim") for side in SIDES]
        if self._console.width < _SIDE_BY_SIDE:
            rows = zip(heads, texts, notes, strict=True)
            return Group(*(part for row in rows for part in row if part.plain))
        table = Table(box=None, expand=True, padding=(0, 3, 0, 0), show_header=False)
        for _ in SIDES:
            table.add_column(ratio=1)
        for row in (heads, texts, notes):
            if any(part.plain for part in row):
                table.add_row(*row)
        return table

    def _head(self, side: Side, answer: Answer | None) -> Text:
        head = Text(side.capitalize(), style="bold cyan")
        if side == "quiet" and self._duet.has_dial:
            head.append(f"  strength {self._settings.strength:g}", style="not bold")
        if answer is not None and answer.verdict:
            toxic = answer.score is not None and answer.score > TOXIC_SCORE
            head.append(f"  {answer.verdict}", style="bold yellow" if toxic else "not bold")
        return head

    def _set_number(self, command: str, given: str) -> None:
        name, kind = _NUMBERS[command]
        if name == "strength" and self._duet.fixed:
            raise UserError(f"There is no strength to set. {self._duet.fixed}")
        try:
            value = kind(given)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise UserError(f"{command} takes {what}, not '{printable(given, 60)}'.") from None
        self._change(name, value)

    def _set_pre_prompt(self, given: str) -> None:
        if given:
            self._change("pre_prompt", PRE_PROMPTS.get(given, given))
        self._say(f"pre-prompt: {self._settings.pre_prompt or 'none'}")

    def _change(self, name: str, value: Any) -> None:
        self._settings = Settings(**{**self._settings.model_dump(), name: value})

    def _save(self, given: str) -> None:
        if not given:
            raise UserError("/save needs the name of a file.")
        path = user_path(given)
        if os.path.lexists(path):
            raise UserError(f"{path} exists already: choose another name.")
        kept = self._duet.conversation(self._turns)
        text = kept.markdown() if has_suffix(path, ".md") else to_json(kept.model_dump(mode="json"))
        try:
            with new_file(path, mode=0o600) as staging:
                staging.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} could not be written: {error.strerror or error}.") from None
        self._say(f"written: {path}")

    def _say(self, line: str) -> None:
        self._console.print(Text(_printable(line)))

    @contextmanager
    def _interruptions(self) -> Iterator[Callable[[], bool]]:
        """Inside the block, Ctrl-C makes the yielded function return True; a second one exits.

        Answers are generated in another thread, so both are handled at once.
        """
        interrupted = Event()

        def interrupt(*_: object) -> None:
            if interrupted.is_set():
                self._console.show_cursor(True)
                os._exit(130)
            interrupted.set()

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield interrupted.is_set
        finally:
            signal.signal(signal.SIGINT, before)


def converse(duet: Voices, settings: Settings) -> None:
    """Read prompts and commands from standard input until it ends or /quit."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not UTF-8 is refused later
    console = Console()
    session = Session(duet, settings, console)
    session.greet()
    while True:
        try:
            line = _read()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        try:
            if not session.take(line):
                return
        except UserError as error:
            console.print(Text(str(error), style="yellow"))


def _read() -> str:
    if not sys.stdin.isatty():
        line = sys.stdin.readline(_LONGEST_LINE + 1)
        if not line:
            raise EOFError
        if len(line) > _LONGEST_LINE:
            raise UserError(f"A line of standard input has over {_LONGEST_LINE:,} characters.")
        return line.rstrip("\n")
    with suppress(ImportError):  # editing and history, if the system has them
        import readline  # noqa: F401
    return input("\n> ")


def _remark(answer: Answer | None) -> str:
    return "" if answer is None else answer.note


def _printable(text: str) -> str:
    """Text without control characters for the terminal."""
    return "\t".join(map(tame, text.split("\t")))
