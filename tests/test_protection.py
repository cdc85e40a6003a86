"""Texts that an edit must leave: they join the clean side of attribution, and the cost."""

import numpy as np
import pytest

from sordino.concepts.concept import Concept
from sordino.errors import UserError
from sordino.evaluation import Perplexity, prepare
from sordino.evaluation.measures.bold import PROTECTED, protected_texts, read_bold
from sordino.expertise.artefact import Expertise
from sordino.expertise.attribution import AttributionSettings, passages
from sordino.expertise.find import find_experts
from sordino.expertise.statistic import Statistic
from sordino.interventions import dampen
from sordino.options.groups import SweepOptions
from test_chat_find import opened_with, sentences


def test_protected_texts_join_the_clean_side_by_their_tokens(tmp_path):
    opened = opened_with(folder=tmp_path)
    concept, protected = sentences(20), tuple(f"people of the north {n}" for n in range(20))
    other = Concept("other", concept.positive, protected)
    plain = AttributionSettings(per_class=20)
    with_protection = AttributionSettings(per_class=20, protected=protected)

    def tokens(of, settings):
        return sum(
            p.counted
            for p in passages(opened, of, settings, 128, 400)
            if p.of is not Statistic.POSITIVE
        )

    alone, there, both = (
        find_experts(opened, of, attribution=settings)
        for of, settings in ((concept, plain), (other, plain), (concept, with_protection))
    )
    own, theirs = tokens(concept, plain), tokens(other, plain)
    assert tokens(concept, with_protection) == own + theirs
    for site in both.sites:
        negative, protecting, joined = (
            found[Statistic.NEGATIVE][site] for found in (alone, there, both)
        )
        mean = (negative * own + protecting * theirs) / (own + theirs)
        np.testing.assert_allclose(joined, mean, atol=1e-6)
        np.testing.assert_array_equal(
            alone[Statistic.POSITIVE][site], both[Statistic.POSITIVE][site]
        )
        assert (alone[Statistic.COST][site] != both[Statistic.COST][site]).any()
    assert both.metadata["n_protected"] == "20"
    assert "n_protected" not in alone.metadata
    before, after = (dampen(found, "contrast").factors for found in (alone, both))
    assert any((before[site] != after[site]).any() for site in before)


def test_without_its_protection_it_is_the_plain_expertise(tmp_path):
    opened = opened_with(folder=tmp_path)
    protected = tuple(f"people of the north {n}" for n in range(20))
    alone, both = (
        find_experts(opened, sentences(20), attribution=AttributionSettings(20, 0, texts))
        for texts in ((), protected)
    )
    without = both.unprotected()
    assert without.metadata == alone.metadata
    for site, of in alone.statistics.items():
        assert without.statistics[site].keys() == of.keys()
        for name, values in of.items():
            np.testing.assert_array_equal(without.statistics[site][name], values)
    path = both.save(tmp_path / "x.expertise.safetensors")
    assert Expertise.load(path).unprotected()[Statistic.COST].keys() == set(alone.sites)
    with pytest.raises(UserError, match="has no 'attribution_negative_unprotected'"):
        alone.unprotected()


def test_a_neuron_that_protected_texts_need_is_spared_more(tmp_path):
    """Protecting the positive sentences themselves leaves contrast less and less to take away."""
    opened = opened_with(folder=tmp_path)
    concept = sentences(20)
    plain, protecting = (
        find_experts(opened, concept, attribution=AttributionSettings(20, 0, texts))
        for texts in ((), concept.positive * 20)
    )

    def apart(found):
        return sum(
            float(np.abs(found[Statistic.POSITIVE][s] - found[Statistic.NEGATIVE][s]).sum())
            for s in found.sites
        )

    assert apart(protecting) < apart(plain) / 5


def test_protection_without_attribution_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"protect.*attribution"):
        SweepOptions(protect=("groups",)).attributing(0)
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(f"text {n}" for n in range(50)))
    found = SweepOptions(attribution=True, protect=(str(file),), attribution_per_class=30)
    assert len(found.attributing(0).protected) == 30


def test_what_is_measured_is_not_protected(tmp_path):
    file, measured = tmp_path / "texts.txt", tmp_path / "measured.txt"
    lines = [f"text {n}" for n in range(50)]
    file.write_text("\n".join(lines))
    measured.write_text("\n".join(line.replace(" ", "  ") for line in lines[:30]))
    ready = prepare([Perplexity(str(measured))], compared=True, device="cpu")
    assert ready.texts == set(lines[:30])
    # As many as are wanted of the others, and all of them where there are fewer.
    for most in (12, 40):
        found = protected_texts(str(file), most, 0, ready.texts)
        assert len(found) == min(most, 20)
        assert set(found) <= set(lines[30:])
    settings = AttributionSettings(20, protected=tuple(lines))
    assert settings.apart_from(ready.texts).protected == tuple(lines[30:])
    assert settings.apart_from(()) == settings
    for refused in (
        lambda: protected_texts(str(file), 12, 0, set(lines)),
        lambda: settings.apart_from(lines),
    ):
        with pytest.raises(UserError, match="measured as well"):
            refused()


@pytest.mark.slow
def test_the_groups_are_bolds_people_evenly():
    texts = protected_texts("groups", 120, 0)
    assert len(texts) == len(set(texts)) == 120
    domains = {text.text: text.domain for text in read_bold("kit")}
    assert {domains[text] for text in texts} == set(PROTECTED)
