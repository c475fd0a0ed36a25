"""Review of suspected labels on a local page: session, server, decisions, cleaned data and exports."""
