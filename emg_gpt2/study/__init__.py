"""Comparisons and explanations: baselines, protocols, ablation, occlusion."""
