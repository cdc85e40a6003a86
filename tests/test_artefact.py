import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from sordino.errors import UserError
from sordino.expertise.artefact import FORMAT, Expertise

SITE = "model.layers.0.mlp.up_proj"
METADATA = {
    "architecture": "A",
    "concept": "calm",
    "concept_fingerprint": "c",
    "model": "m",
    "n_negative": "20",
    "n_positive": "30",
    "weights_fingerprint": "w",
}


def example():
    generator = np.random.default_rng(0)
    return Expertise(
        {
            f"model.layers.{i}.mlp.up_proj": {
                "auroc": generator.random(7, np.float32),
                "strongest_1": generator.integers(0, 50, 7).astype(np.int32),
            }
            for i in (0, 1, 2, 10)  # an order that sorting by name would break
        },
        METADATA,
    )


def test_round_trip_keeps_order_values_and_metadata(tmp_path):
    saved = example()
    loaded = Expertise.load(saved.save(tmp_path / "x.expertise.safetensors"))
    assert loaded.sites == saved.sites
    assert loaded.metadata == METADATA
    for site, by_name in saved.statistics.items():
        for name, values in by_name.items():
            np.testing.assert_array_equal(loaded.statistics[site][name], values)
            assert loaded.statistics[site][name].dtype == values.dtype


def test_any_safetensors_reader_reads_it(tmp_path):
    path = example().save(tmp_path / "x.expertise.safetensors")
    tensors = load_file(path)
    assert tensors["model.layers.10.mlp.up_proj.auroc"].shape == (7,)


def test_same_content_same_bytes(tmp_path):
    files = [example().save(tmp_path / f"{i}.safetensors").read_bytes() for i in range(8)]
    assert len(set(files)) == 1


def test_top_is_sorted_and_ties_keep_the_model_s_order():
    expertise = Expertise(
        {
            "b": {"auroc": np.array([0.5, 0.9, np.nan], np.float32)},
            "a": {"auroc": np.array([0.9, 0.7], np.float32)},
        },
        {},
    )
    in_order = [("b", 1), ("a", 0), ("a", 1), ("b", 0)]
    assert [(s, i) for s, i, _ in expertise.top(4)] == in_order
    assert [(s, i) for s, i, _ in expertise.top(5)] == in_order  # one has no AUROC


def test_an_existing_file_is_not_replaced(tmp_path):
    path = example().save(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="force=True"):
        example().save(path)
    example().save(path, force=True)


def tampered(tmp_path, tensors=None, metadata=None, drop=()):
    path = tmp_path / "bad.safetensors"
    good = load_file(example().save(tmp_path / "good.safetensors", force=True))
    data = {**METADATA, "format": FORMAT, "sites": json.dumps(list(example().sites))}
    data |= metadata or {}
    save_file({**good, **(tensors or {})}, path, {k: v for k, v in data.items() if k not in drop})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": ["format"]}, "not an expertise file of this version"),
        ({"metadata": {"format": "sordino-expertise-9"}}, "not an expertise file of this version"),
        ({"drop": ["concept", "model"]}, "metadata model"),
        ({"drop": ["n_positive"]}, "metadata n_positive"),
        ({"metadata": {"n_positive": "many"}}, "metadata n_positive"),
        ({"metadata": {"pooling": "most"}}, "metadata pooling"),
        ({"drop": ["sites"]}, "metadata sites"),
        ({"metadata": {"sites": "["}}, "metadata sites"),
        ({"metadata": {"sites": "[]"}}, "metadata sites"),
        ({"metadata": {"sites": "[1]"}}, "metadata sites,.*0: "),
        ({"metadata": {"sites": json.dumps([*example().sites, SITE])}}, "a site twice"),
        ({"tensors": {"elsewhere.auroc": np.zeros(3, np.float32)}}, "belongs to no listed site"),
        ({"tensors": {f"{SITE}.auroc": np.zeros((7, 1), np.float32)}}, r"shape \[7, 1\]"),
        ({"tensors": {f"{SITE}.auroc": np.zeros(7, np.float64)}}, "dtype F64"),
        ({"tensors": {f"{SITE}.auroc": np.zeros(7, np.int32)}}, "dtype int32"),
        ({"tensors": {f"{SITE}.strongest_1": np.full(7, 50, np.int32)}}, "strongest_1"),
        ({"tensors": {f"{SITE}.reached_negative": np.full(7, -1, np.int32)}}, "reached_negative"),
        ({"tensors": {f"{SITE}.auroc": np.zeros(6, np.float32)}}, "lacks statistics of"),
        ({"tensors": {f"{SITE}.auroc": np.full(7, 1.5, np.float32)}}, "AUROC outside"),
    ],
)
def test_damage_is_named(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        Expertise.load(tampered(tmp_path, **change))


def test_missing_file_and_missing_statistic(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Expertise.load(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="no 'cost'"):
        example()["cost"]


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError):
        Expertise.load(path)


@given(st.integers(1, 30), st.text(max_size=400))
def test_an_expertise_is_shown_in_one_line(sites, model):
    statistics = {
        f"layers.{n}.up": {
            "auroc": np.zeros(1000, np.float32),
            "strongest_1": np.zeros(1000, np.int32),
            "strongest_2": np.zeros(1000, np.int32),
        }
        for n in range(sites)
    }
    shown = repr(Expertise(statistics, {"concept": "bridges", "model": model}))
    assert len(shown.splitlines()) == 1
    assert len(shown) <= 200
    assert shown.startswith("Expertise('bridges'")
    assert "array" not in shown
    if len(model) < 20 and model.isascii() and model.isprintable():
        counted = f"{sites} site" if sites == 1 else f"{sites} sites"
        assert f"{sites},000 neurons of {counted}; auroc, strongest)" in shown
