"""Safe-M3-UCRL: safe model-based mean-field reinforcement learning for a fleet that must stay spread out."""

from safe_m3_agent.agent import SafeM3UCRL
from safe_m3_agent.callbacks import Callback, CallbackList, StopAfterSeconds, StopOnScore, WandbCallback
from safe_m3_agent.config import Config
from safe_m3_agent.history import Episode, History

__all__ = [
    "Config",
    "Episode",
    "History",
    "SafeM3UCRL",
    "Callback",
    "CallbackList",
    "StopAfterSeconds",
    "StopOnScore",
    "WandbCallback",
]
