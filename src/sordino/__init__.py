"""Dampen a concept in a language model.

The chain of `docs/design.md`, in which each step gives a value that can be saved and passed on::

    concept = sordino.load_concept("insults")
    expertise = sordino.find_experts("kit:smollm2", concept, output="x.expertise.safetensors")
    dampening = sordino.aura(expertise)
    sordino.bake("kit:smollm2", dampening, "quiet")
    evaluation = sordino.evaluate("quiet", against="kit:smollm2")

`sordino.run` does all of it and writes a report.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sordino.errors import UserError
from sordino.version import __version__

# If a repository of the hub has no safetensors, transformers would ask a public service to convert
# its pickle, with the user's token. Nothing is ever sent there.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"

# PyTorch then asks Linux for huge pages where a tensor has 2 MiB or more. Each pass gets such
# memory anew, and where pages are small, their first touch can take longer than the arithmetic.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if not os.environ.get("SOURCE_DATE_EPOCH", "unset").strip():
    # Container builds leave it empty, at which numpy.f2py, which SciPy imports, would fail.
    del os.environ["SOURCE_DATE_EPOCH"]

if TYPE_CHECKING:
    from sordino.concepts import Concept, load_concept
    from sordino.edits import diff, undo, verify
    from sordino.evaluation import Evaluation, Perplexity, Toxicity, hooked
    from sordino.evaluation.judged import Judged
    from sordino.evaluation.own_samples import OwnPlan
    from sordino.examination import Finding, doctor
    from sordino.expertise import (
        AttributionSettings,
        Expertise,
        OwnSettings,
        SweepSettings,
        plan_find,
    )
    from sordino.interventions import (
        Affine,
        Dampening,
        aura,
        compose,
        contrast,
        damp,
        dampen,
        det_zero,
        intervention,
        linear_transport,
        mean_shift,
        selective,
        shuffled,
        stratified,
    )
    from sordino.jobs.chat import chat
    from sordino.jobs.evaluate import evaluate
    from sordino.jobs.find import find_experts
    from sordino.jobs.inspect import Inspection, inspect
    from sordino.jobs.replay import ReplayResult, replay
    from sordino.jobs.study import StudyResult, study
    from sordino.jobs.tune import TuneResult, tune
    from sordino.models import OpenModel, Site, open_model
    from sordino.models.chat import Chat
    from sordino.pipeline import RunResult, RunSettings, run
    from sordino.replaying import ReplaySettings
    from sordino.report.explorer import Explored, explore
    from sordino.reproduction.again import Again
    from sordino.reproduction.changes import Changes
    from sordino.reproduction.comparison import Reproduction
    from sordino.reproduction.reproduce import reproduce
    from sordino.sharing import Pushed, push
    from sordino.studies import Plan
    from sordino.tuning.baking import bake, make_dampening

__all__ = [
    "Affine",
    "Again",
    "AttributionSettings",
    "Changes",
    "Chat",
    "Concept",
    "Dampening",
    "Evaluation",
    "Expertise",
    "Explored",
    "Finding",
    "Inspection",
    "Judged",
    "OpenModel",
    "OwnPlan",
    "OwnSettings",
    "Perplexity",
    "Plan",
    "Pushed",
    "ReplayResult",
    "ReplaySettings",
    "Reproduction",
    "RunResult",
    "RunSettings",
    "Site",
    "StudyResult",
    "SweepSettings",
    "Toxicity",
    "TuneResult",
    "UserError",
    "__version__",
    "aura",
    "bake",
    "chat",
    "compose",
    "contrast",
    "damp",
    "dampen",
    "det_zero",
    "diff",
    "doctor",
    "evaluate",
    "explore",
    "find_experts",
    "hooked",
    "inspect",
    "intervention",
    "linear_transport",
    "load_concept",
    "make_dampening",
    "mean_shift",
    "open_model",
    "plan_find",
    "push",
    "replay",
    "reproduce",
    "run",
    "selective",
    "shuffled",
    "stratified",
    "study",
    "tune",
    "undo",
    "verify",
]

_HOMES = {
    "concepts": ("Concept", "load_concept"),
    "edits": ("diff", "undo", "verify"),
    "evaluation": ("Evaluation", "Perplexity", "Toxicity", "hooked"),
    "expertise": ("AttributionSettings", "Expertise", "OwnSettings", "SweepSettings", "plan_find"),
    "evaluation.judged": ("Judged",),
    "evaluation.own_samples": ("OwnPlan",),
    "interventions": (
        *("Affine", "Dampening", "aura", "compose", "contrast", "damp", "dampen", "det_zero"),
        *("intervention", "linear_transport", "mean_shift", "selective", "shuffled", "stratified"),
    ),
    "examination": ("Finding", "doctor"),
    "jobs.chat": ("chat",),
    "jobs.evaluate": ("evaluate",),
    "jobs.find": ("find_experts",),
    "jobs.inspect": ("Inspection", "inspect"),
    "jobs.replay": ("ReplayResult", "replay"),
    "jobs.study": ("StudyResult", "study"),
    "jobs.tune": ("TuneResult", "tune"),
    "models": ("OpenModel", "Site", "open_model"),
    "models.chat": ("Chat",),
    "pipeline": ("RunResult", "RunSettings", "run"),
    "replaying": ("ReplaySettings",),
    "report.explorer": ("Explored", "explore"),
    "reproduction.again": ("Again",),
    "reproduction.changes": ("Changes",),
    "reproduction.comparison": ("Reproduction",),
    "reproduction.reproduce": ("reproduce",),
    "sharing": ("Pushed", "push"),
    "studies": ("Plan",),
    "tuning.baking": ("bake", "make_dampening"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch is not loaded for `--help`."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'sordino' has no attribute '{name}'")
    return getattr(import_module(f"sordino.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
