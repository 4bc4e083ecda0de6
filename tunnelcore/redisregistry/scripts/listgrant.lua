-- listgrant makes room in the list of grants for one more.
-- KEYS: grants
-- ARGV: id, ttl_ms, most
-- Reply: 1 listed; -1 there are as many as there may be.
local ends = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', ends, '-inf', now)
if not redis.call('ZSCORE', ends, ARGV[1]) and redis.call('ZCARD', ends) >= tonumber(ARGV[3]) then
    return -1
end
redis.call('ZADD', ends, string.format('%.0f', now + ARGV[2]), ARGV[1])
return 1
