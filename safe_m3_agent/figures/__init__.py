"""Pictures of runs. Needs matplotlib (extra ``agent``).

:mod:`~safe_m3_agent.figures.run_sheets` draws one run, :mod:`~safe_m3_agent.figures.paper` the figures of arXiv 2306.17052 from
many.
"""

from safe_m3_agent.figures.fleet_sheets import fleet_pictures
from safe_m3_agent.figures.reliability import reliability
from safe_m3_agent.figures.run_sheets import learning_curve
from safe_m3_agent.figures.style import finite

__all__ = ["finite", "fleet_pictures", "learning_curve", "reliability"]
