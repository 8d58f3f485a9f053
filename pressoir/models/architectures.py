"""The encoder architectures that Pressoir knows, one entry each; `pyproject.toml` names who uses which."""

from __future__ import annotations

from pressoir.extensions.architecture import EncoderArchitecture

BERT = EncoderArchitecture(
    layers="encoder.layer",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    position_embeddings="embeddings.position_embeddings",
)
"""BERT, and what keeps its modules: RoBERTa, CamemBERT, XLM-RoBERTa, ELECTRA."""

DISTILBERT = EncoderArchitecture(
    layers="transformer.layer",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    ffn_in="ffn.lin1",
    ffn_out="ffn.lin2",
    position_embeddings="embeddings.position_embeddings",
    layer_count_field="n_layers",
    hidden_size_field="dim",
    head_count_field="n_heads",
    ffn_width_field="hidden_dim",
)
"""DistilBERT."""

MPNET = EncoderArchitecture(
    layers="encoder.layer",
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    attention_output="attention.attn.o",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    position_embeddings="embeddings.position_embeddings",
    unsupported={"heads": "all its layers add one position bias, which has a column for each head"},
)
"""MPNet, whose layers share a bias by relative position."""

MODERNBERT = EncoderArchitecture(
    layers="layers",
    query="attn.Wqkv",
    key="attn.Wqkv",
    value="attn.Wqkv",
    attention_output="attn.Wo",
    ffn_in="mlp.Wi",
    ffn_out="mlp.Wo",
    gated_ffn=True,
    absent_in_first_layer=("attn_norm",),
    position_embeddings=None,
    unsupported={"heads": "transformers builds all its layers with the same heads"},
)
"""ModernBERT. Which of its layers see the whole text and which only a window follows from their number, of a
student in its own count."""

EXPORTED = (
    *("albert", "big_bird", "convbert", "data2vec-text", "deberta", "esm", "flaubert", "ibert"),
    *("megatron-bert", "mobilebert", "nystromformer", "rembert", "roformer", "squeezebert", "xlm"),
)
"""Types without an entry whose classifiers are exported: the rest of a recipe may work with them."""

NOT_IN_THE_GRAPH = {"big_bird": "bert.pooler", "esm": "esm.contact_head"}
"""Of these, modules that a classifier does not use: the graph lacks them, and int8 must leave them out."""

NOT_FUSED_IN_INT8 = ("albert",)
"""Of these, those whose layers share int8 weights from which ONNX Runtime does not run fused attention."""
