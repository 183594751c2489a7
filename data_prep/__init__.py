"""Sources of images → verified WebDataset and FFCV shards with one manifest; usable without the trainer."""
