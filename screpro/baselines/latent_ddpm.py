r"""Latent diffusion with a separate classifier, after scDiffusion (Luo et al., Bioinformatics 2024, btae518).

First stage: an auto-encoder of log-normalised expression trained on squared error (``count_autoencoder``, "gaussian").
Second stage: a denoising network on its latents, trained on the noise it should find, without labels. Third: a
classifier of noised latents, whose gradient steers sampling towards a class (Dhariwal and Nichol 2021): with
$\hat x_0$ the denoised latent,

$$\hat x_0 \leftarrow \hat x_0 + \frac{1 - \bar\alpha_t}{\sqrt{\bar\alpha_t}}\, s\, \nabla_{x_t} \log p(y \mid x_t),$$

which moves the mean of the reverse step by $\beta_t / \sqrt{\alpha_t}$ times the guided gradient.

What comes out is expression, the mean of the decoder, cut at 0: there are no counts and nothing is drawn around the
mean, as in the original. It is on the scale of the metrics already and is not normalised again.

Differences: latents are standardised (theirs are scaled to unit length), and a denoised latent is kept within the range
of the training cells', as image models keep pixels; residual MLPs of equal width for denoiser and
classifier; fewer steps of the same total noise where `steps` is below 1 000.
"""

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from screpro.baselines.count_autoencoder import SCDIFFUSION
from screpro.baselines.count_autoencoder import fit as fit_autoencoder
from screpro.baselines.generation import Generated
from screpro.baselines.latent_flow import ConditionedMlp
from screpro.kernels.linear import Linear
from screpro.models.blocks import time_embedding
from screpro.processes.gaussian import Schedule, linear
from screpro.samplers.ddpm import Denoiser, ancestral
from screpro.training import TrainConfig
from screpro.training import fit as fit_network

__all__ = ["NoisyClassifier", "generate", "guided", "shortened", "within"]

TIME_WIDTH = 128


class NoisyClassifier(nn.Module):
    """Logits of the class of noised latents (B, k) at steps (B,)."""

    def __init__(self, latent: int, n_labels: int, *, width: int):
        super().__init__()
        self.enter = Linear(latent, width)
        self.time = nn.Sequential(Linear(TIME_WIDTH, width), nn.SiLU(), Linear(width, width))
        self.body = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), Linear(width, width), nn.SiLU())
        self.leave = Linear(width, n_labels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.leave(self.body(self.enter(x) + self.time(time_embedding(t, TIME_WIDTH))))


def shortened(steps: int) -> Schedule:
    """The linear schedule in fewer steps that end at the same noise: every variance times 1000 / steps."""
    return linear(steps, 1e-4 * 1000 / steps, min(0.999, 2e-2 * 1000 / steps))


def within(denoise: Denoiser, low: Tensor, high: Tensor) -> Denoiser:
    """A denoiser of x_0 (B, k) kept in a box (k,), (k,).

    Where hardly any signal is left, x_0 is what is left of x_t after most of it is subtracted, divided by almost
    nothing: small errors of the network become huge cells, and one such step spoils the rest.
    """
    return lambda x, t: torch.maximum(torch.minimum(denoise(x, t), high), low)


def guided(
    denoise: Denoiser, classifier: nn.Module, labels: Tensor, *, schedule: Schedule, strength: float
) -> Denoiser:
    """A denoiser of x_0 (B, k) that leans towards `labels` (B,); strength 0 is `denoise`."""

    def leaning(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x_in = x.detach().requires_grad_()
            log_p = F.log_softmax(classifier(x_in, t.float()), 1).gather(1, labels[:, None]).sum()
            gradient = torch.autograd.grad(log_p, x_in)[0]
        return denoise(x, t) + strength * ((1 - schedule.alpha_bar[t]) / schedule.signal[t])[:, None] * gradient

    return leaning


def generate(
    counts: sp.csr_matrix,
    labels: np.ndarray,
    *,
    wanted: np.ndarray,
    n_types: int,
    seed: int,
    threads: int = 1,
    epochs: int = 100,
    batch_size: int = 128,
    diffusion_epochs: int = 300,
    classifier_epochs: int = 30,
    hidden: tuple[int, ...] = SCDIFFUSION["hidden"],
    latent: int = SCDIFFUSION["latent"],
    width: int = 256,
    layers: int = 3,
    learning_rate: float = 1e-3,
    steps: int = 1000,
    strength: float = 2.0,
) -> Generated:
    """Log-normalised expression drawn without and with the labels `wanted`.

    Parameters
    ----------
    epochs, diffusion_epochs, classifier_epochs
        Passes of auto-encoder, denoising network and classifier over the cells.
    batch_size, hidden, latent
        Of the auto-encoder.
    width, layers, learning_rate
        Of denoising network and classifier.
    steps
        Of the diffusion, in training and sampling.
    strength
        s, the weight of the classifier's gradient.
    """
    options = SCDIFFUSION | {"batch_size": batch_size, "hidden": hidden, "latent": latent}
    model = fit_autoencoder(counts, seed=seed, threads=threads, epochs=epochs, **options)
    codes = model.encode(counts)
    mean, scale = codes.mean(0), codes.std(0).clamp(min=1e-6)
    codes, targets, schedule = (codes - mean) / scale, torch.as_tensor(labels), shortened(steps)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ConditionedMlp(latent, 0, width=width, layers=layers, library=False)
        classifier = NoisyClassifier(latent, n_types, width=width)

    def noised(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        x0 = codes[rows.cpu()].to(generator.device)
        t = torch.randint(steps, (len(x0),), generator=generator, device=generator.device)
        noise = torch.randn(x0.shape, generator=generator, device=generator.device)
        return schedule.diffuse(x0, t.cpu(), noise), t, noise

    def noise_loss(net: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        x, t, noise = noised(rows, generator)
        return (net(x, t.float() * 1000 / steps, torch.zeros_like(t)) - noise).square().mean()

    def class_loss(net: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        x, t, _ = noised(rows, generator)
        return F.cross_entropy(net(x, t.float()), targets[rows.cpu()].to(x.device))

    how = TrainConfig(epochs=diffusion_epochs, learning_rate=learning_rate, warmup=0.05, clip=1.0, seed=seed)
    fit_network(network, noise_loss, len(codes), how, title="latent diffusion")
    how = TrainConfig(epochs=classifier_epochs, learning_rate=learning_rate, weight_decay=0.05, seed=seed)
    fit_network(classifier, class_loss, len(codes), how, title="classifier of noised latents")

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        noise = network(x, t.float() * 1000 / steps, torch.zeros_like(t))
        return (x - schedule.noise[t][:, None] * noise) / schedule.signal[t][:, None]

    def draw(denoiser: Denoiser) -> sp.csr_matrix:
        generator = torch.Generator().manual_seed(seed)
        z = ancestral(denoiser, (len(wanted), latent), schedule=schedule, generator=generator, title="scDiffusion-like")
        with torch.no_grad():
            return sp.csr_matrix(model.expression(z * scale + mean).numpy())

    box = codes.min(0).values, codes.max(0).values
    towards = guided(denoise, classifier, torch.as_tensor(wanted), schedule=schedule, strength=strength)
    return Generated(draw(within(denoise, *box)), draw(within(towards, *box)), expression=True)
