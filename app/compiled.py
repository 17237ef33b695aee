"""The network compiled for the CPU by OpenVINO: the convolutions fused with what surrounds them, in fp32 or bf16.

`CompiledVAE` computes what a VAE made of torch's layers computes, and is used like it. Where the residual blocks are
in bfloat16 (`model.bf16`), so are those of the graph, and nothing else: each precision is written into the graph, none
is left to the compiler. One graph serves every batch size; a size is prepared when it is first seen.
"""

from __future__ import annotations

import importlib.util
from queue import SimpleQueue
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from model.bf16 import Bf16Block
from model.vae import LOG_SIGMA_MAX, LOG_SIGMA_MIN, VAE, Decoder, Encoder, ResidualBlock

NAME = "openvino"
Value = Any  # openvino.Node, and also openvino.Output


def is_available() -> bool:
    """Return whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def has_bf16() -> bool:
    """Return whether this processor multiplies in bfloat16; others only emulate it, slower than float32."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class CompiledVAE(VAE):
    """A VAE that computes what another one computes, by compiled graphs."""

    def __init__(self, vae: VAE, streams: int, encoder: nn.Module | None = None) -> None:
        """Compile the encoder and the decoder of ``vae``, which is on the CPU.

        Args:
            vae: with residual blocks in float32, or those of `model.bf16`.
            streams: batches that can run at the same time, each in the thread of its caller.
            encoder: a compiled encoder to use instead.

        Raises:
            TypeError: a layer is of a kind that is not known here.
        """
        nn.Module.__init__(self)
        self.config, self.likelihood, self.prior = vae.config, vae.likelihood, vae.prior
        config = vae.config
        shared = encoder or _Compiled(_encoder_graph(vae.encoder, config.image_shape), streams, 2)
        self.encoder = shared  # type: ignore[assignment]
        self.decoder = _Compiled(_decoder_graph(vae.decoder, config.latent_dim), streams, 1)  # type: ignore[assignment]


class _Compiled(nn.Module):
    """A graph of one input, in place of a module of torch."""

    def __init__(self, graph: Any, streams: int, outputs: int) -> None:
        super().__init__()
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # as written in the graph: nothing is rounded that is not so there
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": str(streams),
            "ENABLE_CPU_PINNING": "NO",
        }
        model = openvino.Core().compile_model(graph, "CPU", settings)
        self._outputs = outputs
        self._free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._free.put(model.create_infer_request())

    def forward(self, x: Tensor, precision: torch.dtype = torch.float32) -> Any:
        """Return the outputs for ``x``; ``precision`` is that of the graph, whatever is asked for."""
        request = self._free.get()
        try:
            results = request.infer([x.contiguous().numpy()], share_inputs=True)
        finally:
            self._free.put(request)
        tensors = tuple(torch.from_numpy(results[i]) for i in range(self._outputs))
        return tensors if self._outputs > 1 else tensors[0]


def _encoder_graph(encoder: Encoder, image_shape: tuple[int, int, int]) -> Any:
    """Return the graph of an encoder: ``(n, C, H, W)`` pixels to ``mu`` and ``log_sigma``, ``(n, D)`` each."""
    ops = _Ops()
    x = ops.input(image_shape)
    value = ops.o.space_to_depth(
        ops.o.subtract(ops.o.multiply(x, ops.fixed(2)), ops.fixed(1)), "depth_first", encoder.patch
    )
    value = ops.o.swish(ops.chain(value, encoder.trunk))
    hidden = ops.o.swish(ops.linear(ops.rows(value, encoder.hidden.in_features), encoder.hidden))
    raw, low, high = ops.linear(hidden, encoder.log_sigma), ops.fixed(LOG_SIGMA_MIN), ops.fixed(LOG_SIGMA_MAX)
    upper = ops.o.subtract(high, ops.o.softplus(ops.o.subtract(high, raw)))
    log_sigma = ops.o.add(low, ops.o.softplus(ops.o.subtract(upper, low)))  # model.vae.soft_clamp
    return ops.graph([ops.linear(hidden, encoder.mu), log_sigma], x)


