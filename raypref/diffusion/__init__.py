"""What the trainer and the generator need of a diffusion model family."""
