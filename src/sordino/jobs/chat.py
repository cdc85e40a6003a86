"""Talk to a model and its quiet counterpart, in the browser or the terminal."""

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sordino.chatting import Settings
from sordino.chatting.opening import is_edit_file, open_duet, open_judge
from sordino.chatting.served import open_served
from sordino.chatting.voices import Voices
from sordino.errors import UserError
from sordino.evaluation.endpoint import DEFAULT_ACCESS, Access
from sordino.evaluation.texts import KIT_PROSE
from sordino.extras import require
from sordino.files import user_path
from sordino.interventions import Dampening
from sordino.models.open import OpenModel
from sordino.progress import note
from sordino.tuning.baking import make_dampening


def chat(
    original: str | None = None,
    quiet: str | None = None,
    answers: Settings | None = None,
    *,
    endpoint: str | None = None,
    adapter: str | None = None,
    access: Access = DEFAULT_ACCESS,
    intervention: str = "aura",
    settings: Mapping[str, Any] | None = None,
    divergence: float | None = None,
    texts: str = KIT_PROSE,
    terminal: bool = False,
    plain: bool = False,
    scorer: str = "auto",
    toxic_label: str | None = None,
    judge_refusal: float | None = None,
    host: str = "127.0.0.1",
    port: int = 8642,
    ready: Callable[[str], None] = print,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> bool:
    """Talk to a model and its quiet counterpart, side by side, until interrupted.

    Both get the same prompts and the same random numbers. If the quiet one is an edit of the
    original, one copy of the weights serves both, and the strength is a slider.

    Args:
        original: The original model; with `endpoint`, its name there, if it has several.
        quiet: An expertise file, to which the intervention is applied; a dampening file; a folder
            that was baked from the original; or another model, which then has no slider.
        answers: The initial settings of answers, including the strength.
        endpoint: The address of a server that answers for both sides, instead of models here.
        adapter: The server's LoRA adapter for the quiet side: for llama.cpp the name of its file or
            folder, and its scale is the strength; elsewhere the name of its model.
        access: How the server is asked.
        intervention: The rule, for an expertise file.
        settings: The rule's own settings.
        divergence: The budget that the change may reach at strength 1, nats per token.
        texts: Ordinary texts on which the divergence is measured.
        terminal: Talk in the terminal instead of on a page.
        plain: Continue prompts as they are, even if the tokenizer has a chat template.
        scorer: What scores the answers; as for `sordino.Toxicity`, or "none".
        toxic_label: The classifier's label that means toxic, if it cannot be inferred.
        judge_refusal: Score of an answer that a server's model refuses to judge.
        host: The address to listen on; the default is reachable from this machine only.
        port: The port; 0 for any that is free.
        ready: Called with the page's address once it is served.
        device: See `sordino.open_model`.
        dtype: See `sordino.open_model`.
        revision: Of the original; see `sordino.open_model`.

    Returns:
        Whether the server's thread is still generating an answer.

    Raises:
        UserError: An input cannot be used, or nothing can listen there.

    Example:
        >>> sordino.chat("tiny", "calm.expertise.safetensors", terminal=True, scorer="none")
    """
    if not terminal:
        require("chat", "The page (`terminal` works without)")
    begin = answers or Settings()
    changed = (intervention, settings or {}, divergence) != ("aura", {}, None)
    if endpoint is None and access != DEFAULT_ACCESS:
        raise UserError(
            "`api_key_env` is for `endpoint`, and there is none: for a scorer on a server, set "
            "OPENAI_API_KEY."
        )
    open_both: Callable[[], Voices]
    if endpoint is not None or adapter is not None:
        if endpoint is None or adapter is None:
            raise UserError("`endpoint` and `adapter` go together: pass both.")
        if quiet is not None:
            raise UserError(f"Pass {quiet} or `endpoint`, not both.")
        if changed:
            raise UserError(
                "`intervention`, `divergence` and `settings` need an expertise file, and with "
                "`endpoint` there is none."
            )
        if not begin.thinking:
            raise UserError(
                "`thinking=False` is for chat templates here, and with `endpoint` the server has "
                "its own: leave it out, and set it there."
            )
        opening = {"dtype": dtype != "auto", "revision": revision is not None}
        if unused := [f"`{name}`" for name, is_given in opening.items() if is_given]:
            raise UserError(
                f"The server decides how its model is opened, so leave out {' and '.join(unused)}."
            )
        judge = open_judge(scorer, toxic_label, judge_refusal, device)
        open_both = partial(
            open_served, endpoint, adapter, original, access, plain=plain, scorer=judge
        )
    elif original is None or quiet is None:
        raise UserError(
            "There is nothing to talk to: pass ORIGINAL and QUIET, or `endpoint` and `adapter`."
        )
    else:
        if changed and not is_edit_file(user_path(quiet)):
            raise UserError(
                f"`intervention`, `divergence` and `settings` need an expertise file, not {quiet}."
            )

        def make(opened: OpenModel, file: Path) -> Dampening:
            return make_dampening(
                opened,
                file,
                intervention,
                settings=settings,
                divergence=divergence,
                texts=texts,
                seed=begin.seed,
            )

        open_both = partial(
            open_duet,
            original,
            quiet,
            make=make,
            plain=plain,
            scorer=scorer,
            toxic_label=toxic_label,
            judge_refusal=judge_refusal,
            device=device,
            dtype=dtype,
            revision=revision,
        )
    listening = None
    if not terminal:
        from sordino.chatting import server  # needs what only the page needs

        listening = server.listen(host, port)
    duet = open_both()
    if duet.fixed and begin.strength != 1:
        raise UserError(f"`strength` cannot be set. {duet.fixed}")
    if duet.fixed:
        note(f"there is no slider. {duet.fixed}")
    if listening is None:
        from sordino.chatting.terminal import converse

        converse(duet, begin)
        return False
    serving = server.Server(duet, begin, host)
    ready(server.address(listening, host))
    with contextlib.suppress(KeyboardInterrupt):
        serving.run(sockets=[listening])
    note("\nended")
    return serving.busy
