"""Result codes: how a computation ended, reported by kernels that cannot raise."""

import diffrax


class RESULTS(diffrax.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """The codes of diffrax and those of learning dynamics."""

    reducible = (
        "The state chain became numerically reducible, so that the stationary distribution is not "
        "defined to working precision."
    )
    interrupted = "The computation was interrupted: what is returned was complete by then."
