"""
Other ways to the same sentence embeddings, with the signature of `axiond.semantic.encoder.Encoder.encode`, for comparisons.

They need what axiond does without: `pip install sentence-transformers onnx onnxruntime`.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from axiond.semantic.folder import BertFolder, read_folder

MICROSOFT = "com.microsoft"


class Encodes(Protocol):
    def encode(self, texts: Sequence[str], most_tokens: int = 64) -> tuple[NDArray[np.float32], tuple[int, ...]]: ...


class TorchEncoder:
    """sentence-transformers on torch, in float32."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch
        from sentence_transformers import SentenceTransformer
        from tokenizers import Tokenizer

        self._counter = Tokenizer.from_file(str(read_folder(folder).transformer / "tokenizer.json"))
        self._counter.no_padding()
        torch.set_num_threads(threads)
        self._model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
        self._model.eval()

    def encode(self, texts: Sequence[str], most_tokens: int = 64) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        self._model.max_seq_length = most_tokens
        vectors = self._model.encode(list(texts), batch_size=len(texts), normalize_embeddings=True, show_progress_bar=False)
        self._counter.enable_truncation(most_tokens)
        return vectors, tuple(len(self._counter.encode(text).ids) for text in texts)


class OnnxEncoder:
    """
    ONNX Runtime on a graph of its fused operators for BERT, one text at a time (a batch would need padding).

    With *int8* all weights of linear layers are rounded per channel, and activations as the model runs.
    """

    def __init__(self, folder: Path, int8: bool, threads: int) -> None:
        import onnxruntime as ort
        from tokenizers import Tokenizer

        self._folder = read_folder(folder)
        self._tokenizer = Tokenizer.from_file(str(self._folder.transformer / "tokenizer.json"))
        self._tokenizer.no_padding()
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        with tempfile.TemporaryDirectory() as scratch:
            self._session = ort.InferenceSession(_graph(self._folder, Path(scratch), int8), options, providers=["CPUExecutionProvider"])

    def encode(self, texts: Sequence[str], most_tokens: int = 64) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        self._tokenizer.enable_truncation(most_tokens)
        tokens = [self._tokenizer.encode(text[: 8 * most_tokens]).ids for text in texts]
        hidden = [self._session.run(None, {"ids": np.array([ids], np.int32)})[0][0] for ids in tokens]
        pooled = np.stack([each.mean(0) if self._folder.pooling == "mean" else each[0] for each in hidden])
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True), tuple(map(len, tokens))


def _graph(folder: BertFolder, scratch: Path, int8: bool) -> str:
    import onnx
    from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from safetensors.numpy import load_file

    raw = {name[name.find("e") if name.startswith("bert.") else 0 :]: value for name, value in load_file(folder.weights).items()}
    weights: dict[str, NDArray[Any]] = {}
    nodes: list[Any] = []

    def keep(name: str, value: NDArray[Any]) -> str:
        weights[name] = np.ascontiguousarray(value, np.float32)
        return name

    def weight(name: str) -> str:
        return keep(name, raw[name].T if raw[name].ndim == 2 and name.endswith("dense.weight") else raw[name])

    def add(op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        name = f"{op}_{len(nodes)}"
        names = [name, *("" for _ in range(outputs - 1))]
        nodes.append(
            make_node(op, list(inputs), names, name, domain="" if op in ("Gather", "MatMul", "Shape") else MICROSOFT, **attributes)
        )
        return name

    def norm(x: str, skip: str, place: str, bias: str) -> str:
        inputs = (x, skip, weight(f"{place}.LayerNorm.weight"), weight(f"{place}.LayerNorm.bias"), weight(f"{bias}.bias"))
        return add("SkipLayerNormalization", *inputs, epsilon=folder.norm_epsilon)

    tables = [keep(name, raw[f"embeddings.{name}_embeddings.weight"]) for name in ("word", "position", "token_type")]
    of_norm = [weight("embeddings.LayerNorm.weight"), weight("embeddings.LayerNorm.bias")]
    nodes.append(make_node("EmbedLayerNormalization", ["ids", "", tables[0], tables[1], "", *of_norm], ["embedded", "mask"], "embed",
                           domain=MICROSOFT, epsilon=folder.norm_epsilon))  # fmt: skip
    weights["position"] = weights["position"] + raw["embeddings.token_type_embeddings.weight"][0]
    del weights["token_type"]
    x = "embedded"
    for i in range(folder.layers):
        layer = f"encoder.layer.{i}"
        parts = [f"{layer}.attention.self.{name}" for name in ("query", "key", "value")]
        of_all = keep(f"{layer}.qkv.weight", np.concatenate([raw[f"{part}.weight"].T for part in parts], 1))
        biases = keep(f"{layer}.qkv.bias", np.concatenate([raw[f"{part}.bias"] for part in parts]))
        mixed = add("Attention", x, of_all, biases, num_heads=folder.heads)
        out = add("MatMul", mixed, weight(f"{layer}.attention.output.dense.weight"))
        x = norm(x, out, f"{layer}.attention.output", f"{layer}.attention.output.dense")
        wide = add("MatMul", x, weight(f"{layer}.intermediate.dense.weight"))
        wide = add("BiasGelu", wide, weight(f"{layer}.intermediate.dense.bias"))
        x = norm(x, add("MatMul", wide, weight(f"{layer}.output.dense.weight")), f"{layer}.output", f"{layer}.output.dense")
    graph = make_graph(
        nodes, "bert", [make_tensor_value_info("ids", onnx.TensorProto.INT32, [1, "length"])],
        [make_tensor_value_info(x, onnx.TensorProto.FLOAT, [1, "length", folder.hidden])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    model = make_model(graph, opset_imports=[make_opsetid("", 17), make_opsetid(MICROSOFT, 1)], ir_version=8)
    exact, rounded = str(scratch / "exact.onnx"), str(scratch / "int8.onnx")
    onnx.save(model, exact)
    if not int8:
        return exact
    quantize_dynamic(exact, rounded, op_types_to_quantize=["MatMul", "Attention"], weight_type=QuantType.QInt8, per_channel=True,
                     extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})  # fmt: skip
    return rounded


def torch_encoder(folder: Path, threads: int = 1) -> Encodes:
    return TorchEncoder(folder, threads)


def onnx_encoder(folder: Path, int8: bool = False, threads: int = 1) -> Encodes:
    return OnnxEncoder(folder, int8, threads)


MAKERS: dict[str, Callable[[Path], Encodes]] = {
    "sentence-transformers, torch f32": torch_encoder,
    "ONNX Runtime f32": onnx_encoder,
    "ONNX Runtime int8": lambda folder: onnx_encoder(folder, int8=True),
}
