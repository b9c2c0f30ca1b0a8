"""How far generated images lie from real ones, as a whole: CMMD and FID on image embeddings.

**CMMD** (Jayasumana et al. 2024): the squared maximum mean discrepancy of embeddings of unit length
under the Gaussian kernel exp(-d^2 / (2 * 10^2)), times 1000. No normal distribution is assumed and
the estimate is unbiased, so a few hundred images do. It is computed here without pairs of one
prompt: images of one prompt are alike, which would make a set look tighter than it is, and a
bootstrap that draws a prompt twice would compare its images with themselves. The authors' code
takes all pairs, an image with itself too: that estimate, `cmmd_biased`, is never negative and too
large, by about (1 - mean kernel) / N of each set. Theirs is on CLIP ViT-L/14 at 336 pixels:
`metrics.embedder=clipscore` with `rewards.clipscore.model=openai/clip-vit-large-patch14-336`.

**FID** (Heusel et al. 2017): the Frechet distance of the normal distributions fitted to both sets,
here of the same embeddings (as in "FID on CLIP"; the classical one takes Inception's), times 1000.
It is biased upwards, the more the fewer the images (Chong and Forsyth 2020), and far from any other
FID below some thousand of them: compare models of one number of images only. A bootstrap, which
holds fewer different images, would be biased more, so there is no interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from raypref.core.ledger import Ledger
from raypref.evaluate import statistics

SIGMA = 10.0
SCALE = 1000.0


def reference_of(embedded: Ledger, pairs: Ledger | None) -> np.ndarray:
    """Embeddings of the images that are an example of what is wanted, [M, D].

    Of pairs those are all chosen images. Of single labelled images, which may be bad, those whose
    score is in the upper half of the range of all scores. Of holes those are all photographs.

    Args:
        embedded: the `embedding` of `chosen` of every pair, or of every photograph.
        pairs: the pairs, or single labelled images, which have a `score`; None for holes.
    """
    table = embedded.table(["embedding"])
    if pairs and pairs.state() == "complete" and "score" in pairs.schema().names:
        scored = pairs.table(["score"])
        lowest, highest = pc.min_max(scored["score"]).as_py().values()
        good = scored.filter(pc.field("score") >= (lowest + highest) / 2)
        table = table.filter(pc.field("id").isin(good["id"].combine_chunks()))
    return np.stack(table["embedding"].to_numpy())


def cmmd_summary(
    embeddings: pd.DataFrame,
    reference_MD: np.ndarray,
    *,
    base: str,
    resamples: int,
    seed: int = 0,
    metric: str = "cmmd",
) -> pd.DataFrame:
    """CMMD of every model to the reference, with intervals over prompts.

    Args:
        embeddings: one row per image: `model`, `prompt_id`, `embedding` (unit length).
        reference_MD: embeddings of the real images, of unit length.
        base: the model that gains are measured against (a negative gain is closer).
        resamples: bootstrap samples; the same prompts are drawn for every model.
        seed: of the bootstrap.
        metric: `cmmd`, or `cmmd_biased` for the authors' estimate.

    Returns:
        Rows with the columns `statistics.SUMMARY`. Values of `cmmd` are NaN for one prompt or one
        real image; the intervals also where a bootstrap sample can hold one prompt alone.
    """
    biased = metric == "cmmd_biased"
    prompts = np.unique(embeddings["prompt_id"].to_numpy())
    drawn_rn = statistics.draws(len(prompts), resamples, seed)
    draws_rn = np.vstack([np.ones(len(prompts)), drawn_rn])
    real = _mean_of_pairs(reference_MD, biased)
    values = {}
    counts = {}
    for model, part in embeddings.groupby("model", sort=False):
        places_B = np.searchsorted(prompts, part["prompt_id"].to_numpy())
        values[model] = _cmmd(_stacked(part), places_B, reference_MD, real, draws_rn, biased)
        counts[model] = len(part)
    rows = []
    for model, own in values.items():
        gain = own - values[base]
        of_gain = (np.nan,) * 3 if model == base else (gain[0], *statistics.percentiles(gain[1:]))
        interval = statistics.percentiles(own[1:])
        rows.append((model, metric, own[0], *interval, *of_gain, len(prompts), counts[model], 0))
    return pd.DataFrame(rows, columns=list(statistics.SUMMARY))


def fid_summary(embeddings: pd.DataFrame, reference_MD: np.ndarray, *, base: str) -> pd.DataFrame:
    """FID of every model to the reference, without intervals (see above).

    Args:
        embeddings: as for `cmmd_summary`.
        reference_MD: embeddings of the real images.
        base: the model that gains are measured against (a negative gain is closer).

    Returns:
        Rows with the columns `statistics.SUMMARY`, metric `fid`; NaN for one image or one real one.
    """
    parts = dict(iter(embeddings.groupby("model", sort=False)))
    values = {model: SCALE * frechet(_stacked(part), reference_MD) for model, part in parts.items()}
    nothing = (math.nan, math.nan)
    rows = [
        (
            *(model, "fid", value, *nothing),
            *(math.nan if model == base else value - values[base], *nothing),
            *(parts[model]["prompt_id"].nunique(), len(parts[model]), 0),
        )
        for model, value in values.items()
    ]
    return pd.DataFrame(rows, columns=list(statistics.SUMMARY))


def frechet(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """Squared Frechet distance of the normal distributions fitted to two sets of vectors.

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) with unbiased covariances. The root's trace
    is the sum of the singular values of A B^T for C_a = A^T A, C_b = B^T B: exact where a
    covariance is singular, which it is for fewer images than dimensions.
    """
    if min(len(a_ND), len(b_MD)) < 2:
        return math.nan
    mean_a, mean_b = a_ND.mean(0), b_MD.mean(0)
    factors = list(_factors((a_ND, mean_a), (b_MD, mean_b)))
    root = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    traces = sum(float((factor**2).sum()) for factor in factors)
    return float(((mean_a - mean_b) ** 2).sum() + traces - 2 * root)


def _factors(*sets: tuple[np.ndarray, np.ndarray]) -> Iterator[np.ndarray]:
    """A for each set, with A^T A its covariance and no more rows than columns."""
    for values_ND, mean_D in sets:
        centred_ND = (values_ND - mean_D) / math.sqrt(len(values_ND) - 1)
        if centred_ND.shape[0] > centred_ND.shape[1]:
            centred_ND = np.linalg.qr(centred_ND).R
        yield centred_ND


def _stacked(part: pd.DataFrame) -> np.ndarray:
    return np.stack(part["embedding"].to_list()).astype(np.float64)


def _cmmd(
    images_BD: np.ndarray,
    places_B: np.ndarray,
    reference_MD: np.ndarray,
    real: float,
    draws_rn: np.ndarray,
    biased: bool,
) -> np.ndarray:
    """CMMD of each draw of prompts, [r]: the images of prompt n count draws_rn[:, n] times.

    `real` is the mean of the kernel over pairs of real images, the same for every model.
    """
    count = draws_rn.shape[1]
    member_nB = (np.arange(count)[:, None] == places_B).astype(np.float64)
    among_nn = member_nB @ _kernel(images_BD, images_BD) @ member_nB.T
    sizes_n = member_nB.sum(1)
    pairs_nn = np.outer(sizes_n, sizes_n)
    for matrix in () if biased else (among_nn, pairs_nn):
        np.fill_diagonal(matrix, 0)
    across_n = member_nB @ _kernel(images_BD, reference_MD).mean(1)
    with np.errstate(invalid="ignore"):  # a draw of one prompt alone has no pairs: NaN
        own = _of_pairs(draws_rn, among_nn) / _of_pairs(draws_rn, pairs_nn)
    cross = (draws_rn @ across_n) / (draws_rn @ sizes_n)
    return SCALE * (own + real - 2 * cross)


def _mean_of_pairs(values_MD: np.ndarray, biased: bool) -> float:
    """The mean of the kernel over all pairs, or those of different vectors; NaN for no pair."""
    count = len(values_MD)
    if biased:
        return float(_kernel(values_MD, values_MD).mean())
    if count < 2:
        return math.nan
    kernel_MM = _kernel(values_MD, values_MD)
    return float((kernel_MM.sum() - np.trace(kernel_MM)) / (count * (count - 1)))


def _of_pairs(draws_rn: np.ndarray, values_nn: np.ndarray) -> np.ndarray:
    """The sum over pairs of prompts in each draw, [r]."""
    return np.einsum("rn,rn->r", draws_rn @ values_nn, draws_rn)


def _kernel(a_BD: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    # Unit length: |a - b|^2 = 2 - 2 a.b
    return np.exp(-(2 - 2 * a_BD @ b_MD.T) / (2 * SIGMA**2))
