"""The leaderboard: reads run folders and what was contributed, ranks what is alike, and says how sure it is."""
