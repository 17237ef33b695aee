"""Naive FastAPI: ``def`` endpoints, one image a call, no batching; what most tutorials end with.

uvicorn --factory bench.peers.naive:create_app
"""

from io import BytesIO
from typing import Annotated

import numpy as np
from fastapi import Body, FastAPI
from fastapi.responses import Response
from PIL import Image

from bench.peers import network


def create_app() -> FastAPI:
    """Return the application with its model loaded."""
    encode_files, draw = network.load(), network.load_sample()
    app = FastAPI()

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/encode")
    def encode(body: Annotated[bytes, Body(media_type="image/png")]) -> dict[str, list[list[float]]]:
        mu, sigma = encode_files([body])
        return {"mu": mu.tolist(), "sigma": sigma.tolist()}

    @app.get("/sample")
    def sample(n: int = 64) -> Response:
        columns = int(np.ceil(np.sqrt(n)))
        images = draw(n)
        height, width = images.shape[1:]
        sheet = Image.new("L", (columns * width, -(-n // columns) * height))
        for i, image in enumerate(images):
            sheet.paste(Image.fromarray(image), (i % columns * width, i // columns * height))
        file = BytesIO()
        sheet.save(file, "PNG")
        return Response(file.getvalue(), media_type="image/png")

    return app
