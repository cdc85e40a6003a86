"""Two models, or one with and without an edit, that answer token by token in turn."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from sordino.chatting.conversation import SIDES, Answer, Ended, Settings, Side, Turn, prompt_ids
from sordino.chatting.voices import Answered, Said, Voices, judge_answer
from sordino.interventions import Dampening
from sordino.models.chat import Chat, replies
from sordino.models.chat_template import Stopped
from sordino.models.generation import Continuation, stream
from sordino.models.open import OpenModel

_NOTHING = Continuation(0, 0, (), "")


@dataclass(frozen=True, kw_only=True)
class Duet(Voices):
    """Two models, or one model with and without an edit; see `Voices`.

    Args:
        original: The original model.
        quiet: The other model, or the same one if hooks apply the edit.
        dampening: The edit that hooks apply; None if `quiet` is a separate model.
        why_two: Why `quiet` is a separate model, in a sentence; "" if it is not.
    """

    original: OpenModel
    quiet: OpenModel
    dampening: Dampening | None
    why_two: str = ""

    @property
    def fixed(self) -> str:
        """Why the strength cannot be set; "" if hooks apply the edit."""
        told = f"Two models are open, and the strength cannot be changed. {self.why_two}"
        return "" if self.dampening is not None else told

    def answers(
        self,
        turns: Sequence[Turn],
        settings: Settings,
        sides: Sequence[Side] = SIDES,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Generator[Said | Answered]:
        """Answer the last turn token by token; see `Voices.answers`.

        The random numbers depend on the seed and the turn's place in the conversation. They are the
        same for both sides, at any strength, and when the turn is answered again. The first answer
        is that of `generate` for prompt 0.

        Raises:
            UserError: The prompt is too long or empty, the chat template fails, or logits are not
                numbers.
        """
        models = {"original": self.original, "quiet": self.quiet}
        try:
            prompts = {
                side: prompt_ids(
                    models[side], turns, side, settings, plain=self.plain, stopped=stopped
                )
                for side in sides
            }
        except Stopped:
            for side in sides:
                yield Answered(side, self._answer(_NOTHING, 0, settings, early=True))
            return
        form = Chat("on", system=settings.pre_prompt.strip(), thinking=settings.thinking)
        forms = {} if self.plain else {side: replies(models[side], form) for side in sides}
        voices = {
            side: stream(
                models[side],
                ids,
                settings.make_sampling(),
                seed=settings.seed,
                prompt=len(turns) - 1,
                ends=forms[side].ends if forms else (),
            )
            for side, (ids, _) in prompts.items()
        }
        muted = None if self.dampening is None else self.dampening.scaled(settings.strength)
        latest = dict.fromkeys(sides, _NOTHING)

        def whole(side: Side, *, early: bool) -> Answered:
            said = forms[side].cut(models[side], latest[side]) if forms else latest[side]
            return Answered(side, self._answer(said, prompts[side][1], settings, early=early))

        try:
            while voices and not stopped():
                for side in list(voices):
                    with self._under(side, muted):
                        more = next(voices[side], None)
                    if more is None:
                        del voices[side]
                        yield whole(side, early=False)
                    else:
                        latest[side] = more
                        yield Said(side, more.text)
            for side in voices:
                yield whole(side, early=True)
        finally:
            for voice in voices.values():
                voice.close()

    def _under(self, side: Side, muted: Dampening | None) -> AbstractContextManager[None]:
        """The hooks on the original during the quiet side's step."""
        if side == "original" or muted is None:
            return nullcontext()
        return muted.applied(self.quiet.model)

    def _answer(
        self, one: Continuation, left_out: int, settings: Settings, *, early: bool
    ) -> Answer:
        ids = one.ids or ()
        ended: Ended = (
            "stopped" if early else "length" if len(ids) == settings.new_tokens else "end"
        )
        score, trouble = judge_answer(self.scorer, one.text)
        return Answer(
            text=one.text,
            ids=ids,
            ended=ended,
            left_out=left_out,
            score=score,
            trouble=trouble,
            settings=settings,
        )
