"""Results of many files: decoded ahead, written shard by shard, resumed, spread over a cluster."""
