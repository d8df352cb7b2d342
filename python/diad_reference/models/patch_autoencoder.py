"""Linear autoencoder: leading principal components of square patches, one convolution per direction."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from ..config import PatchAutoencoderConfig

LOG_VARIANCE = -30.0  # lower clamp of the posterior's log variance, which makes encoding deterministic


def deterministic_moments(mean: torch.Tensor) -> torch.Tensor:
    """Appends the constant log variance to means [N, C, s, s]. Returns moments [N, 2 C, s, s]."""
    return torch.cat([mean, torch.full_like(mean, LOG_VARIANCE)], dim=1)


class PatchAutoencoder(nn.Module):
    """Encodes each patch by its principal components.

    The weights contain the components, their scales and the mean of all patches. Latents have mean 0 and a
    root mean square of about 1 over all channels.
    """

    def __init__(self, config: PatchAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.to_latent = nn.Conv2d(3, config.channels, config.patch, stride=config.patch)
        self.to_pixels = nn.Conv2d(config.channels, 3 * config.patch**2, 1)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Encodes [N, 3, S, S] to moments [N, 2 C, S / patch, S / patch]: mean, constant log variance."""
        return deterministic_moments(self.to_latent(x))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Decodes latents [N, C, s, s] to images [N, 3, s * patch, s * patch]."""
        return F.pixel_shuffle(self.to_pixels(z), self.config.patch)


@torch.no_grad()
def fit_patches(config: PatchAutoencoderConfig, images: torch.Tensor) -> PatchAutoencoder:
    """Computes the autoencoder from images in closed form, without training.

    The scale of a channel is the standard deviation of its component to the power of `1 - config.whitening`.
    A whitening of 0 keeps the spread of the components; 1 gives each channel a variance of 1.

    Args:
        config: Patch size, number of channels and whitening.
        images: Normalized images [N, 3, S, S], where S is a multiple of the patch size.
    """
    patch = config.patch
    # [patches, 3 patch^2]
    patches = F.unfold(images, patch, stride=patch).transpose(1, 2).reshape(-1, 3 * patch**2).double()
    mean = patches.mean(dim=0)
    centered = patches - mean
    variances, vectors = torch.linalg.eigh(centered.T @ centered / len(centered))
    order = torch.argsort(variances, descending=True)[: config.channels]
    deviation, basis = variances[order].clamp_min(1e-12).sqrt(), vectors[:, order].T  # [C], [C, 3 patch^2]
    scale = (deviation / deviation[0]) ** (1 - config.whitening)
    scale = scale / scale.square().mean().sqrt()
    model = PatchAutoencoder(config)
    analysis = basis * (scale / deviation)[:, None]
    synthesis = basis * (deviation / scale)[:, None]
    model.to_latent.weight.copy_(analysis.view(config.channels, 3, patch, patch))
    model.to_latent.bias.copy_(-analysis @ mean)
    model.to_pixels.weight.copy_(synthesis.T[:, :, None, None])
    model.to_pixels.bias.copy_(mean)
    return model.eval()


def psnr(model: PatchAutoencoder, images: torch.Tensor, std: tuple[float, ...]) -> float:
    """Computes the peak signal-to-noise ratio of the reconstruction in dB.

    Args:
        model: Autoencoder.
        images: Normalized images [N, 3, S, S].
        std: Standard deviations of the normalization, to convert errors back to the 0..1 scale.
    """
    with torch.inference_mode():
        moments = model.encode(images)
        error = (model.decode(moments.chunk(2, dim=1)[0]) - images) * torch.tensor(std).view(1, 3, 1, 1)
    return -10 * math.log10(float(error.square().mean()))
