"""The leaderboard: reads runs, ranks those that are alike, and says how sure the ranks are."""
