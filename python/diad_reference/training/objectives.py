"""What each stage minimizes."""

import torch
from torch import nn
from torch.nn import functional as F

from ..models.autoencoder import AutoencoderKL
from ..models.diad import DiadModel

Losses = tuple[torch.Tensor, dict[str, torch.Tensor]]


def _gradients(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def image_loss(rebuilt: torch.Tensor, x: torch.Tensor) -> Losses:
    """L1 + 0.3 MSE + 0.5 L1 of the gradients + 0.5 L1 at an eighth of the size (colors), in the normalized space [N, 3, S, S]."""
    l1, mse = F.l1_loss(rebuilt, x), F.mse_loss(rebuilt, x)
    edges = sum(F.l1_loss(a, b) for a, b in zip(_gradients(rebuilt), _gradients(x), strict=True))
    colors = F.l1_loss(F.avg_pool2d(rebuilt, 8), F.avg_pool2d(x, 8))
    metrics = {"l1": l1.detach(), "mse": mse.detach(), "colors": colors.detach()}
    return l1 + 0.3 * mse + 0.5 * edges + 0.5 * colors, metrics


class AutoencoderObjective(nn.Module):
    """The image's loss + 1e-4 KL."""

    kl_weight = 1e-4

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> Losses:
        """x [N, 3, S, S]; noise of the posterior's sample [N, 4, s, s]."""
        mean, logvar = self.autoencoder.encode(x).chunk(2, dim=1)
        logvar = logvar.clamp(-30.0, 20.0)
        rebuilt = self.autoencoder.decode(mean + torch.exp(0.5 * logvar) * noise)
        loss, metrics = image_loss(rebuilt, x)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        return loss + self.kl_weight * kl, metrics | {"kl": kl.detach()}


class DecoderObjective(nn.Module):
    """The image's loss for given latents: the encoder is not trained, so that the denoiser's latents keep their meaning."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        for part in (autoencoder.encoder, autoencoder.quant_conv):
            part.requires_grad_(False)

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> Losses:
        """z: latents, not scaled, [N, 4, s, s]; x: what they should become [N, 3, S, S]."""
        return image_loss(self.autoencoder.decode(z), x)


class _Denoiser(nn.Module):
    """SG network and UNet with what both objectives share."""

    def __init__(self, model: DiadModel) -> None:
        super().__init__()
        self.control_model = model.control_model
        self.diffusion_model = model.unet
        self.only_mid_control = model.config.only_mid_control
        if self.only_mid_control:  # outputs nobody reads get no gradient
            read = 2 * (model.config.unet.num_res_blocks + 1)
            self.control_model.zero_convs[: len(self.control_model.zero_convs) - read].requires_grad_(False)
        self.register_buffer("context", model.context.clone())

    def eps(self, x: torch.Tensor, image: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Noise predicted in x [N, 4, s, s] with the hint `image` [N, 3, S, S] at timesteps [N]."""
        context = self.context.expand(len(x), -1, -1)
        control = self.control_model(
            x, self.control_model.guide(image), self.control_model.embed(timesteps), context
        )
        return self.diffusion_model(
            x, self.diffusion_model.embed(timesteps), context, control, self.only_mid_control
        )


class DenoiserObjective(_Denoiser):
    """Noise prediction at the sampling timesteps, weighted by the clamped inverse signal-to-noise ratio.

    The highest timestep sees the noise of the schedule's noise timestep (999), as at sampling.
    """

    weight_range = (0.2, 30.0)

    def __init__(self, model: DiadModel) -> None:
        super().__init__(model)
        steps = model.schedule.steps
        signal, spread = model.schedule.noise_factors
        alpha_bar = torch.tensor([s.alpha_bar for s in steps])
        self.register_buffer("timesteps", torch.tensor([s.timestep for s in steps]))
        self.register_buffer("signal", torch.cat([torch.tensor([signal]), alpha_bar[1:].sqrt()]))
        self.register_buffer("spread", torch.cat([torch.tensor([spread]), (1 - alpha_bar[1:]).sqrt()]))
        self.register_buffer("alpha_bar", alpha_bar)

    def forward(
        self, z: torch.Tensor, image: torch.Tensor, step: torch.Tensor, noise: torch.Tensor
    ) -> Losses:
        """z, noise: clean scaled latents and what is put on them [N, 4, s, s]; image: hint [N, 3, S, S]; step: [N] sampling steps."""
        shape = (-1, 1, 1, 1)
        x = self.signal[step].view(shape) * z + self.spread[step].view(shape) * noise
        eps = self.eps(x, image, self.timesteps[step])
        # Inverting DDIM's own formula, error of x_0: the sampler divides by the told timestep's alpha_bar.
        inverse_snr = (1 - self.alpha_bar[step]) / self.alpha_bar[step]
        target = (x - self.alpha_bar[step].sqrt().view(shape) * z) / (1 - self.alpha_bar[step]).sqrt().view(
            shape
        )
        error = ((eps - target) ** 2).mean(dim=(1, 2, 3))
        clean_error = (error * inverse_snr).detach()
        high = step < len(self.timesteps) // 2
        loss = (error * inverse_snr.clamp(*self.weight_range)).mean()
        return loss, {"x0_high": clean_error[high].mean(), "x0_low": clean_error[~high].mean()}


class PublishedDenoiserObjective(_Denoiser):
    """The published training: plain squared error of the noise, timesteps drawn evenly from all 1000.

    Trained are the SG network and the UNet's decoder (output_blocks, out); its encoder, middle and time embedding stay Stable Diffusion's.
    """

    def __init__(self, model: DiadModel) -> None:
        super().__init__(model)
        for part in (
            self.diffusion_model.time_embed,
            self.diffusion_model.input_blocks,
            self.diffusion_model.middle_block,
        ):
            part.requires_grad_(False)
        alpha_bar = torch.from_numpy(model.schedule.alpha_bar64)
        self.register_buffer("signal", alpha_bar.sqrt().float())
        self.register_buffer("spread", (1 - alpha_bar).sqrt().float())

    def forward(
        self, z: torch.Tensor, image: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor
    ) -> Losses:
        """z, noise: clean scaled latents and what is put on them [N, 4, s, s]; image: hint [N, 3, S, S]; timesteps: [N], 0..999."""
        shape = (-1, 1, 1, 1)
        x = self.signal[timesteps].view(shape) * z + self.spread[timesteps].view(shape) * noise
        error = ((self.eps(x, image, timesteps) - noise) ** 2).mean(dim=(1, 2, 3))
        high = timesteps >= len(self.signal) // 2
        return error.mean(), {
            "eps_high": error[high].mean().detach(),
            "eps_low": error[~high].mean().detach(),
        }