def _decoder_graph(decoder: Decoder, latent_dim: int) -> Any:
    """Return the graph of a decoder: ``(n, D)`` latents to the raw output ``(n, C, H, W)``."""
    ops = _Ops()
    z = ops.input((latent_dim,))
    flat = ops.linear(ops.o.swish(ops.linear(z, decoder.hidden)), decoder.unfold)
    value = ops.shaped(flat, (decoder.widths[0], *decoder.cells))
    for stage, blocks in enumerate(decoder.stages):
        if stage:
            value = ops.doubled(ops.convolution(value, cast(nn.Conv2d, decoder.narrow[stage - 1])))
        bias = ops.shaped(ops.linear(z, cast(nn.Linear, decoder.bias[stage])), (decoder.widths[stage], 1, 1))
        value = ops.chain(ops.o.add(value, bias), cast(nn.Sequential, blocks))
    value = ops.convolution(ops.o.swish(value), decoder.output)
    return ops.graph([ops.o.depth_to_space(value, "depth_first", decoder.patch)], z)


class _Ops:
    """The network's layers as operations of a graph."""

    def __init__(self) -> None:
        import openvino
        from openvino import opset13

        self.o: Any = opset13
        self._openvino: Any = openvino

    def input(self, shape: tuple[int, ...]) -> Value:
        return self.o.parameter([-1, *shape], np.float32)

    def graph(self, outputs: list[Value], x: Value) -> Any:
        return self._openvino.Model([self.o.result(value) for value in outputs], [x], "network")

    def fixed(self, value: Tensor | float) -> Value:
        """Return a constant, in the precision of the tensor; one in bfloat16 is exact, as its float32 was rounded."""
        if not isinstance(value, Tensor):
            return self.o.constant(np.float32(value))
        constant = self.o.constant(value.detach().float().contiguous().numpy())
        return self.o.convert(constant, "bf16") if value.dtype is torch.bfloat16 else constant

    def rows(self, value: Value, length: int) -> Value:
        return self.shaped(value, (length,))

    def shaped(self, value: Value, shape: tuple[int, ...]) -> Value:
        return self.o.reshape(value, self.o.constant(np.array([-1, *shape], np.int64)), special_zero=False)

    def linear(self, value: Value, layer: nn.Linear) -> Value:
        product = self.o.matmul(value, self.fixed(layer.weight), False, True)
        bias: Tensor | None = layer.bias
        return product if bias is None else self.o.add(product, self.fixed(bias[None]))

    def convolution(self, value: Value, layer: nn.Conv2d) -> Value:
        pad, stride = list(layer.padding), list(layer.stride)
        product = self.o.convolution(value, self.fixed(layer.weight), stride, pad, pad, [1, 1])
        return self.o.add(product, self.fixed(cast(Tensor, layer.bias)[None, :, None, None]))

    def doubled(self, value: Value) -> Value:
        scales, axes = self.o.constant(np.array([2, 2], np.float32)), self.o.constant(np.array([2, 3], np.int64))
        nearest = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.o.interpolate(value, scales, "nearest", "scales", axes=axes, **nearest)

    def chain(self, value: Value, layers: nn.Sequential) -> Value:
        for layer in layers:
            value = self.convolution(value, layer) if isinstance(layer, nn.Conv2d) else self.block(value, layer)
        return value

    def block(self, value: Value, block: nn.Module) -> Value:
        """Add what a residual block adds; a block of `model.bf16` computes that in bfloat16."""
        if isinstance(block, Bf16Block):
            one = self.fixed(torch.ones((), dtype=torch.bfloat16))
            inner = self.o.convert(self.o.swish(value), "bf16")
            inner = self.convolution(self.o.swish(self.convolution(inner, block.first), one), block.second)
            return self.o.add(value, self.o.convert(inner, "f32"))
        if not isinstance(block, ResidualBlock):
            raise TypeError(f"got a layer {type(block).__name__} that has no operation in a graph")
        inner = self.o.swish(self.convolution(self.o.swish(value), block.first))
        return self.o.add(value, self.convolution(inner, block.second))
