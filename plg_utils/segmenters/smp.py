"""Any network of segmentation-models-pytorch (github.com/qubvel-org/segmentation_models.pytorch), by its name there."""

import segmentation_models_pytorch
import torch
import torch.nn.functional as F
from torch import nn

SMOKE = {"architecture": "FPN", "encoder": "mobilenet_v2"}


def build(
    num_classes: int,
    *,
    architecture: str = "Unet",
    encoder: str = "resnet34",
    pretrained: bool | str = False,
    **options,
) -> nn.Module:
    """Build the network.

    architecture, encoder: names of the package; pretrained: True for ImageNet weights, or the name of others it lists
    options: further arguments of the architecture
    """
    network = segmentation_models_pytorch.create_model(
        architecture,
        encoder_name=encoder,
        encoder_weights="imagenet" if pretrained is True else pretrained or None,
        classes=num_classes,
        **options,
    )
    return Network(network)


class Network(nn.Module):
    """A network of the package with our seams. Images are padded to the multiple that the encoder demands."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.encoder = network.encoder
        self.decoder = network.decoder
        self.head = network.segmentation_head

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps of images (B, 3, H, W), padded with zeros on the right and below."""
        multiple = self.encoder.output_stride
        height, width = images.shape[-2:]
        return list(self.encoder(F.pad(images, (0, -width % multiple, 0, -height % multiple))))

    def decode(self, features: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        """Logits (B, K, H, W) float32 of the feature maps and size (H, W), without the padding."""
        logits = self.head(self.decoder(features)).float()
        return logits[..., : size[0], : size[1]]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, H, W) of images (B, 3, H, W)."""
        return self.decode(self.encode(images), images.shape[-2:])
