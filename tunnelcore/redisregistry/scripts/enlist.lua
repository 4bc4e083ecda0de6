-- enlist puts a node into the list of nodes.
-- KEYS: nodes
-- ARGV: id, ttl_ms, keep_ms
-- Reply: the ids of all nodes that were there within ttl_ms.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3])
return redis.call('ZRANGE', KEYS[1], now - ARGV[2], '+inf', 'BYSCORE')
