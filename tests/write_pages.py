"""Write what the pages' commands print and draw into the pages: ``python tests/write_pages.py [PAGE …]``.

For new weights, a new format, a changed command. Where a page already says what comes, but for the last digits of
numbers, nothing is changed.
"""

import sys
import tempfile
from pathlib import Path

from pages import PAGES, README, keep_pictures, rewritten, run, with_models
from service_process import Server


def main(pages: list[Path]) -> None:
    """Write the table of models, and run every page against a server of its own."""
    README.write_text(with_models(README.read_text()))
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "server.log", {"drain_delay_s": 0})
        try:
            server.wait_until_ready()
            for page in pages:
                here = Path(folder) / page.stem
                here.mkdir()
                text = page.read_text()
                page.write_text(rewritten(text, list(run(text, server.url, here))))
                keep_pictures(page, here)
                print(page)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main([Path(name).resolve() for name in sys.argv[1:]] or PAGES)
