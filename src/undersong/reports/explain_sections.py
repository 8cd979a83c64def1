"""What the page of an explanation says, in order: where it moved, what that says, what the base says then, weights."""

from __future__ import annotations

from undersong.reports import explain_figures as figures
from undersong.reports import explain_tables as tables
from undersong.reports import wording as say
from undersong.reports.explain_tables import Found
from undersong.reports.parts import Section, flat, given, table_of


def sections(found: Found) -> tuple[Section, ...]:
    """The parts of the page; a part without anything in it is left out."""
    return given(_shift(found), _lens(found), _steering(found), _weights(found), _again(found))


def _said(found: Found, explainer: str) -> str:
    return say.visible(next(one["sentence"] for one in found["explanations"] if one["explainer"] == explainer))


def _shift(found: Found) -> Section | None:
    told = tables.of(found, "activation_shift")
    if told is None:
        return None
    lead = (_said(found, "activation_shift"),
            f"Read after every layer at the end of {told['prompts']} ordinary prompts, where the first token of the answer "
            "is chosen" + (f", and at the first {told['answer']} tokens of the base's answer." if told["answer"] else "."))
    return Section("shift", "Where it moved", lead, figures=given(figures.shift(found)), more="Every layer in numbers",
                   more_tables=given(tables.layers(found)))


def _lens(found: Found) -> Section | None:
    told = tables.of(found, "logit_lens")
    if told is None:
        return None
    lead = [_said(found, "logit_lens"),
            "The logit lens reads the state of a layer as if it were the last: through the final norm and the unembedding. "
            f"Shown is what adding the shift to {told['states']} of the base's own states does to the chance of each token.",
            "Early layers speak another language than the last, so their tokens mean less."]
    if told["placebos"]:
        lead.append("What placebo students shift on average is taken off; the lens of the whole shift is folded away below.")
    folded = given(tables.overall(found), tables.lens(found), tables.lens(found, "whole") if "own" in told else None)
    return Section("lens", "What the shift says", tuple(lead), figures=given(figures.tokens(found)),
                   more="All tokens in numbers", more_tables=folded)


def _steering(found: Found) -> Section | None:
    told = tables.of(found, "steering")
    if told is None:
        return None
    lead = (_said(found, "steering"), say.visible(told["rule"]))
    return Section("steering", "What it makes the base say", lead, tables=given(tables.words(found), tables.texts(found)),
                   more="Every layer and scale", more_tables=given(tables.steering(found), tables.scales(found)))


def _weights(found: Found) -> Section | None:
    if tables.of(found, "weight_change") is None:
        return None
    return Section("weights", "Which weights moved", (_said(found, "weight_change"),), figures=given(figures.weights(found)),
                   more="Tensors in numbers", more_tables=given(tables.weights(found)))


def _again(found: Found) -> Section | None:
    settings = [("model", f"{found['model']['name']} ({found['model']['fingerprint']})"),
                ("base", f"{found['base']['name']} ({found['base']['fingerprint']})"), ("seed", str(found["seed"])),
                ("seconds", f"{found['seconds']:,.1f}")]
    settings += [(f"{one['explainer']}: seconds", f"{one['seconds']:,.1f}") for one in found["explanations"]]
    settings = [(name, say.visible(value)) for name, value in settings]
    skipped = [(say.visible(one["explainer"]), say.visible(one["says"])) for one in found["skipped"]]
    return Section("reproduce", "Make it again", command=say.visible(found.get("command", "")), tables=given(
        table_of("Did not run", ("explainer", "why"), skipped), table_of("Settings", ("what", "value"), settings)),
        more="Environment", more_tables=given(table_of("Environment", ("what", "value"), flat(found["environment"]))))
