"""CMMD: how far generated images lie from real ones, as a whole (Jayasumana et al. 2024).

The squared maximum mean discrepancy of image embeddings of unit length under the Gaussian kernel
exp(-d^2 / (2 * 10^2)), times 1000. No normal distribution is assumed, so a few hundred images do.
It is computed here without pairs of one prompt: images of one prompt are alike, which would make a
set look tighter than it is, and a bootstrap that draws a prompt twice would count it as a twin.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from raypref.evaluate import tables

SIGMA = 10.0
SCALE = 1000.0


def cmmd_summary(
    embeddings: pd.DataFrame, reference_MD: np.ndarray, *, base: str, resamples: int, seed: int = 0
) -> pd.DataFrame:
    """CMMD of every model to the reference, with intervals over prompts.

    Args:
        embeddings: one row an image: `model`, `prompt_id`, `embedding` (unit length).
        reference_MD: embeddings of the real images, of unit length.
        base: the model that gains are measured against (a negative gain is closer).
        resamples: bootstrap samples; the same prompts are drawn for every model.
        seed: of the bootstrap.

    Returns:
        Rows with the columns `tables.SUMMARY`, metric `cmmd`. Values are NaN for one prompt or one
        real image; the intervals also where a bootstrap sample can hold one prompt alone.
    """
    prompts = np.unique(embeddings["prompt_id"].to_numpy())
    draws_rn = np.vstack([np.ones(len(prompts)), tables.draws(len(prompts), resamples, seed)])
    values = {}
    counts = {}
    for model, part in embeddings.groupby("model", sort=False):
        images_BD = np.stack(part["embedding"].to_list()).astype(np.float64)
        places_B = np.searchsorted(prompts, part["prompt_id"].to_numpy())
        values[model] = _cmmd(images_BD, places_B, reference_MD, draws_rn)
        counts[model] = len(part)
    rows = []
    for model, own in values.items():
        gain = own - values[base]
        of_gain = (np.nan,) * 3 if model == base else (gain[0], *tables.percentiles(gain[1:]))
        interval = tables.percentiles(own[1:])
        rows.append((model, "cmmd", own[0], *interval, *of_gain, len(prompts), counts[model]))
    return pd.DataFrame(rows, columns=list(tables.SUMMARY))


def _cmmd(
    images_BD: np.ndarray, places_B: np.ndarray, reference_MD: np.ndarray, draws_rn: np.ndarray
) -> np.ndarray:
    """CMMD of each draw of prompts, [r]: the images of prompt n count draws_rn[:, n] times."""
    count = draws_rn.shape[1]
    member_nB = (np.arange(count)[:, None] == places_B).astype(np.float64)
    among_nn = member_nB @ _kernel(images_BD, images_BD) @ member_nB.T
    sizes_n = member_nB.sum(1)
    pairs_nn = np.outer(sizes_n, sizes_n)
    for matrix in (among_nn, pairs_nn):
        np.fill_diagonal(matrix, 0)
    across_n = member_nB @ _kernel(images_BD, reference_MD).mean(1)
    real = _kernel(reference_MD, reference_MD)
    size = len(reference_MD)
    real_mean = (real.sum() - np.trace(real)) / (size * (size - 1))
    with np.errstate(invalid="ignore"):  # a draw of one prompt alone has no pairs: NaN
        own = np.einsum("rn,nm,rm->r", draws_rn, among_nn, draws_rn) / np.einsum(
            "rn,nm,rm->r", draws_rn, pairs_nn, draws_rn
        )
    cross = (draws_rn @ across_n) / (draws_rn @ sizes_n)
    return SCALE * (own + real_mean - 2 * cross)


def _kernel(a_BD: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    # Unit length: |a - b|^2 = 2 - 2 a.b
    return np.exp(-(2 - 2 * a_BD @ b_MD.T) / (2 * SIGMA**2))
