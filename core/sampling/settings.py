"""All settings: those of the table, and those of a request as a whole; and the stages that they belong to."""

from __future__ import annotations

from core.sampling import table
from core.sampling.kinds import Count, Order
from core.sampling.setting import Flag, Setting

STAGES = {
    stage.name: stage
    for stage in sorted({entry.stage for entry in table.SAMPLERS if entry.stage}, key=lambda stage: stage.place)
}
"""By their names, in the order of their places."""

DEFAULT_ORDER = tuple(stage.name for stage in STAGES.values() if stage.processor is not None)
"""The names that ``Sampling.order`` is made of, in the default order."""

SETTINGS = {
    setting.name: setting
    for setting in (
        *table.SAMPLERS,
        Setting(
            "order",
            Order(DEFAULT_ORDER),
            default=DEFAULT_ORDER,
            flag=Flag("NAMES", "the order of all this, as names with commas between"),
        ),
        Setting("seed", Count(None, optional=True), default=None, flag=Flag("S", "repeat a generation", "-s")),
    )
}
"""By their names, in the order of the help."""

SWITCHES = {
    name: tuple(entry for entry in table.SAMPLERS if entry.stage == stage and entry.off is not None)
    for name, stage in STAGES.items()
}
"""Stage → the settings that say whether it has anything to do."""
