from __future__ import annotations

from pathlib import Path

import pytest
from cyclopts import App

from ensemble.settings import DATA_EPOCHS, DEMO_EPOCHS, DistillSettings


@pytest.mark.parametrize(
    ("epochs", "is_demo", "expected"),
    [(None, False, DATA_EPOCHS), (None, True, DEMO_EPOCHS), (7, True, 7), (7, False, 7)],
)
def test_the_demo_set_gets_fewer_epochs(epochs: int | None, is_demo: bool, expected: int) -> None:
    settings = DistillSettings(run=Path("run"), epochs=epochs)
    assert settings.resolved_epochs(is_demo=is_demo) == expected


def test_the_flags_reproduce_the_settings() -> None:
    settings = DistillSettings(
        run=Path("run"),
        teachers="0001,0002",
        live_teacher=True,
        feature_weight=0.5,
        device="cpu",
        seed=0,
    )
    app = App()

    @app.default
    def read(*, settings: DistillSettings) -> DistillSettings:
        return settings

    flags = settings.flags()
    again = app(["--run", "run", "--device", "cpu", *flags], result_action="return_value")
    assert again == settings
    assert "--device" not in flags
