"""Programs of aot_report: what is compiled, and the limits of the hardware."""

STEPS_OF_THE_PAPER = 1_000_000
