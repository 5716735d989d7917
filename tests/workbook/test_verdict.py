"""Every word of a verdict is computed: planted results, and the words that must come of them."""

import pytest

from makelib.workbook.reports.verdict import CLAIMS, claims, judgement, sentence, verdict

COSTS = {
    "title": {"parameters": 100.0, "megaflops_per_product": 2.0, "seconds": 10.0},
    "full": {"parameters": 150.0, "megaflops_per_product": 6.0, "seconds": 25.0},
}


def row(pair, difference, p_value=0.001, segment="all", metric="Rel@10", **more):
    study, variant, reference = pair
    return {
        "study": study, "variant": variant, "reference": reference, "metric": metric, "segment": segment, "mean": 0.5,
        "difference": difference, "difference_interval": [difference - 0.01, difference + 0.01], "p_value": p_value,
        "smallest_difference": 0.02, "p_equivalence": 0.9, **more,
    }  # fmt: skip


IMAGES, MA, KE = ("make", "adaptive", "title"), ("modal_adaptation", "adaptive", "mean"), ("make", "full", "adaptive")
WHOLE = ("make", "full", "title")


def test_all_better():
    rows = [row(IMAGES, 0.05), row(MA, 0.02), row(KE, 0.01), row(WHOLE, 0.06), row(WHOLE, 0.04, segment="1 word")]
    images, parts, price = verdict(rows, "shop", COSTS)
    assert images == (
        "On shop, looking at the images makes search better: +5.0 [+4.0, +6.0] points of Rel@10 (p = 0.001), adaptive against title."
    )
    assert parts.startswith(
        "Modal Adaptation adds +2.0 [+1.0, +3.0] points of Rel@10 (p = 0.001), adaptive against mean; "
    )
    assert "Keyword Enhancement adds +1.0 [+0.0, +2.0]" in parts
    assert price == (
        "All of it costs 1.5 times the parameters, 3.0 times the operations per product and 2.5 times the training time of titles "
        "alone; no kind of query is significantly hurt."
    )


def test_worse_and_hurting_a_segment():
    rows = [
        row(IMAGES, -0.03), row(MA, 0.02), row(KE, -0.01), row(WHOLE, -0.04),
        row(WHOLE, -0.06, 0.001, "title-led"), row(WHOLE, -0.02, 0.04, "2 words"), row(WHOLE, 0.03, 0.5, "image-led"),
    ]  # fmt: skip
    images, parts, price = verdict(rows, "shop", COSTS)
    assert "looking at the images makes search worse: −3.0 [−4.0, −2.0]" in images
    assert "Keyword Enhancement takes away −1.0" in parts
    # corrected over three segments, .04 is no finding
    assert price.endswith("; it hurts these queries: title-led (−6.0 [−7.0, −5.0]).")


def test_unclear_says_what_could_have_been_seen_and_alike_says_so():
    rows = [row(IMAGES, 0.01, 0.3), row(MA, 0.001, 0.8, p_equivalence=0.01), row(KE, 0.01, 0.2)]
    images, parts, price = verdict(rows, "shop")
    assert "this run cannot tell whether looking at the images makes search better: +1.0" in images
    assert "it could have seen ±2.0" in images
    assert "Modal Adaptation adds nothing that counts: +0.1" in parts
    assert "Keyword Enhancement adds nothing that this run could tell from chance: +1.0" in parts
    assert price == "What it costs was not measured; whom it hurts was not looked at."


def test_what_did_not_run_is_said():
    images, parts, _ = verdict([], "shop")
    assert images == "On shop, this run did not compare search with and without images."
    assert (
        parts == "Modal Adaptation was compared with nothing else; Keyword Enhancement was compared with nothing else."
    )


@pytest.mark.parametrize(
    ("difference", "p_value", "holm", "said"),
    [
        (0.1, 0.001, None, "better"),
        (-0.1, 0.001, None, "worse"),
        (0.1, 0.05, None, "unclear"),
        (0.1, 0.01, 0.06, "unclear"),
        (0.1, None, None, "not tested"),
        (0.1, float("nan"), None, "not tested"),
    ],
)
def test_judgement_goes_by_the_corrected_p(difference, p_value, holm, said):
    assert judgement(row(IMAGES, difference, p_value, p_value_holm=holm)) == said


def test_a_sentence_holds_its_numbers():
    assert sentence(row(IMAGES, -0.03, 0.0004)) == (
        "adaptive is worse than title: −3.0 [−4.0, −2.0] points of Rel@10, p < 0.001."
    )
    assert sentence(row(IMAGES, 0.01, 0.3)).endswith("p = 0.30; it could have seen ±2.0.")


def test_claims_are_supported_by_significant_gains_only():
    joint = ("modal_adaptation", "adaptive", "joint")
    rows = [row(joint, 0.02), row(joint, -0.02, metric="HitRate@100"), row(("make", "full", "adaptive"), 0.01, 0.2)]
    found = {claim["claim"]: claim for claim in claims(rows)}
    assert len(found) == len(CLAIMS)
    relevance = found["Modal Adaptation finds more relevant products"]
    assert (relevance["paper"], relevance["ours"], relevance["verdict"]) == ("+1.88 %", 0.02, "supported")
    assert found["Modal Adaptation finds the clicked product more often"]["verdict"] == "not supported"
    unclear = found["Keyword Enhancement adds to Modal Adaptation"]
    assert unclear["verdict"] == "not supported"
    assert unclear["change"] == "more seeds and more queries (it could have seen ±2.0 points)"
    online = found["Online, results become more relevant"]
    assert (online["verdict"], online["ours"]) == ("cannot be tested here", None)
    assert "notebook 07" in online["change"]
