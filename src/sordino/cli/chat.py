"""`sordino chat`."""

import contextlib
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sordino.cli.options import InterventionOptions, ModelOptions
from sordino.errors import UserError

if TYPE_CHECKING:
    from sordino.chat import Settings
    from sordino.interventions import Dampening
    from sordino.models.open import OpenModel


@Parameter(name="*", group="Answers")
@dataclass(frozen=True)
class AnswerOptions:
    """How answers are asked for at first; all can be changed while talking."""

    pre_prompt: str = "none"
    """What stands before the conversation: none, benign, adversarial, or a text file."""
    new_tokens: int = 128
    """The longest answer, in tokens."""
    temperature: float = 0.7
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Sample among so many likeliest tokens; 0 for all."""
    top_p: float = 0.95
    """Sample among the likeliest tokens that hold this share; 1 for all."""
    repetition_penalty: float = 1.0
    """Penalty on tokens seen already; 1 for none."""
    seed: int = 0
    """Seed of the random numbers, which both sides share."""

    def settings(self, strength: float) -> "Settings":
        """These, with the strength of the edit."""
        from sordino.chat import Settings
        from sordino.evaluation.writing import pre_prompt_text

        return Settings(
            strength=strength,
            pre_prompt=pre_prompt_text(self.pre_prompt),
            seed=self.seed,
            new_tokens=self.new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
        )


@Parameter(name="*", group="Judging")
@dataclass(frozen=True)
class ScorerOptions:
    """Who judges the answers."""

    scorer: str = "auto"
    """As for evaluate: auto, alt-profanity-check, tox-block, hf:org/name, …; or none."""
    toxic_label: str | None = None
    """The classifier's label that means toxic, where that is not plain."""
    judge_refusal: float | None = None
    """What an answer counts as that a server's model will not judge, from 0 to 1."""


@Parameter(name="*", group="Browser")
@dataclass(frozen=True)
class BrowserOptions:
    """Where the page is served."""

    host: str = "127.0.0.1"
    """The address to listen at; the default is reached from this machine alone."""
    port: int = 8642
    """The port; 0 for any that is free."""
    open: Annotated[bool, Parameter(negative="--no-open")] = True
    """Open the page in the browser."""


def chat(
    original: str,
    quiet: str,
    /,
    *,
    terminal: bool = False,
    plain: bool = False,
    texts: str = "kit",
    answers: AnswerOptions = AnswerOptions(),
    rule: InterventionOptions = InterventionOptions(),
    judging: ScorerOptions = ScorerOptions(),
    browser: BrowserOptions = BrowserOptions(),
    opening: ModelOptions = ModelOptions(),
) -> None:
    """Talk to a model and its quiet counterpart, side by side.

    Both get the same prompts and the same random numbers. Where the quiet one is an edit of the
    original, one copy of the weights serves both, and the strength is a slider. The page is served
    on this machine alone, and loads nothing from anywhere.

    Parameters
    ----------
    original
        The original model.
    quiet
        An expertise file, to which the intervention is applied; a dampening file; a folder that was
        baked from the original; or another model, which then has no slider.
    terminal
        Talk in the terminal, and not in the browser.
    plain
        Continue prompts as they are, also where the tokenizer has a chat template.
    texts
        Ordinary text on which --divergence is measured: kit, or as for evaluate.
    """
    from sordino.chat.opening import is_edit_file, open_duet
    from sordino.extras import require
    from sordino.files import user_path
    from sordino.progress import note

    if not terminal:
        require("chat", "The page (--terminal does without)")
    settings = answers.settings(1.0 if rule.divergence else rule.strength)
    if replace(rule, strength=1.0) != InterventionOptions() and not is_edit_file(user_path(quiet)):
        raise UserError(
            f"--intervention, --divergence and --set are for expertise files, and {quiet} is none."
        )
    listening = None
    if not terminal:
        from sordino.chat import server

        listening = server.listen(browser.host, browser.port)

    def make(opened: "OpenModel", file: Path) -> "Dampening":
        # Without a divergence, the strength is the slider's.
        made = rule if rule.divergence is not None else replace(rule, strength=1.0)
        return made.dampening(opened, [file], texts=texts, seed=answers.seed, opening=opening)

    duet = open_duet(
        original,
        quiet,
        make=make,
        plain=plain,
        scorer=judging.scorer,
        toxic_label=judging.toxic_label,
        judge_refusal=judging.judge_refusal,
        device=opening.device,
        dtype=opening.dtype,
        revision=opening.revision,
    )
    if duet.why_two and rule.strength != 1:
        raise UserError(f"--strength cannot be set for a model of its own. {duet.why_two}")
    if duet.why_two:
        note(f"two models are open, and there is no slider. {duet.why_two}")
    if listening is None:
        from sordino.chat.terminal import converse

        converse(duet, settings)
        return
    address = server.address(listening, browser.host)
    print(f"{address}  (Ctrl-C ends it)", flush=True)
    if browser.open and _has_windows():
        import webbrowser

        webbrowser.open(address)
    serving = server.Server(duet, settings, browser.host)
    with contextlib.suppress(KeyboardInterrupt):
        serving.run(sockets=[listening])
    note("\nended")
    if serving.busy:  # nobody waits for the token that is being made
        os._exit(0)


def _has_windows() -> bool:
    """Whether a browser would open a window, and not take over this terminal."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
