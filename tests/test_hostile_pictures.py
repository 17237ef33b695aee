"""Bombs: small files that would cost much, and files that are no images; refused or read, at next to no cost."""

import base64
import json
import time
from collections.abc import Callable, Iterator

import pytest
from hostile_pictures import harmless, jpeg_of_scans, refused
from inside import Inside, Reply, check_refusal, inside
from procfs import forget_peak, peak, resident
from service_pictures import ink, png

MAX_CPU_S, MAX_BYTES = 0.05, 8_000_000
GENEROUS = 5  # times the processor time, for processors that have other things to do
IMAGE_ROUTES = ("/encode", "/reconstruct", "/score?samples=1", "/kl")
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def service() -> Iterator[Inside]:
    with inside() as running:
        for _ in range(20):
            running.ask("POST", "/encode", {"content-type": "image/png"}, png(ink()))
        yield running


def forms(data: bytes) -> Iterator[tuple[dict[str, str], bytes]]:
    """Yield the ways in which a file can be sent."""
    yield {"content-type": "image/png"}, data
    yield {"content-type": "image/jpeg"}, data
    part = b'--XX\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    yield {"content-type": "multipart/form-data; boundary=XX"}, part + data + b"\r\n--XX--\r\n"
    text = base64.b64encode(data).decode()
    for broken in (text, f"{text[:4]}\n{text[4:]}"):
        yield {"content-type": "application/json"}, json.dumps({"images": [broken]}).encode()


def measured(service: Inside, target: str, headers: dict[str, str], body: bytes) -> tuple[Reply, float, int]:
    """Return the answer, the processor seconds and the most bytes above those held before, beyond the body itself."""
    forget_peak()
    before, begin = resident(), time.process_time()
    reply = service.ask("POST", target, headers, body)
    return reply, time.process_time() - begin, peak() - before - len(body)


@pytest.mark.parametrize("name", refused())
def test_a_file_built_to_hurt_is_refused_in_every_form_before_it_costs_anything(service: Inside, name: str) -> None:
    data, status = refused()[name]
    for headers, body in forms(data):
        if headers["content-type"] == "application/json" and len(body) > 5_000_000:
            continue  # the size of the body is what costs there
        reply, cpu_s, more = measured(service, "/encode", headers, body)
        assert reply.status == status, (headers, reply.body)
        check_refusal(reply)
        assert cpu_s < GENEROUS * MAX_CPU_S, headers
        assert more < MAX_BYTES + 3 * len(body), headers
    service.assert_unharmed()


@pytest.mark.parametrize("name", harmless())
def test_a_bomb_beside_the_pixels_is_never_opened(service: Inside, name: str) -> None:
    data = harmless()[name]
    kind = "image/jpeg" if data[:2] == b"\xff\xd8" else "image/png"
    reply, cpu_s, more = measured(service, "/encode", {"content-type": kind}, data)
    assert reply.status == 200, reply.body
    assert cpu_s < GENEROUS * MAX_CPU_S
    assert more < MAX_BYTES + 3 * len(data)
    service.assert_unharmed()


@pytest.mark.parametrize("target", IMAGE_ROUTES)
def test_every_route_that_reads_images_refuses_them(service: Inside, target: str) -> None:
    for name in ("giant PNG", "lying JPEG", "JPEG of 5,000 scans", "SVG"):
        data, status = refused()[name]
        reply = service.ask("POST", target, {"content-type": "image/png"}, data)
        assert reply.status == status
        check_refusal(reply)


@pytest.mark.slow
@pytest.mark.usefixtures("takes_minutes")
def test_what_the_dearest_files_cost(service: Inside, record_property: Record) -> None:
    most_cpu, most_bytes = 0.0, 0
    corpus = {name: data for name, (data, _) in refused().items()} | harmless()
    for data in corpus.values():
        for target in IMAGE_ROUTES:
            kind = "image/jpeg" if data[:2] == b"\xff\xd8" else "image/png"
            _, cpu_s, more = measured(service, target, {"content-type": kind}, data)
            most_cpu, most_bytes = max(most_cpu, cpu_s), max(most_bytes, more)
    record_property("files", len(corpus))
    record_property("dearest, ms of processor time", round(most_cpu * 1e3, 1))
    record_property("largest, MB of memory beyond the file", round(most_bytes / 1e6, 1))
    _, cpu_s, _ = measured(service, "/encode", {"content-type": "image/jpeg"}, jpeg_of_scans(90))
    record_property("a JPEG of 100 scans, which is read, ms", round(cpu_s * 1e3, 1))
    service.assert_unharmed()
