"""The networks of the course, built by name or by their sizes, and their checkpoints."""

from deploykit.models.checkpoints import find_pretrained, load_checkpoint, load_pretrained, save_checkpoint
from deploykit.models.mlp_mixer import MLPMixer, MLPMixerConfig
from deploykit.models.named import ARCHITECTURES, build
from deploykit.models.network import Network, NetworkConfig
from deploykit.models.resnet import BasicBlock, ResNet, ResNetConfig, resnet, resnet_like
from deploykit.models.row_lstm import RowLSTM, RowLSTMConfig

__all__ = [
    "ARCHITECTURES",
    "BasicBlock",
    "MLPMixer",
    "MLPMixerConfig",
    "Network",
    "NetworkConfig",
    "ResNet",
    "ResNetConfig",
    "RowLSTM",
    "RowLSTMConfig",
    "build",
    "find_pretrained",
    "load_checkpoint",
    "load_pretrained",
    "resnet",
    "resnet_like",
    "save_checkpoint",
]
