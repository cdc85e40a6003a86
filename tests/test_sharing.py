"""Pushing to a hub and taking from it, with the hub's own client and a hub on loopback."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import sordino
from conftest import sentences
from families import tiny_folder
from sordino import hub
from sordino.cli.app import main
from sordino.edits import bake, diff, read_provenance
from sordino.errors import UserError
from sordino.expertise import Expertise
from sordino.folders import Folders
from sordino.interventions import Dampening, aura
from sordino.models import open_model
from sordino.sharing import bundle, push
from stub_hub import DROP
from test_gguf_pieces import split
from tiny_gguf import tiny_gguf

NAME = "calm.expertise.safetensors"
EXTRAS = {f"sordino/{name}" for name in (NAME, "dampening.safetensors", "evaluation.json")}
EXTRAS |= {"sordino/recipe.toml", "sordino/report.html"}
SAMPLES = "sordino/evaluation.samples.jsonl"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run's output from a model and sentences whose folders have telling names, with spaces."""
    here = tmp_path_factory.mktemp("home of somebody") / "my secret models"
    model = tiny_folder("llama", here).rename(here / "tiny")
    config = json.loads((model / "config.json").read_text())
    config["_name_or_path"] = str(model)
    (model / "config.json").write_text(json.dumps(config))
    rows = [(text, 1) for text in sentences(20, 1)] + [(text, 0) for text in sentences(20, 2)]
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    (here / "calm.jsonl").write_text("\n".join(lines) + "\n")
    (here / "prompts.txt").write_text("\n".join(sentences(6, 3, longest=5)) + "\n")
    (here / "prose.txt").write_text("\n".join(sentences(6, 4)) + "\n")
    arguments = ["run", model, "--concept", here / "calm.jsonl", "-o", here / "quiet"]
    arguments += ["--prompts", here / "prompts.txt", "--texts", here / "prose.txt"]
    arguments += ["--scorer", "alt-profanity-check", "--continuations", "2", "--new-tokens", "4"]
    arguments += ["--beside", "shuffled", "--intervention", "aura"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sordino", *map(str, arguments)])
        main([*map(str, arguments)])
    return here


@pytest.fixture
def online(online, monkeypatch):
    """The hub on loopback, with a token that may write."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    return online


def pushed(made, name="org/quiet", **options):
    return push(made / "quiet", name, license="mit", **options)


def front(card: bytes):
    return yaml.safe_load(card.decode().split("---\n")[1])


def test_a_pushed_model_is_the_model_and_says_what_it_is(made, online, tmp_path):
    found = pushed(made, base_model="org/tiny", message="The first")
    files = online.files("org/quiet")
    repository = online.repositories["org/quiet"]
    assert not repository.private
    assert repository.messages[-1] == "The first"
    assert set(found.files) | {".gitattributes"} == set(files)
    assert set(found.files) >= EXTRAS | {"model.safetensors", "config.json", "sordino.json"}
    assert found.commit == repository.branches["main"]
    assert files["model.safetensors"] == (made / "quiet" / "model.safetensors").read_bytes()
    assert found.older == ()

    card = files["README.md"].decode()
    about = front(files["README.md"])
    assert about["license"] == "mit"
    assert about["base_model"] == "org/tiny"
    assert {"sordino", "aura", "calm"} <= set(about["tags"])
    for part in ("Perplexity", "95 % interval", "## Limits", "## How it was made", "seed"):
        assert part in card
    assert 'from_pretrained("org/quiet")' in card

    # What a stranger gets is a model that opens.
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert opened.config.model_type == "llama"


def test_nothing_pushed_names_a_folder_or_shows_a_text(made, online):
    found = pushed(made)
    files = online.files("org/quiet")
    texts = [*sentences(20, 1), *sentences(20, 2)]
    for name, data in files.items():
        for folder in ("secret models", "home of somebody", str(made), str(Path.home()) + "/"):
            assert folder.encode() not in data, (name, folder)
        if name.startswith("sordino/"):
            assert not [text for text in texts if text.encode() in data], name
    assert "clear" in found.left_out[SAMPLES]
    assert "continuations" in found.changed["sordino/report.html"]
    record = json.loads(files["sordino.json"])
    assert record["model"]["name"] == "tiny"
    recipe = tomllib.loads(files["sordino/recipe.toml"].decode())
    assert recipe["concept"] == "calm.jsonl"
    assert recipe["model"] == "tiny"
    page = files["sordino/report.html"].decode()
    assert "For comparison: shuffled" in page
    assert 'id="samples"' not in page


def test_samples_go_along_when_asked(made, online):
    found = pushed(made, samples=True)
    files = online.files("org/quiet")
    assert SAMPLES in files
    assert SAMPLES not in found.left_out
    assert b'id="samples"' in files["sordino/report.html"]


def test_what_is_left_out_of_the_output_is_said(made, online, tmp_path):
    quiet = shutil.copytree(made / "quiet", tmp_path / "quiet")
    (quiet / "sordino" / "diary.txt").write_text("dear diary")
    (quiet / "sordino" / "studies").mkdir()
    (quiet / "sordino" / "studies" / "a.json").write_text("{}")
    (quiet / ".cache").mkdir()
    found = push(quiet, "org/quiet", license="mit")
    left_out = {SAMPLES, "sordino/diary.txt", "sordino/studies/a.json", ".cache/"}
    assert left_out == set(found.left_out)
    assert not {"sordino/diary.txt", ".cache"} & set(online.files("org/quiet"))


def test_a_card_of_one_s_own_is_kept_and_its_folders_are_refused(made, online, tmp_path):
    quiet = shutil.copytree(made / "quiet", tmp_path / "quiet")
    (quiet / "README.md").write_text(
        "---\nlicense: apache-2.0\ntags: [mine]\n---\n\n# My own words\n"
    )
    push(quiet, "org/quiet")
    card = online.files("org/quiet")["README.md"]
    assert b"# My own words" in card
    assert front(card)["license"] == "apache-2.0"
    assert front(card)["tags"][:2] == ["mine", "sordino"]
    with (quiet / "README.md").open("a") as stream:
        stream.write(f"\nIt lies in {tmp_path.resolve()}/quiet.\n")
    with pytest.raises(UserError, match=r"README\.md names .* remove that"):
        push(quiet, "org/quiet")


def test_the_licence_is_the_original_s_or_asked_for(made, online, tmp_path):
    with pytest.raises(UserError, match=r"licence of tiny: pass it, as in `license="):
        push(made / "quiet", "org/quiet")
    online.put("org/tiny", {"README.md": b"---\nlicense: gemma\n---\n# Tiny\n"})
    push(made / "quiet", "org/quiet", base_model="org/tiny")
    assert front(online.files("org/quiet")["README.md"])["license"] == "gemma"
    quiet = shutil.copytree(made / "quiet", tmp_path / "quiet")
    (quiet / "README.base.md").write_text("---\nlicense: other\nlicense_name: house\n---\n# Tiny\n")
    push(quiet, "org/other")
    about = front(online.files("org/other")["README.md"])
    assert (about["license"], about["license_name"]) == ("other", "house")


def test_private_stays_private(made, online):
    pushed(made, private=True)
    assert online.repositories["org/quiet"].private
    online.repositories["org/quiet"].private = False
    before = online.repositories["org/quiet"].branches["main"]
    with pytest.raises(UserError, match=r"already and is public.* without `private`"):
        pushed(made, private=True, message="again")
    assert online.repositories["org/quiet"].branches["main"] == before


def test_a_branch_is_made_and_main_left_alone(made, online):
    pushed(made, revision="try")
    repository = online.repositories["org/quiet"]
    assert set(online.files("org/quiet")) == {".gitattributes"}
    assert "model.safetensors" in online.files("org/quiet", "try")
    pushed(made, revision="try")
    assert list(repository.branches) == ["main", "try"]


def test_the_same_again_uploads_nothing(made, online):
    first = pushed(made)
    online.put("org/quiet", online.files("org/quiet") | {"old.safetensors": b"old"})
    online.seen.clear()
    second = pushed(made)
    assert second.files == first.files
    assert second.older == ("old.safetensors",)
    assert online.asked("PUT", "lfs/") == []


def fails(part, failure, times=99, after=0):
    """A failure of requests whose path has a part, so often, after some that go well."""
    left = [after, times]

    def fail(_, path):
        if part not in path:
            return None
        if left[0]:
            left[0] -= 1
            return None
        left[1] -= 1
        return failure if left[1] >= 0 else None

    return fail


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        (
            fails("repos/create", (401, "Invalid token")),
            "`hf auth login`",
        ),
        (fails("repos/create", (403, "no rights")), r"may not write to org/quiet \(.*no rights"),
        (fails("preupload", (403, "no rights"), after=2), "files are missing"),
        (fails("lfs/", (500, "out of order")), r"Error while uploading|failed.*files are missing"),
        (fails("lfs/", DROP), r"failed .*files are missing"),
        (fails("objects/batch", (403, "Private storage quota exceeded")), "no storage left for"),
        (fails("objects/batch", (413, "too large")), "no storage left for"),
        (fails("/commit/", (500, "out of order")), "All files are uploaded, but not committed"),
        (fails("/commit/", DROP), "All files are uploaded, but not committed"),
    ],
)
def test_a_failed_push_shows_nothing_and_the_next_goes_on(fail, said, made, online):
    online.fail = fail
    with pytest.raises(UserError, match=said) as error:
        pushed(made)
    assert str(error.value).endswith("Run the same command again to continue.")
    assert "\n" not in str(error.value)
    here = online.repositories.get("org/quiet")
    assert here is None or set(here.at("main")[1]) == {".gitattributes"}
    stored = set(online.objects)
    online.fail = lambda method, path: None
    online.seen.clear()
    pushed(made)
    assert "model.safetensors" in online.files("org/quiet")
    again = {path.removeprefix("lfs/") for path in online.asked("PUT", "lfs/")}
    assert not again & stored


def test_a_stumble_is_got_over(made, online):
    online.fail = fails("lfs/", DROP, times=2)
    pushed(made)
    online.fail = fails("objects/batch", (503, "busy"), times=2)
    pushed(made, "org/more")
    assert online.files("org/more").keys() == online.files("org/quiet").keys()


def test_what_arrives_otherwise_is_found_out(made, online, monkeypatch):
    class Lying(dict):
        """A store that loses the last byte of what it is given."""

        def __getitem__(self, key):
            return super().__getitem__(key)[:-1]

    online.objects = Lying()
    with pytest.raises(UserError, match=r"safetensors does not match what was uploaded: .* bytes"):
        pushed(made)


def test_an_expertise_has_a_repository_and_stands_wherever_a_file_does(made, online, call_in):
    call = call_in(made)
    file = made / "quiet" / "sordino" / NAME
    status, out, err = call("push", file, "org/calm", "--license", "mit")
    assert status == 0, err
    assert "pushed and checked: 2 files" in out
    card = online.files("org/calm")["README.md"].decode()
    assert "hf:org/calm" in card
    assert "20 positive and 20 negative sentences" in card
    assert "secret" not in card
    shared = Expertise.load("hf:org/calm")
    local = Expertise.load(file)
    for site in local.sites:
        for statistic, values in local.statistics[site].items():
            np.testing.assert_array_equal(shared.statistics[site][statistic], values)
    assert shared.metadata["model"] == "tiny"
    assert shared.metadata["weights_fingerprint"] == local.metadata["weights_fingerprint"]

    status, out, _ = call("inspect", "hf:org/calm")
    assert status == 0
    assert "20 positive and 20 negative" in out
    assert call("bake", "tiny", "hf:org/calm", "-o", "baked", "--force")[0] == 0
    weights = [(made / name / "model.safetensors").read_bytes() for name in ("baked", "quiet")]
    assert weights[0] == weights[1]
    measure = ["--measure", "perplexity", "--texts", "prose.txt", "-o", "r.json", "--force"]
    assert call("evaluate", "tiny", "--dampening", "hf:org/calm", *measure)[0] == 0
    status, out, _ = call("diff", "hf:org/calm", file)
    assert status == 1  # their metadata differ, in the folder
    assert "0 changed" in out


def test_a_dampening_has_a_card_too(made, online, tmp_path):
    dampening = aura(Expertise.load(made / "quiet" / "sordino" / NAME))
    file = dampening.save(tmp_path / "calm.dampening.safetensors")
    push(file, "org/factors")
    found = Dampening.load("hf:org/factors")
    assert found.fingerprint == dampening.fingerprint
    assert "secret" not in json.dumps(found.record.as_json())
    assert b"aura" in online.files("org/factors")["README.md"]


def test_a_gguf_file_is_pushed_with_a_record_without_folders(made, online, tmp_path):
    original = tiny_gguf(made / "original.gguf")
    opened = open_model(original)
    metadata = {"concept": "calm", "model": str(original)}
    metadata["concept_source"] = f"{made}/calm.jsonl: positive where label is 1"
    factors = {site.path: np.full(site.neurons, 0.5, np.float32) for site in opened.sites}
    bake(original, Dampening(factors, "aura", expertise=metadata), tmp_path / "quiet.gguf")
    before = (tmp_path / "quiet.gguf").read_bytes()
    assert b"secret" in before
    push(tmp_path / "quiet.gguf", "org/gguf", license="mit")
    assert (tmp_path / "quiet.gguf").read_bytes() == before
    after = online.files("org/gguf")["quiet.gguf"]
    assert b"secret" not in after
    assert len(after) == len(before)
    (tmp_path / "got.gguf").write_bytes(after)
    record = read_provenance(tmp_path / "got.gguf")
    assert record.model.name == "original.gguf"
    assert record.expertise["concept_source"] == "calm.jsonl: positive where label is 1"
    assert diff(tmp_path / "quiet.gguf", tmp_path / "got.gguf").changed == ()
    assert front(online.files("org/gguf")["README.md"])["library_name"] == "gguf"


def test_a_baked_file_that_another_program_cut_is_pushed(made, online, tmp_path):
    original = tiny_gguf(made / "original.gguf")
    factors = {
        site.path: np.full(site.neurons, 0.5, np.float32) for site in open_model(original).sites
    }
    bake(original, Dampening(factors, "aura"), tmp_path / "quiet.gguf")
    pieces = split(tmp_path / "quiet.gguf", tmp_path / "cut", 3, name="quiet")
    push(pieces[0], "org/cut", license="mit")
    pushed = online.files("org/cut")
    assert b"secret" not in b"".join(pushed[piece.name] for piece in pieces)
    assert all(pushed[piece.name] == piece.read_bytes() for piece in pieces[1:])


def test_one_of_several_is_named_and_revisions_are_kept_apart(made, online):
    data = (made / "quiet" / "sordino" / NAME).read_bytes()
    commit = online.put("org/two", {"a.expertise.safetensors": data})
    online.put("org/two", {"a.expertise.safetensors": b"?", "b.expertise.safetensors": data})
    assert hub.fetch_if_shared(f"hf:org/two@{commit}").read_bytes() == data
    assert hub.fetch_if_shared("hf:org/two/b.expertise.safetensors").read_bytes() == data
    assert hub.fetch_if_shared(f"hf:org/two@{commit}/a.expertise.safetensors").read_bytes() == data
    for name, said in {
        "hf:org/two": "several files of that kind .* such as hf:org/two/a.expertise",
        "hf:org/two@v9": "org/two has no revision 'v9'",
        "hf:org/two/c": "org/two has no file c",
        "hf:org/none": "org/none is not a model repository",
        "hf:org": "hf:org does not name a file of the hub",
    }.items():
        with pytest.raises(UserError, match=said):
            hub.fetch_if_shared(name)
    online.put("org/empty", {"README.md": b""})
    with pytest.raises(UserError, match="has no expertise and no dampening"):
        hub.fetch_if_shared("hf:org/empty")
    online.fail = lambda method, path: (500, "out of order")
    hub.fetch_file.cache_clear()
    with pytest.raises(UserError, match="could not be downloaded from the hub"):
        hub.fetch_if_shared("hf:org/two")


def test_what_was_fetched_once_is_there_without_a_hub(made, online, monkeypatch):
    data = (made / "quiet" / "sordino" / NAME).read_bytes()
    online.put("org/calm", {NAME: data})
    hub.fetch_if_shared("hf:org/calm")
    hub.fetch_file.cache_clear()
    monkeypatch.setattr(hub, "reachable", lambda: False)
    assert hub.fetch_if_shared("hf:org/calm").read_bytes() == data
    with pytest.raises(UserError, match="is not in the hub's cache"):
        hub.fetch_if_shared("hf:org/other")


@pytest.mark.slow
def test_the_hub_is_found_by_the_environment(made, stub_hub, tmp_path):
    """The whole way in another process, as a user has it."""
    environment = {"HF_ENDPOINT": stub_hub.address, "HF_TOKEN": "hf_writer", "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "sordino", "push", "quiet", "org/quiet", "--license", "mit"]
    answer = subprocess.run(
        [*command, "--json"], cwd=made, env=os.environ | environment, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert (
        json.loads(answer.stdout)["commit"] == stub_hub.repositories["org/quiet"].branches["main"]
    )


def test_nothing_is_asked_of_the_hub_without_one_or_in_a_dry_run(made, stub_hub, call_in):
    call = call_in(made)
    status, out, _ = call("push", "quiet", "org/quiet", "--license", "mit", "--dry-run")
    assert status == 0
    assert "nothing was pushed; it would be" in out
    assert "model.safetensors" in out
    hub.reachable.cache_clear()
    status, _, err = call("push", "quiet", "org/quiet", "--license", "mit")
    assert status == 2
    assert "does not answer (or HF_HUB_OFFLINE is set)" in err
    assert stub_hub.seen == []


@pytest.mark.parametrize("subject", ["tiny", "nowhere", "calm.jsonl", "prose.txt"])
def test_what_sordino_did_not_write_is_not_pushed(subject, made, call_in):
    status, _, err = call_in(made)("push", subject, "org/x")
    assert status == 2
    assert "cannot be pushed" in err


PART = st.text("abcXYZ019 _.-", min_size=1, max_size=8).map(lambda t: f"x{t.strip()}x")


@given(st.lists(PART, min_size=2, max_size=5), st.sampled_from(["/", "~/", "../", "./"]))
def test_a_known_path_leaves_its_last_part(parts, start):
    path = start + "/".join(parts)
    folders = Folders([path])
    assert folders.without(path) == parts[-1]
    assert folders.without(f"{path}, train: text says") == f"{parts[-1]}, train: text says"
    assert folders.cleaned({"a": [path, 3, None]}) == {"a": [parts[-1], 3, None]}
    assert tomllib.loads(folders.recipe(f"# x\nmodel = {json.dumps(path)}\nn = 3\n")) == {
        "model": parts[-1],
        "n": 3,
    }


@pytest.mark.parametrize(
    "text",
    [
        *(
            "org/name",
            "hf:org/name@main/x.csv",
            "kit:smollm2",
            "nats/token",
            "and/or",
            "÷ 1.5; 2/3",
        ),
        *(
            "https://huggingface.co/a/b.html",
            "see http://localhost:8000/v1/models.",
            "a / b",
            "10 / 20",
        ),
        *("mlp.up_proj", "2026-11-25", "--scorer=hf:org/name", ""),
    ],
)
def test_what_is_no_path_stays(text):
    assert Folders([text]).without(text) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/me/a.csv: column text", "a.csv: column text"),
        ("read from /home/me/a.csv and ~/b/c.csv", "read from a.csv and c.csv"),
        ("file:///home/me/a.csv", "a.csv"),
        (r"C:\Users\me\a.csv", "a.csv"),
        ("--texts=/home/me/a.txt", "--texts=a.txt"),
    ],
)
def test_what_looks_like_a_path_loses_its_folders(text, left):
    assert Folders(()).without(text) == left


@pytest.mark.parametrize("how", ["absolute", "relative"])
@pytest.mark.parametrize("form", ["weights", "ia3", "hooks"])
def test_nothing_of_a_plain_bake_tells_where_it_was_made(how, form, tmp_path, monkeypatch):
    """The folders of a client, given from the root or from where one is, in no pushed byte."""
    secret, here = "nda-acme", tmp_path / "clients"
    model = tiny_folder("llama", here / "nda-acme").rename(here / "nda-acme" / "base")
    config = json.loads((model / "config.json").read_text())
    config["_name_or_path"] = f"/data/{secret}/x"
    config["text_config_of_old"] = {"_name_or_path": str(model), "cache_dir": f"~/{secret}/c"}
    config["quantised_on"] = f"/srv/{secret}/calibration.jsonl"
    (model / "config.json").write_text(json.dumps(config))
    (model / "LICENSE").write_text(f"Licensed to the owner of {model}.")
    monkeypatch.chdir(tmp_path)
    sites = open_model(model, device="cpu").sites
    factors = {site.path: np.full(site.neurons, 0.5, np.float32) for site in sites}
    name = str(model) if how == "absolute" else "clients/nda-acme/base"
    origin = {"concept": "calm", "model": name}
    origin["concept_source"] = f"{name}/calm.csv, train: positive where label is 1"
    bake(name, Dampening(factors, "aura", expertise=origin), "out", format=form)
    assert secret not in (tmp_path / "out/README.md").read_text()
    with bundle(tmp_path / "out", "org/x", license="mit") as found:
        for file, content in found.files.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            assert secret.encode() not in data, file
        assert ("LICENSE" in found.left_out) is (form == "weights")
        card = found.files["README.md"]
        assert b"base" in card
        assert front(card)["license"] == "mit"


@pytest.mark.parametrize("form", ["weights", "ia3", "hooks"])
def test_a_card_that_an_earlier_version_wrote_is_made_anew(form, tmp_path):
    """It named the original by its path."""
    model = tiny_folder("llama", tmp_path / "home of somebody").rename(tmp_path / "base")
    sites = open_model(model, device="cpu").sites
    factors = {site.path: np.full(site.neurons, 0.5, np.float32) for site in sites}
    dampening = Dampening(factors, "aura", expertise={"concept": "calm"})
    bake(model, dampening, tmp_path / "o", format=form)
    card = tmp_path / "o/README.md"
    old = card.read_text().replace("\nbase with the", f"\n{model} with the")
    assert str(model) in old
    card.write_text(old)
    with bundle(tmp_path / "o", "org/x", license="mit") as found:
        assert str(tmp_path).encode() not in found.files["README.md"]


def planted(made, tmp_path):
    """An output in whose folder someone has kept what is nobody's business."""
    quiet = shutil.copytree(made / "quiet", tmp_path / "quiet")
    (tmp_path / "secret.json").write_text('{"token": "hf_SECRET"}')
    names = ("credentials.json", "notes.txt", "conversation.json", "a.duckdb", "journal.jsonl")
    for name in (*names, "result.samples.jsonl", "x.py", "other.safetensors", "train/log.txt"):
        (quiet / name).parent.mkdir(exist_ok=True)
        (quiet / name).write_text("hf_SECRET")
    (quiet / ".env").write_text("hf_SECRET")
    for name in ("tokenizer.model", "NOTICE", "sordino/evaluation-x.json"):
        (quiet / name).symlink_to(tmp_path / "secret.json")
    (quiet / "sordino/evaluation-mine.json").write_text('{"token": "hf_SECRET"}')
    (quiet / "sordino/mine.expertise.safetensors").write_text("hf_SECRET")
    (quiet / "sordino/before").mkdir()
    (quiet / "sordino/before/config.json").write_text("hf_SECRET")
    os.mkfifo(quiet / "merges.txt")
    return quiet


@pytest.mark.parametrize("samples", [False, True])
def test_only_what_is_allowed_is_pushed_and_the_rest_is_listed(samples, made, tmp_path):
    quiet = planted(made, tmp_path)
    there = {
        path.relative_to(quiet).as_posix()
        for path in quiet.rglob("*")
        if not path.is_dir() and path.name != ".env"
    }
    with bundle(quiet, "org/x", license="mit", samples=samples) as found:
        for name, content in found.files.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            assert b"hf_SECRET" not in data, name
        assert set(found.files) | set(found.left_out) == there | {".env"}
        assert not set(found.files) & set(found.left_out)
        assert (SAMPLES in found.files) is samples
        assert json.loads(found.files["sordino.json"])["files"] == sorted(found.files)


def test_a_dry_run_lists_both_as_json(made, tmp_path, call_in):
    planted(made, tmp_path)
    call = call_in(tmp_path)
    status, out, _ = call("push", "quiet", "org/x", "--license", "mit", "--dry-run", "--json")
    assert status == 0
    said = json.loads(out)
    assert said["files"]["model.safetensors"] > 1000
    assert {"credentials.json", ".env", "NOTICE", "merges.txt", SAMPLES} <= said["left_out"].keys()
    assert all(said["left_out"].values())


def test_weights_behind_a_link_are_not_pushed(made, tmp_path):
    quiet = shutil.copytree(made / "quiet", tmp_path / "quiet")
    shutil.move(quiet / "model.safetensors", tmp_path / "x.safetensors")
    (quiet / "model.safetensors").symlink_to(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors is not a file of the folder"):
        push(quiet, "org/x", license="mit", dry_run=True)


def test_own_words_before_prompts_and_servers_are_not_pushed(made, tmp_path):
    quiet = shutil.copytree(made / "quiet", tmp_path / "quiet")
    file = quiet / "sordino/evaluation.json"
    found = json.loads(file.read_text())
    protocol = found["measures"]["toxicity"]["protocol"]
    protocol["pre_prompt_text"] = "You are the assistant of Acme."
    protocol["address"] = "http://me:pw@gpu17.acme.internal:8000/v1"
    found["after"]["name"] = r"\\fileserver\acme\quiet"
    file.write_text(json.dumps(found))
    with bundle(quiet, "org/x", license="mit") as pushed_files:
        for name, content in pushed_files.files.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            for word in (b"Acme", b"acme", b"gpu17", b"fileserver"):
                assert word not in data, (name, word)


@pytest.mark.parametrize("name", ["no spaces/allowed", "../x", "a/b/c", "x\n/y"])
def test_what_is_no_name_of_the_hub_is_refused(name, made):
    with pytest.raises(UserError, match="not a name on the hub"):
        push(made / "quiet", name, license="mit", dry_run=True)


def test_a_record_of_another_kind_is_refused_in_one_sentence(tmp_path):
    for text in ("[]", "{}", '{"format": "other"}', "{", '{"format": "sordino-provenance-1"}'):
        (tmp_path / "sordino.json").write_text(text)
        with pytest.raises(UserError, match=r"sordino\.json"):
            push(tmp_path, "org/x", license="mit", dry_run=True)


def test_an_attempt_leaves_no_staging_files(made, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError):
        push(made / "quiet", "org/x", dry_run=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("~alice/data/x.txt", "x.txt"),
        (r"\\server\share\x.csv", "x.csv"),
        ("read prompts:/home/me/x.txt here", "read prompts:x.txt here"),
        ("data/acme/x.jsonl", "x.jsonl"),
        ("http://gpu17:8000/v1", "a server"),
        ("asked HTTPS://u:p@host.internal/v1?key=1 twice", "asked a server twice"),
        ("https://arxiv.org/abs/1", "https://arxiv.org/abs/1"),
        ("http://[", "a server"),
    ],
)
def test_more_ways_to_name_a_place(text, left):
    assert Folders([text]).without(text) == left


def test_figures_on_data_sets_of_the_hub_are_listed_there(made, tmp_path, capsys):
    """By the hub's own reader; those on a file of somebody's are not, and that is said."""
    folder = tmp_path / "quiet"
    shutil.copytree(made / "quiet", folder)
    file = folder / "sordino/evaluation.json"
    record = json.loads(file.read_text())
    record["measures"]["toxicity"]["protocol"]["prompts"] = "hf:allenai/real-toxicity-prompts:train"
    file.write_text(json.dumps(record))
    with bundle(folder, "org/quiet", license="mit") as found:
        listed = {n: data for n, data in found.files.items() if n.startswith(".eval_results/")}
    assert set(listed) == {".eval_results/toxicity.yaml"}
    assert "not those of perplexity" in capsys.readouterr().err
    entries = parse_eval_result_entries(yaml.safe_load(listed[".eval_results/toxicity.yaml"]))
    figures = [f for f in record["measures"]["toxicity"]["figures"] if not f["detail"]]
    assert [entry.value for entry in entries] == [f["after"]["value"] for f in figures]
    assert len({entry.task_id for entry in entries}) == len(entries) > 1
    for entry, figure in zip(entries, figures, strict=True):
        assert entry.dataset_id == "allenai/real-toxicity-prompts"
        assert entry.source_url.startswith("https://huggingface.co/org/quiet/")
        assert entry.date == record["created"]
        for said in (
            figure["label"],
            "scorer alt-profanity-check",
            "seed 0",
            "split train",
            "n = ",
        ):
            assert said in entry.notes


def test_somebody_s_run_is_done_again_and_gives_the_same_figures(made, online, call_in):
    push(made / "quiet", "org/quiet", license="mit")
    call = call_in(made)  # where the recipe's files are
    status, out, error = call("reproduce", "hf:org/quiet", "-o", "mine")
    assert status == 0, error
    assert "apart" not in out
    found = json.loads((made / "mine/again.json").read_text())
    assert {each["verdict"] for each in found["figures"]} == {"same"}
    assert found["differences"] == []
    theirs = json.loads((made / "quiet/sordino/evaluation.json").read_text())["measures"]
    assert len(found["figures"]) == sum(len(m["figures"]) for m in theirs.values())
    # A folder does as well; what is there is only compared, and what differs is said.
    file = made / "mine/model/sordino/evaluation.json"
    record = json.loads(file.read_text())
    figure = record["measures"]["perplexity"]["figures"][0]
    figure["after"]["value"] *= 100
    record["measures"]["toxicity"]["figures"].pop()
    file.write_text(json.dumps(record))
    status, out, error = call("reproduce", "quiet", "-o", "mine", "--json")
    assert status == 0, error
    verdicts = [each["verdict"] for each in json.loads(out)["figures"]]
    assert (verdicts.count("apart"), verdicts.count("missing")) == (1, 1)
    status, _, error = call("reproduce", "tiny")
    assert status == 2
    assert "so it cannot be repeated" in error
    # With other settings it is another repetition.
    status, _, error = call("reproduce", "quiet", "-o", "mine", "--max-prompts", "3")
    assert status == 2
    assert "mine is of another run or other settings: choose another -o" in error


def test_a_run_whose_recipe_names_no_model_is_not_repeated(made, tmp_path, call_in):
    shutil.copytree(made / "quiet", tmp_path / "quiet")
    recipe = tmp_path / "quiet/sordino/recipe.toml"
    lines = recipe.read_text().splitlines()
    recipe.write_text("\n".join(line for line in lines if not line.startswith("model =")))
    status, _, error = call_in(tmp_path)("reproduce", "quiet", "-o", "again")
    assert status == 2
    assert "recipe.toml names no model: write a line like model =" in error


def test_a_run_of_a_gguf_file_is_done_again_too(made, online, call_in):
    """Its record is in the file, which is not fetched: a copy, the recipe and the figures are."""
    call = call_in(made)
    tiny_gguf(made / "small.gguf")
    status, _, error = call(
        *("run", "small.gguf", "--concept", "calm.jsonl", "-o", "small-quiet.gguf"),
        *("--prompts", "prompts.txt", "--texts", "prose.txt", "--scorer", "alt-profanity-check"),
        *("--continuations", "2", "--new-tokens", "4", "--intervention", "aura"),
    )
    assert status == 0, error
    push(made / "small-quiet.gguf", "org/small-quiet", license="mit")
    files = online.files("org/small-quiet")
    assert "sordino.json" not in files
    copy = json.loads(files["sordino/provenance.json"])
    assert copy.items() <= read_provenance(made / "small-quiet.gguf").as_json().items()
    status, _, error = call("reproduce", "hf:org/small-quiet", "-o", "small-again")
    assert status == 0, error
    found = json.loads((made / "small-again/again.json").read_text())
    assert {each["verdict"] for each in found["figures"]} == {"same"}
    assert found["differences"] == []
    assert diff(made / "small-quiet.gguf", made / "small-again/model.gguf").changed == ()
    # Who pushed without the copy of the record leaves something open, which is said.
    online.put("org/old", {k: v for k, v in files.items() if k != "sordino/provenance.json"})
    assert call("reproduce", "hf:org/old", "-o", "small-again")[0] == 0
    [difference] = json.loads((made / "small-again/again.json").read_text())["differences"]
    assert "was not fetched" in difference
    # Another file of the same name is said to be one.
    tiny_gguf(made / "small.gguf", seed=1)
    status, _, error = call("reproduce", "hf:org/small-quiet", "-o", "small-other")
    assert status == 0, error
    [difference] = json.loads((made / "small-other/again.json").read_text())["differences"]
    assert "weights" in difference
    assert "small.gguf" in difference


def test_the_function_repeats_a_run_of_a_file_and_says_what_differs(made, tmp_path, monkeypatch):
    """Also in the intervention and the sentences, whose record is in the file."""
    for name in ("calm.jsonl", "prompts.txt", "prose.txt"):
        shutil.copyfile(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    tiny_gguf(tmp_path / "small.gguf")
    arguments = [
        *("run", "small.gguf", "--concept", "calm.jsonl", "--texts", "prose.txt"),
        *("--measure", "perplexity", "--intervention", "aura", "-o", "quiet.gguf"),
    ]
    main(arguments)
    found, file = sordino.reproduce("quiet.gguf")
    assert file == Path("quiet-again/again.json")
    assert found.differences == ()
    assert {each.verdict for each in found.figures} == {"same"}
    assert json.loads(file.read_text()) == found.model_dump(mode="json")
    assert Path("quiet-again/model.gguf").read_bytes() == Path("quiet.gguf").read_bytes()
    recipe, again = (
        tomllib.loads(Path(name, "recipe.toml").read_text())
        for name in ("quiet.sordino", "quiet-again/model.sordino")
    )
    assert again == recipe
    (tmp_path / "other.jsonl").write_text(
        "".join(
            json.dumps({"text": text, "label": number % 2}) + "\n"
            for number, text in enumerate(sentences(44, 9))
        )
    )
    changes = sordino.Changes(concept="other.jsonl")
    assert sordino.reproduce("quiet.gguf", "b", changes)[0].differences == ("other sentences",)
    main([*arguments[:-1], "half.gguf", "--strength", "0.5"])
    shutil.copyfile("half.sordino/recipe.toml", "quiet.sordino/recipe.toml")
    [difference] = sordino.reproduce("quiet.gguf", "c")[0].differences
    assert "another intervention" in difference
    with pytest.raises(UserError, match=r"none\.gguf does not exist"):
        sordino.reproduce("none.gguf")
    Path("quiet.sordino/recipe.toml").unlink()
    with pytest.raises(UserError, match="cannot be repeated"):
        sordino.reproduce("quiet.gguf", "d")
