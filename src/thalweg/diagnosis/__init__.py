"""Why a training does not do what it should: seen, tried, and said with how sure that is."""
