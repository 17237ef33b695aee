"""Which media type comes in and which goes out."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import NotAcceptable, UnsupportedMediaType
from app.negotiation import IMAGE_TYPES, LATENT_TYPES, Format, choose_format, input_type

PICTURES = (Format.JSON, Format.NPY, Format.SAFETENSORS, Format.PNG)
TENSORS = (Format.JSON, Format.NPY, Format.SAFETENSORS)
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/png,*/*;q=0.8"
SAFARI = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
IMG_TAG = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, Format.JSON),
        ("", Format.JSON),
        ("*/*", Format.JSON),
        ("application/json", Format.JSON),
        ("application/*", Format.JSON),
        ("image/png", Format.PNG),
        ("image/*", Format.PNG),
        ("application/x-npy", Format.NPY),
        ("application/x-safetensors", Format.SAFETENSORS),
        ("APPLICATION/X-NPY", Format.NPY),
        (" application/x-npy ; q=0.5 , application/json;q=0.4", Format.NPY),
        ("application/json;q=0.4, application/x-npy;q=0.5", Format.NPY),
        ("application/json;charset=utf-8", Format.JSON),
        ("*/*;q=0.1, application/x-safetensors", Format.SAFETENSORS),
        ("application/*, application/json;q=0", Format.NPY),
        ("*/*, application/*;q=0.1", Format.PNG),
        ("*/*, application/*;q=0", Format.PNG),
        ("*/*;q=0, image/png", Format.PNG),
        ("image/png;q=0.1, application/json;q=0.9", Format.JSON),
        ("image/png, application/json", Format.PNG),
        ("image/webp, application/json", Format.JSON),
        ("image/png;q=0, */*", Format.JSON),
        (FIREFOX, Format.PNG),
        (SAFARI, Format.PNG),
        (IMG_TAG, Format.PNG),
        ("text/html, application/json;q=0.1", Format.JSON),
        ("application/x-npy;q=abc, application/json;q=0.9", Format.NPY),
        ("application/x-npy;q=2, application/json;q=0.9", Format.NPY),
        ("application/x-npy;level=1;q=0.1, application/json;q=0.9", Format.JSON),
        ("application/x-npy;;q=, application/json;q=0.9", Format.NPY),
        ("json, nonsense,,;;", Format.JSON),
    ],
)
def test_accept_decides_with_qualities_and_specificity(accept: str | None, chosen: Format) -> None:
    assert choose_format(accept, None, PICTURES) is chosen


def test_route_without_pictures_answers_a_browser_in_json() -> None:
    assert choose_format(FIREFOX, None, TENSORS) is Format.JSON


@pytest.mark.parametrize("name", ["npy", "NPY", " npy "])
def test_format_parameter_overrides_accept(name: str) -> None:
    assert choose_format("image/png;q=1, */*;q=0", name, PICTURES) is Format.NPY


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        ("image/png", None),
        ("text/html", None),
        ("*/*;q=0", None),
        ("*/*;q=0.0", None),
        ("application/json;q=0", None),
        ("image/*, text/*", None),
        ("*/*", "png"),
        ("*/*", "xml"),
        ("*/*", ""),
    ],
)
def test_what_cannot_be_written_is_406_and_lists_types_and_names(accept: str, name: str | None) -> None:
    with pytest.raises(NotAcceptable) as caught:
        choose_format(accept, name, TENSORS)
    assert caught.value.code == "not_acceptable"
    for form in TENSORS:
        assert f"{form.media_type} (format={form.value})" in caught.value.detail
    assert "image/png" not in caught.value.detail


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("*/;=,.q019 \tjsonapplication-x"), max_size=60) | st.text(max_size=40))
def test_any_accept_header_gives_an_offered_format_or_406(accept: str) -> None:
    with suppress(NotAcceptable):
        assert choose_format(accept, None, PICTURES) in PICTURES


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("image/png", "image/png"),
        ("IMAGE/PNG", "image/png"),
        ("application/json; charset=utf-8", "application/json"),
        (' multipart/form-data ; boundary="x;y"', "multipart/form-data"),
    ],
)
def test_content_types_are_read_in_any_case_with_parameters(content_type: str, kind: str) -> None:
    assert input_type(content_type, b"", IMAGE_TYPES) == kind


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"\x93NUMPY\x01\x00", "application/x-npy"),
        (b'{"images": []}', "application/json"),
        (b"", "application/json"),
        (b"GIF89a", "application/json"),
    ],
)
@pytest.mark.parametrize("content_type", [None, "", "  ", ";charset=utf-8"])
def test_missing_content_type_is_sniffed(body: bytes, kind: str, content_type: str | None) -> None:
    assert input_type(content_type, body, IMAGE_TYPES) == kind


@pytest.mark.parametrize(
    "content_type",
    ["application/octet-stream", "application/x-www-form-urlencoded", "image/gif", "json", "\x00", "text/plain"],
)
def test_other_content_types_are_415_and_list_those_that_are_read(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType) as caught:
        input_type(content_type, b"\x89PNG\r\n\x1a\n", IMAGE_TYPES)
    assert caught.value.headers == {"Accept-Post": ", ".join(IMAGE_TYPES)}
    assert all(kind in caught.value.detail for kind in IMAGE_TYPES)


def test_image_sent_where_latents_are_read_is_415() -> None:
    with pytest.raises(UnsupportedMediaType) as caught:
        input_type("image/png", b"", LATENT_TYPES)
    assert caught.value.headers["Accept-Post"] == "application/json, application/x-npy, application/x-safetensors"
    with pytest.raises(UnsupportedMediaType):
        input_type(None, b"\x89PNG\r\n\x1a\n", LATENT_TYPES)
