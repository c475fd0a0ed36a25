"""Review of suspected labels in a local page: server, decisions, cleaned data and exports."""
