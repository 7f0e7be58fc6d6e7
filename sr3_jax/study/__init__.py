"""Studies of what people see: two-alternative forced choice, as in section 4.3 of the paper."""
