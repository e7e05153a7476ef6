"""Channels are normalised as the weights' channels of the same name; nothing is taken for another kind of image."""

from stunet.plans.blueprints import of_size
from stunet.plans.known_input import KnownInput, normalize_as
from tests.loops import for_each

CT, Z, RESCALED = "CTNormalization", "ZScoreNormalization", "RescaleTo01Normalization"
STATISTICS = {"mean": 50.0, "std": 20.0, "percentile_00_5": -5.0, "percentile_99_5": 110.0}


def known(schemes: list[str] | None, channels: list[str] | None, masks: list[bool] | None = None) -> KnownInput:
    intensities = {str(i): {**STATISTICS, "mean": 50.0 + i} for i in range(len(schemes or ()))}
    return KnownInput(
        name="W", network=of_size("T"), normalization=schemes, channels=channels, masks=masks, intensities=intensities
    )


@for_each(
    ("schemes", "theirs", "ours", "expected", "means", "warned"),
    [
        ([CT], ["CT"], ["CT"], [CT], {"0": 50}, 0),
        ([CT], ["CT"], ["ct"], [CT], {"0": 50}, 0),
        ([CT], None, ["PET"], [CT], {"0": 50}, 0),  # nothing says what theirs is
        ([CT], ["CT"], ["image"], [CT], {"0": 50}, 0),
        ([CT], ["CT"], ["PET"], [Z], {}, 1),  # no intensities of CT for anything else
        ([CT], ["CT"], ["PET", "CT"], [Z, CT], {"1": 50}, 1),
        ([Z], ["T1"], ["T1", "T2", "FLAIR"], [Z, Z, Z], {}, 0),
        ([Z], None, ["CT"], [Z], {}, 0),  # as the published STU-Nets
        ([CT, Z], ["CT", "PET"], ["PET", "CT"], [Z, CT], {"1": 50}, 0),
        ([Z, CT], ["PET", "CT"], ["PET", "CT"], [Z, CT], {"1": 51}, 0),
        ([RESCALED, Z], None, ["a", "b", "c"], [Z, Z, Z], {}, 3),
        (None, None, ["CT"], [Z], {}, 1),
    ],
)
def test_each_channel_is_normalised_as_its_counterpart(
    schemes: list[str] | None, theirs: list[str] | None, ours: list[str], expected: list, means: dict, warned: int
) -> None:
    found = normalize_as(known(schemes, theirs), ours, [Z] * len(ours), [False] * len(ours))
    assert found.schemes == expected
    assert {channel: values["mean"] for channel, values in found.intensities.items()} == means
    assert len(found.warnings) == warned
    assert all("as without W" in text for text in found.warnings)


def test_the_mask_is_that_of_the_weights_where_the_scheme_is() -> None:
    found = normalize_as(known([Z, CT], ["T1", "CT"], [True, False]), ["CT", "T1", "X"], [CT, Z, Z], [False] * 3)
    assert found.masks == [False, True, False]
    assert normalize_as(known([Z], ["T1"]), ["T2"], [Z], [True]).masks == [True]


@for_each("lost", ["mean", "std", "percentile_99_5"])
def test_intensities_that_are_not_complete_are_those_of_the_dataset(lost: str) -> None:
    weights = known([CT], ["CT"])
    assert weights.intensities is not None
    for value in (None, 0.0 if lost == "std" else None):
        weights.intensities["0"][lost] = value  # type: ignore[index]
        found = normalize_as(weights, ["CT"], [CT], [False])
        assert found.schemes == [CT]
        assert found.intensities == {}
        assert found.warnings == [
            "W does not say by which intensities CT was normalised: those of the dataset are taken"
        ]
