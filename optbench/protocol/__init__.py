"""What is compared, on which budget: suites, points, the rule that selects one, the tuner."""
