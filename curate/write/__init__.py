"""The files people take away: curated parts, dataset card, report, exports."""
