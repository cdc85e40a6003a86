"""A server that answers for both sides: without its LoRA adapter, and with it."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import PurePath
from typing import Any

from sordino.chatting.conversation import (
    SIDES,
    Answer,
    Ended,
    Settings,
    Side,
    Turn,
    refuse_empty,
    said_before,
)
from sordino.chatting.voices import Answered, Said, Voices, judge_answer
from sordino.errors import UserError
from sordino.evaluation.answers import FILTERED, Choice, MalformedError
from sordino.evaluation.endpoint import (
    Access,
    RefusedError,
    Server,
    needs_extras,
    request_seed,
    sampling_request,
)
from sordino.evaluation.scorer import Scorer
from sordino.evaluation.writing import with_system
from sordino.files import printable

_LOOK_S = 0.02
"""Seconds between looks for an answer."""

_ENDS: Mapping[str, Ended] = {"length": "length", FILTERED: "filtered"}

_FIXED = (
    "The server only switches the adapter on and off: its strength is fixed. (llama.cpp's server "
    "scales adapters for each request.)"
)


@dataclass(frozen=True, kw_only=True)
class ServedDuet(Voices):
    """A server with and without its adapter; see `Voices`.

    Answers arrive complete. The random numbers are the server's, from one seed for both sides.

    Args:
        servers: The server, with the model to ask for, by side.
        adapter: The adapter's number if the server scales it for each request, else None.
    """

    servers: Mapping[Side, Server]
    adapter: int | None

    @property
    def fixed(self) -> str:
        """Why the strength cannot be set; "" if the server scales the adapter."""
        return "" if self.adapter is not None else _FIXED

    def answers(
        self,
        turns: Sequence[Turn],
        settings: Settings,
        sides: Sequence[Side] = SIDES,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Generator[Said | Answered]:
        """Have the server answer the last turn for both sides; see `Voices.answers`.

        The strength is the adapter's scale. Once `stopped` returns True, missing answers are not
        waited for.

        Raises:
            UserError: There is nothing to answer, or the server does not answer.
        """
        refuse_empty(turns)
        pool = ThreadPool(len(sides))
        try:
            coming = {side: pool.apply_async(self._ask, (turns, side, settings)) for side in sides}
            while coming and not stopped():
                for side in [side for side, result in coming.items() if result.ready()]:
                    answer = self._answer(coming.pop(side).get(), settings)
                    yield Said(side, answer.text)
                    yield Answered(side, answer)
                time.sleep(_LOOK_S)
            for side in coming:
                yield Answered(side, Answer(text="", ids=(), ended="stopped", settings=settings))
        finally:
            pool.terminate()

    def _ask(self, turns: Sequence[Turn], side: Side, settings: Settings) -> Choice:
        server = self.servers[side]
        path, asked = self._conversation(turns, side, settings.pre_prompt.strip())
        if self.adapter is not None:
            scale = settings.strength if side == "quiet" else 0.0
            asked["lora"] = [{"id": self.adapter, "scale": scale}]
        sampling = settings.make_sampling()
        seed = request_seed(settings.seed, len(turns) - 1, 0)
        refusal = ""
        # Not every server takes more than OpenAI's own settings.
        for extras in (True,) if needs_extras(sampling) or self.has_dial else (True, False):
            try:
                return server.ask(path, asked | sampling_request(sampling, seed, extras=extras))[0]
            except RefusedError as error:
                refusal = str(error)
            except MalformedError as error:
                raise server.problem(f"its answer cannot be read: {error}.") from None
        raise server.problem(f"it refuses the conversation: {refusal}.")

    def _conversation(
        self, turns: Sequence[Turn], side: Side, pre_prompt: str
    ) -> tuple[str, dict[str, Any]]:
        """The path of the request, and the part of its body that holds the conversation."""
        messages = said_before(turns, side)
        if not self.plain:
            return "chat/completions", {"messages": with_system(messages, pre_prompt)}
        text = f"{pre_prompt}\n" if pre_prompt else ""
        for number, message in enumerate(messages):
            new_line = "\n" if number and message["role"] == "user" else ""
            text += new_line + message["content"]
        return "completions", {"prompt": text}

    def _answer(self, choice: Choice, settings: Settings) -> Answer:
        text = choice.content or choice.refusal
        score, trouble = judge_answer(self.scorer, text)
        return Answer(
            text=text,
            ids=(),
            ended=_ENDS.get(choice.ended, "end"),
            score=score,
            trouble=trouble,
            settings=settings,
        )


def open_served(
    address: str,
    adapter: str,
    model: str | None,
    access: Access,
    *,
    plain: bool,
    scorer: Scorer | None,
) -> ServedDuet:
    """Open a server's two sides, by whatever way it has for adapters.

    llama.cpp's server numbers its adapters and takes their scales with each request; elsewhere
    (vLLM, SGLang) an adapter is a model with a name.

    Args:
        address: The server's address.
        adapter: Its adapter: the name of its file or folder, or of its model.
        model: The original's name there; None if there is only one model.
        access: How the server is asked.
        plain: Whether prompts are continued as they are.
        scorer: What scores the answers.

    Raises:
        UserError: Nothing answers there, or it has no such adapter.
    """
    named = {"argument": "endpoint", "model_argument": "`original`"}
    original = Server(address, model, access, **named)
    loaded = original.adapters()
    if loaded is None:
        quiet = Server(address, adapter, access, argument="endpoint", model_argument="`adapter`")
        number, about = None, quiet.model
    else:
        quiet, number = original, _number_of(adapter, loaded, original)
        about = f"{original.model} with {access.name_shown(PurePath(loaded[number]).name)}"
    return ServedDuet(
        servers={"original": original, "quiet": quiet},
        adapter=number,
        names={"original": original.model, "quiet": f"{about}, at {original.address}"},
        plain=plain,
        scorer=scorer,
    )


def _number_of(adapter: str, loaded: Mapping[int, str], server: Server) -> int:
    def called(path: str) -> set[str]:
        file = PurePath(path)
        return {path, file.name, file.stem, file.parent.name}

    found = [number for number, path in loaded.items() if adapter in called(path)]
    if len(found) == 1:
        return found[0]
    if not loaded:
        raise server.problem("it has no adapters: start it with --lora FILE.")
    names = server.quote_words(", ".join(loaded.values()))
    how_many = "several adapters" if found else "no adapter"
    raise UserError(
        f"The server has {how_many} called '{printable(adapter)}': it has {names}; name one by its "
        "whole path with `adapter`."
    )
