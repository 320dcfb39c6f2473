"""What is compared, on which budget: suites, the points that are tried, the rule that selects one, the tuner."""
