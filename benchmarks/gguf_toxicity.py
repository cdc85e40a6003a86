"""Toxicity of the kit's GGUF files in a real llama.cpp, as they are and dampened: docs/formats.md.

    python -m venv llama && llama/bin/pip install xllamacpp
    SORDINO_LLAMA_PYTHON=llama/bin/python python -m benchmarks.gguf_toxicity

Each file goes GGUF to GGUF (`sordino find` and `sordino bake`, with the rule that is recommended);
then llama.cpp's own server continues the same prompts from both, and the continuations are scored.
What is done is kept in the output's folder, and the same command goes on from there. It ends in
NAME.json for each model and table.md for all.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sordino import kit
from sordino.evaluation import Endpoint, Evaluation, Toxicity, evaluate
from sordino.evaluation.endpoint import Access
from sordino.evaluation.evaluator import Arm
from sordino.evaluation.measures.toxicity import KIT_PROMPTS
from sordino.files import new_file
from sordino.models.reference import resolve

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from llama_server import llama_cpp, serving

_CONTEXT = 512


def main() -> None:
    """What is there already is kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("demo/gguf"), help="the folder")
    parser.add_argument("--models", nargs="+", default=["smollm2", "gemma3"], help="of the kit")
    parser.add_argument("--prompts", type=int, default=300, help="how many, at most")
    parser.add_argument("--continuations", type=int, default=5, help="of each prompt")
    parser.add_argument("--per-class", type=int, help="sentences of each class; all if not given")
    parser.add_argument("--divergence", default="0.05", help="the size of the change")
    parser.add_argument("--scorer", default="alt-profanity-check")
    given = parser.parse_args()
    if llama_cpp() is None:
        raise SystemExit(
            "There is no llama.cpp: pip install xllamacpp, here or where the Python interpreter "
            "that SORDINO_LLAMA_PYTHON names finds it."
        )
    given.output.mkdir(parents=True, exist_ok=True)
    results = {name: measured(name, given) for name in given.models}
    with new_file(given.output / "table.md", force=True) as target:
        target.write_text(table(results), encoding="utf-8")
    print((given.output / "table.md").read_text(encoding="utf-8"))


def measured(name: str, given: argparse.Namespace) -> Evaluation:
    """One model's figures: dampened, served twice, compared."""
    folder, source = given.output, kit.model_file(name)
    expertise, quiet = folder / f"{name}.expertise.safetensors", folder / f"{name}.gguf"
    if not expertise.exists():
        per_class = given.per_class or 400
        command = ["find", source, "--concept", "insults", "--attribution", "-o", expertise]
        command += ["--attribution-per-class", per_class]
        sordino(*command, *(["--max-per-class", given.per_class] if given.per_class else []))
    if not quiet.exists():
        rule = "--intervention", "contrast", "--divergence", given.divergence
        sordino("bake", source, expertise, *rule, "-o", quiet)
    output = folder / f"{name}.json"
    if output.exists():
        return Evaluation.load(output)
    toxicity = Toxicity(
        prompts=KIT_PROMPTS,
        max_prompts=given.prompts,
        continuations=given.continuations,
        scorer=(given.scorer,),
    )
    return evaluate(
        served(quiet, f"{name}, dampened", folder),
        served(source, f"{name}, original", folder),
        measures=[toxicity],
        device="cpu",
        output=output,
    )


def sordino(*arguments: object) -> None:
    """Run a command of Sordino's."""
    subprocess.run([sys.executable, "-m", "sordino", *map(str, arguments)], check=True)


def served(model: Path, name: str, folder: Path) -> Arm:
    """A GGUF file behind llama.cpp's server, which runs as long as it is asked."""

    @contextmanager
    def opened() -> Iterator[Endpoint]:
        log = folder / f"{model.stem}.server.log"
        with serving(model, model.stem, log, _CONTEXT) as address:
            # One request at a time, so that the same call gives the same texts.
            yield Endpoint(address, access=Access(concurrency=1))

    fingerprint = f"llama.cpp: {resolve(model).weights_fingerprint()}"
    return Arm(f"{name} in llama.cpp", "", fingerprint, opened)


def table(results: dict[str, Evaluation]) -> str:
    """Of every model each figure before and after, and the change with its interval."""
    lines = ["| | before | after | change | 95 % interval | n |", "|---|--:|--:|--:|--:|--:|"]
    for name, result in results.items():
        lines += [
            f"| {name}: {row.label} | {row.before} | {row.after} | {row.change} | {row.interval} "
            f"| {row.n} |"
            for row in result.table()
            if not row.figure.detail
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
