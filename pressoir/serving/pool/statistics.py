"""What sharing saves: the figures of a service, by the names that its `/stats` gives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pressoir.serving.pool.model_handle import ModelHandle
from pressoir.serving.pool.pool_entry import PoolEntry
from pressoir.serving.pool.sharing import ModelSpec, Sharing


def statistics(sharing: Sharing, entries: Mapping[str, PoolEntry[ModelHandle]]) -> dict[str, Any]:
    """The sharing statistics.

    ============================  ==========================================================================
    shared_models_count           models that more than one tier uses
    total_model_types             tiers
    unique_models_loaded          models in memory now
    models_saved                  loads less than if each tier had its own model
    estimated_memory_saved_mb     sizes of the files that are not loaded again, MB = 10^6 bytes
    measured_memory_saved_mb      the same of the models in memory now, by the PSS that each takes
    shared_models_info            by model: users (tiers), loaded_at (UTC; null: not loaded), digest, pss_mb
                                  (0: not loaded), leases (requests that use it now)
    ============================  ==========================================================================
    """
    estimated = measured = 0
    info: dict[str, dict[str, Any]] = {}
    for name, model in labels(sharing).items():
        entry = entries.get(model.key)
        again = len(model.tiers) - 1
        estimated += again * model.size_bytes
        measured += again * (entry.pss_bytes if entry else 0)
        info[name] = {
            "users": list(model.tiers),
            "loaded_at": entry.loaded_at.isoformat(timespec="seconds") if entry else None,
            "digest": model.digest,
            "pss_mb": round(entry.pss_bytes / 1e6, 1) if entry else 0.0,
            "leases": entry.leases if entry else 0,
        }
    return {
        "shared_models_count": len(sharing.shared),
        "total_model_types": sharing.tiers,
        "unique_models_loaded": len(entries),
        "models_saved": sharing.loads_saved,
        "estimated_memory_saved_mb": round(estimated / 1e6, 1),
        "measured_memory_saved_mb": round(measured / 1e6, 1),
        "shared_models_info": info,
    }


def labels(sharing: Sharing) -> dict[str, ModelSpec]:
    """The models by name; where two have the same name, with the digest's beginning."""
    names = Counter(model.name for model in sharing.models)
    return {
        model.name if names[model.name] == 1 else f"{model.name}#{model.digest[:12]}/{model.runtime}": model
        for model in sharing.models
    }
