"""MLServer: V2 protocol, adaptive batching, two workers; the protocol's way for a PNG is base64 in JSON.

mlserver start FOLDER, with the settings that bench.contenders writes there
"""

from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from bench.peers import network


class Encoder(MLModel):
    """Input ``images``, BYTES of shape (N, 1); outputs ``mu`` and ``sigma``, FP32 of shape (N, D)."""

    async def load(self) -> bool:
        """Load the network, in each worker."""
        self.encode = network.load()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return the posterior of each image of a batch."""
        mu, sigma = self.encode(Base64Codec.decode_input(payload.inputs[0]))
        outputs = [NumpyCodec.encode_output("mu", mu), NumpyCodec.encode_output("sigma", sigma)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
