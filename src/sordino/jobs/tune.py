"""Search for the intervention that removes most within a budget, and write the result."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sordino.concepts.concept import Concept, refuse_unloaded
from sordino.errors import UserError
from sordino.evaluation import Measure, Perplexity, Toxicity
from sordino.evaluation.texts import KIT_PROSE
from sordino.files import only_one, user_path, write_json
from sordino.interventions import Dampening
from sordino.models.chat import AS_SEES_FIT, Chat
from sordino.models.chat_template import fingerprint_of, template_of
from sordino.models.reference import ModelRef, resolve
from sordino.outputs import DAMPENING, PAGE, TUNED, claim_output
from sordino.report.article import write_html
from sordino.report.tuned import tuned_answer, tuned_article
from sordino.tuning.budget import Budget
from sordino.tuning.lab import Lab
from sordino.tuning.search import TRIED, Tuned, TuneSettings, prepare_search, search


@dataclass(frozen=True)
class TuneResult:
    """The result of a search.

    Args:
        tuned: All measurements.
        chosen: The chosen intervention; None if none kept the budget.
        file: Its file.
        page: The page to open.
        answer: The answer in sentences.
    """

    tuned: Tuned
    chosen: Dampening | None
    file: Path
    page: Path
    answer: tuple[str, ...]


def tune(
    model: str | Path | ModelRef,
    concept: Concept | Callable[[], Concept],
    output: str | Path,
    *,
    budget: str = "divergence<=0.05",
    rules: Sequence[str] = TRIED,
    trials: int = 24,
    toxicity: Toxicity | None = None,
    measures: Sequence[Measure] = (Perplexity(),),
    attribution_per_class: int = 1000,
    texts: str | Path = KIT_PROSE,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    sites: str | None = None,
    seed: int = 0,
    inputs: Iterable[object] = (),
    command: Sequence[str] = (),
    chat: Chat = AS_SEES_FIT,
) -> TuneResult:
    """Find the rule, the linear layers and the strength that remove most in a budget.

    The choice is made on one half of the prompts and reported on the other. An interrupted search
    continues where it stopped, also with more trials.

    Args:
        model: What `sordino.open_model` takes.
        concept: The labelled sentences, or a function that loads them once the output is known to
            be free.
        output: The folder for the page, the figures, the chosen intervention and the work.
        budget: What the intervention may cost, such as "divergence<=0.05" (nats per token),
            "perplexity<=+5%" or "zero-shot>=-1%".
        rules: The rules to try.
        trials: How many interventions to measure.
        toxicity: How toxicity is measured; None for two continuations of each of the kit's prompts.
        measures: Further measures of the reported interventions.
        attribution_per_class: The largest number of sentences per class for attribution, which
            contrast needs.
        texts: Ordinary texts for sizes and divergences.
        device: See `sordino.open_model`.
        dtype: See `sordino.open_model`.
        revision: See `sordino.open_model`.
        sites: See `sordino.open_model`.
        seed: Seed of all random choices.
        inputs: Files that the output must not replace.
        command: The command line that repeats it, for the page.
        chat: "on" puts sentences and prompts into the model's chat template, and scores replies.

    Raises:
        UserError: An input cannot be used.

    Example:
        >>> toxicity = sordino.Toxicity("prompts.txt", scorer="wordlist", new_tokens=2)
        >>> result = sordino.tune(
        ...     "tiny",
        ...     concept,
        ...     "tuned",
        ...     rules=["aura"],
        ...     trials=1,
        ...     toxicity=toxicity,
        ...     measures=[],
        ...     texts="prose.txt",
        ... )
        >>> result.page.name
        'tuned.html'
    """
    refuse_unloaded(concept)
    texts = str(texts)
    folder, read, limit = user_path(output), [model, *inputs], Budget.parse(budget)
    results, page, file = (
        claim_output(folder / name, kind, force=True, inputs=read)
        for name, kind in {
            "tuned.json": TUNED,
            "tuned.html": PAGE,
            "chosen.dampening.safetensors": DAMPENING,
        }.items()
    )
    judged = toxicity or Toxicity(continuations=2)
    if chat.use == "on":
        judged = replace(judged, chat=chat)
        measures = [one.in_chat(chat, "") or one for one in measures]
    settings = TuneSettings(
        limit,
        rules,
        trials,
        judged,
        tuple(measures),
        attribution_per_class,
    )
    ready = prepare_search(settings, texts, device=device, seed=seed)
    labelled = concept if isinstance(concept, Concept) else concept()
    ready.note_shared_sentences(labelled.source)
    ref = resolve(model, revision)
    if chat.use == "on":
        settings = _in_the_template_of(ref, chat, settings)
    lab = Lab(
        ref,
        labelled,
        folder / "work",
        device=device,
        dtype=dtype,
        seed=seed,
        texts=texts,
        sites=sites,
        chat=chat,
    )
    with only_one(results):
        tuned, chosen = search(lab, folder / "work", settings)
        if chosen is None:
            file.unlink(missing_ok=True)  # an earlier search's
        else:
            chosen.save(file, force=True)
        write_json(results, tuned.model_dump(mode="json"))
        bake = ["sordino", "bake", str(model), str(file), "-o", "quiet"]
        write_html(tuned_article(tuned, command, bake), page)
    return TuneResult(tuned, chosen, file, page, tuple(tuned_answer(tuned)))


def _in_the_template_of(ref: ModelRef, chat: Chat, settings: TuneSettings) -> TuneSettings:
    """The settings with the fingerprint of the model's chat template in every measure.

    Raises:
        UserError: The model has none.
    """
    template = template_of(ref)
    if template is None:
        raise UserError(f"{ref.name} has no chat template: leave out `chat=on`.")
    known = fingerprint_of(template)
    reported = tuple(one.in_chat(chat, known) or one for one in settings.reported)
    return replace(settings, toxicity=replace(settings.toxicity, template=known), reported=reported)
