"""What one training worker does. torch.distributed only; Ray starts it, and tests do without."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dq_cluster.model.deepquan import DeepQuan, Output
from dq_cluster.model.fit import (
    batches,
    fit_anchors,
    fit_refine,
    learn_to_decode,
    make_optimizer,
    update_quantizer,
)
from dq_cluster.model.neighbours import Positives
from dq_cluster.model.step import training_loss
from dq_cluster.storage import Storage
from dq_cluster.training import parallel
from dq_cluster.training.checkpoint import (
    Checkpoint,
    OptimizerState,
    latest_checkpoint,
    save_checkpoint,
)

# Enough to draw the first centroids of every codebook from.
_SAMPLE = 16384
_BLOCK = 8192
# More rows change no decoder, and one worker trains it.
_DECODE_ROWS = 1 << 18

OnEpoch = Callable[[dict[str, Any]], None]


def train_epochs(
    network: DeepQuan,
    features: np.ndarray,
    positives: Positives,
    storage: Storage,
    *,
    seed: int,
    device: torch.device,
    on_epoch: OnEpoch = lambda metrics: None,
) -> None:
    """Train from the newest checkpoint on `storage` to the last epoch, a checkpoint after each.

    Every worker calls it alike. features (n, D) and positives are of all training rows and may
    be memory-mapped: a worker reads the rows of its share. on_epoch gets of each epoch the mean of
    each loss term (`terms`), `variance`, `perplexity`, `workers`, `seconds`, `samples_per_s` of all
    workers together, and `finished` (Unix time).
    """
    settings = network.settings
    steps = -(-len(features) // settings.batch_size)
    network.to(device)
    if device.type == "cuda":
        parallel.use_mixed_precision(network)
    optimizer, schedule = make_optimizer(network, settings, steps)
    done, history = 0, []
    checkpoint = latest_checkpoint(storage)
    if checkpoint is not None:
        network.load_state_dict(checkpoint.network)
        done, history = checkpoint.epoch, list(checkpoint.history)
        if checkpoint.optimizer is not None:
            checkpoint.optimizer.restore(optimizer, schedule)

    def look_up(rows: Tensor) -> Tensor:
        return torch.from_numpy(features[rows.numpy()]).to(device, torch.float32)

    def on_rows(rows: Tensor) -> Output:
        output: Output = network(look_up(rows))
        return output

    parallel.agree(network)
    all_rows = torch.arange(len(features))
    for epoch in range(done, settings.epochs):
        started = time.perf_counter()
        network.train()
        terms: list[dict[str, Tensor]] = []
        for batch in batches(all_rows, positives, settings.batch_size, seed=(seed, epoch)):
            batch = batch._replace(weights=batch.weights.to(device))
            share = parallel.share_of(len(batch.features))
            loss, of_batch = training_loss(on_rows, batch, settings, share)
            optimizer.zero_grad()
            parallel.backward(loss, network)
            optimizer.step()
            schedule.step()
            terms.append(of_batch)
        network.eval()
        parts = torch.stack([torch.stack(list(t.values())) for t in terms]).mean(0)
        means = dict(zip(terms[0], parallel.all_reduce(parts).tolist(), strict=True))
        metrics: dict[str, Any] = {"terms": means}
        metrics |= _fit_codebooks(network, look_up, len(features), epoch, seed)
        seconds = time.perf_counter() - started
        metrics |= {
            "workers": parallel.world_size(),
            "seconds": seconds,
            "samples_per_s": len(features) / seconds,
            "finished": time.time(),
        }
        history.append(metrics)
        if parallel.rank() == 0:
            state = OptimizerState.of(optimizer, schedule)
            save_checkpoint(storage, Checkpoint(epoch + 1, network.state_dict(), state, history))
        on_epoch(metrics)


def _fit_codebooks(
    network: DeepQuan,
    look_up: Callable[[Tensor], Tensor],
    rows: int,
    epoch: int,
    seed: int,
) -> dict[str, float]:
    """Fit the codebooks to the embeddings of all rows; this worker embeds its own share."""
    own = torch.arange(*parallel.own_range(rows))

    def sample(size: int = _SAMPLE) -> Tensor:
        picked = np.sort(np.random.default_rng(seed).permutation(rows)[:size])
        return _embed(network, look_up, torch.from_numpy(picked))

    summary = update_quantizer(
        network,
        _embed(network, look_up, own),
        epoch=epoch,
        seed=seed,
        all_reduce=parallel.all_reduce,
        sample=sample() if epoch == 0 else None,
    )
    parallel.agree(network)
    settings = network.settings
    if epoch + 1 == settings.epochs and (settings.score_aware or settings.refine_bits):
        drawn = sample()
        if settings.score_aware:
            fit_anchors(network, drawn, seed=seed)
        if settings.refine_bits:
            fit_refine(
                network,
                _embed(network, look_up, own),
                seed=seed,
                all_reduce=parallel.all_reduce,
                sample=drawn,
            )
        parallel.agree(network)
    if epoch + 1 == settings.epochs and settings.decode_hidden:
        if parallel.rank() == 0:
            learn_to_decode(network, sample(_DECODE_ROWS), seed=seed)
        parallel.agree(network)
    return summary


@torch.no_grad()
def _embed(network: DeepQuan, look_up: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    return torch.cat([network.embed(look_up(block)) for block in rows.split(_BLOCK)])
