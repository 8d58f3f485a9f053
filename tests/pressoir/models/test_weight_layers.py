"""Which modules are one matrix: nothing that does more than the product or a look-up is taken for one."""

import pytest
import torch
from torch import nn
from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding, BartScaledWordEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.models.m2m_100.modeling_m2m_100 import M2M100ScaledWordEmbedding
from transformers.pytorch_utils import Conv1D

from pressoir.models.weight_layers import embedding_scale, kind_of


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Shifted(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) + 1


class ByPosition(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * torch.arange(1, ids.shape[1] + 1)[None, :, None]


class Cut(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids.clamp(max=1))


class Half(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids).half()


class OfPairs(nn.Embedding):
    def forward(self, ids, others):
        return super().forward(ids) + super().forward(others)


SCALED = [BartScaledWordEmbedding, Gemma3TextScaledWordEmbedding, M2M100ScaledWordEmbedding]


def test_plain_layers_are_taken():
    layers = [nn.Linear(4, 8), Conv1D(8, 4), nn.Embedding(10, 4), nn.Embedding(10, 4, padding_idx=9)]
    assert [kind_of(layer) for layer in layers] == ["linear", "conv1d", "embedding", "embedding"]
    assert embedding_scale(layers[2]) == 1.0


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_scaled_embedding_is_taken_and_its_scale_found(kind, device):
    table = kind(10, 48, padding_idx=9, embed_scale=48**0.5)
    table.weight = nn.Parameter(table.weight.to(device))
    before = dict(table.__dict__), table.weight
    assert kind_of(table) == "embedding"
    assert embedding_scale(table) == pytest.approx(48**0.5, rel=1e-6)
    assert (dict(table.__dict__), table.weight) == before
    if device == "cpu":
        ids = torch.tensor([[0, 9, 4]])
        expected = nn.functional.embedding(ids, table.weight) * embedding_scale(table)
        torch.testing.assert_close(table(ids), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [Shifted, ByPosition, Cut, Half, OfPairs, BartLearnedPositionalEmbedding])
def test_an_embedding_that_does_something_else_is_not(kind):
    assert kind_of(kind(10, 4)) is None


@pytest.mark.parametrize("module", [Doubled(4, 8), nn.LayerNorm(4), nn.Conv1d(4, 8, 1), nn.ReLU()])
def test_neither_is_any_other_module(module):
    assert kind_of(module) is None
