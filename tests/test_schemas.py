"""JSON bodies: what the models take, and what they say about it."""

import pytest
from pydantic import ValidationError

from app.schemas import (
    MAX_COVARIANCE,
    Body,
    Distribution,
    EncodeOut,
    ImagesIn,
    ImagesOut,
    KlIn,
    KlOut,
    LatentsIn,
    ModelOut,
    Problem,
    SampleOut,
    ScoreOut,
)

BODIES = (ImagesIn, LatentsIn, Distribution, KlIn)
ANSWERS = (EncodeOut, ImagesOut, SampleOut, KlOut, ScoreOut, ModelOut, Problem)


@pytest.mark.parametrize("model", BODIES, ids=lambda model: model.__name__)
def test_bodies_are_strict_and_show_their_form(model: type[Body]) -> None:
    assert model.model_config["extra"] == "forbid"
    assert model.model_config["strict"] is True
    assert model.form
    with pytest.raises(ValidationError, match="extra_forbidden"):
        model.model_validate_json('{"surprise": 1}')


@pytest.mark.parametrize("model", [*BODIES, *ANSWERS], ids=lambda model: model.__name__)
def test_every_model_has_a_schema_and_a_docstring_for_the_document(model: type[Body]) -> None:
    schema = model.model_json_schema()
    assert schema["description"] == model.__doc__
    assert schema["properties"]


def test_items_may_be_files_planes_and_stacks_of_planes_in_any_mixture() -> None:
    body = ImagesIn.model_validate_json('{"images": ["aGk=", [[0, 0.5]], [[[1, 0.25]]], []]}')
    assert body.images == ["aGk=", [[0.0, 0.5]], [[[1.0, 0.25]]], []]


def test_integers_are_numbers() -> None:
    assert LatentsIn.model_validate_json('{"z": [[1, -2, 3.5]]}').z == [[1.0, -2.0, 3.5]]


@pytest.mark.parametrize("number", ["true", '"1"', "null", "[1]", "{}", "NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("form", ['{{"z": [[{}]]}}', '{{"images": [[[{}]]]}}', '{{"p": {{"probs": [{}]}}}}'])
def test_what_is_no_finite_number_is_refused_wherever_one_is_read(form: str, number: str) -> None:
    if "images" in form and number == "[1]":
        return  # that is a stack of planes
    model = {"z": LatentsIn, "i": ImagesIn, "p": KlIn}[form[3]]
    with pytest.raises(ValidationError):
        model.model_validate_json(form.format(number))


def test_wrong_lists_stop_at_their_first_error() -> None:
    rows = ",".join(['["x","y"]'] * 1000)
    for text, model in ((f'{{"z": [{rows}]}}', LatentsIn), (f'{{"images": [[{rows}],[{rows}]]}}', ImagesIn)):
        with pytest.raises(ValidationError) as caught:
            model.model_validate_json(text)
        assert caught.value.error_count() == 1


def test_full_covariance_has_a_cap_of_its_own() -> None:
    row = [0.0] * MAX_COVARIANCE
    assert len(Distribution.model_validate({"mean": [0.0], "cov": [row]}).cov[0]) == MAX_COVARIANCE
    for cov in ([[*row, 0.0]], [[0.0]] * (MAX_COVARIANCE + 1)):
        with pytest.raises(ValidationError, match="too_long"):
            Distribution.model_validate({"mean": [0.0], "cov": cov})


def test_fields_that_were_sent_can_be_told_from_those_that_were_not() -> None:
    body = KlIn.model_validate_json('{"p": {"probs": []}, "q": {"mean": [1], "std": [1]}}')
    assert body.model_fields_set == {"p", "q"}
    assert (body.p.model_fields_set, body.q.model_fields_set) == ({"probs"}, {"mean", "std"})
