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
