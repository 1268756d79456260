"""Measures WISE without each of its parts: WISE (arXiv 2405.14768), tables 7 and 11, figure 12.

The paper's ablations (routing loss, random prefixes) stand beside those of what is done here and
not there (rewordings, contrasting prompts, rehearsal, a threshold above the background).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import bars
from command import run

from errata.analyses.context import AnalysisContext
from errata.methods.association.wise.config import WiseConfig


def find(context: AnalysisContext) -> dict[str, Any]:
    """Measure free answers after all edits, with all parts and without each one."""
    config = WiseConfig.from_dict(context.settings)
    return bars.beside(
        context,
        {
            "whole": config,
            "no routing loss": replace(
                config, scope_rows=1, contrast=0, alpha=0.0, beta=0.0, gamma=0.0
            ),
            "no prefixes": replace(config, prefixes=0),
            "no contrasting prompts": replace(config, contrast=0),
            "no rewordings": replace(config, rewordings=0),
            "no rehearsal": replace(config, rehearse=0),
            "the paper's threshold": replace(
                config, threshold_ratio=1.0, threshold_quantile=0.0, false_route=1.0
            ),
        },
    )


draw = bars.draw

if __name__ == "__main__":
    run(find, draw)
