"""`sordino chat`."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sordino.cli.options import (
    JudgeOptions,
    open_in_browser,
)
from sordino.options.groups import (
    InterventionOptions,
    OpeningOptions,
    clean_texts,
)

if TYPE_CHECKING:
    from sordino.chatting import Settings


@Parameter(name="*", group="Answers")
@dataclass(frozen=True)
class AnswerOptions:
    """The initial settings of answers; all can be changed during the conversation."""

    pre_prompt: str = "none"
    """Text before the conversation: none, benign, adversarial, helpful, unbound, or a text file."""
    thinking: Annotated[bool, Parameter(negative="--no-thinking")] = True
    """Let a model that thinks do so, and show its thoughts."""
    new_tokens: int = 128
    """The longest answer, in tokens."""
    temperature: float = 0.7
    """Sampling temperature; 0 takes the likeliest token."""
    top_k: int = 0
    """Top-k: sample among the K likeliest tokens; 0 for all."""
    top_p: float = 0.95
    """Top-p: sample among the likeliest tokens with this total probability; 1 for all."""
    repetition_penalty: float = 1.0
    """Penalty on tokens that occurred already; 1 for none."""
    seed: int = 0
    """Seed of the random numbers, which both sides share."""

    def settings(self, strength: float) -> "Settings":
        """These settings, with the strength of the edit."""
        from sordino.chatting import Settings
        from sordino.evaluation.writing import pre_prompt_text

        text = pre_prompt_text(self.pre_prompt)
        return Settings(**vars(self) | {"strength": strength, "pre_prompt": text})


@Parameter(name="*", group="Judging")
@dataclass(frozen=True)
class ScorerOptions(JudgeOptions):
    """How answers are scored, if they are."""

    scorer: str = "auto"
    """As for evaluate: auto, alt-profanity-check, tox-block, hf:org/name, …; or none."""


@Parameter(name="*", group="Browser")
@dataclass(frozen=True)
class BrowserOptions:
    """Where the page is served."""

    host: str = "127.0.0.1"
    """The address to listen on; the default is reachable from this machine only."""
    port: int = 8642
    """The port; 0 for any that is free."""
    open: Annotated[bool, Parameter(negative="--no-open")] = True
    """Open the page in the browser."""


@Parameter(name="*", group="Server")
@dataclass(frozen=True)
class ServedOptions:
    """A server that answers for both sides, instead of models in this process."""

    endpoint: str | None = None
    """A server's address, such as http://127.0.0.1:8080/v1."""
    adapter: str | None = None
    """Its LoRA adapter: in llama.cpp the name of its file or folder, elsewhere of its model."""
    api_key_env: str | None = None
    """Environment variable with the key (OPENAI_API_KEY)."""


def chat(
    original: str | None = None,
    quiet: str | None = None,
    /,
    *,
    served: ServedOptions = ServedOptions(),
    terminal: bool = False,
    plain: bool = False,
    texts: str = "kit",
    answers: AnswerOptions = AnswerOptions(),
    rule: InterventionOptions = InterventionOptions(),
    judging: ScorerOptions = ScorerOptions(),
    browser: BrowserOptions = BrowserOptions(),
    opening: OpeningOptions = OpeningOptions(),
) -> None:
    """Talk to a model and its quiet counterpart, side by side.

    Both get the same prompts and the same random numbers. If the quiet one is an edit of the
    original, one copy of the weights serves both, and the strength is a slider. The page is served
    on this machine only, and loads nothing from elsewhere.

    Parameters
    ----------
    original
        The original model.
    quiet
        An expertise file, to which the intervention is applied; a dampening file; a folder that was
        baked from the original; or another model, which has no slider.
    terminal
        Use the terminal instead of the browser.
    plain
        Continue prompts as they are, even if the tokenizer has a chat template.
    texts
        Ordinary text on which --divergence is measured: kit, or as for evaluate.
    """
    import gc

    from sordino.evaluation import Access
    from sordino.jobs.chat import chat as talk

    gc.enable()  # the work begins; see `sordino.cli.app.main`

    def ready(address: str) -> None:
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        if browser.open:
            open_in_browser(address)

    busy = talk(
        original,
        quiet,
        answers.settings(1.0 if rule.divergence else rule.strength),
        endpoint=served.endpoint,
        adapter=served.adapter,
        access=Access(served.api_key_env),
        intervention=rule.intervention,
        settings=rule.settings(),
        divergence=rule.divergence,
        texts=clean_texts(texts),
        terminal=terminal,
        plain=plain,
        scorer=judging.scorer,
        toxic_label=judging.toxic_label,
        judge_refusal=judging.judge_refusal,
        host=browser.host,
        port=browser.port,
        ready=ready,
        device=opening.device,
        dtype=opening.dtype,
        revision=opening.revision,
    )
    if busy:  # the current token is no longer needed
        os._exit(0)
