"""Which samples go together, in which step, on which rank: pure functions of sizes and a seed."""
