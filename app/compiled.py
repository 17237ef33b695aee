"""The network compiled for the CPU by OpenVINO: the convolutions fused with what surrounds them, in fp32 or bf16.

`CompiledVAE` computes what a VAE made of torch's layers computes, and is used like it. Where convolutions are in
bfloat16 (`model.bf16`), so are those of the graph, and nothing else: each precision is written into the graph, none
is left to the compiler. A graph is compiled for one batch size, and a batch is put together from a few sizes: graphs of
any size are slower, and round to bfloat16 by cutting off.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from queue import LifoQueue
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.eager import fill
from app.lines import Columns
from model.bf16 import MixedBlock
from model.likelihood import Bernoulli
from model.vae import LOG_SIGMA_MAX, LOG_SIGMA_MIN, VAE, Decoder, Encoder, ResidualBlock

NAME = "openvino"
ENCODER_SIZES = (1, 4, 8, 16, 32)
DECODER_SIZES = (1, 8, 32)  # each costs 10 MiB, and single images are encoded more often than decoded
SHARED = 8  # from this size on, streams share what is compiled; a third of the speed of a single row would be lost
ALL, FIRST, LAST = slice(None), slice(0, 1), slice(-1, None)  # of a graph's outputs
Value = Any  # openvino.Node, and also openvino.Output


def is_available() -> bool:
    """Return whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def has_bf16() -> bool:
    """Return whether this processor multiplies in bfloat16; others only emulate it, slower than float32."""
    return "BF16" in _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _openvino() -> Any:
    """Return the package, imported without the one that would report its use to its makers, over the network."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed
    import openvino
    import openvino.opset13

    return openvino


class CompiledVAE(VAE):
    """A VAE that computes what another one computes, by compiled graphs."""

    def __init__(
        self,
        vae: VAE,
        streams: int,
        encoder_sizes: tuple[int, ...] = ENCODER_SIZES,
        decoder_sizes: tuple[int, ...] = DECODER_SIZES,
        encoder: CompiledGraphs | None = None,
    ) -> None:
        """Compile the encoder and the decoder of ``vae``, which is on the CPU.

        Args:
            vae: with residual blocks in float32, or those of `model.bf16`.
            streams: batches that can run at the same time, each in the thread of its caller.
            encoder_sizes: numbers of rows for which there are graphs of the encoder.
            decoder_sizes: and of the decoder.
            encoder: compiled graphs of an encoder to use instead.

        Raises:
            TypeError: a layer is of a kind that is not known here.
        """
        nn.Module.__init__(self)
        self.config, self.likelihood, self.prior = vae.config, vae.likelihood, vae.prior
        self._means = logits = isinstance(vae.likelihood, Bernoulli)
        self.graphs = (
            encoder
            or CompiledGraphs(partial(_encoder_graph, vae.encoder, vae.config.image_shape), streams, encoder_sizes),
            CompiledGraphs(partial(_decoder_graph, vae.decoder, vae.config.latent_dim, logits), streams, decoder_sizes),
        )

    def encode(self, x: Tensor, precision: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return the posterior's ``mu`` and ``sigma``; ``precision`` is that of the graphs, whatever is asked for."""
        mu, sigma, _ = self.graphs[0](x.numpy())
        return torch.from_numpy(mu), torch.from_numpy(sigma)

    def encode_with_kl(self, x: NDArray[np.float32]) -> Columns:
        """Return ``mu``, ``sigma`` and ``KL[q(z|x) || N(0, I)]`` in nats, ``(N,)``, about 1e-6 off: for a histogram.

        Arrays, as each operation of torch lets go of Python's lock, for which the event loop is waiting.
        """
        return self.graphs[0](x)

    def decode(self, z: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
        """Return the likelihood's raw parameters; ``precision`` as for :meth:`encode`."""
        return torch.from_numpy(self.graphs[1](z.numpy(), FIRST)[0])

    def mean_images(self, z: NDArray[np.float32]) -> Columns:
        """Return the mean images of latents ``z (N, D)``, ``(N, C, H, W)`` in 0..1, as the only column.

        Torch computes the last elements of a tensor by other instructions than the rest, so that the rounding of a
        sigmoid would depend on how many rows there are; it is in the graph for that reason, as is that of sigma.
        """
        (found,) = self.graphs[1](z, LAST)  # the sigmoid, where there is one
        return (found if self._means else self.likelihood.mean(torch.from_numpy(found)).numpy(),)

    def use_only(self, sizes: Collection[int]) -> None:
        """Compute every batch by the graphs of these sizes, where any of them is left."""
        for graphs in self.graphs:
            graphs.sizes = tuple(size for size in graphs.sizes if size in sizes) or graphs.sizes[-1:]


class CompiledGraphs:
    """Graphs of one function for some sizes of batch; ``sizes`` are those in use."""

    def __init__(self, build: Callable[[_Ops, int], Any], streams: int, sizes: tuple[int, ...]) -> None:
        """Compile what ``build`` gives for each of the ``sizes``, once for each of the streams."""
        self.sizes = sizes
        self._free: LifoQueue[dict[int, _Graph]] = LifoQueue()  # the one used last: going from one to another costs
        ops = _Ops()

        def compiled_for_all(size: int) -> list[_Graph]:
            graph = build(ops, size)
            models = [ops.compile(graph, streams)] * streams if size >= SHARED else []
            models = models or [ops.compile(graph, 1) for _ in range(streams)]
            return [_Graph(model.create_infer_request()) for model in models]

        with ThreadPoolExecutor(streams) as pool:
            for slot in zip(*pool.map(compiled_for_all, sizes), strict=True):
                self._free.put(dict(zip(sizes, slot, strict=True)))

    def __call__(self, rows: NDArray[np.float32], wanted: slice = ALL) -> Columns:
        """Return those of the outputs that are ``wanted`` for ``rows (n, …)``, in arrays of their own."""
        slot, at = self._free.get(), 0
        try:
            columns = tuple(np.empty((len(rows), *shape), np.float32) for shape in slot[self.sizes[0]].shapes[wanted])
            for size in parts(len(rows), self.sizes):
                slot[size].run(rows[at : at + size], wanted, [column[at : at + size] for column in columns])
                at += size
        finally:
            self._free.put(slot)
        return columns


class _Graph:
    """A compiled graph with its input and output arrays, which are the same for every call."""

    def __init__(self, request: Any) -> None:
        self._request = request
        request.infer()  # outputs have their place after the first time
        self._input: NDArray[np.float32] = request.get_input_tensor().data
        self._outputs = [tensor.data for tensor in request.output_tensors]
        self.shapes = [output.shape[1:] for output in self._outputs]

    def run(self, rows: NDArray[np.float32], wanted: slice, columns: list[NDArray[np.float32]]) -> None:
        """Write the ``wanted`` outputs for ``rows (n, …)`` to columns of n rows; n is at most the graph's size."""
        fill(self._input, rows)
        self._request.infer(share_outputs=True)
        for column, output in zip(columns, self._outputs[wanted], strict=True):
            column[:] = output[: len(rows)]


@lru_cache(maxsize=4096)
def parts(rows: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return sizes that together take ``rows`` at the least cost; the last one may be larger than what is left.

    A call costs about as much as a row more (measured).
    """
    largest = max(sizes)
    if rows > 2 * largest:
        whole = (rows - largest) // largest
        return (largest,) * whole + parts(rows - whole * largest, sizes)
    if rows <= 0:
        return ()
    choices = ((size, *parts(rows - size, sizes)) for size in sorted(sizes, reverse=True))
    return min(choices, key=lambda choice: sum(choice) + len(choice))


def _encoder_graph(encoder: Encoder, image_shape: tuple[int, int, int], ops: _Ops, size: int) -> Any:
    """Return the graph of an encoder: ``(size, C, H, W)`` pixels to what `encode_with_kl` returns."""
    o, fixed = ops.o, ops.fixed
    x = ops.input(size, image_shape)
    folded = o.space_to_depth(o.subtract(o.multiply(x, fixed(2)), fixed(1)), "depth_first", encoder.patch)
    features = ops.shaped(o.swish(ops.chain(folded, encoder.trunk)), size, (encoder.hidden.in_features,))
    hidden = o.swish(ops.linear(ops.two_rows(features, size), encoder.hidden))
    raw, low, high = ops.linear(hidden, encoder.log_sigma), fixed(LOG_SIGMA_MIN), fixed(LOG_SIGMA_MAX)
    upper = o.subtract(high, o.softplus(o.subtract(high, raw)))
    log_sigma = o.add(low, o.softplus(o.subtract(upper, low)))  # model.vae.soft_clamp
    mu, sigma = ops.linear(hidden, encoder.mu), o.exp(log_sigma)
    squares = o.subtract(o.add(o.multiply(mu, mu), o.multiply(sigma, sigma)), fixed(1))
    kl = o.reduce_sum(o.subtract(o.multiply(squares, fixed(0.5)), log_sigma), o.constant(np.array([1], np.int64)))
    outputs = mu, sigma, kl
    return ops.graph([ops.first_rows(value, size) for value in outputs], x)


def _decoder_graph(decoder: Decoder, latent_dim: int, logits: bool, ops: _Ops, size: int) -> Any:
    """Return the graph of a decoder: ``(size, D)`` latents to the raw output ``(size, C, H, W)``.

    Where that is ``logits``, their sigmoid is the second output.
    """
    o, x = ops.o, ops.input(size, (latent_dim,))
    z = ops.two_rows(x, size)
    flat = ops.linear(o.swish(ops.linear(z, decoder.hidden)), decoder.unfold)
    value = ops.shaped(ops.first_rows(flat, size), size, (decoder.widths[0], *decoder.cells))
    for stage, blocks in enumerate(decoder.stages):
        if stage:
            value = ops.enlarged(ops.convolution(value, cast(nn.Conv2d, decoder.narrow[stage - 1])))
        bias = ops.first_rows(ops.linear(z, cast(nn.Linear, decoder.bias[stage])), size)
        value = o.add(value, ops.shaped(bias, size, (decoder.widths[stage], 1, 1)))
        value = ops.chain(value, cast(nn.Sequential, blocks))
    output = o.depth_to_space(ops.convolution(o.swish(value), decoder.output), "depth_first", decoder.patch)
    return ops.graph([output, o.sigmoid(output)] if logits else [output], x)


class _Ops:
    """The network's layers as operations of graphs, which share their constants."""

    def __init__(self) -> None:
        self._openvino = _openvino()
        self.o: Any = self._openvino.opset13
        self._core: Any = self._openvino.Core()
        self._arrays: dict[tuple[int, torch.Size], NDArray[np.float32]] = {}

    def compile(self, graph: Any, streams: int) -> Any:
        """Return what computes a graph, each call in the thread of its caller."""
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # as written in the graph: nothing is rounded that is not so there
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": str(streams),
            "ENABLE_CPU_PINNING": "NO",
        }
        return self._core.compile_model(graph, "CPU", settings)

    def input(self, size: int, shape: tuple[int, ...]) -> Value:
        return self.o.parameter([size, *shape], np.float32)

    def graph(self, outputs: list[Value], x: Value) -> Any:
        return self._openvino.Model([self.o.result(value) for value in outputs], [x], "network")

    def fixed(self, value: Tensor | float) -> Value:
        """Return a constant, in the precision of the tensor; one in bfloat16 is exact, as its float32 was rounded."""
        if not isinstance(value, Tensor):
            return self.o.constant(np.float32(value))
        key = (value.data_ptr(), value.shape)  # of a weight, which outlives this object
        if key not in self._arrays:
            self._arrays[key] = value.detach().float().contiguous().numpy()
        constant = self.o.constant(self._arrays[key], shared_memory=True)
        return self.o.convert(constant, "bf16") if value.dtype is torch.bfloat16 else constant

    def two_rows(self, value: Value, size: int) -> Value:
        """Return one row twice, others as they are: products of a single row are computed and rounded differently."""
        return self.o.concat([value, value], 0) if size == 1 else value

    def first_rows(self, value: Value, size: int) -> Value:
        """Undo `two_rows`."""
        at = [self.o.constant(np.array([number], np.int64)) for number in (0, 1, 1, 0)]
        return self.o.slice(value, *at) if size == 1 else value

    def shaped(self, value: Value, size: int, shape: tuple[int, ...]) -> Value:
        return self.o.reshape(value, self.o.constant(np.array([size, *shape], np.int64)), special_zero=False)

    def linear(self, value: Value, layer: nn.Linear) -> Value:
        product = self.o.matmul(value, self.fixed(layer.weight), False, True)
        bias: Tensor | None = layer.bias
        return product if bias is None else self.o.add(product, self.fixed(bias[None]))

    def convolution(self, value: Value, layer: nn.Conv2d) -> Value:
        pad, stride = list(layer.padding), list(layer.stride)
        product = self.o.convolution(value, self.fixed(layer.weight), stride, pad, pad, [1, 1])
        return self.o.add(product, self.fixed(cast(Tensor, layer.bias)[None, :, None, None]))

    def enlarged(self, value: Value) -> Value:
        scales, axes = self.o.constant(np.array([2, 2], np.float32)), self.o.constant(np.array([2, 3], np.int64))
        nearest = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.o.interpolate(value, scales, "nearest", "scales", axes=axes, **nearest)

    def chain(self, value: Value, layers: nn.Sequential) -> Value:
        for layer in layers:
            value = self.convolution(value, layer) if isinstance(layer, nn.Conv2d) else self.block(value, layer)
        return value

    def block(self, value: Value, block: nn.Module) -> Value:
        """Add what a residual block adds; in a block of `model.bf16`, each convolution has a precision of its own."""
        if not isinstance(block, ResidualBlock | MixedBlock):
            raise TypeError(f"got a layer {type(block).__name__} that has no operation in a graph")
        inner = self.convolution(self.like(self.o.swish(value), block.first.weight), block.first)
        one = self.fixed(torch.ones((), dtype=block.first.weight.dtype))
        inner = self.convolution(self.like(self.o.swish(inner, one), block.second.weight), block.second)
        return self.o.add(value, self.o.convert(inner, "f32"))

    def like(self, value: Value, weight: Tensor) -> Value:
        """Return a value in the precision of a weight."""
        return self.o.convert(value, "bf16" if weight.dtype is torch.bfloat16 else "f32")
