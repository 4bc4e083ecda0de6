-- notify leaves a notice about a device, with a mark above all others.
-- KEYS: revoked
-- ARGV: device, keep_ms
-- Reply: the mark.
local key = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local top = redis.call('ZRANGE', key, 0, 0, 'REV', 'WITHSCORES')
local mark = math.max(now, tonumber(top[2] or 0) + 1)
redis.call('ZADD', key, mark, ARGV[1])
redis.call('ZREMRANGEBYSCORE', key, '-inf', now - ARGV[2])
return string.format('%.0f', mark)
