"""Recurrent networks over texts."""

from torch import Tensor, nn

from tutti.adapters.trainers.measure import Misfit


class NextCharacter(nn.Module):
    """float32 (batch, length) of character numbers to logits (batch, characters) of the one that follows."""

    def __init__(self, characters: int, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, characters)
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias_hh"):  # the papers' cell has one bias a gate; torch adds a second to it
                nn.init.zeros_(parameter).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        codes = x.long()
        if bool(((codes < 0) | (codes >= self.embedding.num_embeddings)).any()):
            raise Misfit(
                f"expected characters 0 to {self.embedding.num_embeddings - 1}, came {int(codes.min())} to "
                f"{int(codes.max())}: these rows are no text of this alphabet"
            )
        states, _ = self.lstm(self.embedding(codes))
        last: Tensor = self.output(states[:, -1])
        return last
