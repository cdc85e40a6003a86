"""Open both sides, with one copy of the weights if the quiet side is an edit of the original."""

from collections.abc import Callable
from pathlib import Path

from sordino.chatting.conversation import SIDES, advise
from sordino.chatting.duet import Duet
from sordino.edits.provenance import (
    DAMPENING,
    extras_of,
    read_provenance,
)
from sordino.edits.record import Provenance
from sordino.errors import UserError
from sordino.evaluation.opening import open_scorer
from sordino.evaluation.scorer import Scorer
from sordino.files import has_suffix, user_path
from sordino.interventions import Dampening, compose
from sordino.models.chat_template import TemplateFailure, has_template, render
from sordino.models.open import OpenModel, choose_device, open_model
from sordino.models.reference import ModelRef, resolve
from sordino.outputs import RECORD
from sordino.progress import note

NO_SCORER = "none"


def open_duet(
    original: str,
    quiet: str,
    *,
    make: Callable[[OpenModel, Path], Dampening],
    plain: bool = False,
    scorer: str = "auto",
    toxic_label: str | None = None,
    judge_refusal: float | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> Duet:
    """Open a model and its quiet counterpart.

    Args:
        original: The original model.
        quiet: An expertise or a dampening file, a folder that was baked from the original, or
            another model.
        make: Makes a dampening from the original and an expertise or dampening file.
        plain: Ignore the tokenizer's chat template.
        scorer: What scores the answers; see `open_scorer`; "auto" as in an evaluation, or "none".
        toxic_label: The label of a text classifier that means toxic.
        judge_refusal: The score of a text that a server's model refuses to judge.
        device: See `open_model`.
        dtype: See `open_model`.
        revision: The original's revision on the hub.

    Raises:
        UserError: A model cannot be opened, or the file belongs to other weights.
    """
    judge = open_judge(scorer, toxic_label, judge_refusal, device)
    ref = resolve(original, revision)
    file = user_path(quiet)
    dampening, why_two, other = None, "", None
    if not file.exists() and has_suffix(file, ".safetensors"):
        raise UserError(f"{quiet} does not exist: pass a file that find or bake wrote.")
    if not is_edit_file(file):
        folder = _hooks_folder(file)
        other = None if folder else resolve(quiet)
        dampening, why_two = edit_between(ref, other.path if other else file)
        if other is None and dampening is None:
            raise UserError(f"{quiet} holds no weights and is not an edit of {original}. {why_two}")
    note(f"opening {ref.name}")
    first = open_model(ref, device=device, dtype=dtype)
    if is_edit_file(file):
        dampening = make(first, file)
        dampening.refuse_other_weights(ref)
    if dampening is None:
        assert other is not None
        note(f"opening {other.name}")
        second = open_model(other, device=device, dtype=dtype)
        about = other.name
    else:
        dampening.modules(first.model)  # raises if it does not fit
        second = first
        done = dampening.record.in_words.removesuffix(", strength 1")
        about = f"{quiet} ({done}), forward hooks on the original"
    plain = plain or not (has_template(first) and has_template(second))
    if not plain:
        for opened in [first] if second is first else [first, second]:
            _try_template(opened)
    return Duet(
        original=first,
        quiet=second,
        dampening=dampening,
        why_two=why_two if dampening is None else "",
        names=dict(zip(SIDES, (ref.name, about), strict=True)),
        plain=plain,
        scorer=judge,
    )


def _try_template(opened: OpenModel) -> None:
    """Render the chat template once, so that a broken one is reported at the start."""
    hello = [{"role": "user", "content": "Hello"}]
    try:
        render(opened, hello)
    except TemplateFailure as failure:
        if failure.endless:
            raise advise(failure) from None
        try:
            render(opened, hello, system="Be kind.")
        except TemplateFailure:
            raise advise(failure) from None
        note(f"{failure.sentence} without a pre-prompt")


def edit_between(ref: ModelRef, model: Path) -> tuple[Dampening | None, str]:
    """The dampening that turned one model into another.

    Args:
        ref: The original.
        model: A folder or a GGUF file.

    Returns:
        The dampening, composed of all edits, and ""; or None, and the reason in a sentence.
    """
    if not (model / RECORD).is_file() or not (model / DAMPENING).is_file():
        return None, f"{model} has no {DAMPENING}, which records the edit."
    weights = ref.weights_fingerprint()
    record: Provenance | None = read_provenance(model)
    place, made = extras_of(model), list[Dampening]()
    name = Path(DAMPENING).name
    while record is not None and (place / name).is_file():
        made.insert(0, Dampening.load(place / name))
        if record.model.weights_fingerprint == weights:
            return compose(made), ""
        record, place = record.earlier, place / "earlier"
    return None, f"By its record, {model} was made from other weights than those of {ref.name}."


def is_edit_file(path: Path) -> bool:
    """Whether a path can be an expertise or a dampening file."""
    return path.is_file() and not has_suffix(path, ".gguf")


def _hooks_folder(path: Path) -> bool:
    """Whether a folder holds an edit and no model."""
    return (path / DAMPENING).is_file() and not (path / "config.json").is_file()


def open_judge(
    name: str, toxic_label: str | None, judge_refusal: float | None, device: str
) -> Scorer | None:
    """Open the scorer, which happens before the models are opened.

    Raises:
        UserError: It is not available, or a setting is given where there is none.
    """
    if name == NO_SCORER:
        given = {"toxic_label": toxic_label, "judge_refusal": judge_refusal}
        if idle := [f"`{key}`" for key, value in given.items() if value is not None]:
            raise UserError(
                f"{' and '.join(idle)} set a scorer, and `scorer={NO_SCORER}` asks for none: leave "
                "one of them out."
            )
        return None
    scorer = open_scorer(
        name,
        toxic_label=toxic_label,
        judge_refusal=judge_refusal,
        device=choose_device(device),
    )
    note(f"judged by {scorer.name}")
    return scorer
