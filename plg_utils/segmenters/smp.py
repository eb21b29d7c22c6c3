"""Any network of segmentation-models-pytorch (github.com/qubvel-org/segmentation_models.pytorch), by its name there."""

from inspect import signature

import segmentation_models_pytorch
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import encoders as listed
from torch import nn

from plg_utils.choices import one_of
from plg_utils.segmenters import Segmenter, deeplabv3plus, locate, of_timm

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
        for its own encoders. They come through `checkpoints`, at the revision of the hub that the package names; those
        of an encoder from timm ("tu-resnet18") are what timm lists, or a path
    options: further arguments of the architecture
    """
    weights, is_timm = locate(checkpoint(encoder=encoder, pretrained=pretrained)), encoder.startswith("tu-")
    if not is_timm:  # of_timm knows the others; an option of another name the package would pass over
        one_of(encoder, [*listed], "encoder of segmentation-models-pytorch")
        known = segmentation_models_pytorch.MODEL_ARCHITECTURES_MAPPING
        own = signature(known[one_of(architecture.lower(), [*known], "architecture")]).parameters
        for name in options:
            one_of(name, [*own], f"option of {architecture}")
    if options.get("activation"):
        raise ValueError("activation is not for training: the losses here take logits. Leave it out")

    def make(**of_weights) -> nn.Module:
        try:
            network = segmentation_models_pytorch.create_model(
                architecture,
                encoder_name=encoder,
                encoder_weights=of_weights.pop("pretrained", None),
                classes=num_classes,
                **options,
                **of_weights,
            )
        except (TypeError, ValueError, AssertionError, KeyError) as error:
            raise ValueError(
                f"{architecture} with the encoder {encoder}: {error} For a vision transformer there is the segmenter "
                "dpt"
            ) from error
        return Network(encoder=network.encoder, decoder=network.decoder, head=network.segmentation_head)

    if is_timm:
        return of_timm(encoder.removeprefix("tu-"), weights, make)
    network = make()
    if weights is not None:
        network.encoder.load_state_dict(load_file(weights))
    return network


def checkpoint(*, encoder: str = "resnet34", pretrained: bool | str = False, **options) -> str | None:
    """Name, for `checkpoints`, of the weights with which `build` starts, given its options; None: random."""
    if not pretrained:
        return None
    if encoder.startswith("tu-"):
        return deeplabv3plus.checkpoint(encoder=encoder.removeprefix("tu-"), pretrained=pretrained)
    known = listed[encoder]["pretrained_settings"] if encoder in listed else {}
    weights = "imagenet" if pretrained is True else pretrained
    if weights not in known:
        raise ValueError(
            f"the package pins no weights {weights!r} for {encoder}, only {', '.join(known) or 'none'}; timm may have "
            f"some: tu-{encoder}"
        )
    return f"hub:{known[weights]['repo_id']}@{known[weights]['revision']}"


class Network(Segmenter):
    """A network of the package with our seams. Images are padded to the multiple that the encoder demands."""

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps of images (B, 3, H, W), padded with zeros on the right and below."""
        multiple = self.encoder.output_stride
        height, width = images.shape[-2:]
        return list(self.encoder(F.pad(images, (0, -width % multiple, 0, -height % multiple))))

    def decode(self, features: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        """Logits (B, K, H, W) float32 of the feature maps and size (H, W), without the padding."""
        logits = self.head(self.decoder(features)).float()
        return logits[..., : size[0], : size[1]]
