"""Every command and picture of the tutorials and of the API's examples: it runs as printed, and gives what is shown."""

import json
from pathlib import Path

import pytest
from pages import PAGES, Block, Output, blocks, pictures, rewritten, run, same_picture, shortened
from service_process import ROOT, Server


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_command_of_a_page_runs_as_printed_and_gives_what_is_shown(
    path: Path, server: Server, tmp_path: Path
) -> None:
    page = path.read_text()
    for output in run(page, server.url, tmp_path):
        assert output.agrees, f"{path.relative_to(ROOT)} shows\n{output.shown.text}\nbut there came\n{output.got}"
    for name in pictures(page):
        assert same_picture(path.parent / "pictures" / name, tmp_path / name), name


def test_every_picture_is_shown_somewhere() -> None:
    shown = {name for path in PAGES for name in pictures(path.read_text())}
    assert {path.name for path in (ROOT / "docs" / "tutorials" / "pictures").iterdir()} == shown


def test_every_json_block_of_these_pages_is_the_output_of_a_command() -> None:
    for path in PAGES:
        found = blocks(path.read_text())
        for before, block in zip([Block("", "", 0), *found], found, strict=False):
            if block.language in ("json", "text"):
                assert before.language in ("bash", "python"), f"{path.name}: {block.text}"


@pytest.mark.parametrize(
    ("language", "shown", "got", "agrees"),
    [
        ("text", "kl  25.31\n", "kl 25.312\n", True),
        ("text", "kl 25.3 of 4", "kl 27.3 of 4", False),
        ("text", "kl 25.3 of 4", "kl 25.3 of 5", False),
        ("text", "kl 25.3", "kl 25.3 26.1", False),
        ("text", "a-1.0", "b-1.0", False),
        ("json", '{"mu": [[0.5, …]], "n": 3}', '{"mu": [[0.501, 7, 8]], "n": 3}', True),
        ("json", '{"mu": [[0.5, …]]}', '{"mu": [[0.6, 7]]}', False),
        ("json", '{"mu": [1.0]}', '{"mu": [1.0], "sigma": [1.0]}', False),
        ("json", '{"image": "iVBO…"}', '{"image": "iVBORw0"}', True),
        ("json", '{"image": "iVBO…"}', '{"image": "R0lG"}', False),
        ("json", '{"n": 3}', '{"n": 4}', False),
    ],
)
def test_outputs_agree_but_for_the_last_digits(language: str, shown: str, got: str, agrees: bool) -> None:
    assert Output(Block(language, shown, 0), got).agrees is agrees


def test_a_page_is_rewritten_only_where_it_is_wrong() -> None:
    page = "```bash\na\n```\n\n```text\n1.00\n```\n\n```bash\nb\n```\n\n```json\n{}\n```\nend\n"
    right, wrong = (block for block in blocks(page) if block.language != "bash")
    got = json.dumps({"mu": [[1.5] * 32] * 3, "image": "x" * 200})
    new = rewritten(page, [Output(right, "1.01"), Output(wrong, got)])
    answer = '{"mu": [[1.5, 1.5, 1.5, 1.5, …], [1.5, 1.5, 1.5, 1.5, …], …],\n "image": "' + "x" * 40 + '…"}'
    assert new == page.replace("{}", answer)
    assert Output(blocks(new)[3], got).agrees
    assert shortened([]) == "[]"
