"""The next-character model of LEAF (Caldas et al. 2018, https://arxiv.org/abs/1812.01097) and McMahan et al. 2017
(https://arxiv.org/abs/1602.05629, section 3): an embedding of 8, two LSTM layers of 256, and a linear layer.
"""

from typing import TYPE_CHECKING

from tutti.adapters.models._build import UnsuitableData, torch_trainer
from tutti.domain.spec import DataSchema, Positive
from tutti.ports.training import Trainer, models

if TYPE_CHECKING:
    from torch import nn


@models.register("char-lstm")
def char_lstm(hidden: Positive = 256, layers: Positive = 2, embedding: Positive = 8, *, data: DataSchema) -> Trainer:
    """LEAF's LSTM for the next character: embedding 8, two layers of 256; 820,522 parameters for 90 characters."""
    if data.task != "classification" or len(data.shape) != 1:
        raise UnsuitableData(
            "model 'char-lstm' takes texts: a sequence of character numbers with the next character as class; "
            f"this data has shape {data.shape} and is for {data.task}"
        )

    def build() -> "nn.Module":
        from tutti.adapters.trainers.recurrent import NextCharacter

        return NextCharacter(data.outputs, embedding, hidden, layers)

    return torch_trainer(build, data)
