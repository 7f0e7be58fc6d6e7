"""Programs of aot_report: what is compiled, and the limits of the hardware."""
