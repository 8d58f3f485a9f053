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

ALBERT = EncoderArchitecture(
    layers="encoder.albert_layer_groups",
    shared_layers=True,
    query="albert_layers.0.attention.query",
    key="albert_layers.0.attention.key",
    value="albert_layers.0.attention.value",
    attention_output="albert_layers.0.attention.dense",
    ffn_in="albert_layers.0.ffn",
    ffn_out="albert_layers.0.ffn_output",
    position_embeddings="embeddings.position_embeddings",
    presumed={"num_hidden_groups": 1, "inner_group_num": 1},
)
"""ALBERT, as it is published: all layers are one, and token embeddings are narrower than they."""

DEBERTA_V2 = EncoderArchitecture(
    layers="encoder.layer",
    query="attention.self.query_proj",
    key="attention.self.key_proj",
    value="attention.self.value_proj",
    attention_output="attention.output.dense",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    position_embeddings=None,
    unsupported={"heads": "transformers builds all its layers with the same heads"},
)
"""DeBERTa-v2 and v3. All layers share a table of relative positions, which stays whole."""

MOBILEBERT = EncoderArchitecture(
    layers="encoder.layer",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    position_embeddings="embeddings.position_embeddings",
    unsupported={
        "prune": "a layer has several feed-forward parts of one configured width, of which pruning knows one",
        "heads": "its heads are narrower than hidden_size by their number, for which pruning takes them",
    },
)
"""MobileBERT, whose layers are narrower inside than the states between them."""

EXPORTED = (
    *("big_bird", "convbert", "data2vec-text", "deberta", "esm", "flaubert", "ibert", "megatron-bert"),
    *("nystromformer", "rembert", "roformer", "squeezebert", "xlm"),
)
"""Types without an entry whose classifiers are exported: the rest of a recipe may work with them."""
