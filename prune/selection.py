"""Channel selection: a layer through which each of several norms reads channels of its own from one sum."""

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from command.errors import RequestError
from command.files import shown

__all__ = ["ChannelSelection", "selected_channels"]


class ChannelSelection(nn.Module):
    """Passes on some of the channels that it reads, in their order; all of them in a dense network.

    Networks that normalise before they convolve read one sum, or one concatenation, with many BatchNorms. With a
    selection before each of them a channel can go for one reader and stay for the others.

    Args:
        num_in: Channels that it reads.

    Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, section 3,
    "Handling Cross Layer Connections and Pre-activation Structure". Theirs is behind the norm, which then normalises
    channels that nobody reads; before it the network computes the same.
    """

    index: Tensor

    def __init__(self, num_in: int) -> None:
        super().__init__()
        self.num_in = num_in
        self.register_buffer("index", torch.arange(num_in))

    def forward(self, features: Tensor) -> Tensor:
        """Return the selected channels (N, S, ...) of features (N, C, ...)."""
        return selected_channels(features, self.index)

    def cut_index(self, kept_in: Tensor | None, kept_out: Tensor | None) -> Tensor:
        """Return the index of what is left when only these channels are read and passed on.

        Raises:
            RequestError: If a channel that is passed on is not read.
        """
        index = self.index if kept_out is None else self.index[kept_out.to(self.index.device)]
        if kept_in is None:
            return index.clone()
        kept_in = kept_in.to(index.device)
        if not torch.isin(index, kept_in).all():
            raise RequestError("channel selection: passes on what it does not read; expected a subset of what is kept")
        return torch.searchsorted(kept_in, index)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: object) -> None:
        """Load the index; raise RequestError unless its channels exist, each once and in order."""
        index = state.get(f"{prefix}index", self.index).flatten()
        if index.numel() and not (index[0] >= 0 and index[-1] < self.num_in and (index[1:] > index[:-1]).all()):
            raise RequestError(
                f"{shown(prefix)}index: selects no channels, got {shown(str(index.tolist()[:8]))}; "
                f"expected ascending ones below {self.num_in}"
            )
        super()._load_from_state_dict(state, prefix, *args)


def selected_channels(features: Tensor, index: Tensor) -> Tensor:
    """Return the channels of an index, (N, S, ...), of features (N, C, ...); without a copy where that is all."""
    if has_torch_function_unary(features):  # so that pruning can follow it as a whole
        return handle_torch_function(selected_channels, (features,), features, index)
    if index.shape[0] == features.shape[1]:
        return features[:]  # not the same tensor: what follows has channels of its own
    return features.index_select(1, index)
