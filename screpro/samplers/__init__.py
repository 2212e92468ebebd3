"""From noise to cells: ways to run a trained denoiser backwards."""
